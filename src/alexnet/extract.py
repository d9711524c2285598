"""Features of a data set or of any pictures, in a file, with their paths and labels (Section 6.1).

    features.npy      float32 or float16 (N, D), plain NumPy
    features.csv      row, split, path, label, class: one line for each row
    features.json     which layer of which weights, at which point of it; counts and checksums

or one `features.parquet` with the same columns, `features` a list of D numbers, and the JSON in
the file's metadata. Rows are written as they come; the files appear whole, at the end, or not
at all. `read_features` reads either form back and checks it.

Not here: searching (`retrieval.py`).
"""

import contextlib
import csv
import hashlib
import importlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from alexnet.augment import check_views
from alexnet.builtin import NAMES
from alexnet.collectives import ALONE, Group
from alexnet.dataset import PackedDataset, is_packed, open_packed
from alexnet.errors import UserError, suggest
from alexnet.files import atomic_file, read_json, sha256_of, write_json
from alexnet.gather import picture_paths, read_pictures
from alexnet.opening import open_dataset
from alexnet.packing import SPLITS
from alexnet.trained import TrainedAlexNet, feature_point

FORMAT = "alexnet-features"
DTYPES = ("float32", "float16")
COLUMNS = ("row", "split", "path", "label", "class")
NO_LABEL = -1


@dataclass(frozen=True, eq=False)
class Block:
    """Some pictures of a source, prepared: pixels (B, S, S, 3), and for each where and what."""

    pixels: NDArray[np.uint8]
    paths: Sequence[str]
    splits: Sequence[str]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Source:
    """Pictures to extract from: `total` of them at most, in blocks; `refused` grows meanwhile."""

    name: str
    class_names: tuple[str, ...]
    total: int
    blocks: Iterator[Block]
    refused: list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Features:
    """What `extract` wrote: vectors (N, D), and for each row its path, split, label and class."""

    vectors: NDArray[Any]
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    labels: NDArray[np.int64]
    about: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.about["class_names"])


def extract(
    model: TrainedAlexNet,
    data: str,
    out: Path,
    *,
    model_path: Path,
    layer: str | None = None,
    before_relu: bool = False,
    split: str | None = None,
    views: int = 1,
    dtype: str = "float32",
    precision: str = "fp32",
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Write the features of every picture of `data`, and return what the file says of itself.

    The ranks of `group` take the batches in turn, and the first writes.

    `data`: a packed data set or one of its splits, a built-in one, a folder with or without
    classes, a file or a pattern. `split`: only this one. Pictures that cannot be read are left
    out, and named in the file. Raises UserError for a wrong layer, suffix, type or source.
    """
    check_views(views)
    _check(out, dtype, batch_size)
    described = model.network.layer(layer or model.network.feature_layer)
    source = open_source(
        data, model.card.preprocessing.image_px, split, max(1, batch_size // views)
    )
    vectors_of = model.feature_function(
        described.name, before_relu=before_relu, precision=precision
    )
    shape = _feature_shape(model, described.name, before_relu)
    about: dict[str, Any] = {
        "format": FORMAT,
        "model": str(model_path),
        "model_sha256": sha256_of(model_path),
        "network": model.network.name,
        "layer": described.name,
        **feature_point(described, before_relu),
        "shape": list(shape),
        "dtype": dtype,
        "views": views,
        "precision": precision,
        "data": source.name,
        "class_names": list(source.class_names),
    }
    width, done = int(np.prod(shape)), 0

    def vectors(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        found = model.vectors(vectors_of, pixels, views=views, batch_size=batch_size)
        return _fitting(found, dtype)

    is_first = group.rank == 0
    with _writer(out, width, dtype) if is_first else contextlib.nullcontext() as writer:
        for block, found in _in_turn(source.blocks, vectors, group):
            if writer is not None:
                writer.add(found, block, source.class_names)
            done += len(block.paths)
            if progress is not None:
                progress(done + len(source.refused), source.total)
        if not done:
            first = "; the first: {}: {}".format(*source.refused[0]) if source.refused else ""
            raise UserError(f"none of the pictures of {data} could be read{first}")
        about["rows"] = done
        about["left_out"] = [{"path": path, "reason": why} for path, why in source.refused]
        if writer is not None:
            writer.finish(about)
    return about


def _in_turn(
    blocks: Iterator[Block], vectors: Callable[[NDArray[np.uint8]], NDArray[Any]], group: Group
) -> Iterator[tuple[Block, NDArray[Any]]]:
    """Each block with its vectors, which one of the ranks has made: block i is rank i % ranks's."""
    while turn := list(itertools.islice(blocks, group.size)):
        mine = vectors(turn[group.rank].pixels) if group.rank < len(turn) else None
        yield from zip(turn, group.objects(mine, "features"), strict=False)


def _check(out: Path, dtype: str, batch_size: int) -> None:
    if out.suffix not in (".npy", ".parquet"):
        raise UserError(f"{out}: features are written to a .npy or a .parquet file")
    if dtype not in DTYPES:
        raise UserError(f"no type {dtype!r}{suggest(dtype, DTYPES)}")
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")


def _feature_shape(model: TrainedAlexNet, layer: str, before_relu: bool) -> tuple[int, ...]:
    """Of one picture, batch left out, as the layer gives it before it is flattened."""
    import torch

    parameter = next(model.parameters())
    px = model.network.input_px
    with torch.inference_mode():
        zeros = torch.zeros(1, 3, px, px, device=parameter.device)
        return tuple(model.features(zeros, layer, before_relu=before_relu).shape[1:])


def _fitting(vectors: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        fitting = vectors.astype(dtype)
    if not np.isfinite(fitting).all():
        reason = "too large for float16" if np.isfinite(vectors).all() else "not finite"
        raise UserError(f"a feature is {reason}; try --dtype float32")
    return fitting


# Sources


def open_source(data: str, image_px: int, split: str | None, batch_size: int) -> Source:
    """Whatever `extract` takes. Raises UserError for what is none, or has not this split."""
    path = Path(data).expanduser()
    if is_packed(path):
        return _packed_source(_with_size(open_packed(path), image_px), split, batch_size)
    if is_packed(path.parent) and path.name in SPLITS:
        return _packed_source(_with_size(open_packed(path.parent), image_px), path.name, batch_size)
    if data in NAMES:
        return _packed_source(open_dataset(data, image_px=image_px), split, batch_size)
    if (path / "recipe.json").is_file():
        raise UserError(f"{data} is a run, not pictures")
    if not path.exists() and not any(sign in data for sign in "*?["):
        raise UserError(f"no data set, folder or picture {data!r}{suggest(data, NAMES)}")
    return _loose_source(data, image_px, split, batch_size)


def _with_size(dataset: PackedDataset, image_px: int) -> PackedDataset:
    if dataset.image_px != image_px:
        raise UserError(
            f"{dataset.path} is packed at {dataset.image_px} px, and the network's mean image has "
            f"{image_px} px; prepare it again with --image-px {image_px}"
        )
    return dataset


def _packed_source(dataset: PackedDataset, split: str | None, batch_size: int) -> Source:
    if split is not None and split not in dataset.splits:
        raise UserError(
            f"the data set {dataset.name} has no split {split!r}{suggest(split, dataset.splits)}"
        )
    chosen = [part for name, part in dataset.splits.items() if split in (None, name)]

    def blocks() -> Iterator[Block]:
        for part in chosen:
            for start in range(0, len(part), batch_size):
                rows = slice(start, min(start + batch_size, len(part)))
                names = [part.sources[row] for row in range(rows.start, rows.stop)]
                pixels = np.asarray(part.images[rows])
                yield Block(pixels, names, [part.name] * len(names), part.labels[rows])

    return Source(dataset.name, dataset.class_names, sum(map(len, chosen)), blocks(), [])


def _loose_source(data: str, image_px: int, split: str | None, batch_size: int) -> Source:
    """Pictures as they lie; a folder below `data`, or below its train, val and test, is a class."""
    paths = list(picture_paths([data]))
    placed = [_place(os.path.relpath(path, data)) for path in paths]
    if not os.path.isdir(data):
        placed = [("", "")] * len(paths)
    if split is not None:
        paths = [path for path, (own, _) in zip(paths, placed, strict=True) if own == split]
        placed = [(own, name) for own, name in placed if own == split]
        if not paths:
            raise UserError(f"{data} has no folder {split!r} with pictures")
    class_names = tuple(sorted({name for _, name in placed if name}))
    label_of = {name: label for label, name in enumerate(class_names)}
    where = dict(zip(paths, placed, strict=True))
    refused: list[tuple[str, str]] = []

    def blocks() -> Iterator[Block]:
        for found in read_pictures(paths, image_px, batch_size=batch_size):
            refused.extend(found.refused)
            names = found.readable
            if names:
                labels = [label_of.get(where[name][1], NO_LABEL) for name in names]
                splits = [where[name][0] for name in names]
                yield Block(found.pixels, names, splits, np.array(labels, np.int64))

    return Source(data, class_names, len(paths), blocks(), refused)


def _place(relative: str) -> tuple[str, str]:
    """(split, class) of a picture by its folders; "" for none."""
    folders = relative.split(os.sep)[:-1]
    split = folders.pop(0) if folders and folders[0] in SPLITS else ""
    return split, folders[0] if folders else ""


# Files


def _writer(out: Path, width: int, dtype: str) -> "NpyWriter | ParquetWriter":
    return (
        NpyWriter(out, width, dtype) if out.suffix == ".npy" else ParquetWriter(out, width, dtype)
    )


class NpyWriter:
    """Rows into a .npy whose header is written last, and their places into a .csv beside it.

    The .json is renamed into its place after both: files that do not belong together are told by
    the checksums in it.
    """

    def __init__(self, out: Path, width: int, dtype: str) -> None:
        self.out, self.width, self.dtype = out, width, np.dtype(dtype)
        self.rows = 0
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        out = self.out
        self.temporary = [
            self.stack.enter_context(atomic_file(path))
            for path in (out.with_suffix(".json"), out.with_suffix(".csv"), out)
        ]
        _, table, array = self.temporary
        self.array = self.stack.enter_context(open(array, "wb"))
        self.table = self.stack.enter_context(
            open(table, "w", newline="", encoding="utf-8", errors="surrogateescape")
        )
        self.csv = csv.writer(self.table, lineterminator="\n")
        self.csv.writerow(COLUMNS)
        self.header_bytes = self._write_header(self.array)
        return self

    def _write_header(self, file: BinaryIO) -> int:
        """NumPy leaves room in a header for any number of rows."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, self.width),
        }
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()

    def add(self, vectors: NDArray[Any], block: Block, class_names: Sequence[str]) -> None:
        self.array.write(np.ascontiguousarray(vectors).tobytes())
        for split, path, label in zip(block.splits, block.paths, block.labels, strict=True):
            self.csv.writerow([self.rows, split, path, label, _class_name(class_names, label)])
            self.rows += 1

    def finish(self, about: dict[str, Any]) -> None:
        self.array.seek(0)
        assert self._write_header(self.array) == self.header_bytes
        self.array.close()
        self.table.close()
        description, table, array = self.temporary
        sums = {"npy_sha256": sha256_of(array), "csv_sha256": sha256_of(table)}
        write_json(description, about | sums)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.__exit__(kind, error, trace)


class ParquetWriter:
    """Rows into one .parquet, a row group for each block."""

    def __init__(self, out: Path, width: int, dtype: str) -> None:
        self.out, self.width, self.dtype = out, width, dtype
        self.rows = 0
        self.stack = contextlib.ExitStack()
        pa = _pyarrow()
        number = pa.float32() if dtype == "float32" else pa.float16()
        self.schema = pa.schema(
            {
                "row": pa.int64(),
                "split": pa.string(),
                "path": pa.string(),
                "label": pa.int64(),
                "class": pa.string(),
                "features": pa.list_(number, width),
            }
        )

    def __enter__(self) -> Self:
        temporary = self.stack.enter_context(atomic_file(self.out))
        self.writer = self.stack.enter_context(
            _pyarrow("parquet").ParquetWriter(temporary, self.schema)
        )
        return self

    def add(self, vectors: NDArray[Any], block: Block, class_names: Sequence[str]) -> None:
        pa = _pyarrow()
        names = [_class_name(class_names, label) for label in block.labels]
        # Parquet's strings are UTF-8; a name that is not is kept readable.
        paths = [p.encode(errors="backslashreplace").decode() for p in block.paths]
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns = [
            pa.array(np.arange(self.rows, self.rows + len(paths))),
            pa.array(list(block.splits)),
            pa.array(paths),
            pa.array(block.labels),
            pa.array(names),
            pa.FixedSizeListArray.from_arrays(flat, self.width),
        ]
        self.writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self.rows += len(paths)

    def finish(self, about: dict[str, Any]) -> None:
        self.writer.add_key_value_metadata({"alexnet": json.dumps(about)})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.__exit__(kind, error, trace)


def _pyarrow(part: str = "") -> Any:
    try:
        return importlib.import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError:
        raise UserError(
            "parquet files need pyarrow: pip install 'alexnet[parquet]'; a .npy needs nothing"
        ) from None


def _class_name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if label >= 0 else ""


def read_features(path: Path) -> Features:
    """What `extract` wrote; a .npy stays on the disk until it is used.

    Raises UserError where something is missing, damaged, or does not belong together.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there; `alexnet extract` writes it")
    try:
        features = _read_npy(path) if path.suffix == ".npy" else _read_parquet(path)
        about = features.about
        if about["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if features.vectors.shape != (about["rows"], int(np.prod(about["shape"]))):
            raise ValueError(f"it holds {features.vectors.shape}")
        if len(features.paths) != about["rows"]:
            raise ValueError(f"{len(features.paths)} paths for {about['rows']} rows")
    except UserError:
        raise
    # numpy, csv, json and pyarrow each have their own exceptions for a damaged file.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}); extract the features again") from None
    return features


def _read_npy(path: Path) -> Features:
    about = read_json(path.with_suffix(".json"))
    table = path.with_suffix(".csv")
    if hashlib.sha256(table.read_bytes()).hexdigest() != about["csv_sha256"]:
        raise ValueError(f"{table.name} is of another extraction")
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    with open(table, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([int(row["label"]) for row in rows], np.int64)
    paths, splits = (tuple(row[name] for row in rows) for name in ("path", "split"))
    return Features(vectors, paths, splits, labels, about)


def _read_parquet(path: Path) -> Features:
    with open(path, "rb") as opened:
        file = _pyarrow("parquet").ParquetFile(opened)
        about, table = json.loads(file.metadata.metadata[b"alexnet"]), file.read()
    column = table["features"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    paths, splits = (tuple(table[name].to_pylist()) for name in ("path", "split"))
    return Features(vectors, paths, splits, table["label"].to_numpy(), about)


def summary(about: dict[str, Any]) -> str:
    """One line for people."""
    shape = " x ".join(map(str, about["shape"]))
    left_out = f", {len(about['left_out']):,} pictures left out" if about["left_out"] else ""
    return f"{about['rows']:,} x {shape} of {about['layer']} ({about['taken']}){left_out}"
