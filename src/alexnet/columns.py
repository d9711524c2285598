"""One rank's part of a network: its own column of the paper's two-GPU net (Section 3.2), and its
own images of each batch.

`cut` takes the one-device network and leaves what belongs to this rank: half of the kernels,
units and classes of each layer where there are two columns. The columns exchange activations
before the layers that read all of them, and nowhere else: conv3, fc6, fc7 and fc8 (conv6 too in
`sixth-conv`), as `Network.meets_before` says. Each name below is that of an exchange:

    "<layer> forward"    every column gathers the other columns' maps or units
    "<layer> backward"   every column gets the gradient of its own, summed over the columns
    "logits"             every column gathers the other columns' classes; nothing comes back,
                         since each computes the same softmax and keeps its own part

Volumes, for N columns and one image in float32, over all columns together: forward and backward
each 4 x (N - 1) x the layer's whole input; logits 4 x (N - 1) x the classes. `paper` with 1,000
classes: conv3 173,056, fc6 36,864, fc7 16,384, fc8 16,384, in all 242,688 bytes forward, as many
backward, and 4,000 for the logits. `describe.py` counts the same from the description alone.

The 2012 source differs at the end: its fc1000 lies whole on GPU 0, and so does the softmax
(layers-145.cfg:294-308). GPU 1 sends its half of fc7, 8,192 bytes, and no logits have to cross;
but GPU 0 then holds 53 % of the parameters. Here the classes are cut like the units, and as the
sums are the same, so is the function. Classes need not divide evenly.

`model.AlexNet` is the same function on one device. State dicts, of the optimiser too, go out as
those of one device and come in as such: taking one is therefore an exchange, which all columns
have to make together.

Not here: the exchange of gradients between replicas (`replicas.py`).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from alexnet import layers
from alexnet.collectives import ALONE, Group
from alexnet.errors import UserError
from alexnet.model import AlexNet
from alexnet.networks import BatchNorm, Conv, Dropout, Full, Layer, Network, ResponseNorm


def check_cut(network: Network, num_classes: int, columns: int, replicas: int = 1) -> None:
    """Raises UserError for a network that cannot be cut so."""
    steps = [step for layer in network.layers for step in layer.then]
    if columns * replicas > 1 and any(isinstance(step, BatchNorm) for step in steps):
        raise UserError(
            f"network {network.name} normalises over the images of a batch, which have to be on "
            "one device: train it in one process"
        )
    if columns == 1:
        return
    instead = f"--parallel data={columns} trains it on as many devices"
    if network.columns == 1:
        raise UserError(
            f"network {network.name} has one column and cannot be cut into {columns}; {instead}"
        )
    if network.columns != columns:
        raise UserError(
            f"network {network.name} has {network.columns} columns, not {columns}: --parallel "
            f"columns={network.columns} cuts it"
        )
    if any(isinstance(step, ResponseNorm) and not step.per_column for step in steps):
        raise UserError(
            f"network {network.name} cannot be cut: its response norms reach across its columns; "
            f"{instead}"
        )
    for layer in network.layers:
        if isinstance(layer, Conv) and (layer.maps % columns or not layer.shared):
            raise UserError(f"{layer.name} of network {network.name} cannot be cut in {columns}")
    if num_classes < columns:
        raise UserError(f"{num_classes} classes cannot be cut into {columns} columns")


def cut(whole: AlexNet, columns: Group = ALONE, replicas: Group = ALONE) -> "PartAlexNet":
    """This rank's part of a network, with that part of its weights, where they are.

    Raises UserError as `check_cut` does.
    """
    check_cut(whole.network, whole.num_classes, columns.size, replicas.size)
    part = PartAlexNet(whole.network, whole.num_classes, columns, replicas)
    fill(part, whole)
    return part


def fill(part: "PartAlexNet", whole: AlexNet) -> None:
    """Give a part its weights of a network, and what else belongs to it."""
    own = {name: part.own(name, weight.detach()) for name, weight in whole.named_parameters()}
    for name, weight in own.items():
        layer, _, kind = name.rpartition(".")
        copy = weight.clone(memory_format=torch.preserve_format)
        setattr(part.get_submodule(layer), kind, nn.Parameter(copy))
    part.dropout_generator, part.kernels = whole.dropout_generator, whole.kernels


def whole_model(part: "PartAlexNet", device: torch.device) -> AlexNet:
    """The one-device network with the weights of all columns, which have to ask for it together."""
    with torch.device("meta"):
        whole = AlexNet(part.network, part.num_classes)
    whole.load_state_dict(part.state_dict(), assign=True)
    whole.dropout_generator, whole.kernels = part.dropout_generator, part.kernels
    return whole.to(device).train(part.training)


class PartAlexNet(AlexNet):
    """The layers of one column (of all, where the columns are one rank's), for some of the images.

    Float images (B, 3, H, W) -> logits (B, num_classes) of all classes, the same on each column.
    In training, `share` says which images of the whole batch these are, so that the dropout masks
    are those that one device draws. `activations` and `features` are this rank's own.
    """

    def __init__(self, network: Network, num_classes: int, columns: Group, replicas: Group) -> None:
        with torch.device("meta"):
            super().__init__(network, num_classes)
        self.group, self.replicas = columns, replicas
        self.columns = network.columns // columns.size
        self.share, self.batch_images = slice(0, 0), 0
        self.counts = [0] * replicas.size  # images of the batch, by replica
        for layer in network.layers:
            if self.group_of(layer.name).size > 1:
                self.add_module(layer.name, self._own_layer(layer))
        if self.is_cut:
            self.register_state_dict_post_hook(_merge_weights)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_cut_weights)  # type: ignore[no-untyped-call]

    @property
    def is_cut(self) -> bool:
        """Whether a layer here is a part of one."""
        return any(self.group_of(name).size > 1 for name in self.layer_names)

    def group_of(self, layer_name: str) -> Group:
        """The ranks among which a layer is cut."""
        return self.group

    def _own_layer(self, layer: Layer) -> nn.Module:
        shape, device = self.shapes[layer.name], torch.device("meta")
        group = self.group_of(layer.name)
        outputs = group.sizes(shape.output[0])[group.rank]
        whole = self.get_submodule(layer.name)
        if isinstance(layer, Full):
            return nn.Linear(cast(nn.Linear, whole).in_features, outputs, device=device)
        first = layer is self.network.layers[0]
        inputs = shape.input[0] if layer.joined or first else shape.input[0] // self.group.size
        kernel, stride, padding = layer.kernel, layer.stride, layer.padding
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, device=device)

    def take_share(self, batch_images: int, counts: list[int] | None = None) -> slice:
        """Set which of a batch of so many images are this replica's, and return it.

        `counts`: how many each replica has, in their order; about equally many otherwise.
        """
        self.counts = self.replicas.sizes(batch_images) if counts is None else counts
        assert sum(self.counts) == batch_images
        start = sum(self.counts[: self.replicas.rank])
        self.share = slice(start, start + self.counts[self.replicas.rank])
        self.batch_images = batch_images
        return self.share

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.group.size == 1:
            return logits
        return gather_logits(logits, self.group, self.group.sizes(self.num_classes))

    def _reads(self, layer: Layer, x: Tensor) -> Tensor:
        if self.group.size == 1 or layer.name not in self.network.meets_before():
            return x
        sizes = self.group.sizes(self.shapes[layer.name].input[0])
        return meet(x, self.group, sizes, layer.name)

    def _dropout(self, step: Dropout, x: Tensor, layer: Layer) -> Tensor:
        units = self.shapes[layer.name].output[0]
        assert not self.training or len(x) == self.share.stop - self.share.start
        return layers.dropout(
            x,
            step.rate,
            inverted=step.inverted,
            training=self.training,
            generator=self.dropout_generator,
            part=(self.share, self.group.own(units)),
            whole=(self.batch_images, units),
        )

    def own(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a parameter, or of anything that has its shape."""
        return whole[self.group_of(name.rpartition(".")[0]).own(len(whole))]

    def sum_parts(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add up over the ranks what belongs to parts of the same parameter, by its name."""
        summed = dict(values)
        for group in dict.fromkeys(map(self.group_of, self.layer_names)):
            cut = [n for n in values if self.group_of(n.rpartition(".")[0]) is group]
            if cut and group.size > 1:
                total = group.sum(torch.stack([values[name] for name in cut]), "norms")
                summed |= dict(zip(cut, total, strict=True))
        return summed

    def merged(self, name: str, own: Tensor) -> Tensor:
        """The whole of a parameter, or of anything that has its shape, from all columns."""
        layer = name.rpartition(".")[0]
        group = self.group_of(layer)
        sizes = group.sizes(self.shapes[layer].output[0])
        return group.gather(own.detach(), 0, sizes, f"{name} merged")


def _merge_weights(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    part = cast(PartAlexNet, module)
    for name in list(state):
        state[name] = part.merged(name, state[name]).cpu()


def _cut_weights(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    part = cast(PartAlexNet, module)
    for name in list(state):
        if name.rpartition(".")[0] in part.shapes:
            state[name] = part.own(name, state[name])


def cut_optimizer(optimizer: torch.optim.Optimizer, part: PartAlexNet) -> None:
    """Let an optimiser of the part give and take the state that it would have on one device."""
    if not part.is_cut:
        return

    def merge(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return _each_tensor(state, lambda name, own: part.merged(name, own).cpu())

    def take(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return _each_tensor(state, part.own)

    optimizer.register_state_dict_post_hook(merge)
    optimizer.register_load_state_dict_pre_hook(take)


def _each_tensor(state: dict[str, Any], change: Any) -> dict[str, Any]:
    """An optimiser's state with each tensor of a parameter's shape changed."""
    changed = dict(state["state"])
    for group in state["param_groups"]:
        name = f"{group['layer']}.{group['kind']}"
        for index in group["params"]:
            if index in changed:
                values = changed[index].items()
                changed[index] = {key: change(name, value) for key, value in values}
    return {**state, "state": changed}


# --- Exchanges that gradients come back from ----------------------------------------------------


def meet(x: Tensor, group: Group, sizes: list[int], layer: str) -> Tensor:
    """All ranks' maps or units from each one's own: (B, c, ...) -> (B, C, ...)."""
    return _Meet.apply(x, group, sizes, layer)  # type: ignore[no-any-return]


class _Meet(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own, group, sizes, layer):  # type: ignore[no-untyped-def]
        ctx.group, ctx.sizes, ctx.layer = group, sizes, layer
        return group.gather(own, 1, sizes, f"{layer} forward")

    @staticmethod
    def backward(ctx, whole):  # type: ignore[no-untyped-def]
        own = ctx.group.return_sum(whole, 1, ctx.sizes, f"{ctx.layer} backward")
        return own, None, None, None


def gather_logits(own: Tensor, group: Group, sizes: list[int]) -> Tensor:
    """As `meet`, where each rank goes on to compute the same: its own gradient is all there is."""
    return _GatherLogits.apply(own, group, sizes)  # type: ignore[no-any-return]


class _GatherLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own, group, sizes):  # type: ignore[no-untyped-def]
        ctx.own = group.own(sum(sizes))
        return group.gather(own, 1, sizes, "logits")

    @staticmethod
    def backward(ctx, whole):  # type: ignore[no-untyped-def]
        return whole[:, ctx.own], None, None
