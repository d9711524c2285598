"""A training step recorded once and replayed as a CUDA graph (system.graph).

At the paper's batch of 128 a step on a fast GPU takes some two milliseconds, less than Python needs
to launch its kernels. The first steps at given rates are run as they are, the next is recorded, and
the others replay it: the same kernels on the same memory, with new pictures copied in. When a
learning rate, what is frozen, or the size of the batch changes, it is recorded anew.

Not here: the step (`step.py`).
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

# Before recording, libraries choose their kernels and set up their memory.
STEPS_BEFORE = 3


class Graph(Protocol):
    """What `torch.cuda.CUDAGraph` does here."""

    def replay(self) -> None: ...


Record = Callable[[Callable[[], None]], Graph]


class Replay:
    """Calls `step(images, labels)`, or replays a recording of it; returns its loss.

    Args:
        step: changes weights in place and returns the loss on the device; it never waits for it.
        state: all that a recording holds fast, rates for example. It is recorded anew when this
            changes, and never while it changes at each step.
        record: runs a function as a recording; `cuda_recorder` makes one.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], Tensor],
        state: Callable[[], Hashable],
        record: Record,
    ) -> None:
        self._step, self._state, self._record = step, state, record
        self._key: Hashable = None
        self._seen = 0
        self._graph: Graph | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._loss: Tensor | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        key = (images.shape, images.dtype, self._state())
        if key != self._key:
            self._key, self._seen, self._graph = key, 0, None
        self._seen += 1
        if self._graph is None and self._seen <= STEPS_BEFORE:
            return self._step(images, labels)
        if self._graph is None:
            self._begin(images, labels)
        assert self._graph is not None
        assert self._inputs is not None
        assert self._loss is not None
        for held, new in zip(self._inputs, (images, labels), strict=True):
            held.copy_(new, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()  # the next replay writes there again

    def _begin(self, images: Tensor, labels: Tensor) -> None:
        inputs = self._inputs = images.clone(), labels.clone()

        def run() -> None:
            self._loss = self._step(*inputs)

        self._graph = self._record(run)


def cuda_recorder(generators: Sequence[torch.Generator]) -> Record:
    """Records on the current CUDA device; what `generators` draw goes on from replay to replay."""

    def record(run: Callable[[], None]) -> Graph:
        graph: Any = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        recording: AbstractContextManager[Any] = torch.cuda.graph(graph)
        with recording:
            run()
        return graph  # type: ignore[no-any-return]

    return record
