"""From pictures to a packed data set (Section 2 of the paper: shorter side 256, central 256x256).

A source is a folder with DIR/train and DIR/val (and DIR/test), or a folder with one folder per
class, which is split here; or, by name, the built-in `shapes` and torchvision's downloads of
CIFAR-10 and Imagenette. `prepare` packs a folder, `open_dataset` opens whatever a user names
and packs it into the cache when that is needed.

A picture that cannot be read is named, counted and left out, never replaced. Not here: the
packed format itself (dataset.py), decoding (images.py).
"""

import contextlib
import functools
import hashlib
import http.client
import json
import math
import os
import tarfile
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexnet import shapes
from alexnet.dataset import (
    FORMAT_VERSION,
    Block,
    Labels,
    PackedDataset,
    Pixels,
    is_packed,
    make_block,
    new_folder,
    open_packed,
    write_packed,
)
from alexnet.errors import UserError, suggest
from alexnet.images import SUFFIXES, UnreadableImage, read_image, resize_and_crop

Progress = Callable[[int, int], None]
"""Called as progress(pictures done, pictures in all)."""

BUILT_IN = ("shapes", "cifar10", "imagenette")

# Where a split may be found; CIFAR-10 and others have no validation set of their own, and their
# test set takes its place.
VAL_FOLDERS = ("val", "valid", "validation")

# Drawn pictures are numbered; validation starts far above any training set, so that a larger
# training set never runs into it.
SHAPES_FIRST_VAL_INDEX = 1 << 40
SHAPES_SIZES = {"num_train": 12_800, "num_val": 3_200, "num_classes": 16}

# Raised whenever the same pictures would be packed to other pixels, so that caches are renewed.
PIXELS_VERSION = 1

BLOCK_BYTES = 4 * 2**20
TINY_FILE_BYTES = 8 * 2**10

# Imagenette's downloads, by the length of their shorter side: room for archive and pictures.
IMAGENETTE_BYTES = {"160px": 210_000_000, "320px": 720_000_000}

# Imagenette's ten classes, by WordNet id.
WORDNET_NAMES: Mapping[str, str] = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


@dataclass(frozen=True)
class Picture:
    """A file that looks like a picture: where it is below the source, and its class."""

    path: str  # relative to the source, with forward slashes
    label: int
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, by split, in the order in which they are packed."""

    source: Path
    class_ids: tuple[str, ...]
    splits: dict[str, tuple[Picture, ...]]
    settings: dict[str, Any]  # what the split into training and validation depends on

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


def prepare(
    source: Path,
    target: Path,
    *,
    image_px: int = 256,
    val_fraction: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> PackedDataset:
    """Pack the pictures of folder `source` into the new folder `target` and open it.

    `val_fraction` and `seed` matter only where the source is not split already; see
    `find_pictures`. Raises UserError for whatever stands in the way, and leaves nothing behind.
    """
    listing = find_pictures(source, val_fraction=val_fraction, seed=seed)
    name = source.resolve().name
    _pack_listing(listing, target, name=name, image_px=image_px, progress=progress)
    return open_packed(target)


def open_dataset(
    spec: str,
    *,
    image_px: int,
    seed: int = 0,
    num_train: int | None = None,
    num_val: int | None = None,
    num_classes: int | None = None,
    val_fraction: float = 0.1,
    progress: Progress | None = None,
) -> PackedDataset:
    """Open 'shapes', 'cifar10', 'imagenette', a packed data set or a folder of pictures.

    What is not packed yet is packed into the cache first (ALEXNET_CACHE, by default
    ~/.cache/alexnet), under its name, size and fingerprint: a folder that has changed since, or
    other settings, are packed anew. `num_train`, `num_val` and `num_classes` are for 'shapes'
    alone. Only 'cifar10' and 'imagenette' use the network, the first time.
    """
    if image_px < 1:
        raise UserError(f"image_px is {image_px}; it must be at least 1")
    sizes = {"num_train": num_train, "num_val": num_val, "num_classes": num_classes}
    given = {key: value for key, value in sizes.items() if value is not None}
    if spec == "shapes":
        return _open_shapes(image_px, seed, given, progress)
    if given:
        raise UserError(f"{', '.join(given)}: for the built-in shapes only, not for {spec}")
    if spec == "cifar10":
        return _open_cifar10(image_px, progress)
    if spec == "imagenette":
        return _open_imagenette(image_px, progress)
    path = Path(spec).expanduser()
    if is_packed(path):
        return _open_with_size(path, image_px)
    if not path.exists():
        raise UserError(f"no data set or folder {spec!r}{suggest(spec, BUILT_IN)}")
    listing = find_pictures(path, val_fraction=val_fraction, seed=seed)
    return _open_listing(listing, path.resolve().name, image_px, progress)


def find_pictures(source: Path, *, val_fraction: float, seed: int) -> Listing:
    """List the pictures of a folder by split and class.

    A folder with `train` and one of `val`, `valid`, `validation` or `test` is taken as split;
    without a validation set, `test` is it. Otherwise each folder in `source` is a class (or in
    its `train`, if that is all there is), and `split_names` sets the validation pictures aside.
    Classes are sorted by folder name; pictures may lie deeper. Names that start with a dot, and
    files without the suffix of a picture, are passed over.
    """
    if not source.exists():
        raise UserError(f"{source} is not there")
    if not source.is_dir():
        raise UserError(f"{source} is a file; give the folder that holds the pictures")
    parts = _split_folders(source)
    if len(parts) > 1:
        found = {split: _pictures_by_class(source, folder) for split, folder in parts.items()}
        _check_same_classes(source, parts, found)
        settings: dict[str, Any] = {"val_fraction": None, "seed": None}
    else:
        if not 0 < val_fraction < 1:
            raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
        by_class = _pictures_by_class(source, parts["train"])
        found = {"train": {}, "val": {}}
        for class_id, pictures in by_class.items():
            chosen = split_names([p.path for p in pictures], val_fraction, seed)
            found["val"][class_id] = [p for p in pictures if p.path in chosen]
            found["train"][class_id] = [p for p in pictures if p.path not in chosen]
        settings = {"val_fraction": val_fraction, "seed": seed}
    splits = {
        split: tuple(picture for pictures in by_class.values() for picture in pictures)
        for split, by_class in found.items()
    }
    return Listing(source, tuple(found["train"]), splits, settings)


def split_names(names: list[str], val_fraction: float, seed: int) -> set[str]:
    """The names set aside for validation: those that hash lowest, one at least, never all.

    A pure function of (seed, names) in which no name's rank depends on the others: when
    pictures are added, no more of the old ones change sides than the fraction requires.
    """
    if len(names) < 2:
        raise UserError(
            f"{names[0]} is the only picture of its class; "
            "at least two are needed, one to train on and one to validate"
        )
    count = min(max(round(val_fraction * len(names)), 1), len(names) - 1)
    ranked = sorted(names, key=lambda name: (_hash(f"{seed}/{name}"), name))
    return set(ranked[:count])


def cache_folder() -> Path:
    return Path(os.environ.get("ALEXNET_CACHE") or "~/.cache/alexnet").expanduser()


def _split_folders(source: Path) -> dict[str, Path]:
    """The folders of the splits; {"train": folder} alone where pictures are not split yet."""
    folders = {folder.name: folder for folder in _folders(source)}
    held_out = [name for name in (*VAL_FOLDERS, "test") if name in folders]
    if "train" not in folders or (not held_out and len(folders) > 1):
        return {"train": source}
    parts = {"train": folders["train"]}
    if held_out:
        parts["val"] = folders[held_out[0]]
    if "test" in held_out[1:]:
        parts["test"] = folders["test"]
    return parts


def _folders(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    return [
        e for e in entries if e.is_dir() and not e.name.startswith(".") and e.name != "__MACOSX"
    ]


def _pictures_by_class(source: Path, folder: Path) -> dict[str, list[Picture]]:
    classes = _folders(folder)
    if not classes:
        raise UserError(
            f"{folder} has no folders in it; put the pictures of each class in a folder of its own"
        )
    found = {
        class_folder.name: _pictures_below(source, class_folder, label)
        for label, class_folder in enumerate(classes)
    }
    if not any(found.values()):
        raise UserError(f"no pictures in {folder} (looked for {' '.join(sorted(SUFFIXES))})")
    for class_id, pictures in found.items():
        if not pictures:
            raise UserError(
                f"class folder {folder / class_id} holds no pictures; fill or remove it"
            )
    if len(found) == 1:
        raise UserError(f"{folder} holds one class only ({classes[0].name}); two are the least")
    return found


def _pictures_below(source: Path, folder: Path, label: int) -> list[Picture]:
    found = []
    for parent, subfolders, files in os.walk(folder, onerror=_unreadable_folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                continue
            file = Path(parent, name)
            relative = file.relative_to(source).as_posix()
            try:
                status = file.stat()
                found.append(Picture(relative, label, status.st_size, status.st_mtime_ns))
            except OSError:  # a dangling link: decoding it fails, and says so
                found.append(Picture(relative, label, 0, 0))
    return sorted(found, key=lambda picture: picture.path)


def _unreadable_folder(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}")


def _check_same_classes(
    source: Path, parts: dict[str, Path], found: dict[str, dict[str, list[Picture]]]
) -> None:
    for split, by_class in found.items():
        odd = sorted(set(by_class) ^ set(found["train"]))
        if odd:
            having = split if odd[0] in by_class else "train"
            raise UserError(
                f"{parts['train'].name} and {parts[split].name} in {source} have different "
                f"classes: {odd[0]!r} is only in {parts[having].name}"
                + (f" ({len(odd)} such classes)" if len(odd) > 1 else "")
            )


def _open_listing(
    listing: Listing, name: str, image_px: int, progress: Progress | None
) -> PackedDataset:
    pictures = [
        [split, picture.path, picture.size_bytes, picture.mtime_ns]
        for split, part in listing.splits.items()
        for picture in part
    ]
    pack = functools.partial(
        _pack_listing, listing, name=name, image_px=image_px, progress=progress
    )
    return _cached(name, image_px, [listing.settings, pictures], pack)


def _pack_listing(
    listing: Listing, target: Path, *, name: str, image_px: int, progress: Progress | None
) -> None:
    if image_px < 1:
        raise UserError(f"image_px is {image_px}; it must be at least 1")
    with contextlib.closing(_decoded(listing, image_px)) as blocks, warnings.catch_warnings():
        # What Pillow thinks of a picture that it can read is for `check`, not for the terminal.
        warnings.filterwarnings("ignore", module="PIL")
        write_packed(
            target,
            _reported(_checked(blocks, listing), len(listing), progress),
            name=name,
            image_px=image_px,
            class_names=tuple(WORDNET_NAMES.get(i, i) for i in listing.class_ids),
            class_ids=listing.class_ids,
            num_images=len(listing),
            settings=listing.settings,
        )


def _decoded(listing: Listing, image_px: int) -> Generator[Block, None, None]:
    """Blocks of decoded pictures, in order, a few of them ahead.

    Threads suffice: Pillow decodes and resamples without Python's lock. Tiny files are the
    exception: there Python does most of the work, and two threads are slower than one.
    """
    tasks = [
        (split, pictures[numbers.start : numbers.stop])
        for split, pictures in listing.splits.items()
        for numbers in _ranges(len(pictures), image_px)
    ]
    mean_bytes = sum(p.size_bytes for part in listing.splits.values() for p in part) / len(listing)
    num_threads = 1 if mean_bytes < TINY_FILE_BYTES else _available_cores()
    with ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[Block]] = deque()
        try:
            for split, pictures in tasks:
                ahead.append(pool.submit(_decode, listing.source, split, pictures, image_px))
                if len(ahead) > 2 * num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(source: Path, split: str, pictures: tuple[Picture, ...], image_px: int) -> Block:
    kept: list[Picture] = []
    pixels: list[Pixels] = []
    left_out: list[dict[str, str]] = []
    for picture in pictures:
        try:
            pixels.append(resize_and_crop(read_image(source / picture.path), image_px))
            kept.append(picture)
        except UnreadableImage as error:
            left_out.append({"path": picture.path, "reason": str(error)})
    stacked = np.array(pixels, np.uint8).reshape(-1, image_px, image_px, 3)
    labels = np.array([picture.label for picture in kept], np.int64)
    return make_block(split, stacked, labels, tuple(picture.path for picture in kept), left_out)


def _checked(blocks: Iterable[Block], listing: Listing) -> Iterator[Block]:
    """Pass blocks on; stop when so much was left out that the rest is no data set."""
    left_out: list[dict[str, str]] = []
    counts = {split: np.zeros(len(listing.class_ids), np.int64) for split in listing.splits}
    for block in blocks:
        left_out += block.left_out
        if 2 * len(left_out) > len(listing):
            raise UserError(
                f"more than half of the {len(listing):,} pictures cannot be read; the first: "
                f"{left_out[0]['path']}: {left_out[0]['reason']}"
            )
        counts[block.split] += np.bincount(block.labels, minlength=len(listing.class_ids))
        yield block
    for split, per_class in counts.items():
        if not per_class.all():
            class_id = listing.class_ids[int(per_class.argmin())]
            raise UserError(
                f"no picture of class {class_id!r} for {split} can be read; "
                "replace the pictures of this class or remove it"
            )


def _reported(blocks: Iterable[Block], total: int, progress: Progress | None) -> Iterator[Block]:
    done = 0
    for block in blocks:
        yield block
        done += len(block.images) + len(block.left_out)
        if progress is not None:
            progress(done, total)


def _open_shapes(
    image_px: int, seed: int, sizes: dict[str, int], progress: Progress | None
) -> PackedDataset:
    sizes = SHAPES_SIZES | sizes
    if min(sizes.values()) < 1:
        raise UserError(f"{sizes}: each must be at least 1")
    class_names = shapes.class_names(sizes["num_classes"])
    total = sizes["num_train"] + sizes["num_val"]

    def blocks() -> Iterator[Block]:
        first_index = {"train": 0, "val": SHAPES_FIRST_VAL_INDEX}
        for split, first in first_index.items():
            for numbers in _ranges(sizes[f"num_{split}"], image_px):
                drawn = shapes.shapes(
                    seed,
                    first + np.array(numbers),
                    image_px=image_px,
                    num_classes=sizes["num_classes"],
                )
                yield make_block(split, *drawn, tuple(f"{split}/{n:07d}" for n in numbers), [])

    def pack(target: Path) -> None:
        write_packed(
            target,
            _reported(blocks(), total, progress),
            name="shapes",
            image_px=image_px,
            class_names=class_names,
            class_ids=class_names,
            num_images=total,
            settings={"seed": seed, **sizes},
        )

    # The drawing code belongs to the fingerprint: other code draws other pictures.
    drawing = hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()
    return _cached("shapes", image_px, [seed, sizes, drawing], pack)


def _open_cifar10(image_px: int, progress: Progress | None) -> PackedDataset:
    def pack(target: Path) -> None:
        from torchvision.datasets import CIFAR10  # slow to import, and rarely needed

        with _downloading("CIFAR-10"):
            parts = {
                split: CIFAR10(cache_folder() / "downloads", train=train, download=True)
                for split, train in {"train": True, "val": False}.items()
            }
        total = sum(len(part.data) for part in parts.values())
        blocks = (
            _block_of_arrays(split, part.data, np.array(part.targets), numbers, image_px)
            for split, part in parts.items()
            for numbers in _ranges(len(part.data), image_px)
        )
        class_names = tuple(parts["train"].classes)
        write_packed(
            target,
            _reported(blocks, total, progress),
            name="cifar10",
            image_px=image_px,
            class_names=class_names,
            class_ids=class_names,
            num_images=total,
            settings={},
        )

    return _cached("cifar10", image_px, [], pack)


def _block_of_arrays(
    split: str, pixels: Pixels, labels: Labels, numbers: range, image_px: int
) -> Block:
    chosen = slice(numbers.start, numbers.stop)
    images = [resize_and_crop(Image.fromarray(image), image_px) for image in pixels[chosen]]
    sources = tuple(f"{split}/{number:05d}" for number in numbers)
    return make_block(split, np.stack(images), labels[chosen].astype(np.int64), sources, [])


def _open_imagenette(image_px: int, progress: Progress | None) -> PackedDataset:
    def pack(target: Path) -> None:
        listing = find_pictures(_imagenette_folder(image_px), val_fraction=0.5, seed=0)
        _pack_listing(listing, target, name="imagenette", image_px=image_px, progress=progress)

    return _cached("imagenette", image_px, [], pack)


def _imagenette_folder(image_px: int) -> Path:
    """The folder of Imagenette, downloaded if need be, in the least size that suffices."""
    size = next((size for size in IMAGENETTE_BYTES if image_px <= int(size[:-2])), "320px")
    folder = cache_folder() / "downloads" / f"imagenette-{size}"
    if not folder.exists():
        from torchvision.datasets import Imagenette  # slow to import, and rarely needed

        with new_folder(folder, IMAGENETTE_BYTES[size]) as temporary, _downloading("Imagenette"):
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


def _cached(name: str, image_px: int, key: Any, pack: Callable[[Path], None]) -> PackedDataset:
    """Open the packed data set of this fingerprint in the cache, after packing it if need be."""
    fingerprint = _hash(json.dumps([FORMAT_VERSION, PIXELS_VERSION, key])).hex()[:16]
    target = cache_folder() / "packed" / f"{name}-{image_px}px-{fingerprint}"
    if not is_packed(target):
        try:
            pack(target)
        except UserError:
            if not is_packed(target):  # unless another process was faster
                raise
    return open_packed(target)


def _open_with_size(path: Path, image_px: int) -> PackedDataset:
    dataset = open_packed(path)
    if dataset.image_px != image_px:
        raise UserError(
            f"{path} is packed at {dataset.image_px} px, but {image_px} px are asked for: "
            f"prepare it again at that size, or ask for {dataset.image_px}"
        )
    return dataset


def _ranges(count: int, image_px: int) -> list[range]:
    size = _block_images(image_px)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _block_images(image_px: int) -> int:
    return math.ceil(BLOCK_BYTES / (3 * image_px**2))


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
