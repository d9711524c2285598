"""Every network as a frozen description (Section 3.5, Figure 2), each a diff from another.

`paper` is the printed text. Where the text cannot be taken at its word (a 224-pixel picture, an
11-pixel kernel and a stride of 4 do not give 55), the geometry of the 2012 source decides.
`source` is that source's run 145, the net behind the paper's figures (`layers-145.cfg`). A layer
is its linear part and the steps that follow it, in order: the order is where the two differ.

Not here: the module that runs a description (`model.py`), and how it is trained (`recipes.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from alexnet.errors import UserError, suggest
from alexnet.layers import overhang


@dataclass(frozen=True)
class ResponseNorm:
    """Section 3.3. `alpha` multiplies the sum of the squares, as printed."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    per_column: bool = True


@dataclass(frozen=True)
class SpatialNorm:
    """The source's norm over size x size units of one map; `alpha` multiplies the sum."""

    size: int = 5
    alpha: float = 0.001 / 25
    beta: float = 0.75
    k: float = 1.0


@dataclass(frozen=True)
class Pool:
    """Section 3.4: windows of 3 every 2 pixels overlap."""

    kind: Literal["max", "avg"] = "max"
    size: int = 3
    stride: int = 2


@dataclass(frozen=True)
class Dropout:
    """Section 4.2. `inverted` scales in training instead of at test."""

    rate: float = 0.5
    inverted: bool = False


@dataclass(frozen=True)
class BatchNorm:
    """Not of 2012: each map to mean 0 and variance 1 over the minibatch, without gain and offset.

    Evaluation takes running averages. Here for the comparison with the norms of Section 3.3.
    """

    eps: float = 1e-5
    momentum: float = 0.1


Nonlinearity = Literal["relu", "tanh"]
Step = Nonlinearity | ResponseNorm | SpatialNorm | BatchNorm | Pool | Dropout


@dataclass(frozen=True)
class Conv:
    """A convolution of `maps` kernels, over all columns, and the steps after it.

    `joined` layers read the maps of every column, the others those of their own column only.
    `rounded_up` adds the zeros at the right and bottom that the last kernel needs. `std` is that
    of the initial weights; None leaves PyTorch's defaults for weights and biases.
    """

    name: str
    maps: int
    kernel: int
    then: tuple[Step, ...]
    stride: int = 1
    padding: int = 0
    joined: bool = False
    rounded_up: bool = False
    shared: bool = True
    std: float | None = 0.01
    bias: float = 0.0


@dataclass(frozen=True)
class Full:
    """A fully connected layer: it reads every unit of every column. `units` 0: one per class."""

    name: str
    units: int
    then: tuple[Step, ...]
    std: float | None = 0.01
    bias: float = 0.0


Layer = Conv | Full


@dataclass(frozen=True)
class Network:
    """A network: what it is, the picture it takes, and its layers.

    `input_std` divides the mean-subtracted 0..255 pixels, per colour (1: not at all).
    `lineage` says from which network it departs, and `source` where its choices come from.
    """

    name: str
    lineage: str
    source: str
    layers: tuple[Layer, ...]
    input_px: int = 224
    columns: int = 2
    input_std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @property
    def feature_layer(self) -> str:
        """The last hidden layer: the image signature of Section 6.1."""
        return self.layers[-2].name

    def picture_sizes(self) -> tuple[int, ...]:
        """Sides of the pictures that it takes, in pixels.

        Where conv1 overhangs a picture of 224 by three zeros, one of 227 that needs none will do.
        """
        first = self.layers[0]
        assert isinstance(first, Conv)
        extra = overhang(self.input_px, first.kernel, first.stride, first.padding)
        if not first.rounded_up or extra == 0:
            return (self.input_px,)
        return (self.input_px, self.input_px + extra)

    def layer(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UserError(
            f"network {self.name} has no layer {name!r}{suggest(name, self.layer_names)}"
        )

    def meets_before(self) -> tuple[str, ...]:
        """Layers before which the columns exchange their activations."""
        if self.columns == 1:
            return ()
        return tuple(
            layer.name for layer in self.layers[1:] if isinstance(layer, Full) or layer.joined
        )


@dataclass(frozen=True)
class LayerShape:
    """One layer at one input size: linear output (C, H, W) or (N,), counts per image."""

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    macs: int

    @property
    def neurons(self) -> int:
        return _product(self.output)


def trace(
    network: Network, num_classes: int = 1000, input_px: int | None = None
) -> list[LayerShape]:
    """Shapes, parameters and multiply-adds of each layer for one picture.

    Raises UserError where the picture is too small for the network.
    """
    shape: tuple[int, ...] = (3, *(2 * [input_px or network.input_px]))
    shapes = []
    for layer in network.layers:
        if isinstance(layer, Full):
            fan_in, units = _product(shape), layer.units or num_classes
            traced = LayerShape(layer.name, shape, (units,), (fan_in + 1) * units, fan_in * units)
        else:
            traced = _trace_conv(network, layer, shape)
        shapes.append(traced)
        shape = traced.output
        for step in layer.then:
            if isinstance(step, Pool):
                shape = (shape[0], *(pooled(px, step, network) for px in shape[1:]))
    return shapes


def groups(network: Network, layer: Conv) -> int:
    """Groups of a convolution when all columns run on one device."""
    return 1 if layer.joined else network.columns


def _trace_conv(network: Network, layer: Conv, shape: tuple[int, ...]) -> LayerShape:
    in_px = shape[1]
    extra = overhang(in_px, layer.kernel, layer.stride, layer.padding) if layer.rounded_up else 0
    out_px = (in_px + 2 * layer.padding + extra - layer.kernel) // layer.stride + 1
    if in_px + 2 * layer.padding < layer.kernel:
        raise UserError(f"pictures are too small for {layer.name} of network {network.name}")
    weights = layer.maps * (shape[0] // groups(network, layer)) * layer.kernel**2
    places = out_px**2
    parameters = weights + layer.maps if layer.shared else (weights + layer.maps) * places
    output = (layer.maps, out_px, out_px)
    return LayerShape(layer.name, shape, output, parameters, weights * places)


def pooled(in_px: int, pool: Pool, network: Network) -> int:
    """Output size of a pool: ceil((in - size) / stride) + 1."""
    if in_px < pool.size:
        raise UserError(f"pictures are too small for a pool of network {network.name}")
    return -(-(in_px - pool.size) // pool.stride) + 1


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


# --- Making one network from another ------------------------------------------------------------


def change(network: Network, layer_name: str, **fields: object) -> Network:
    """The network with some fields of one layer replaced."""
    layers = tuple(
        replace(layer, **fields) if layer.name == layer_name else layer  # type: ignore[arg-type]
        for layer in network.layers
    )
    assert layers != network.layers, f"{layer_name} is unchanged"
    return replace(network, layers=layers)


def map_steps(network: Network, function: Callable[[Step], Step | None]) -> Network:
    """The network with each step replaced by function(step), or left out where that is None."""
    layers = tuple(
        replace(
            layer,
            then=tuple(new for new in (function(step) for step in layer.then) if new is not None),
        )
        for layer in network.layers
    )
    return replace(network, layers=layers)


def without_layer(network: Network, layer_name: str) -> Network:
    """The network without one layer; a pool or a meeting of the columns that it held stays.

    So an ablation takes away depth and little else (Section 7): the layer before inherits the
    pool, the layer after reads what the missing one read. Without conv5, fc6 reads the 384 maps
    of conv4 instead of 256.
    """
    layers = list(network.layers)
    at = network.layer_names.index(layer_name)
    gone, before, after = layers[at], layers[at - 1], layers[at + 1]
    pools = tuple(step for step in gone.then if isinstance(step, Pool))
    layers[at - 1] = replace(before, then=before.then + pools)
    if isinstance(gone, Conv) and gone.joined and isinstance(after, Conv):
        layers[at + 1] = replace(after, joined=True)
    del layers[at]
    return replace(network, layers=tuple(layers))


def with_dropout(network: Network, convention: str) -> Network:
    """The network with its dropout "plain", "inverted" or "none", or "described": unchanged."""
    if convention == "described":
        return network
    if convention == "none":
        return map_steps(network, lambda step: None if isinstance(step, Dropout) else step)
    inverted = convention == "inverted"
    return map_steps(
        network,
        lambda step: replace(step, inverted=inverted) if isinstance(step, Dropout) else step,
    )


# --- The paper's networks -----------------------------------------------------------------------

_RELU_NORM_POOL: tuple[Step, ...] = ("relu", ResponseNorm(), Pool())
_HIDDEN: tuple[Step, ...] = ("relu", Dropout())

PAPER = Network(
    name="paper",
    lineage="",
    source="the printed text, Sections 3 to 5",
    layers=(
        Conv("conv1", 96, 11, _RELU_NORM_POOL, stride=4, joined=True, rounded_up=True),
        Conv("conv2", 256, 5, _RELU_NORM_POOL, padding=2, bias=1.0),
        Conv("conv3", 384, 3, ("relu",), padding=1, joined=True),
        Conv("conv4", 384, 3, ("relu",), padding=1, bias=1.0),
        Conv("conv5", 256, 3, ("relu", Pool()), padding=1, bias=1.0),
        Full("fc6", 4096, _HIDDEN, bias=1.0),
        Full("fc7", 4096, _HIDDEN, bias=1.0),
        Full("fc8", 0, ()),
    ),
)


def _ablation(name: str, source: str, network: Network) -> Network:
    return replace(network, name=name, lineage="paper", source=source)


def _drop_norms(step: Step) -> Step | None:
    return None if isinstance(step, ResponseNorm | SpatialNorm) else step


def _convs(network: Network) -> list[Conv]:
    return [layer for layer in network.layers if isinstance(layer, Conv)]


def _one_gpu(network: Network) -> Network:
    """Section 3.2: half of the kernels on one GPU, but the last convolution and fc whole."""
    for conv in _convs(network)[:-1]:
        network = change(network, conv.name, maps=conv.maps // 2)
    return replace(network, columns=1)


def _sixth_conv(network: Network) -> Network:
    """Section 6, "1 CNN*": a sixth convolution over the last pooling layer (run 146)."""
    last = _convs(network)[-1]
    name = f"conv{int(last.name.removeprefix('conv')) + 1}"
    extra = Conv(name, last.maps, 3, ("relu",), padding=1, joined=True, std=last.std, bias=1.0)
    at = network.layer_names.index(last.name) + 1
    return replace(network, layers=(*network.layers[:at], extra, *network.layers[at:]))


def _no_overlap(network: Network) -> Network:
    """Section 3.4: z = 2 in place of z = 3.

    Where a pooled map would then be larger, the convolution before it is padded by one less: the
    paddings of run 147, which give `paper` 55-28-26-13-13-13-11-6.
    """
    changed = map_steps(
        network, lambda step: replace(step, size=2) if isinstance(step, Pool) else step
    )
    for conv in _convs(network)[1:]:
        if _pooled_px(changed, conv.name) > _pooled_px(network, conv.name):
            changed = change(changed, conv.name, padding=conv.padding - 1)
    return changed


def _pooled_px(network: Network, layer_name: str) -> int:
    """Side of a convolution's maps after its pools."""
    shape = next(shape for shape in trace(network) if shape.name == layer_name)
    px = shape.output[1]
    for step in network.layer(layer_name).then:
        px = pooled(px, step, network) if isinstance(step, Pool) else px
    return px


def _tanh(network: Network) -> Network:
    """Section 3.1."""
    return map_steps(network, lambda step: "tanh" if step == "relu" else step)


def _no_conv2_norm(network: Network) -> Network:
    """Run 167: no norm of any kind over conv2."""
    then = tuple(step for step in network.layer("conv2").then if _drop_norms(step) is not None)
    return change(network, "conv2", then=then)


def _batch_norm(network: Network) -> Network:
    """Batch norm where response norms are, but before the ReLU: where its own paper has it."""
    for layer in network.layers:
        without = tuple(step for step in layer.then if _drop_norms(step) is not None)
        if without != layer.then:
            network = change(network, layer.name, then=(BatchNorm(), *without))
    return network


def _norm_first(network: Network) -> Network:
    """Finding 2: the norm of conv1 works on its linear output, the ReLU comes after the pool."""
    norm, pool, *_ = [step for step in network.layer("conv1").then if step != "relu"]
    return change(network, "conv1", then=(norm, pool, "relu"))


def _start(
    network: Network,
    *,
    conv3_to_5: float = 0.01,
    hidden: float = 0.01,
    bias: float = 1.0,
) -> Network:
    """Initial weights and biases in the manner of `paper`, at any width.

    A deviation is enlarged by the root of how much fewer inputs a unit has here than the unit of
    the same layer in `paper`, so that signals start at the scales that they have there.
    """
    paper_inputs = {shape.name: shape.macs // shape.neurons for shape in trace(PAPER)}
    layers: list[Layer] = []
    for layer, shape in zip(network.layers, trace(network), strict=True):
        std = {"conv3": conv3_to_5, "conv4": conv3_to_5, "conv5": conv3_to_5}.get(layer.name, 0.01)
        std = hidden if layer.name in ("fc6", "fc7") else std
        std *= (paper_inputs[layer.name] / (shape.macs // shape.neurons)) ** 0.5
        biased = layer.name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        layers.append(replace(layer, std=std, bias=bias if biased else 0.0))
    return replace(network, layers=tuple(layers))


def _source() -> Network:
    """Run 145 of the 2012 source; docs/fidelity.md goes through the findings about it."""
    norm = ResponseNorm(alpha=1e-4 / 5)
    network = replace(
        PAPER, name="source", lineage="paper", source="layers-145.cfg of the 2012 source"
    )
    network = change(network, "conv1", then=(norm, Pool(), "relu"))
    network = change(network, "conv2", then=("relu", norm, SpatialNorm(), Pool()))
    network = change(network, "conv5", then=(Pool(), "relu"))
    for name in ("conv3", "conv4", "conv5"):
        network = change(network, name, std=0.03)
    return network


# --- Other people's networks --------------------------------------------------------------------


def _caffe() -> Network:
    """BVLC's bvlc_alexnet: 227 pixels, k = 1, norms across both groups, biases 0.1."""
    norm = ResponseNorm(alpha=1e-4 / 5, k=1.0, per_column=False)
    network = map_steps(PAPER, lambda step: norm if isinstance(step, ResponseNorm) else step)
    network = with_dropout(network, "inverted")
    network = replace(
        network,
        name="caffe",
        lineage="paper",
        source="BVLC/caffe models/bvlc_alexnet/train_val.prototxt",
        input_px=227,
    )
    network = change(network, "conv1", rounded_up=False)
    for name in ("conv2", "conv4", "conv5"):
        network = change(network, name, bias=0.1)
    for name in ("fc6", "fc7"):
        network = change(network, name, bias=0.1, std=0.005)
    return network


def _caffenet() -> Network:
    """BVLC's bvlc_reference_caffenet: the pool before the norm, and biases of 1."""
    caffe = _caffe()
    network = replace(
        caffe,
        name="caffenet",
        lineage="caffe",
        source="BVLC/caffe models/bvlc_reference_caffenet/train_val.prototxt",
    )
    for name in ("conv1", "conv2"):
        relu, norm, pool = caffe.layer(name).then
        network = change(network, name, then=(relu, pool, norm))
    for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        network = change(network, name, bias=1.0)
    return network


def _torchvision() -> Network:
    """torchvision.models.alexnet: the one-column net of "One weird trick", 2014."""
    drop = Dropout(inverted=True)
    conv_relu: tuple[Step, ...] = ("relu",)
    conv_pool: tuple[Step, ...] = ("relu", Pool())
    return Network(
        name="torchvision",
        lineage="paper",
        source="torchvision/models/alexnet.py; Krizhevsky 2014, arXiv 1404.5997",
        columns=1,
        input_std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
        layers=(
            Conv("conv1", 64, 11, conv_pool, stride=4, padding=2, std=None),
            Conv("conv2", 192, 5, conv_pool, padding=2, std=None),
            Conv("conv3", 384, 3, conv_relu, padding=1, std=None),
            Conv("conv4", 256, 3, conv_relu, padding=1, std=None),
            Conv("conv5", 256, 3, (*conv_pool, drop), padding=1, std=None),
            Full("fc6", 4096, ("relu", drop), std=None),
            Full("fc7", 4096, ("relu",), std=None),
            Full("fc8", 0, (), std=None),
        ),
    )


# --- The source's CIFAR-10 networks: layers are numbered by depth, as the paper's are ------------

_AVG = Pool("avg")


def _cifar10(name: str, source: str, layers: tuple[Layer, ...], input_px: int = 32) -> Network:
    return Network(
        name=name, lineage="", source=source, layers=layers, input_px=input_px, columns=1
    )


def _cifar10_80sec() -> Network:
    return _cifar10(
        "cifar10-80sec",
        "example-layers/layers-80sec.cfg of the 2012 source",
        (
            Conv("conv1", 32, 5, (Pool(), "relu"), padding=2, std=0.0001),
            Conv("conv2", 32, 5, ("relu", _AVG), padding=2),
            Conv("conv3", 64, 5, ("relu", _AVG), padding=2),
            Full("fc4", 64, ("relu",), std=0.1),
            Full("fc5", 0, (), std=0.1),
        ),
    )


def _cifar10_18pct() -> Network:
    norm = SpatialNorm(size=3, alpha=5e-5 / 9)
    return _cifar10(
        "cifar10-18pct",
        "layers-cifar/layers-18pct.cfg of the 2012 source",
        (
            Conv("conv1", 32, 5, (Pool(), "relu", norm), padding=2, std=0.0001),
            Conv("conv2", 32, 5, ("relu", _AVG, norm), padding=2),
            Conv("conv3", 64, 5, ("relu", _AVG), padding=2),
            Full("fc4", 0, ()),
        ),
    )


def _cifar10_13pct() -> Network:
    return _cifar10(
        "cifar10-13pct",
        "example-layers/layers-conv-local-13pct.cfg of the 2012 source",
        (
            Conv("conv1", 64, 5, ("relu", Pool()), padding=2, std=0.0001),
            Conv("conv2", 64, 5, ("relu", Pool()), padding=2),
            Conv("local3", 32, 3, ("relu",), padding=1, shared=False, std=0.04),
            Conv("local4", 32, 3, ("relu",), padding=1, shared=False, std=0.04),
            Full("fc5", 0, ()),
        ),
        input_px=24,
    )


def _cifar10_11pct() -> Network:
    """13pct with response norms; cuda-convnet2's form, as the 2012 source does not hold it."""
    norm = ResponseNorm(size=9, alpha=0.001 / 9, k=1.0)
    network = replace(
        _cifar10_13pct(),
        name="cifar10-11pct",
        lineage="cifar10-13pct",
        source="layers-conv-local-11pct.cfg of cuda-convnet2",
    )
    network = change(network, "conv1", then=("relu", Pool(), norm))
    network = change(network, "conv2", then=("relu", norm, Pool()))
    return change(network, "local3", maps=64)


def _cifar10_figure1() -> Network:
    """Figure 1's "four-layer convolutional network"; the paper gives no sizes: run 19pct's."""
    return _cifar10(
        "cifar10-figure1",
        "Figure 1; sizes from example-layers/layers-19pct.cfg of the 2012 source",
        (
            Conv("conv1", 32, 5, ("relu", Pool()), padding=2, std=0.0001),
            Conv("conv2", 32, 5, ("relu", _AVG), padding=2),
            Conv("conv3", 64, 5, ("relu", _AVG), padding=2),
            Full("fc4", 0, ()),
        ),
    )


def _cifar10_figure1_tanh() -> Network:
    return replace(
        _tanh(_cifar10_figure1()),
        name="cifar10-figure1-tanh",
        lineage="cifar10-figure1",
        source="Figure 1",
    )


def _small() -> Network:
    """The paper's shape for 56-pixel pictures; weights scaled to their fan-in, those
    of the fully connected layers below it: larger ones overshoot in the first steps and wait an
    epoch at ln(classes). Trains in minutes on a CPU."""
    return Network(
        name="small",
        lineage="paper",
        source="this project",
        input_px=56,
        layers=(
            Conv("conv1", 32, 5, _RELU_NORM_POOL, stride=2, padding=2, joined=True, std=0.008),
            Conv("conv2", 64, 5, _RELU_NORM_POOL, padding=2, std=0.08),
            Conv("conv3", 96, 3, ("relu",), padding=1, joined=True, std=0.06),
            Conv("conv4", 96, 3, ("relu",), padding=1, std=0.07),
            Conv("conv5", 64, 3, ("relu", Pool()), padding=1, std=0.07),
            Full("fc6", 256, _HIDDEN, std=0.03),
            Full("fc7", 256, _HIDDEN, std=0.06),
            Full("fc8", 0, (), std=0.015),
        ),
    )


def _all_networks() -> dict[str, Network]:
    missing = [
        _ablation(f"no-{name}", "Section 7", without_layer(PAPER, name))
        for name in ("conv3", "conv4", "conv5", "fc6", "fc7")
    ]
    networks = [
        PAPER,
        _source(),
        _ablation("one-gpu", "Section 3.2 and its footnote; layers-145-half", _one_gpu(PAPER)),
        _ablation("sixth-conv", "Section 6; its size from layers-146.cfg", _sixth_conv(PAPER)),
        _ablation("no-lrn", "Section 3.3", map_steps(PAPER, _drop_norms)),
        _ablation("no-overlap", "Section 3.4; sizes from layers-147.cfg", _no_overlap(PAPER)),
        _ablation("tanh", "Section 3.1", _tanh(PAPER)),
        _ablation("no-dropout", "Section 4.2", with_dropout(PAPER, "none")),
        _ablation("no-columns", "Section 3.2", replace(PAPER, columns=1)),
        *missing,
        _caffe(),
        _caffenet(),
        _torchvision(),
        _cifar10_80sec(),
        _cifar10_18pct(),
        _cifar10_13pct(),
        _cifar10_11pct(),
        _cifar10_figure1(),
        _cifar10_figure1_tanh(),
        _small(),
    ]
    return {network.name: network for network in networks}


NETWORKS: dict[str, Network] = _all_networks()


# One change each, of any network that has what it is about: "small/no-lrn" is `small` without
# norms, and "small/28px/no-lrn" is that for pictures of 28 pixels.
ABLATIONS: dict[str, Callable[[Network], Network]] = {
    "no-lrn": partial(map_steps, function=_drop_norms),
    "no-conv2-norm": _no_conv2_norm,
    "batch-norm": _batch_norm,
    "norm-first": _norm_first,
    "no-overlap": _no_overlap,
    "tanh": _tanh,
    "one-gpu": _one_gpu,
    "no-columns": partial(replace, columns=1),
    "sixth-conv": _sixth_conv,
    **{
        f"no-{name}": partial(without_layer, layer_name=name)
        for name in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    },
    "paper-start": _start,
    "source-start": partial(_start, conv3_to_5=0.03),
    "caffe-start": partial(_start, hidden=0.005, bias=0.1),
    "unit-input": partial(replace, input_std=(58.0, 58.0, 58.0)),  # a deviation of about 1
    "28px": lambda network: replace(change(network, "conv1", stride=1), input_px=28),
}


def find_network(name: str) -> Network:
    """A network by its name, or one with ablations: "paper/no-overlap/tanh".

    Raises UserError, naming the nearest, for an unknown name, and for an ablation of what the
    network does not have.
    """
    base, *ablations = name.split("/")
    if base not in NETWORKS:
        raise UserError(f"no network {base!r}{suggest(base, NETWORKS)}")
    network = NETWORKS[base]
    for ablation in ablations:
        if ablation not in ABLATIONS:
            raise UserError(f"no ablation {ablation!r} of networks{suggest(ablation, ABLATIONS)}")
        try:
            network = ABLATIONS[ablation](network)
        except (AssertionError, LookupError, ValueError):
            raise UserError(f"network {base} has nothing that {ablation} could change") from None
    if not ablations:
        return network
    return replace(network, name=name, lineage=base, source=f"{base}, {' and '.join(ablations)}")
