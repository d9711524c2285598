"""Ways to cut crops when two threads do it at once, as they do in training: crops per second.

    python records/2026-11-20_loader/two_threads.py IMAGES.npy [ROUNDS]

IMAGES.npy are the pixels of a packed data set. `torch.stack` starts threads of its own for so many
bytes, unless torch has one thread only, so both are measured.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from alexnet.loader import Buffers

CROP, BATCH, BATCHES, THREADS = 224, 128, 60, 2


class Writable:
    """The same memory, said to be writable: torch warns of what is not, and nothing writes."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        place = (array.__array_interface__["data"][0], False)
        self.__array_interface__ = {**array.__array_interface__, "data": place}


def main(path: str, rounds: int) -> None:
    pixels = np.asarray(np.load(path, mmap_mode="r"))
    count, side = pixels.shape[:2]
    rows = pixels.reshape(count, side, side * 3)
    tensor = torch.from_numpy(np.asarray(Writable(rows)))
    buffers = Buffers()

    def windows(seed: int) -> list[tuple[int, int, int]]:
        draw = np.random.default_rng(seed)
        limits = (count, side - CROP + 1, side - CROP + 1)
        drawn = (draw.integers(0, limit, BATCH).tolist() for limit in limits)
        return list(zip(*drawn, strict=True))

    def loop(seed: int) -> None:
        out = buffers.lend((BATCH, CROP, CROP, 3))
        for row, (i, y, x) in enumerate(windows(seed)):
            out[row] = pixels[i][y : y + CROP, x : x + CROP]

    def flat(seed: int) -> None:
        out = buffers.lend((BATCH, CROP, CROP * 3))
        for row, (i, y, x) in enumerate(windows(seed)):
            out[row] = rows[i][y : y + CROP, 3 * x : 3 * (x + CROP)]

    def stack(seed: int) -> None:
        out = torch.from_numpy(buffers.lend((BATCH, CROP, CROP * 3)))
        torch.stack(
            [tensor[i, y : y + CROP, 3 * x : 3 * (x + CROP)] for i, y, x in windows(seed)], out=out
        )

    def copies(seed: int) -> None:
        out = torch.from_numpy(buffers.lend((BATCH, CROP, CROP * 3)))
        for row, (i, y, x) in enumerate(windows(seed)):
            out[row].copy_(tensor[i, y : y + CROP, 3 * x : 3 * (x + CROP)])

    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for torch_threads in (2, 1):
            torch.set_num_threads(torch_threads)
            for way in (loop, flat, stack, copies):
                seeds = range(number * 1000, number * 1000 + BATCHES)
                with ThreadPoolExecutor(
                    THREADS, initializer=torch.set_num_threads, initargs=(torch_threads,)
                ) as pool:
                    started = time.perf_counter()
                    list(pool.map(way, seeds))
                    seconds = time.perf_counter() - started
                key = (way.__name__, torch_threads)
                rates.setdefault(key, []).append(BATCHES * BATCH / seconds)
    for (name, torch_threads), found in rates.items():
        print(
            f"{name:8s} torch with {torch_threads}: median {np.median(found):,.0f}, "
            f"{min(found):,.0f} to {max(found):,.0f}"
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9)
