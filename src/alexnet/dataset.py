"""The packed data set: square uint8 pictures in plain NumPy files, with their statistics.

    DATA/dataset.json            name, classes, counts, sources, what was left out, checksums
    DATA/statistics.npz          mean image and colour covariance over the training pictures
    DATA/<split>/images.npy      uint8 (N, S, S, 3), memory-mapped
    DATA/<split>/labels.npy      int64 (N,)

Sections 2 and 4.1 of the paper: fixed 256x256 pictures, a mean image, and the principal
components of RGB over the training set. `open_packed` checks what it reads, `write_packed`
writes all or nothing. Not here: where pictures come from (prepare.py), batches (loader.py).
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet.errors import UserError
from alexnet.files import explain_os_error, sha256_of

FORMAT = "alexnet-packed"
FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
STATISTICS_FIELDS = ("mean_image", "rgb_mean", "rgb_covariance", "eigenvalues", "eigenvectors")

# Pixels whose products are summed at a time: three planes of them fit into a core's cache.
MOMENT_PIXELS = 2**16

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Pictures (N, S, S, 3) uint8, memory-mapped; labels (N,) int64; where each one came from."""

    name: str
    images: Pixels
    labels: Labels
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Statistics:
    """Over all pixels of the training pictures, in units of 0..255 (Section 4.1).

    The covariance is the population's (divided by the number of pixels). `eigenvectors` holds
    one component per column, in the order of `eigenvalues`, largest first; the entry of
    greatest magnitude in each component is positive.
    """

    mean_image: npt.NDArray[np.float32]  # (S, S, 3)
    rgb_mean: npt.NDArray[np.float64]  # (3,)
    rgb_covariance: npt.NDArray[np.float64]  # (3, 3)
    eigenvalues: npt.NDArray[np.float64]  # (3,)
    eigenvectors: npt.NDArray[np.float64]  # (3, 3)


@dataclass(frozen=True)
class PackedDataset:
    path: Path
    name: str
    image_px: int
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    splits: dict[str, Split]
    statistics: Statistics
    left_out: list[dict[str, str]]


@dataclass(frozen=True)
class Moments:
    """Exact integer sums over pictures, from which the statistics follow.

    Integers add up to the same in any order: the statistics depend on neither the number of
    workers nor how the pictures were divided among them.
    """

    images: int
    pixel_sum: npt.NDArray[np.int64]  # (S, S, 3), over pictures
    product_sum: npt.NDArray[np.int64]  # (3, 3), of r*r, r*g, ... over pictures and positions

    @classmethod
    def zero(cls, image_px: int) -> "Moments":
        pixel_sum = np.zeros((image_px, image_px, 3), np.int64)
        return cls(0, pixel_sum, np.zeros((3, 3), np.int64))

    @classmethod
    def of(cls, images: Pixels) -> "Moments":
        """Moments of pictures (N, S, S, 3) uint8."""
        products = np.zeros((3, 3), np.int64)
        step = max(MOMENT_PIXELS // (images.shape[1] * images.shape[2]), 1)
        for start in range(0, len(images), step):
            part = images[start : start + step]
            planes = [part[..., channel].ravel().astype(np.int64) for channel in range(3)]
            products += np.array([[np.einsum("i,i", a, b) for b in planes] for a in planes])
        return cls(len(images), images.sum(axis=0, dtype=np.int64), products)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.images + other.images,
            self.pixel_sum + other.pixel_sum,
            self.product_sum + other.product_sum,
        )


def statistics_of(moments: Moments) -> Statistics:
    """Mean image, colour mean, covariance and its eigen-decomposition, in float64."""
    assert moments.images > 0
    pixels = moments.images * moments.pixel_sum.shape[0] * moments.pixel_sum.shape[1]
    # Python integers: the difference of two nearly equal products is exact.
    sums = [int(total) for total in moments.pixel_sum.sum(axis=(0, 1))]
    products = moments.product_sum.tolist()
    covariance = np.array(
        [
            [(pixels * products[i][j] - sums[i] * sums[j]) / pixels**2 for j in range(3)]
            for i in range(3)
        ]
    )
    ascending, components = np.linalg.eigh(covariance)
    eigenvectors = components[:, ::-1]
    largest = np.abs(eigenvectors).argmax(axis=0)
    return Statistics(
        mean_image=(moments.pixel_sum / moments.images).astype(np.float32),
        rgb_mean=np.array([total / pixels for total in sums]),
        rgb_covariance=covariance,
        eigenvalues=ascending[::-1].clip(min=0.0),
        eigenvectors=eigenvectors * np.sign(eigenvectors[largest, range(3)]),
    )


def is_packed(path: Path) -> bool:
    return (path / "dataset.json").is_file()


def open_packed(path: Path) -> PackedDataset:
    """Open a packed data set; pictures stay on the disk until they are used.

    Shapes, types, counts and file sizes are checked, contents are not: see `verify_packed`.
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
        _check(set(counts) <= set(SPLITS) and "train" in counts, "its splits are not as expected")
    splits = {
        split: _open_split(path / split, counts[split], image_px, len(class_ids))
        for split in SPLITS
        if split in counts
    }
    statistics = _open_statistics(path / "statistics.npz", image_px)
    return PackedDataset(path, name, image_px, class_names, class_ids, splits, statistics, left_out)


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


@dataclass(frozen=True)
class Block:
    """Some consecutive pictures of one split, as they are handed to `write_packed`.

    `moments` are those of `images` in the train split and zero elsewhere: computed with the
    block, so that the threads that decode also share this work.
    """

    split: str
    images: Pixels  # (N, S, S, 3)
    labels: Labels  # (N,)
    sources: tuple[str, ...]
    left_out: list[dict[str, str]]
    moments: Moments


def make_block(
    split: str,
    images: Pixels,
    labels: Labels,
    sources: tuple[str, ...],
    left_out: list[dict[str, str]],
) -> Block:
    train = split == "train"
    moments = Moments.of(images) if train else Moments.zero(images.shape[1])
    return Block(split, images, labels, sources, left_out, moments)


def packed_bytes(num_images: int, image_px: int) -> int:
    """What a packed data set takes on the disk, a little rounded up for names and statistics."""
    return num_images * (3 * image_px**2 + 8 + 512) + 12 * image_px**2 + 2**16


def write_packed(
    target: Path,
    blocks: Iterable[Block],
    *,
    name: str,
    image_px: int,
    class_names: tuple[str, ...],
    class_ids: tuple[str, ...],
    num_images: int,
    settings: dict[str, Any],
) -> None:
    """Write `blocks`, at most `num_images` pictures, split after split, to a new folder `target`.

    The folder appears whole, under its name, or not at all. Memory holds one block. Raises
    UserError when the target has something in it, or the disk is too small or fills up.
    """
    bytes_needed = packed_bytes(num_images, image_px)
    with new_folder(target, bytes_needed) as folder:
        moments = Moments.zero(image_px)
        left_out: list[dict[str, str]] = []
        written: dict[str, _Written] = {}
        with contextlib.ExitStack() as open_files:
            for block in blocks:
                if block.split not in written:
                    rows = _row_file(folder / block.split / "images.npy", (image_px, image_px, 3))
                    written[block.split] = _Written(open_files.enter_context(rows))
                written[block.split].add(block)
                moments += block.moments
                left_out += block.left_out
        described = {
            split: _finish_split(folder / split, parts, len(class_ids))
            for split, parts in written.items()
        }
        statistics = statistics_of(moments)
        arrays = {key: getattr(statistics, key) for key in STATISTICS_FIELDS}
        with open(folder / "statistics.npz", "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            _flush(file)
        contents = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": name,
            "image_px": image_px,
            "class_names": class_names,
            "class_ids": class_ids,
            "settings": settings,
            "sha256": {"statistics.npz": sha256_of(folder / "statistics.npz")},
            "splits": described,
            "left_out": left_out,
        }
        # Names that are not UTF-8 come from the disk as lone surrogates, and pass through.
        text = json.dumps(contents, indent=1, ensure_ascii=False) + "\n"
        with open(folder / "dataset.json", "wb") as file:
            file.write(text.encode(errors="surrogatepass"))
            _flush(file)


@contextlib.contextmanager
def new_folder(target: Path, bytes_needed: int) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which becomes `target` if the block succeeds.

    Whatever happens, nothing half-written stays behind. Raises UserError when the target has
    something in it, when fewer than `bytes_needed` are free, and for a write that fails.
    """
    target = target.resolve()  # "." has no name of its own
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} exists and is not empty; choose another place or remove it")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(temporary.parent).free
        if free_bytes < bytes_needed:
            raise UserError(
                f"{target} needs {bytes_needed:,} bytes and its disk has {free_bytes:,} free; "
                "free some space or choose another place"
            )
        temporary.mkdir()
        yield temporary
        if target.is_dir():
            target.rmdir()  # it is empty; not every system renames onto a folder
        temporary.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {target} needs {bytes_needed:,} bytes in all; "
                "free some space or choose another place; nothing half-written was left"
            ) from error
        raise explain_os_error(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _row_file(path: Path, row_shape: tuple[int, ...]) -> Iterator[Callable[[Pixels], None]]:
    """Yield a function that appends rows to a new plain uint8 .npy file.

    Written as a stream, not through a memory map: on a full disk a write fails with an error
    that can be reported, where a store to a mapped page kills the process.
    """
    path.parent.mkdir(parents=True)
    num_rows = 0
    with open(path, "wb") as file:

        def write_header() -> None:
            # NumPy pads a header so that its length does not depend on the number of rows.
            shape = (num_rows, *row_shape)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

        def append(rows: Pixels) -> None:
            nonlocal num_rows
            assert rows.dtype == np.uint8
            assert rows.shape[1:] == row_shape
            file.write(np.ascontiguousarray(rows).data)
            num_rows += len(rows)

        write_header()
        yield append
        file.seek(0)
        write_header()
        _flush(file)


@dataclass
class _Written:
    """What has been written of one split so far."""

    append: Callable[[Pixels], None]
    labels: list[Labels] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, block: Block) -> None:
        assert len(block.images) == len(block.labels) == len(block.sources)
        self.append(block.images)
        self.labels.append(block.labels)
        self.sources += block.sources


def _finish_split(folder: Path, written: _Written, num_classes: int) -> dict[str, Any]:
    labels = np.concatenate(written.labels).astype(np.int64)
    with open(folder / "labels.npy", "wb") as file:
        np.save(file, labels)
        _flush(file)
    return {
        "images": len(labels),
        "per_class": np.bincount(labels, minlength=num_classes).tolist(),
        "sha256": {file: sha256_of(folder / file) for file in ("images.npy", "labels.npy")},
        "sources": written.sources,
    }


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_description(path: Path) -> Any:
    with _damage(path / "dataset.json") as file:
        return json.loads(file.read_bytes())


def _open_split(folder: Path, described: Any, image_px: int, num_classes: int) -> Split:
    with _damage(folder.parent / "dataset.json"):
        num_images = int(described["images"])
        per_class = list(described["per_class"])
        sources = tuple(map(str, described["sources"]))
        _check(len(sources) == num_images, f"{folder.name}: sources and count differ")
        _check(len(per_class) == num_classes, f"{folder.name}: counts and classes differ")
    with _damage(folder / "images.npy") as file:
        images = np.load(file, mmap_mode="r", allow_pickle=False)
        _check_array(images, np.uint8, (num_images, image_px, image_px, 3))
        header_bytes = int(images.offset)
        _check(file.stat().st_size == header_bytes + images.nbytes, "its size is not as expected")
    with _damage(folder / "labels.npy") as file:
        labels = np.load(file, allow_pickle=False)
        _check_array(labels, np.int64, (num_images,))
        _check(num_images > 0 and labels.min() >= 0, "it has no labels, or negative ones")
        counts = np.bincount(labels, minlength=num_classes).tolist()
        _check(counts == per_class, "its counts per class differ from dataset.json")
    return Split(folder.name, images, labels, sources)


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
