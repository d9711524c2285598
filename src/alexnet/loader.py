"""Batches of pictures in an order that is a pure function of (seed, epoch) (Sections 2, 4.1).

The state of the loader is (epoch, position): nothing else has to be saved to go on exactly where
training stopped, with any number of threads and ranks. Threads read and cut some batches ahead
while others train, which is the paper's "in effect computationally free"; what they read comes
from a memory map or from a decoder, both of which leave the interpreter to the training.

Not here: reading a picture (`pictures.py`); mean subtraction, flips and colours, which run on the
training device (`augment.py`).
"""

import functools
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.augment import CropDraws, draw_crops
from alexnet.config import Recipe
from alexnet.dataset import Split
from alexnet.errors import UserError
from alexnet.nvjpeg import DeviceDecoder
from alexnet.pictures import JpegPictures, Pixels, check_size, read_crops
from alexnet.randomness import normal, permutation
from alexnet.workers import available_cores

# Batches that lie ready beside those that are being read, one by each thread.
PREFETCHED_BATCHES = 2

# Two threads copy pixels faster than any device trains; decoding uses more.
MAX_THREADS = 16

MakeBuffer = Callable[[tuple[int, ...]], Pixels]


@dataclass(frozen=True)
class Batch:
    """A minibatch: uint8 crops (B, s, s, 3), not yet mirrored, and the draws that belong to it."""

    crops: Tensor
    labels: Tensor  # (B,) int64
    top: Tensor  # (B,) int64
    left: Tensor  # (B,) int64
    flip: Tensor  # (B,) bool
    colour: Tensor  # (B, 3) float32, standard normal

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))


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


def batch_images(batch_size: int, count: int, batch_index: int) -> int:
    """Pictures of one batch of an epoch of `count`: fewer in the last."""
    return min(batch_size, count - batch_index * batch_size)


def batch_positions(
    batch_size: int, count: int, batch_index: int, *, rank: int = 0, ranks: int = 1
) -> NDArray[np.int64]:
    """Which positions of an epoch of `count` pictures one rank takes from one batch.

    A batch is cut into consecutive parts, whose sizes differ by one at most: put together in the
    order of the ranks they are the batch. Of a short last batch a rank may get nothing.
    """
    assert 0 <= rank < ranks
    start = batch_index * batch_size
    size = batch_images(batch_size, count, batch_index)
    return np.arange(start + rank * size // ranks, start + (rank + 1) * size // ranks)


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


def _fresh_buffer(shape: tuple[int, ...]) -> Pixels:
    return np.empty(shape, np.uint8)


def read_batch(
    split: Split,
    recipe: Recipe,
    epoch: int,
    batch_index: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    make_buffer: MakeBuffer = _fresh_buffer,
    decoder: DeviceDecoder | None = None,
) -> Batch:
    """Read one rank's part of one batch of one epoch; a pure function of its arguments.

    `make_buffer` decides only which memory the crops lie in; `decoder` decodes a store of JPEGs
    somewhere else. Pictures that cannot be decoded are
    missing from the batch, of a store of places; of others UserError is raised.
    """
    size, count, px = recipe.optimizer.batch_size, len(split), recipe.augment.crop_px
    positions = batch_positions(size, count, batch_index, rank=rank, ranks=ranks)
    indices = epoch_order(recipe, count, epoch)[positions]
    draws = crop_draws(recipe, indices, positions, epoch)
    check_size(split.images)
    if decoder is not None and isinstance(split.images, JpegPictures):
        decoded = decoder.crops(split.images, indices, draws.top, draws.left, px)
        return _batch(split, recipe, epoch, indices, draws, decoded)
    crops = make_buffer((len(indices), px, px, 3))
    unreadable = read_crops(split.images, indices, draws.top, draws.left, px, crops)
    if unreadable:
        kept = np.delete(np.arange(len(indices)), unreadable)
        if ranks == 1 and not len(kept):
            raise UserError(f"none of the {len(positions)} pictures of a minibatch can be read")
        indices, crops = indices[kept], crops[kept]
        draws = CropDraws(draws.top[kept], draws.left[kept], draws.flip[kept])
    return _batch(split, recipe, epoch, indices, draws, torch.from_numpy(crops))


def _batch(
    split: Split,
    recipe: Recipe,
    epoch: int,
    indices: NDArray[np.int64],
    draws: CropDraws,
    crops: Tensor,
) -> Batch:
    return Batch(
        crops=crops,
        labels=torch.from_numpy(np.asarray(split.labels[indices])),
        top=torch.from_numpy(draws.top),
        left=torch.from_numpy(draws.left),
        flip=torch.from_numpy(draws.flip),
        colour=torch.from_numpy(
            normal(recipe.system.seed, "colour", epoch, indices, 3).astype(np.float32)
        ),
    )


def batches(
    split: Split,
    recipe: Recipe,
    *,
    step: int,
    stop: int,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 0,
    device: torch.device | None = None,
    decoder: DeviceDecoder | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches of steps `step` .. `stop` - 1, counted from 0 over all epochs.

    `threads` of our own read ahead, one batch each (0: one per core, MAX_THREADS at most); they
    change the time and nothing else. An error in one is raised here, at its batch. On a CUDA
    `device` the batches come there, copied from pinned memory on a stream of their own. A batch
    is its receiver's for as long as anything refers to it; then its memory serves another.
    With data.decoder "cuda", a store of JPEGs is decoded there, or by the `decoder` given.
    """
    per_epoch = num_batches(recipe, len(split))
    threads = threads or min(available_cores(), MAX_THREADS)
    on_cuda = device is not None and device.type == "cuda"
    buffers = Buffers(pinned=on_cuda)
    side_stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
    jpegs = isinstance(split.images, JpegPictures) and recipe.data.decoder == "cuda"
    if jpegs and decoder is None and device is not None and on_cuda:
        own_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        decoder = DeviceDecoder(device, own_stream)

    def read(current: int) -> Batch:
        epoch, index = divmod(current, per_epoch)
        batch = read_batch(
            split,
            recipe,
            epoch,
            index,
            rank=rank,
            ranks=ranks,
            make_buffer=buffers.lend,
            decoder=decoder,
        )
        if device is None or side_stream is None:
            return batch
        with torch.cuda.stream(side_stream):
            return batch.to(device)  # returns when the copy is done

    steps = iter(range(step, stop))
    ahead: deque[Future[Batch]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    try:
        for _ in range(step, stop):
            missing = threads + PREFETCHED_BATCHES - len(ahead)
            ahead.extend(executor.submit(read, later) for later in islice(steps, missing))
            yield _for_this_stream(ahead.popleft().result())
    finally:
        executor.shutdown(cancel_futures=True)


def _for_this_stream(batch: Batch) -> Batch:
    """Keep CUDA memory, made on another stream, from being used again before this one is done."""
    if batch.crops.is_cuda:
        for part in fields(batch):
            tensor = getattr(batch, part.name)
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return batch


class Buffers:
    """Memory for crops that is lent, and comes back by itself when nothing refers to it any more.

    The system zeroes fresh memory page by page, which takes as long as filling it. A tensor made
    from what is lent, and any view of it, keeps it; NumPy's views of it do not.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[Pixels] = deque()

    def lend(self, shape: tuple[int, ...]) -> Pixels:
        """An array (*shape) of uint8 with anything in it."""
        size = prod(shape)
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = self._make(size)
        if buffer.size < size:
            buffer = self._make(size)
        lent = buffer[:size].reshape(shape)
        # The last reference may go in any thread; a deque needs no lock.
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return lent

    def _make(self, size: int) -> Pixels:
        pixels: Pixels = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned).numpy()
        return pixels
