"""A network as a PyTorch module on one device (Section 3.5, Figure 2).

`build("paper")` makes the module of a description in `networks.py`. The two columns of the paper
are groups here: channels [0:half] are column 0, the rest column 1. Layers keep their names in
state dicts: conv1.weight ... fc8.bias.

Not here: the description itself, and the cut into one column per device.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import fused, layers, products
from alexnet.errors import UserError
from alexnet.networks import (
    BatchNorm,
    Conv,
    Dropout,
    Full,
    Layer,
    LayerShape,
    Network,
    Pool,
    ResponseNorm,
    SpatialNorm,
    Step,
    find_network,
    groups,
    trace,
)

if TYPE_CHECKING:
    from alexnet.weights import ModelCard


def build(
    network: str | Network, num_classes: int = 1000, generator: torch.Generator | None = None
) -> "AlexNet":
    """Make a network with fresh weights, drawn from `generator` (Section 5).

    Raises UserError for an unknown name or fewer than two classes.
    """
    description = find_network(network) if isinstance(network, str) else network
    if num_classes < 2:
        raise UserError(f"a network needs at least 2 classes, not {num_classes}")
    model = AlexNet(description, num_classes)
    model.reset_parameters(generator)
    return model


class AlexNet(nn.Module):
    """A network of `networks.py`: float images (B, 3, H, W) -> logits (B, num_classes).

    Images are on the 0..255 scale less the mean, and divided by `network.input_std`. In training
    mode the dropout masks come from `dropout_generator` (None: PyTorch's own). `kernels` says how
    norms and pools are run: see `fused.apply`. `card` says what a weights file says of itself;
    only `alexnet.load` sets it.
    """

    card: "ModelCard"

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.columns = network.columns  # those that run here, as groups
        self.dropout_generator: torch.Generator | None = None
        self.kernels: fused.Kernels = "auto"
        self.shapes = {shape.name: shape for shape in trace(network, num_classes)}
        for layer in network.layers:
            self.add_module(layer.name, _linear_part(network, layer, self.shapes[layer.name]))
            for step in layer.then:
                if isinstance(step, BatchNorm):
                    self.add_module(f"{layer.name}_norm", _batch_norm(layer, step))
        if network.name == "torchvision":
            self.register_load_state_dict_pre_hook(_rename_torchvision_keys)  # type: ignore[no-untyped-call]

    @property
    def layer_names(self) -> tuple[str, ...]:
        return self.network.layer_names

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights from N(0, std) and set the biases, layer by layer in order (Section 5)."""
        for layer in self.network.layers:
            weight = self.get_parameter(f"{layer.name}.weight")
            bias = self.get_parameter(f"{layer.name}.bias")
            if layer.std is None:
                shape = self.shapes[layer.name]
                bound = (shape.macs // shape.neurons) ** -0.5  # PyTorch's default, by the fan-in
                nn.init.uniform_(weight, -bound, bound, generator=generator)
                nn.init.uniform_(bias, -bound, bound, generator=generator)
            else:
                nn.init.normal_(weight, 0.0, layer.std, generator=generator)
                nn.init.constant_(bias, layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self._checked(images)
        for layer in self.network.layers:
            x = self._run(layer, x)
        return x  # (B, num_classes)

    def activations(self, images: Tensor) -> dict[str, Tensor]:
        """Each layer's output right after its nonlinearity, in order, from one forward pass.

        Where a layer has none (fc8), its linear output. The tensors hang on the graph.
        """
        return {layer.name: after for layer, _, after in self._stages(images)}

    def features(
        self, images: Tensor, layer: str | None = None, *, before_relu: bool = False
    ) -> Tensor:
        """One layer's output: right after its nonlinearity, before any later norm, pool, dropout.

        images (B, 3, H, W) -> (B, C, H, W) or (B, N). `layer` defaults to the last hidden one,
        fc7: the 4096-d image signature of Section 6.1. fc8 has no nonlinearity: its logits.
        In `source` the ReLU of conv1 and conv5 comes after the pool, and so do their features.
        With `before_relu` the linear output. Raises UserError for an unknown layer.
        """
        wanted = self.network.layer(layer or self.network.feature_layer).name
        for found, linear, after in self._stages(images):
            if found.name == wanted:
                return linear if before_relu else after
        raise AssertionError(wanted)

    def _stages(self, images: Tensor) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        """Yield (layer, its linear output, its output after the nonlinearity)."""
        x = self._checked(images)
        for layer in self.network.layers:
            linear = after = x = self._linear(layer, self._reads(layer, x))
            for step in layer.then:
                x = self._step(step, x, layer)
                if isinstance(step, str):
                    after = x
            yield layer, linear, after

    def _reads(self, layer: Layer, x: Tensor) -> Tensor:
        """What a layer reads: what the one before it made. Cut columns meet here (columns.py)."""
        return x

    def _run(self, layer: Layer, x: Tensor) -> Tensor:
        x = self._reads(layer, x)
        parts = fused.split(layer.then)
        relu = parts[:1] == ("relu",)
        found = self._product(layer, x, relu=relu)
        if found is None:
            x = self._plain(layer, x)
        else:
            x, parts = found, parts[relu:]
        for part in parts:
            if isinstance(part, fused.Chain):
                x = self._chain(part, x)
            else:
                x = self._step(part, x, layer)
        return x

    def _chain(self, chain: fused.Chain, x: Tensor) -> Tensor:
        return fused.apply(chain, x, self.columns, self.kernels)

    def _product(self, layer: Layer, x: Tensor, *, relu: bool) -> Tensor | None:
        """The linear part in a faster form, with a ReLU after it if `relu`; None: there is none."""
        module = self.get_submodule(layer.name)
        if fused.choice(self.kernels) == "plain" or not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        if _is_watched(module) or not products.are_usable(x, module.weight):
            return None
        if isinstance(module, nn.Linear):
            return products.linear(x.flatten(1), module.weight, module.bias, relu=relu)
        assert isinstance(layer, Conv), layer.name
        if layer.rounded_up:
            x = layers.pad_overhang(x, layer.kernel, layer.stride, layer.padding)
        return products.convolve(
            x,
            module.weight,
            module.bias,
            stride=layer.stride,
            padding=layer.padding,
            groups=module.groups,
            relu=relu,
        )

    def _linear(self, layer: Layer, x: Tensor) -> Tensor:
        found = self._product(layer, x, relu=False)
        return self._plain(layer, x) if found is None else found

    def _plain(self, layer: Layer, x: Tensor) -> Tensor:
        if isinstance(layer, Full):
            x = x.flatten(1)
        elif layer.rounded_up:
            x = layers.pad_overhang(x, layer.kernel, layer.stride, layer.padding)
        return cast(Tensor, self.get_submodule(layer.name)(x))

    def _checked(self, images: Tensor) -> Tensor:
        """Raises UserError for anything but a batch of float pictures of the right size."""
        sizes = self.network.picture_sizes()
        shapes = [(3, px, px) for px in sizes]
        if tuple(images.shape[1:]) not in shapes or not images.is_floating_point():
            wanted = " or ".join(f"(B, 3, {px}, {px})" for px in sizes)
            raise UserError(
                f"network {self.name} takes float pictures {wanted}, not "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        return images

    @property
    def name(self) -> str:
        return self.network.name

    def _step(self, step: Step, x: Tensor, layer: Layer) -> Tensor:
        match step:
            case "relu":
                return F.relu(x)
            case "tanh":
                return torch.tanh(x)
            case ResponseNorm() | SpatialNorm():
                return self._chain(fused.Chain(norm=step), x)
            case BatchNorm():
                return cast(Tensor, self.get_submodule(f"{layer.name}_norm")(x))
            case Pool(kind="max"):
                return self._chain(fused.Chain(pool=step), x)
            case Pool():
                return layers.avg_pool(x, step.size, step.stride)
            case Dropout():
                return self._dropout(step, x, layer)

    def _dropout(self, step: Dropout, x: Tensor, layer: Layer) -> Tensor:
        return layers.dropout(
            x,
            step.rate,
            inverted=step.inverted,
            training=self.training,
            generator=self.dropout_generator,
        )


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody has to be told when the module itself is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _linear_part(network: Network, layer: Layer, shape: LayerShape) -> nn.Module:
    fan_in = shape.input[0]
    if isinstance(layer, Full):
        for size in shape.input[1:]:
            fan_in *= size
        return nn.Linear(fan_in, shape.output[0])
    if not layer.shared:
        return layers.LocallyConnected2d(
            fan_in, layer.maps, layer.kernel, image_px=shape.input[1], padding=layer.padding
        )
    return nn.Conv2d(
        fan_in,
        layer.maps,
        layer.kernel,
        layer.stride,
        layer.padding,
        groups=groups(network, layer),
    )


def _batch_norm(layer: Layer, step: BatchNorm) -> nn.Module:
    assert isinstance(layer, Conv), layer.name
    return nn.BatchNorm2d(layer.maps, eps=step.eps, momentum=step.momentum, affine=False)


TORCHVISION_LAYERS = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


def _rename_torchvision_keys(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Let `load_state_dict` take torchvision's own names."""
    for key in list(state_dict):
        match = re.fullmatch(r"((?:features|classifier)\.\d+)\.(weight|bias)", key)
        if match and match[1] in TORCHVISION_LAYERS:
            name = f"{prefix}{TORCHVISION_LAYERS[match[1]]}.{match[2]}"
            state_dict[name] = state_dict.pop(key)
