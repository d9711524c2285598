"""Change photographs and count how often `alexnet check` would call them the same picture.

    python records/2026-11-20_hostile-pictures/near_duplicates.py IMAGENETTE

Every 66th picture of IMAGENETTE (train/ and val/, a folder per class); then all pairs of every
fifth one, which are different pictures: those called the same are mistakes.
"""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from alexnet.images import read_image
from alexnet.likeness import NEAR_BITS, alike, fingerprint, near_pairs


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def without_border(image: Image.Image, share: float) -> Image.Image:
    x, y = round(share * image.width), round(share * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 60": lambda image: compressed(image, 60),
    "quality 20": lambda image: compressed(image, 20),
    "half": half,
    "half, quality 60": lambda image: compressed(half(image), 60),
    "64 x 64": lambda image: image.resize((64, 64), Image.Resampling.BICUBIC),
    "2 % cut off": lambda image: without_border(image, 0.02),
    "5 % cut off": lambda image: without_border(image, 0.05),
    "mirrored": ImageOps.mirror,
}


def same(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> bool:
    first, second = (np.frombuffer(bits, np.uint8) for bits in (one[0], other[0]))
    near = np.unpackbits(first ^ second).sum() <= NEAR_BITS
    return bool(near and alike(one[1], other[1]))


def main(source: Path) -> None:
    paths = sorted(source.glob("*/*/*.JPEG"))
    images = [read_image(path) for path in paths[::66]]
    prints = [fingerprint(image) for image in images]
    for name, change in CHANGES.items():
        changed = [fingerprint(change(image)) for image in images]
        count = sum(map(same, prints, changed))
        print(json.dumps({"change": name, "same": count, "of": len(images)}), flush=True)
    found = [fingerprint(read_image(path)) for path in paths[::5]]
    kept = [entry for entry in found if entry[0]]
    bits = np.frombuffer(b"".join(entry[0] for entry in kept), np.uint8).reshape(len(kept), -1)
    pairs = {
        (int(i), int(j))
        for first, second in near_pairs(bits)
        for i, j in zip(first, second, strict=True)
        if alike(kept[i][1], kept[j][1])
    }
    print(json.dumps({"different pictures": len(kept), "pairs called the same": len(pairs)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
