"""The pictures that are named, not pointed at: `shapes`, `cifar10`, `imagenette`.

`shapes` are drawn here; the other two are torchvision's downloads, the only use of the network, the
first time. Each is packed into the cache and opened from there. Not here: how (prepare.py).
"""

import contextlib
import hashlib
import http.client
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet import shapes
from alexnet.dataset import PackedDataset
from alexnet.errors import UserError
from alexnet.files import cache_folder, locked, new_folder
from alexnet.images import resize_and_crop
from alexnet.packing import Block, Labels, Progress, make_block
from alexnet.prepare import (
    Contents,
    Form,
    block_ranges,
    contents_of,
    fingerprint,
    open_cached,
)
from alexnet.sources import find_source
from alexnet.statistics import Pixels

NAMES = ("shapes", "cifar10", "imagenette")

# Drawn pictures are numbered; validation starts far above any training set, so that a larger
# training set never runs into it.
SHAPES_FIRST_VAL_INDEX = 1 << 40
SHAPES_SIZES = {"num_train": 12_800, "num_val": 3_200, "num_classes": 16}

# Imagenette's downloads, by the length of their shorter side: room for archive and pictures.
IMAGENETTE_BYTES = {"160px": 210_000_000, "320px": 720_000_000}


def open_shapes(
    image_px: int, seed: int, sizes: dict[str, int], progress: Progress | None
) -> PackedDataset:
    """Draw `shapes`, a pure function of (seed, index); `sizes` may change SHAPES_SIZES."""
    sizes = SHAPES_SIZES | sizes
    if min(sizes.values()) < 1:
        raise UserError(f"{sizes}: each must be at least 1")
    class_names = shapes.class_names(sizes["num_classes"])

    def blocks(done: int) -> Iterator[Block]:
        first_index = {"train": 0, "val": SHAPES_FIRST_VAL_INDEX}
        for split, first in first_index.items():
            for numbers in block_ranges(sizes[f"num_{split}"], image_px, done):
                drawn = shapes.shapes(
                    seed,
                    first + np.array(numbers),
                    image_px=image_px,
                    num_classes=sizes["num_classes"],
                )
                yield make_block(split, *drawn, tuple(f"{split}/{n:07d}" for n in numbers), [])
            done = max(done - sizes[f"num_{split}"], 0)

    # The drawing code belongs to the fingerprint: other code draws other pictures.
    drawing = hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()
    key = [seed, sizes, drawing]
    contents = Contents(
        source=fingerprint(key),
        num_images=sizes["num_train"] + sizes["num_val"],
        class_ids=class_names,
        class_names=class_names,
        settings={"seed": seed, **sizes},
        blocks=blocks,
    )
    return open_cached("shapes", image_px, key, lambda: contents, progress)


def open_cifar10(image_px: int, progress: Progress | None) -> PackedDataset:
    """CIFAR-10 with its test set as validation set: it has none of its own."""
    return open_cached("cifar10", image_px, [], lambda: _cifar10(image_px), progress)


def open_imagenette(image_px: int, progress: Progress | None) -> PackedDataset:
    def contents() -> Contents:
        return contents_of(find_source(imagenette_folder(image_px)), Form(image_px))

    return open_cached("imagenette", image_px, [], contents, progress)


def _cifar10(image_px: int) -> Contents:
    from torchvision.datasets import CIFAR10  # slow to import, and rarely needed

    folder = cache_folder() / "downloads"
    with locked(folder / ".cifar-10.lock"), _downloading("CIFAR-10"):
        parts = {
            split: CIFAR10(folder, train=train, download=True)
            for split, train in {"train": True, "val": False}.items()
        }
    class_names = tuple(parts["train"].classes)

    def blocks(done: int) -> Iterator[Block]:
        for split, part in parts.items():
            for numbers in block_ranges(len(part.data), image_px, done):
                yield _block_of_arrays(split, part.data, np.array(part.targets), numbers, image_px)
            done = max(done - len(part.data), 0)

    return Contents(
        source="cifar10",
        num_images=sum(len(part.data) for part in parts.values()),
        class_ids=class_names,
        class_names=class_names,
        settings={},
        blocks=blocks,
    )


def _block_of_arrays(
    split: str, pixels: Pixels, labels: Labels, numbers: range, image_px: int
) -> Block:
    chosen = slice(numbers.start, numbers.stop)
    images = [resize_and_crop(Image.fromarray(image), image_px) for image in pixels[chosen]]
    sources = tuple(f"{split}/{number:05d}" for number in numbers)
    return make_block(split, np.stack(images), labels[chosen].astype(np.int64), sources, [])


def imagenette_folder(image_px: int) -> Path:
    """The folder of Imagenette, downloaded if need be, in the least size that suffices."""
    size = next((size for size in IMAGENETTE_BYTES if image_px <= int(size[:-2])), "320px")
    folder = cache_folder() / "downloads" / f"imagenette-{size}"
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            from torchvision.datasets import Imagenette  # slow to import, and rarely needed

            needed = IMAGENETTE_BYTES[size]
            with new_folder(folder, needed) as temporary, _downloading("Imagenette"):
                Imagenette(temporary, size=size, download=True)
                for archive in temporary.glob("*.tgz"):
                    archive.unlink()
    return next(part.parent for part in folder.glob("*/train"))


@contextlib.contextmanager
def _downloading(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, tarfile.TarError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot download {what} ({reason}); connect to the network once, "
            "or give a folder of pictures"
        ) from error
