"""Whole networks: forward passes against independent compositions, gradients, initial weights.

The stage order of `paper` and `source` is held twice, by float64 loops on a tiny version and by a
composition of `torch.nn.functional` at full size; each other network by the same composition with
what its name says changed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

import alexnet
import oracles
from alexnet.errors import UserError
from alexnet.model import AlexNet, build
from alexnet.networks import NETWORKS, Full, Network, trace

NUM_CLASSES = 7


def pictures(count: int, side_px: int, seed: int = 0) -> Tensor:
    """Mean-subtracted pixels on the 0..255 scale."""
    generator = torch.Generator().manual_seed(seed)
    return 60 * torch.randn(count, 3, side_px, side_px, generator=generator)


# -- every network, at its own size


@pytest.fixture(scope="module", params=list(NETWORKS))
def model(request: pytest.FixtureRequest) -> AlexNet:
    """One network at a time, fresh: the tests that use it leave its weights alone."""
    return build(request.param, NUM_CLASSES, torch.Generator().manual_seed(0))


def own_pictures(model: AlexNet) -> Tensor:
    """Two pictures of the size and on the scale that the network takes."""
    images = pictures(2, model.network.input_px)
    return images / torch.tensor(model.network.input_std)[:, None, None]


def test_every_parameter_gets_a_gradient(model: AlexNet) -> None:
    model.train()
    model.dropout_generator = torch.Generator().manual_seed(0)
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(own_pictures(model)), torch.tensor([0, 5])).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    without = [name for name, gradient in gradients.items() if gradient is None]
    assert not without, f"no gradient for {without}"
    largest = {name: float(g.abs().max()) for name, g in gradients.items() if g is not None}
    wrong = {name: g for name, g in largest.items() if not 0 < g < float("inf")}
    assert not wrong, f"largest gradient: {wrong}"
    model.zero_grad(set_to_none=True)


def test_features_are_the_named_layers_after_their_nonlinearity(model: AlexNet) -> None:
    model.eval()
    images = own_pictures(model)
    network = model.network
    with torch.no_grad():
        logits = model(images)
        after = model.activations(images)
        linear = model.features(images, model.layer_names[0], before_relu=True)
        signature = model.features(images)
    assert logits.shape == (2, NUM_CLASSES)
    assert bool(logits.isfinite().all())
    assert tuple(after) == model.layer_names
    assert_array_equal(after[model.layer_names[-1]], logits)
    assert_array_equal(signature, after[network.feature_layer])
    assert float(linear.min()) < 0 < float(linear.max())
    for shape in trace(network, NUM_CLASSES)[:-1]:
        values = after[shape.name]
        pooled_first = network.name == "source" and shape.name in ("conv1", "conv5")
        pooled_first |= network.name in ("cifar10-80sec", "cifar10-18pct") and shape.name == "conv1"
        if not pooled_first:
            assert values.shape == (2, *shape.output), shape.name
        assert bool(values.isfinite().all()), shape.name
        if network.name in ("tanh", "cifar10-figure1-tanh"):
            assert float(values.abs().max()) <= 1, f"{shape.name} is no tanh"
            if shape.name == "conv1":  # the others may be all positive, with their biases of 1
                assert float(values.min()) < 0, "conv1 has no negative value"
        else:
            assert float(values.min()) >= 0, f"{shape.name}: {float(values.min())}"
            assert float(values.max()) > 0, f"{shape.name} is dead"


# Standard deviations and biases that are not N(0, 0.01) and 0, network by network.
PAPER_BIASES = dict.fromkeys(["conv2", "conv4", "conv5", "conv6", "fc6", "fc7"], 1.0)
CAFFE_BIASES = dict.fromkeys(["conv2", "conv4", "conv5", "fc6", "fc7"], 0.1)
CAFFE_STDS = {"fc6": 0.005, "fc7": 0.005}
STDS: dict[str, dict[str, float]] = {
    "source": dict.fromkeys(["conv3", "conv4", "conv5"], 0.03),
    "caffe": CAFFE_STDS,
    "caffenet": CAFFE_STDS,
    "cifar10-80sec": {"conv1": 0.0001, "fc4": 0.1, "fc5": 0.1},
    "cifar10-18pct": {"conv1": 0.0001},
    "cifar10-13pct": {"conv1": 0.0001, "local3": 0.04, "local4": 0.04},
    "cifar10-11pct": {"conv1": 0.0001, "local3": 0.04, "local4": 0.04},
    "cifar10-figure1": {"conv1": 0.0001},
    "cifar10-figure1-tanh": {"conv1": 0.0001},
}


def stated_std(network: Network, layer: str) -> float:
    if network.name == "small":  # ours: the description is the statement
        return network.layer(layer).std or 0.0
    return STDS.get(network.name, {}).get(layer, 0.01)


def stated_bias(network: Network, layer: str) -> float:
    if network.name == "caffe":
        return CAFFE_BIASES.get(layer, 0.0)
    if network.name.startswith("cifar10") or network.name == "small":
        return 0.0
    return PAPER_BIASES.get(layer, 0.0)


def assert_normal(sample: Tensor, std: float, name: str) -> None:
    """Mean, standard deviation and tails of N(0, std), to five standard errors."""
    values = sample.flatten()
    values = values[:: max(1, len(values) // 500_000)].double()
    count = len(values)
    mean, measured = float(values.mean()), float(values.std())
    assert abs(mean) < 5 * std / count**0.5, f"{name}: mean {mean:.2e} of N(0, {std})"
    assert abs(measured / std - 1) < 5 / (2 * count) ** 0.5, (
        f"{name}: std {measured:.5f}, not {std}"
    )
    beyond = float((values.abs() > 2 * std).double().mean())
    assert abs(beyond - 0.0455) < 5 * (0.0455 / count) ** 0.5, f"{name}: {beyond:.4f} beyond 2 std"


def test_initial_weights_have_the_stated_deviations_and_biases(model: AlexNet) -> None:
    if model.name == "torchvision":
        pytest.skip("torchvision's own initial weights have a test of their own")
    for layer in model.layer_names:
        parameters = dict(model.get_submodule(layer).named_parameters())
        assert_normal(parameters["weight"].detach(), stated_std(model.network, layer), layer)
        biases = parameters["bias"].detach().unique().tolist()
        assert biases == pytest.approx([stated_bias(model.network, layer)]), f"{layer}: {biases}"


def test_torchvisions_initial_weights_are_uniform_within_its_bound() -> None:
    ours = build("torchvision", NUM_CLASSES, torch.Generator().manual_seed(0))
    for layer in ours.layer_names:
        module = ours.get_submodule(layer)
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        bound = parameters["weight"][0].numel() ** -0.5  # torch: kaiming_uniform(a=sqrt(5))
        for kind, values in parameters.items():
            measured = float(values.abs().max())
            slack = 1 - 20 / values.numel()
            assert bound * slack <= measured <= bound * (1 + 1e-6), f"{layer}.{kind}: {measured}"
        std = float(parameters["weight"].std()) * 3**0.5 / bound
        assert abs(std - 1) < 0.02, f"{layer}: {std} of the uniform's deviation"


@pytest.mark.parametrize("name", ["small", "cifar10-13pct"])
def test_a_seed_decides_the_weights_and_nothing_else_does(name: str) -> None:
    def weights(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        built = build(name, NUM_CLASSES, torch.Generator().manual_seed(seed))
        return torch.cat([p.detach().flatten() for p in built.parameters()])

    first = weights(3, 0)
    assert_array_equal(first, weights(3, 1))
    agreement = float((first == weights(4, 0)).double().mean())
    assert agreement < 0.05, f"seeds 3 and 4 share {agreement:.2f} of the weights (and biases)"


def test_layers_do_not_share_their_draws() -> None:
    built = build("small", NUM_CLASSES, torch.Generator().manual_seed(0))
    heads = [p.flatten()[:100] / p.std() for n, p in built.named_parameters() if "weight" in n]
    for i, head in enumerate(heads):
        for j in range(i):
            correlation = float(torch.corrcoef(torch.stack([head, heads[j]]).detach())[0, 1])
            assert abs(correlation) < 0.5, f"layers {j} and {i}: {correlation:.2f}"


# -- tiny versions against float64 loops

TINY_MAPS = {"conv1": 8, "conv2": 12, "conv3": 8, "conv4": 12, "conv5": 8, "conv6": 4}
TINY_MAPS |= {"local3": 4, "local4": 6}


def tiny(name: str, input_px: int | None = None) -> AlexNet:
    """The network with few kernels, in float64, and weights that let every norm and bias matter."""
    network = NETWORKS[name]
    layers = tuple(
        replace(layer, units=min(layer.units, 10))
        if isinstance(layer, Full)
        else replace(layer, maps=TINY_MAPS[layer.name])
        for layer in network.layers
    )
    network = replace(network, layers=layers, input_px=input_px or network.input_px)
    small = AlexNet(network, NUM_CLASSES).double().eval()
    generator = torch.Generator().manual_seed(0)
    for shape in small.shapes.values():
        module = small.get_submodule(shape.name)
        fan_in = shape.macs // shape.neurons
        gain = 1.0 if shape.name == "conv1" else 3.0
        torch.nn.init.normal_(module.weight, 0.0, gain * fan_in**-0.5, generator=generator)
        torch.nn.init.normal_(module.bias, 0.0, 5.0, generator=generator)
    return small


def tiny_pictures(model: AlexNet, count: int = 2) -> Tensor:
    images = pictures(count, model.network.input_px).double()
    return images / torch.tensor(model.network.input_std, dtype=torch.float64)[:, None, None]


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", ["paper", "source"])
def test_a_tiny_network_is_the_float64_loops_of_its_text(name: str) -> None:
    model = tiny(name, input_px=96)  # 96 -> 23 (3 px overhang) -> 11 -> 5 -> 2
    images = tiny_pictures(model)
    weights = {
        layer: (
            model.get_submodule(layer).weight.detach().numpy(),
            model.get_submodule(layer).bias.detach().numpy(),
        )
        for layer in model.layer_names
    }
    loops = {"paper": oracles.paper_logits, "source": oracles.source_logits}
    expected = np.stack([loops[name](image.numpy(), weights) for image in images])
    with torch.no_grad():
        computed = model(images).numpy()
    assert_allclose(computed, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    other = loops["source" if name == "paper" else "paper"](images[0].numpy(), weights)
    difference = np.abs(other - expected[0]).max() / np.abs(expected).max()
    assert difference > 0.05, f"the two texts are only {difference:.3f} apart here"


# -- compositions of torch.nn.functional

Layer = Callable[[str, Tensor], Tensor]


def lrn(x: Tensor, *, alpha: float, k: float, size: int = 5, columns: int = 1) -> Tensor:
    """alpha as torch has it: divided by the window."""
    halves = [F.local_response_norm(h, size, alpha, 0.75, k) for h in x.chunk(columns, 1)]
    return torch.cat(halves, 1)


def spatial(x: Tensor, scale: float, size: int) -> Tensor:
    mean = F.avg_pool2d(x * x, size, 1, size // 2, count_include_pad=True)
    return x / (1 + scale * mean) ** 0.75


def weights_of(model: AlexNet) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def paper_composition(
    images: Tensor,
    w: dict[str, Tensor],
    *,
    nonlinearity: Callable[[Tensor], Tensor] = F.relu,
    normed: bool = True,
    pool_px: int = 3,
    conv2_padding: int = 2,
    conv5_padding: int = 1,
    drop: float = 0.5,
    columns: int = 2,
    without: str = "",
    conv6: bool = False,
) -> Tensor:
    """Section 3.5, with what an ablation changes as an argument."""
    act = nonlinearity
    norm = partial(lrn, alpha=5e-4, k=2.0, columns=columns) if normed else torch.clone
    pool = partial(F.max_pool2d, kernel_size=pool_px, stride=2, ceil_mode=True)

    def conv(name: str, x: Tensor, **how: int) -> Tensor:
        if name == without:
            return x
        return act(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how))

    def full(name: str, x: Tensor) -> Tensor:
        if name == without:
            return x
        return drop * act(F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]))

    x = F.pad(images, (0, 3, 0, 3))
    x = pool(norm(conv("conv1", x, stride=4)))
    x = pool(norm(conv("conv2", x, padding=conv2_padding, groups=columns)))
    x = conv("conv3", x, padding=1)
    x = conv("conv4", x, padding=1, groups=1 if without == "conv3" else columns)
    x = pool(conv("conv5", x, padding=conv5_padding, groups=columns))
    if conv6:
        x = conv("conv6", x, padding=1)
    x = full("fc7", full("fc6", x.flatten(1)))
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def source_composition(images: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Run 145: layers-145.cfg from top to bottom."""
    norm = partial(lrn, alpha=1e-4, k=2.0, columns=2)
    x = F.conv2d(F.pad(images, (0, 3, 0, 3)), w["conv1.weight"], w["conv1.bias"], 4)
    x = F.relu(F.max_pool2d(norm(x), 3, 2))
    x = norm(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=2, groups=2)))
    x = F.max_pool2d(spatial(x, 0.001, 5), 3, 2)
    x = F.relu(F.conv2d(x, w["conv3.weight"], w["conv3.bias"], padding=1))
    x = F.relu(F.conv2d(x, w["conv4.weight"], w["conv4.bias"], padding=1, groups=2))
    x = F.conv2d(x, w["conv5.weight"], w["conv5.bias"], padding=1, groups=2)
    x = F.relu(F.max_pool2d(x, 3, 2)).flatten(1)
    x = 0.5 * F.relu(F.linear(x, w["fc6.weight"], w["fc6.bias"]))
    x = 0.5 * F.relu(F.linear(x, w["fc7.weight"], w["fc7.bias"]))
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def caffe_composition(images: Tensor, w: dict[str, Tensor], *, pool_first: bool) -> Tensor:
    """bvlc_alexnet, or bvlc_reference_caffenet with the pool before the norm."""
    norm = partial(lrn, alpha=1e-4, k=1.0)  # across both groups

    def stage(x: Tensor) -> Tensor:
        x = F.relu(x)
        return norm(F.max_pool2d(x, 3, 2)) if pool_first else F.max_pool2d(norm(x), 3, 2)

    x = stage(F.conv2d(images, w["conv1.weight"], w["conv1.bias"], 4))
    x = stage(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=2, groups=2))
    x = F.relu(F.conv2d(x, w["conv3.weight"], w["conv3.bias"], padding=1))
    x = F.relu(F.conv2d(x, w["conv4.weight"], w["conv4.bias"], padding=1, groups=2))
    x = F.relu(F.conv2d(x, w["conv5.weight"], w["conv5.bias"], padding=1, groups=2))
    x = F.max_pool2d(x, 3, 2).flatten(1)
    x = F.relu(F.linear(x, w["fc6.weight"], w["fc6.bias"]))
    x = F.relu(F.linear(x, w["fc7.weight"], w["fc7.bias"]))
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def cifar10_composition(
    images: Tensor,
    w: dict[str, Tensor],
    *,
    nonlinearity: Callable[[Tensor], Tensor] = F.relu,
    normed: bool = False,
) -> Tensor:
    """80sec, 18pct (normed) and 19pct: three convolutions, max, average and average pools."""
    act = nonlinearity
    norm = partial(spatial, scale=5e-5, size=3) if normed else torch.clone
    average = partial(F.avg_pool2d, kernel_size=3, stride=2, ceil_mode=True)

    def conv(name: str, x: Tensor) -> Tensor:
        return act(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=2))

    x = norm(F.max_pool2d(conv("conv1", images), 3, 2, ceil_mode=True))
    x = norm(average(conv("conv2", x)))
    x = average(conv("conv3", x)).flatten(1)
    x = F.linear(x, w["fc4.weight"], w["fc4.bias"])
    return F.linear(F.relu(x), w["fc5.weight"], w["fc5.bias"]) if "fc5.weight" in w else x


def local_composition(images: Tensor, w: dict[str, Tensor], *, normed: bool) -> Tensor:
    """13pct; normed: cuda-convnet2's 11pct, the norm after pool1 and before pool2."""
    norm = partial(lrn, size=9, alpha=0.001, k=1.0) if normed else torch.clone
    pool = partial(F.max_pool2d, kernel_size=3, stride=2, ceil_mode=True)

    def local(name: str, x: Tensor) -> Tensor:
        weight, bias = (
            w[f"{name}.weight"],
            w[f"{name}.bias"],
        )  # (places, out, fan_in), (places, out)
        padded, side = F.pad(x, (1, 1, 1, 1)), x.shape[-1]
        y = torch.empty(len(x), weight.shape[1], side, side, dtype=x.dtype)
        for place in range(side * side):
            row, column = divmod(place, side)
            seen = padded[:, :, row : row + 3, column : column + 3].flatten(1)
            y[:, :, row, column] = seen @ weight[place].T + bias[place]
        return F.relu(y)

    x = F.relu(F.conv2d(images, w["conv1.weight"], w["conv1.bias"], padding=2))
    x = norm(pool(x))
    x = F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=2))
    x = local("local4", local("local3", pool(norm(x)))).flatten(1)
    return F.linear(x, w["fc5.weight"], w["fc5.bias"])


Composition = Callable[[Tensor, dict[str, Tensor]], Tensor]
COMPOSITIONS: dict[str, Composition] = {
    "paper": paper_composition,
    "source": source_composition,
    "one-gpu": partial(paper_composition, columns=1),
    "sixth-conv": partial(paper_composition, conv6=True),
    "no-lrn": partial(paper_composition, normed=False),
    "no-overlap": partial(paper_composition, pool_px=2, conv2_padding=1, conv5_padding=0),
    "tanh": partial(paper_composition, nonlinearity=torch.tanh),
    "no-dropout": partial(paper_composition, drop=1.0),
    "no-columns": partial(paper_composition, columns=1),
    **{f"no-{layer}": partial(paper_composition, without=layer)
       for layer in ("conv3", "conv4", "conv5", "fc6", "fc7")},
    "caffe": partial(caffe_composition, pool_first=False),
    "caffenet": partial(caffe_composition, pool_first=True),
    "cifar10-80sec": cifar10_composition,
    "cifar10-18pct": partial(cifar10_composition, normed=True),
    "cifar10-13pct": partial(local_composition, normed=False),
    "cifar10-11pct": partial(local_composition, normed=True),
    "cifar10-figure1": cifar10_composition,
    "cifar10-figure1-tanh": partial(cifar10_composition, nonlinearity=torch.tanh),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_network_with_few_kernels_is_the_composition_of_its_text(name: str) -> None:
    model = tiny(name)
    images = tiny_pictures(model)
    with torch.no_grad():
        computed = model(images)
    difference = apart(computed, COMPOSITIONS[name](images, weights_of(model)))
    assert difference < 1e-11, f"{difference:.1e} of the largest logit"


@pytest.mark.parametrize("name", ["paper", "source"])
def test_the_full_network_is_the_composition_of_its_text(name: str) -> None:
    model = build(name, NUM_CLASSES, torch.Generator().manual_seed(0)).eval()
    images = pictures(1, 224)
    with torch.no_grad():
        single = model(images)
        computed = model.double()(images.double())
    expected = COMPOSITIONS[name](images.double(), weights_of(model))
    assert apart(computed, expected) < 1e-11
    assert apart(single.double(), expected) < 1e-4, "in float32"
    other = COMPOSITIONS["source" if name == "paper" else "paper"](
        images.double(), weights_of(model)
    )
    assert apart(other, expected) > 1e-6, "the two texts should differ here"


def test_torchvisions_weights_give_torchvisions_logits() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(weights=None, num_classes=1000).eval()
    ours = build("torchvision").eval()
    state = theirs.state_dict()
    keys = list(state)
    ours.load_state_dict(state)
    assert list(state) == keys, "the caller's dictionary was changed"
    images = pictures(2, 224) / (255 * 0.226)
    with torch.no_grad():
        computed, expected = ours(images), theirs(images)
    difference = float((computed - expected).abs().max())
    assert difference <= 1e-6, f"logits differ by {difference:.1e}"
    assert float(expected.abs().max()) > 1e-3


def test_a_torchvision_state_dict_with_a_missing_layer_is_refused() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        state = torchvision.models.alexnet(weights=None, num_classes=10).state_dict()
        ours = AlexNet(NETWORKS["torchvision"], 10)
    del state["classifier.6.bias"]
    with pytest.raises(RuntimeError, match=r"fc8\.bias"):
        ours.load_state_dict(state, assign=True)


# -- columns


@pytest.mark.parametrize(
    ("changed", "blind", "seeing"),
    [
        ("conv1", ("conv2",), ("conv3", "fc6")),
        ("conv2", (), ("conv3", "conv4", "fc6")),
        ("conv3", ("conv4", "conv5"), ("fc6",)),
        ("conv4", ("conv5",), ("fc6", "fc7")),
        ("conv5", (), ("fc6",)),
    ],
)
@pytest.mark.parametrize("name", ["paper", "source"])
@pytest.mark.parametrize("column", [0, 1])
def test_columns_do_not_see_one_another_in_conv2_conv4_and_conv5(
    name: str, column: int, changed: str, blind: tuple[str, ...], seeing: tuple[str, ...]
) -> None:
    model = tiny(name, input_px=96)
    images = tiny_pictures(model)
    with torch.no_grad():
        before = model.activations(images)
        module = model.get_submodule(changed)
        module.weight.chunk(2)[column].mul_(-1.5)
        after = model.activations(images)
    for layer in (changed, *blind):
        own, other = (
            (after[layer].chunk(2, 1)[c] - before[layer].chunk(2, 1)[c])
            for c in (column, 1 - column)
        )
        assert float(other.abs().max()) == 0, f"{layer} of column {1 - column} saw column {column}"
        assert float(own.abs().max()) > 0, f"{layer} of column {column} did not change"
    for layer in seeing:
        half = after[layer].chunk(2, 1)[1 - column] - before[layer].chunk(2, 1)[1 - column]
        assert float(half.abs().max()) > 0, f"{layer} of column {1 - column} saw nothing"


def test_without_columns_every_kernel_sees_every_map() -> None:
    model = tiny("no-columns", input_px=96)
    images = tiny_pictures(model)
    with torch.no_grad():
        before = model.features(images, "conv2", before_relu=True)
        model.get_submodule("conv1").weight.chunk(2)[1].mul_(-1.5)
        after = model.features(images, "conv2", before_relu=True)
    changed = (before != after).flatten(2).any(2).any(0)
    assert bool(changed.all()), f"kernels that saw it: {changed.tolist()}"


# -- pictures of other sizes, and what is no picture


@pytest.mark.parametrize("name", ["paper", "source"])
def test_a_picture_of_227_gives_55_and_the_zeros_of_224_are_its_overhang(name: str) -> None:
    model = tiny(name)
    images = tiny_pictures(model)
    larger = F.pad(images, (0, 3, 0, 3))
    with torch.no_grad():
        for size in (images, larger):
            assert model.features(size, "conv1", before_relu=True).shape[2:] == (55, 55)
        assert_array_equal(model(images), model(larger))


WRONG: dict[str, Tensor] = {
    "too large": torch.zeros(1, 3, 256, 256),
    "too small": torch.zeros(1, 3, 64, 64),
    "far too small": torch.zeros(1, 3, 8, 8),
    "one channel": torch.zeros(1, 1, 224, 224),
    "channels last": torch.zeros(1, 224, 224, 3),
    "no batch": torch.zeros(3, 224, 224),
    "bytes": torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_the_network_cannot_take_is_refused_in_one_clear_line(what: str) -> None:
    model = tiny("paper").float()
    with pytest.raises(UserError, match="paper") as raised, torch.no_grad():
        model(WRONG[what])
    assert "\n" not in str(raised.value)


def test_the_locally_connected_network_refuses_another_size() -> None:
    model = tiny("cifar10-13pct").float()
    with pytest.raises(UserError, match="24"), torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))


def test_an_unknown_layer_is_answered_with_the_nearest() -> None:
    model = tiny("paper")
    with pytest.raises(UserError, match="fc7"):
        model.features(tiny_pictures(model), "fc_7")


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_a_network_of_fewer_than_two_classes_is_refused(num_classes: int) -> None:
    with pytest.raises(UserError, match=str(num_classes)):
        build("small", num_classes)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UserError, match="paper"):
        alexnet.build("papr")


# -- dropout inside a network


def inputs_of(model: AlexNet, layer: str, images: Tensor) -> Tensor:
    """What reaches a layer in one pass, in the mode that the model is in."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach())
    )
    model(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "in_training", "at_test"),
    [("paper", 1.0, 0.5), ("source", 1.0, 0.5), ("caffe", 2.0, 1.0)],
)
def test_dropout_masks_fc6_and_fc7_only_in_the_convention_of_its_network(
    name: str, in_training: float, at_test: float
) -> None:
    model = tiny(name)
    images = tiny_pictures(model, 8)
    for layer, after in (("fc6", "fc7"), ("fc7", "fc8")):
        model.eval()
        assert_allclose(
            inputs_of(model, after, images), at_test * model.features(images, layer).detach()
        )
        model.train()
        model.dropout_generator = torch.Generator().manual_seed(0)
        unmasked = model.features(images, layer).detach()
        model.dropout_generator = torch.Generator().manual_seed(0)
        masked = inputs_of(model, after, images)
        alive = unmasked != 0
        kept = (masked != 0)[alive]
        assert 0.2 < float(kept.double().mean()) < 0.8, f"{layer}: kept {kept.double().mean():.2f}"
        assert_allclose(masked[alive][kept], in_training * unmasked[alive][kept])
    model.eval()
    before = inputs_of(model, "fc6", images)
    model.train()
    assert_array_equal(
        before, inputs_of(model, "fc6", images), err_msg="conv layers have no dropout"
    )


def test_torchvision_masks_what_reaches_fc6_and_fc7_and_not_fc8() -> None:
    model = tiny("torchvision")
    images = tiny_pictures(model, 8)

    def seen(layer: str) -> Tensor:
        model.dropout_generator = torch.Generator().manual_seed(0)
        return inputs_of(model, layer, images)

    def unmasked(layer: str) -> Tensor:
        model.dropout_generator = torch.Generator().manual_seed(0)
        return model.features(images, layer).detach()

    at_test = inputs_of(model, "fc6", images)
    model.train()
    for masked, before in ((seen("fc6"), at_test), (seen("fc7"), unmasked("fc6"))):
        kept = (masked != 0)[before != 0]
        assert 0.2 < float(kept.double().mean()) < 0.8
        assert_allclose(masked[before != 0][kept], 2 * before[before != 0][kept])
    assert_array_equal(seen("fc8"), unmasked("fc7"))


def test_the_masks_of_a_network_come_from_its_generator() -> None:
    model = tiny("paper").train()
    images = tiny_pictures(model)

    def logits(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        model.dropout_generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return model(images)

    first = logits(0, 0)
    assert_array_equal(first, logits(0, 1))
    assert apart(logits(1, 0), first) > 1e-3


def test_without_dropout_training_and_test_are_the_same() -> None:
    model = tiny("no-dropout")
    images = tiny_pictures(model)
    with torch.no_grad():
        assert_array_equal(model.train()(images), model.eval()(images))


def test_a_picture_does_not_depend_on_those_beside_it() -> None:
    model = tiny("source")
    images = tiny_pictures(model, 11)  # more than one block of the norms
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert apart(together, alone) < 1e-12


def test_the_public_names_build_a_network() -> None:
    model = alexnet.build("small", 5, torch.Generator().manual_seed(1))
    assert isinstance(model, alexnet.AlexNet)
    assert model.num_classes == 5
    assert model.network is alexnet.NETWORKS["small"]
    assert model.layer_names[-1] == "fc8"
