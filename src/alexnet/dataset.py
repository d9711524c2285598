"""The packed data set: square uint8 pictures in plain files, with their statistics.

    DATA/dataset.json            name, classes, counts, what was left out, checksums
    DATA/statistics.npz          mean image and colour covariance over the training pictures
    DATA/<split>/images.npy      uint8 (N, S, S, 3), memory-mapped
    DATA/<split>/labels.npy      int64 (N,)
    DATA/<split>/sources.txt     where each picture came from, a line each

Instead of images.npy, a store of JPEG files has images.jpegs, the files one after another, and
offsets.npy, int64 (N + 1,), where each begins and the last ends. A store of places, in the cache
only, has no pictures at all, but places.bin and files.txt, which say where they lie (straight.py).

Sections 2 and 4.1 of the paper: fixed 256x256 pictures, a mean image, and the principal
components of RGB over the training set. Opening checks what it reads. Not here: where pictures
come from (prepare.py), how they are written (packing.py), batches (loader.py).
"""

import contextlib
import errno
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import numpy.typing as npt

from alexnet.errors import UserError
from alexnet.files import sha256_of
from alexnet.packing import FORMAT, FORMAT_VERSION, JPEGS_FILE, PIXELS_FILE, SPLITS, Labels, name_of
from alexnet.statistics import Pixels, Statistics

if TYPE_CHECKING:
    from alexnet.pictures import DecodedPictures, JpegPictures, ListedPictures

PLACES_FILE, FILES_FILE = "places.bin", "files.txt"

STATISTICS_FIELDS = ("mean_image", "rgb_mean", "rgb_covariance", "eigenvalues", "eigenvectors")


class Names(Sequence[str]):
    """The lines of sources.txt, read when they are used: a million names are not held in memory."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._count)))
        if not -self._count <= index < self._count:
            raise IndexError(index)
        text, ends = self._lines
        index %= self._count
        start = int(ends[index - 1]) + 1 if index else 0
        return name_of(text[start : int(ends[index])])

    @cached_property
    def _lines(self) -> tuple[mmap.mmap | bytes, npt.NDArray[np.int64]]:
        """The text, and where each line ends."""
        with _damage(self._path), open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
            _check(len(ends) == self._count, f"{len(ends):,} names instead of {self._count:,}")
        return text, ends


@dataclass(frozen=True)
class Split:
    """Pictures (N, S, S, 3) uint8, labels (N,) int64, and where each one came from.

    `images` is a memory map, or pictures that are decoded when they are asked for.
    """

    name: str
    images: "Pixels | DecodedPictures"
    labels: Labels
    sources: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: npt.NDArray[np.int64]) -> "Split":
        """Some of the pictures; what is decoded when it is asked for is not decoded yet."""
        images = (
            self.images[rows] if isinstance(self.images, np.ndarray) else self.images.part(rows)
        )
        sources = tuple(self.sources[row] for row in rows)
        return Split(self.name, images, self.labels[rows], sources)

    def readable(self) -> "Split":
        """Without the pictures of a store of places that are known to be unreadable."""
        if isinstance(self.images, np.ndarray) or not self.images.unreadable:
            return self
        return self.part(self.images.readable())


@dataclass(frozen=True)
class PackedDataset:
    """`statistics_images`: of how many training pictures the statistics are, commonly of all."""

    path: Path
    name: str
    image_px: int
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    splits: dict[str, Split]
    statistics: Statistics
    statistics_images: int
    left_out: list[dict[str, str]]


def is_packed(path: Path) -> bool:
    return (path / "dataset.json").is_file()


def open_packed(path: Path) -> PackedDataset:
    """Open a packed data set; pictures stay on the disk until they are used.

    Shapes, types, counts and file sizes are checked, contents are not: see `verify_packed`.
    Of a store of places, `train` has all pictures, since its order is of all; what has turned out
    to be unreadable is missing from the other splits and stands in `left_out`.
    Raises UserError, naming the file that is wrong and the way out.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not there; make it with: alexnet prepare PICTURES {path}")
    if not is_packed(path):
        raise UserError(f"{path} holds no dataset.json: it is not a packed data set")
    described = _read_description(path)
    with _damage(path / "dataset.json"):
        _check(described["format"] == FORMAT, f"its format is not {FORMAT!r}")
        version = described["version"]
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of format version {version}, this alexnet reads {FORMAT_VERSION}; "
            "prepare it again"
        )
    with _damage(path / "dataset.json"):
        image_px = int(described["image_px"])
        class_names = tuple(map(str, described["class_names"]))
        class_ids = tuple(map(str, described["class_ids"]))
        _check(len(class_names) == len(class_ids), "class_names and class_ids differ in length")
        left_out = [dict(entry) for entry in described["left_out"]]
        name, counts = str(described["name"]), dict(described["splits"])
        store = str(described["store"])
        _check(set(counts) <= set(SPLITS) and "train" in counts, "its splits are not as expected")
    splits = {
        split: _open_split(path / split, counts[split], store, image_px, len(class_ids))
        for split in SPLITS
        if split in counts
    }
    statistics = _open_statistics(path / "statistics.npz", image_px)
    with _damage(path / "dataset.json"):
        statistics_images = int(described.get("statistics_images", len(splits["train"])))
    if store == "places":
        for split in splits.values():
            left_out += cast("ListedPictures", split.images).left_out()
        splits = {s: split if s == "train" else split.readable() for s, split in splits.items()}
    return PackedDataset(
        path=path,
        name=name,
        image_px=image_px,
        class_names=class_names,
        class_ids=class_ids,
        splits=splits,
        statistics=statistics,
        statistics_images=statistics_images,
        left_out=left_out,
    )


def verify_packed(path: Path) -> PackedDataset:
    """Open a packed data set and compare the checksum of each of its files.

    Raises UserError naming the first file whose bytes are not those that were written.
    """
    dataset = open_packed(path)
    described = _read_description(path)
    with _damage(path / "dataset.json"):
        checksums = {"statistics.npz": described["sha256"]["statistics.npz"]}
        for split in dataset.splits:
            for file, checksum in described["splits"][split]["sha256"].items():
                checksums[f"{split}/{file}"] = checksum
    for file, checksum in checksums.items():
        if sha256_of(path / file) != checksum:
            raise _damaged(path / file, "its sha256 is not the one in dataset.json")
    return dataset


def _read_description(path: Path) -> Any:
    with _damage(path / "dataset.json") as file:
        return json.loads(file.read_bytes())


def _open_split(folder: Path, described: Any, store: str, image_px: int, num_classes: int) -> Split:
    with _damage(folder.parent / "dataset.json"):
        num_images = int(described["images"])
        per_class = list(described["per_class"])
        _check(len(per_class) == num_classes, f"{folder.name}: counts and classes differ")
        _check(store in ("pixels", "jpeg", "places"), f"no store {store!r}")
    images: Pixels | DecodedPictures
    if store == "places":
        with _damage(folder.parent / "dataset.json"):
            num_files = int(described["files"])
        images = _open_places(folder, num_images, num_files, image_px)
    else:
        images = (_open_pixels if store == "pixels" else _open_jpegs)(folder, num_images, image_px)
    with _damage(folder / "labels.npy") as file:
        labels = np.load(file, allow_pickle=False)
        _check_array(labels, np.int64, (num_images,))
        _check(num_images > 0 and labels.min() >= 0, "it has no labels, or negative ones")
        counts = np.bincount(labels, minlength=num_classes).tolist()
        _check(counts == per_class, "its counts per class differ from dataset.json")
    with _damage(folder / "sources.txt") as file:
        _check(file.stat().st_size >= num_images, "it is too short")
    return Split(folder.name, images, labels, Names(folder / "sources.txt", num_images))


def _open_pixels(folder: Path, num_images: int, image_px: int) -> Pixels:
    with _damage(folder / PIXELS_FILE) as file:
        images: Pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        _check_array(images, np.uint8, (num_images, image_px, image_px, 3))
        header_bytes = int(images.offset)  # type: ignore[attr-defined]
        _check(file.stat().st_size == header_bytes + images.nbytes, "its size is not as expected")
    return images


def _open_jpegs(folder: Path, num_images: int, image_px: int) -> "JpegPictures":
    from alexnet.pictures import JpegPictures

    with _damage(folder / "offsets.npy") as file:
        offsets = np.load(file, allow_pickle=False)
        _check_array(offsets, np.int64, (num_images + 1,))
        _check(offsets[0] == 0 and bool((np.diff(offsets) > 0).all()), "it does not ascend")
    with _damage(folder / JPEGS_FILE) as file:
        _check(file.stat().st_size == offsets[-1], "its size is not as expected")
    return JpegPictures(folder / JPEGS_FILE, offsets, image_px)


def _open_places(folder: Path, num_images: int, num_files: int, image_px: int) -> "ListedPictures":
    from alexnet.pictures import PLACE_FIELDS, ListedPictures

    with _damage(folder / PLACES_FILE) as file:
        shape = (num_images, PLACE_FIELDS)
        _check(file.stat().st_size == 8 * num_images * PLACE_FIELDS, "its size is not as expected")
        places = np.memmap(file, np.int64, "r", shape=shape)
    return ListedPictures(
        np.asarray(places),
        Names(folder / FILES_FILE, num_files),
        Names(folder / "sources.txt", num_images),
        image_px,
        folder / "unreadable.jsonl",
    )


def _open_statistics(path: Path, image_px: int) -> Statistics:
    shapes = dict(
        zip(STATISTICS_FIELDS, [(image_px, image_px, 3), (3,), (3, 3), (3,), (3, 3)], strict=True)
    )
    with _damage(path), np.load(path, allow_pickle=False) as arrays:
        loaded = {key: arrays[key] for key in STATISTICS_FIELDS}
        for key, array in loaded.items():
            _check_array(array, np.float32 if key == "mean_image" else np.float64, shapes[key])
            _check(bool(np.isfinite(array).all()), f"{key} is not finite")
    return Statistics(**loaded)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[Path]:
    """Turn whatever fails while `path` is read into one line for the user."""
    try:
        yield path
    except UserError:
        raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from error
        raise _damaged(path, str(error)) from error
    # A damaged file fails in NumPy, zipfile or our own indexing with any kind of exception.
    except Exception as error:
        raise _damaged(path, str(error) or type(error).__name__) from error


def _damaged(path: Path, reason: str) -> UserError:
    reason = " ".join(reason.split())[:200]
    return UserError(f"{path} is damaged ({reason}); remove the data set and prepare it again")


def _check(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _check_array(array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    _check(
        array.dtype == dtype and array.shape == shape,
        f"{array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}",
    )
