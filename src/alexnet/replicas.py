"""Replicas: several ranks with the same weights, each with some of the images of a batch.

PyTorch's DistributedDataParallel sums the gradients, bucket by bucket, while the backward pass
still computes others. The loss of a rank is its images' share of the mean over the *whole* batch,
so that gradients only have to be added, and a short last batch, one that does not divide, and a
rank without any image all come out as on one device.

Volume, R replicas and P parameters in float32, for each rank and step: 2 x (R - 1) / R x 4 x P
bytes ("gradients"), and 4 bytes for each loss that is read ("losses"). It does not grow with the
batch. `paper` with R = 2: 243,860,896 bytes for each rank and step, which is 1,905,163 for each
image of a batch of 128. Of columns, each rank sums its own half.

Not here: which images are whose (`loader.py`, `columns.PartAlexNet.take_share`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from alexnet.collectives import Group
from alexnet.columns import PartAlexNet

Autocast = Callable[[], torch.autocast]

BUCKET_MB = 25  # PyTorch's own choice


class Replicas:
    """A part of a network whose gradients are those of the whole batch, on each replica.

    Layers may be frozen and thawed (`requires_grad`) between steps.
    """

    def __init__(self, part: PartAlexNet, group: Group, module: torch.nn.Module | None = None):
        self.part, self.group = part, group
        self.module = part if module is None else module
        self._learning: list[str] = []
        self._wrapped: torch.nn.Module = self.module

    def __call__(self, images: Tensor) -> Tensor:
        """As the module does; what comes back sends its gradients around."""
        if self.group.size == 1:
            return self.module(images)  # type: ignore[no-any-return]
        learning = [name for name, w in self.module.named_parameters() if w.requires_grad]
        if learning != self._learning:
            self._learning = learning
            self._wrapped = (
                self._wrap(images.new_zeros(1, *images.shape[1:])) if learning else self.module
            )
        return self._wrapped(images)  # type: ignore[no-any-return]

    def gradients(self, images: Tensor, labels: Tensor, autocast: Autocast) -> Tensor:
        """Leave the gradients of the whole batch's loss; return these images' share of it."""
        with autocast():
            logits = self(images)
        loss = share_of_loss(logits, labels, self.part.batch_images)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _wrap(self, image: Tensor) -> torch.nn.Module:
        self.group.wait("replicas begin")
        wrapped = DistributedDataParallel(
            self.module,
            process_group=self.group.engine,
            gradient_as_bucket_view=True,
            bucket_cap_mb=BUCKET_MB,
        )
        wrapped.register_comm_hook(self.group, _sum_bucket)
        self._settle(wrapped, image)
        return wrapped

    def _settle(self, wrapped: torch.nn.Module, image: Tensor) -> None:
        """A pass backward whose gradients are dropped, without dropout.

        After its first pass DDP puts the gradients into buckets anew, and of three ranks or more
        the order in which a number is summed depends on its place there. So no step of a training
        is that first pass: one that goes on does bit for bit what it would have done.
        """
        was_training = self.part.training
        self.part.eval()
        wrapped(image).sum().backward()
        self.part.train(was_training)
        for weights in self.module.parameters():
            weights.grad = None


def _sum_bucket(
    group: Group,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """What DDP asks for each bucket: a sum without its division, as the losses are shares."""
    work, _ = group.start_sum(bucket.buffer(), "gradients")
    future: torch.futures.Future[Any] = work.get_future()
    return future.then(lambda done: done.value()[0])


def share_of_loss(logits: Tensor, labels: Tensor, batch_images: int) -> Tensor:
    """These images' share of the mean cross-entropy of a batch of so many images."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, labels, reduction="sum") / batch_images
