"""Ways to cut crops from a file of pixels, and to decode JPEG, in microseconds of one thread.

    python records/2026-11-20_loader/ways.py [ROUNDS]

Random pictures: copying does not depend on what they show, decoding does, so for that they are
`shapes`. Medians over the second half of the rounds, all ways taking turns.
"""

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alexnet.augment import flip_where
from alexnet.pictures import encode_jpeg
from alexnet.shapes import shapes

PICTURES, SIDE, CROP, BATCH = 4000, 256, 224, 128
Way = Callable[[list[int], list[int], list[int]], None]


def copying(path: Path) -> dict[str, Way]:
    pixels = np.load(path, mmap_mode="r")
    known = np.asarray(pixels)
    rows = known.reshape(PICTURES, SIDE, SIDE * 3)
    out = np.zeros((BATCH, CROP, CROP, 3), np.uint8)
    tensor, into = torch.from_numpy(rows), torch.from_numpy(out).view(BATCH, CROP, CROP * 3)
    file, start = os.open(path, os.O_RDONLY), pixels.offset
    scratch = np.zeros(CROP * SIDE * 3, np.uint8)
    window = scratch.reshape(CROP, SIDE * 3)[:, : CROP * 3].reshape(CROP, CROP, 3)
    buffers = [memoryview(scratch)[: (CROP - 1) * SIDE * 3 + CROP * 3]]

    def fresh(index: list[int], top: list[int], left: list[int]) -> None:
        made = np.empty_like(out)
        for row, (i, y, x) in enumerate(zip(index, top, left, strict=True)):
            made[row] = pixels[i, y : y + CROP, x : x + CROP]

    def reused(index: list[int], top: list[int], left: list[int]) -> None:
        for row, (i, y, x) in enumerate(zip(index, top, left, strict=True)):
            out[row] = known[i][y : y + CROP, x : x + CROP]

    def preadv(index: list[int], top: list[int], left: list[int]) -> None:
        for row, (i, y, x) in enumerate(zip(index, top, left, strict=True)):
            os.preadv(file, buffers, start + 3 * ((i * SIDE + y) * SIDE + x))
            out[row] = window

    def copies(index: list[int], top: list[int], left: list[int]) -> None:
        for row, (i, y, x) in enumerate(zip(index, top, left, strict=True)):
            into[row].copy_(tensor[i, y : y + CROP, 3 * x : 3 * (x + CROP)])

    def stack(index: list[int], top: list[int], left: list[int]) -> None:
        views = [
            tensor[i, y : y + CROP, 3 * x : 3 * (x + CROP)]
            for i, y, x in zip(index, top, left, strict=True)
        ]
        torch.stack(views, out=into)

    return {
        "memory map, fresh memory": fresh,
        "memory map, reused memory": reused,
        "preadv and a copy": preadv,
        "torch copy_": copies,
        "torch.stack": stack,
    }


def decoding() -> dict[str, Callable[[bytes], object]]:
    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)))
    }
    try:
        import simplejpeg

        ways["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB")
    except ImportError:
        print("simplejpeg is not installed")
    return ways


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e6


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        some = draw.integers(0, 256, (100, SIDE, SIDE, 3), np.uint8)
        np.save(path, np.tile(some, (PICTURES // 100, 1, 1, 1)))
        ways = copying(path)
        for _ in range(rounds):
            for name, way in ways.items():
                index = draw.integers(0, PICTURES, BATCH).tolist()
                top, left = (draw.integers(0, SIDE - CROP + 1, BATCH).tolist() for _ in "yx")
                cost = timed(lambda way=way, at=(index, top, left): way(*at)) / BATCH
                seconds.setdefault(name, []).append(cost)
    images, _ = shapes(0, np.arange(50), image_px=SIDE)
    jpegs = [encode_jpeg(image) for image in images]
    for _ in range(rounds):
        for name, decode in decoding().items():
            for data in jpegs:
                cost = timed(lambda decode=decode, data=data: decode(data))
                seconds.setdefault(f"decode: {name}", []).append(cost)
    crops = torch.randint(0, 256, (BATCH, CROP, CROP, 3), dtype=torch.uint8)
    flip = torch.arange(BATCH) % 2 == 0
    where = flip.view(-1, 1, 1, 1)
    for _ in range(rounds):
        for name, mirror in {
            "mirror: flip_where": lambda: flip_where(crops, flip),
            "mirror: torch.where": lambda: torch.where(where, crops.flip(2), crops),
        }.items():
            seconds.setdefault(name, []).append(timed(mirror) / BATCH)
    for name, values in seconds.items():
        settled = values[len(values) // 2 :]
        print(f"{name:28s} {np.median(settled):8.1f} us, from {min(values):.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
