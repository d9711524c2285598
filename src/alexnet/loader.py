"""Batches of pictures in an order that is a pure function of (seed, epoch) (Sections 2, 4.1).

The state of the loader is (epoch, position): nothing else has to be saved to go on exactly where
training stopped. Each batch is read and cut by a thread while the one before it trains, which
is the paper's "in effect computationally free"; what the thread reads comes from a memory map.

Not here: mean subtraction, flips and colours, which run on the training device (`augment.py`).
"""

import functools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.augment import CropDraws, draw_crops
from alexnet.config import Recipe
from alexnet.dataset import Split
from alexnet.randomness import normal, permutation

PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class Batch:
    """A minibatch: uint8 crops (B, s, s, 3), not yet mirrored, and the draws that belong to it."""

    crops: Tensor
    labels: Tensor  # (B,) int64
    top: Tensor  # (B,) int64
    left: Tensor  # (B,) int64
    flip: Tensor  # (B,) bool
    colour: Tensor  # (B, 3) float32, standard normal


def epoch_order(recipe: Recipe, count: int, epoch: int) -> NDArray[np.int64]:
    """The pictures of one epoch in order, (count,) int64.

    A "fixed" order is the source's: one shuffle, the same in every epoch, so that a minibatch
    always holds the same pictures.
    """
    return _order(recipe.system.seed, 0 if recipe.data.order == "fixed" else epoch, count)


@functools.lru_cache(maxsize=2)
def _order(seed: int, shuffle: int, count: int) -> NDArray[np.int64]:
    return permutation(seed, "order", shuffle, count)


def num_batches(recipe: Recipe, count: int) -> int:
    """Batches of one epoch; the last one may be short."""
    return -(-count // recipe.optimizer.batch_size)


def crop_draws(
    recipe: Recipe, indices: NDArray[np.int64], positions: NDArray[np.int64], epoch: int
) -> CropDraws:
    """Crops of a batch: drawn per picture, or per run of `crop_chunk` positions of the epoch."""
    augment, image_px = recipe.augment, recipe.data.image_px
    spare_px = image_px - augment.crop_px
    if not augment.random_crop:
        centre = np.full(len(indices), spare_px // 2)
        return CropDraws(centre, centre, np.zeros(len(indices), dtype=bool))
    units = indices if augment.crop_chunk == 1 else positions // augment.crop_chunk
    return draw_crops(recipe.system.seed, epoch, units, num_offsets=spare_px + 1, flip=augment.flip)


def read_batch(split: Split, recipe: Recipe, epoch: int, batch_index: int) -> Batch:
    """Read one batch of one epoch; a pure function of its arguments."""
    size = recipe.optimizer.batch_size
    positions = np.arange(batch_index * size, min((batch_index + 1) * size, len(split)))
    indices = epoch_order(recipe, len(split), epoch)[positions]
    draws = crop_draws(recipe, indices, positions, epoch)
    px = recipe.augment.crop_px
    crops = np.empty((len(indices), px, px, 3), dtype=np.uint8)
    for row, (index, top, left) in enumerate(zip(indices, draws.top, draws.left, strict=True)):
        crops[row] = split.images[index, top : top + px, left : left + px]
    return Batch(
        crops=torch.from_numpy(crops),
        labels=torch.from_numpy(np.asarray(split.labels[indices])),
        top=torch.from_numpy(draws.top),
        left=torch.from_numpy(draws.left),
        flip=torch.from_numpy(draws.flip),
        colour=torch.from_numpy(
            normal(recipe.system.seed, "colour", epoch, indices, 3).astype(np.float32)
        ),
    )


def batches(split: Split, recipe: Recipe, *, step: int, stop: int) -> Iterator[Batch]:
    """Yield the batches of steps `step` .. `stop` - 1, counted from 0 over all epochs.

    A thread reads ahead. An error in it is raised here.
    """
    per_epoch = num_batches(recipe, len(split))
    ahead: queue.Queue[Any] = queue.Queue(PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ahead.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for current in range(step, stop):
                if stopped.is_set():
                    return
                put(read_batch(split, recipe, *divmod(current, per_epoch)))
        except BaseException as error:  # handed over to the training thread
            put(error)

    thread = threading.Thread(target=read, name="loader", daemon=True)
    thread.start()
    try:
        for _ in range(step, stop):
            item = ahead.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
