"""The hybrid of "One weird trick" (Krizhevsky 2014, arXiv 1404.5997): convolutions as replicas,
fully connected layers cut over all ranks.

Convolutions have 4 % of the parameters and 92 % of the multiply-adds, fully connected layers the
reverse. So each of K ranks runs all convolutions on its share of the images, and holds 1 / K of
the units of each fully connected layer, for all images. In between, every rank needs the last
maps of every image. The paper has three schemes for that:

a  Every rank gathers the maps of the whole batch, then computes. Nothing overlaps, and the
   activations of the whole batch lie on each rank.
b  K rounds: in each, one rank sends its maps to all, which compute on them; meanwhile the next
   one sends. Memory for one share; but one rank sends at a time, through one link.
c  K rounds: in each, every rank sends 1 / K of its maps to all. As b, and all links are used.

All three send the same bytes. Here is c, with the exchange of the next round, and the gradients
of the one before, under way while one computes; with `rounds=1` it is a, which tests hold it to.
The paper may update the fully connected layers in each round; here a step is one update on the
mean of the whole batch, so the trajectory is that of one device.

Exchanges, for K ranks and one image in float32, over all ranks together:

    "maps forward", "maps backward"                  each 4 x (K - 1) x the last maps
    "<layer> forward", "<layer> backward"            of each later full layer, each
                                                     4 x (K - 1) x the units that it reads
    "logits"                                         4 x (K - 1) x the classes
    "gradients", for each step and rank              2 x (K - 1) / K x 4 x the convolutions'
                                                     parameters

`paper`, K = 2: 69,632 bytes forward (maps 36,864, fc7 and fc8 16,384 each), as many backward, 4,000
for the logits, and 9,336,320 of gradients for each rank and step, where replicas send 243,860,896.

Not here: replicas of all layers (`replicas.py`), columns (`columns.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet.collectives import ALONE, Group
from alexnet.columns import PartAlexNet, check_cut, fill, gather_logits, meet
from alexnet.errors import UserError
from alexnet.model import AlexNet
from alexnet.networks import Dropout, Full, Layer
from alexnet.replicas import Autocast, Replicas, share_of_loss


def cut_hybrid(whole: AlexNet, everyone: Group) -> "HybridAlexNet":
    """This rank's part of a network: all convolutions, some units of each fully connected layer.

    Raises UserError for a network that cannot be cut so.
    """
    check_cut(whole.network, whole.num_classes, 1, everyone.size)
    units = [shape.output[0] for shape in whole.shapes.values() if len(shape.output) == 1]
    if min(units) < everyone.size:
        raise UserError(
            f"a fully connected layer of {min(units)} units cannot be cut among {everyone.size} "
            "ranks; use fewer processes"
        )
    part = HybridAlexNet(whole, everyone)
    fill(part, whole)
    return part


class HybridAlexNet(PartAlexNet):
    """All convolutions, and this rank's units of the fully connected layers.

    Called in evaluation mode with the same images on all ranks, it returns all logits; `Hybrid`
    trains it.
    """

    def __init__(self, whole: AlexNet, everyone: Group) -> None:
        self.everyone = everyone
        super().__init__(whole.network, whole.num_classes, ALONE, everyone)
        self.masks: dict[str, Tensor] = {}  # (images of the batch, own units), by layer
        self.rows = torch.empty(0, dtype=torch.int64)  # of the batch, on which the head runs
        self.trunk_layers = [x for x in whole.network.layers if not isinstance(x, Full)]
        self.head_layers = [x for x in whole.network.layers if isinstance(x, Full)]

    def group_of(self, layer_name: str) -> Group:
        is_full = isinstance(self.network.layer(layer_name), Full)
        return self.everyone if is_full else ALONE

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        own = self.trunk(images[self.everyone.own(len(images))])
        sizes = self.everyone.sizes(len(images))
        return self.head(self.everyone.gather(own, 0, sizes, "maps forward"))

    def trunk(self, images: Tensor) -> Tensor:
        """The convolutions: (B, 3, H, W) -> flat maps (B, N)."""
        x = self._checked(images)
        for layer in self.trunk_layers:
            x = self._run(layer, x)
        return x.flatten(1).contiguous()

    def head(self, maps: Tensor) -> Tensor:
        """The fully connected layers: (B, N) -> logits (B, num_classes), the same on all ranks."""
        x = maps
        for layer in self.head_layers:
            if layer is not self.head_layers[0]:
                sizes = self.everyone.sizes(self.shapes[layer.name].input[0])
                x = meet(x, self.everyone, sizes, layer.name)
            x = self._run(layer, x)
        return gather_logits(x, self.everyone, self.everyone.sizes(self.num_classes))

    def draw_masks(self, like: Tensor) -> None:
        """Dropout masks for the whole batch, in the order in which one device draws them."""
        self.masks = {}
        for layer in self.head_layers:
            for step in layer.then:
                if isinstance(step, Dropout):
                    units = self.shapes[layer.name].output[0]
                    whole = like.new_empty((self.batch_images, units))
                    whole.bernoulli_(1.0 - step.rate, generator=self.dropout_generator)
                    self.masks[layer.name] = whole[:, self.everyone.own(units)].clone()

    def _dropout(self, step: Dropout, x: Tensor, layer: Layer) -> Tensor:
        if not self.training or layer.name not in self.masks:
            return super()._dropout(step, x, layer)
        mask = self.masks[layer.name][self.rows]
        return x * (mask / (1.0 - step.rate) if step.inverted else mask)


class _Trunk(nn.Module):
    """The convolutions as a module of their own, for DistributedDataParallel."""

    def __init__(self, model: HybridAlexNet) -> None:
        super().__init__()
        names = [layer.name for layer in model.trunk_layers]
        self.layers = nn.ModuleDict({name: model.get_submodule(name) for name in names})
        self._run: Callable[[Tensor], Tensor] = model.trunk

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)


@dataclass(frozen=True)
class _Round:
    """Some images of each rank: `own` of this one's share, `rows` of the whole batch."""

    own: slice
    sizes: list[int]  # by rank
    rows: Tensor

    @property
    def images(self) -> int:
        return sum(self.sizes)


class Hybrid:
    """Gradients of the whole batch, in so many rounds (None: as many as ranks, scheme c)."""

    def __init__(self, part: HybridAlexNet, rounds: int | None = None) -> None:
        self.part, self.group = part, part.everyone
        self.rounds = rounds or self.group.size
        self.trunk = Replicas(part, self.group, _Trunk(part))

    def gradients(self, images: Tensor, labels: Tensor, autocast: Autocast) -> Tensor:
        """Leave the gradients of the whole batch's loss; return it on rank 0, zero elsewhere."""
        part, group = self.part, self.group
        with autocast():
            maps = self.trunk(images)
        held, gradient = maps.detach(), torch.zeros_like(maps)
        sizes = part.counts
        labels = group.gather(labels, 0, sizes, "labels")
        part.draw_masks(maps)
        rounds = [r for r in self._rounds(sizes, maps.device) if r.images]
        loss = maps.new_zeros((), dtype=torch.promote_types(maps.dtype, torch.float32))
        arriving = self._start(rounds[0], held)
        returning: tuple[slice, Callable[[], Tensor]] | None = None
        for index, this in enumerate(rounds):
            gathered = arriving().requires_grad_()
            if index + 1 < len(rounds):
                arriving = self._start(rounds[index + 1], held)
            part.rows = this.rows
            with autocast():
                logits = part.head(gathered)
            share = share_of_loss(logits, labels[this.rows], part.batch_images)
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
            if returning is not None:
                gradient[returning[0]] = returning[1]()
            assert gathered.grad is not None
            back = group.start_return_sum(gathered.grad, 0, this.sizes, "maps backward")
            returning = this.own, back
        assert returning is not None
        gradient[returning[0]] = returning[1]()
        if maps.requires_grad:
            maps.backward(gradient)  # type: ignore[no-untyped-call]
        return loss if group.rank == 0 else torch.zeros_like(loss)

    def _start(self, this: _Round, held: Tensor) -> Callable[[], Tensor]:
        return self.group.start_gather(held[this.own], 0, this.sizes, "maps forward")

    def _rounds(self, sizes: list[int], device: torch.device) -> Iterator[_Round]:
        starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
        for index in range(self.rounds):
            parts = [
                range(index * size // self.rounds, (index + 1) * size // self.rounds)
                for size in sizes
            ]
            rows = [start + row for start, part in zip(starts, parts, strict=True) for row in part]
            own = parts[self.group.rank]
            yield _Round(
                slice(own.start, own.stop),
                [len(part) for part in parts],
                torch.tensor(rows, dtype=torch.int64, device=device),
            )
