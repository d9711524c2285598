"""Pictures in tables: rows of parquet files, and CIFAR-10's python batches.

A row of a parquet file is found again by its number: `parquet_picture` reads the column of
pictures forwards, some rows at a time, and goes on from where it was, so that no group of rows is
in memory as a whole. A page of the file is, two or three times; as files are usually written, it
has 1024 rows at most. Of CIFAR-10's pickles no code is ever run: arrays are rebuilt here, and a
name outside a short list is refused.

Not here: which file is which split (sources.py), decoding (images.py).
"""

import functools
import gzip
import importlib
import io
import json
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from alexnet.errors import UserError
from alexnet.images import UnreadableImage

# Of a photograph's file, 100 kB each: some megabytes are held at a time.
ROWS_AT_A_TIME = 32
LABELS_AT_A_TIME = 4096

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "picture", "bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "target")

CIFAR_SHAPE = (3, 32, 32)
CIFAR_BYTES = 3 * 32 * 32
CIFAR_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CIFAR_NAMES = "batches.meta"

COMPRESSED = (".gz", ".tgz")

# A batch has 31 MB; all of them, in their archive, 186 MB.
MAX_PICKLE_BYTES = 2**26
MAX_UNPACKED_BYTES = 2**29


@dataclass(frozen=True)
class Columns:
    """Paths of columns in a parquet file; `names` are those of the classes, if it knows them."""

    image: str
    path: str | None
    label: str
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class Row:
    """A row without its picture. `label` is None if there is none (-1 in unlabelled sets)."""

    number: int
    label: int | str | None
    path: str | None
    size: int  # of the picture in bytes, about


def parquet_columns(file: str) -> Columns:
    """Which columns hold picture and label. Raises UserError if the file shows none."""
    with _opened_parquet(file) as table:
        return _columns(table.schema_arrow, file)


def parquet_rows(file: str) -> Iterator[Row]:
    """Every row, in order; pictures are not read. Raises UserError for a damaged file."""
    with _opened_parquet(file) as table:
        columns = _columns(table.schema_arrow, file)
        number = 0
        wanted = [columns.label, *([columns.path] if columns.path else [])]
        try:
            for group in range(table.num_row_groups):
                size = _mean_bytes(table.metadata.row_group(group))
                for batch in table.iter_batches(
                    LABELS_AT_A_TIME, row_groups=[group], columns=wanted, use_threads=False
                ):
                    labels = _leaf(batch, columns.label).to_pylist()
                    paths = _leaf(batch, columns.path).to_pylist() if columns.path else []
                    for index, label in enumerate(labels):
                        path = paths[index] if paths else None
                        yield Row(number, _known_label(label, columns.names), path, size)
                        number += 1
        # Arrow fails on damaged files with several kinds of exception.
        except Exception as error:
            raise UserError(f"{file} is damaged: {_reason(error)}") from None


def parquet_picture(file: str, row: int) -> bytes:
    """The bytes of the picture in a row. Raises UnreadableImage, with the reason."""
    try:
        reader = getattr(_local, "reader", None)
        if reader is None or not reader.has_open(file):
            reader = _local.reader = _ParquetReader(file)
        data = reader.picture(row)
    except Exception as error:
        _local.reader = None
        raise UnreadableImage(_reason(error)) from error
    if data is None:
        raise UnreadableImage("no picture in this row")
    return bytes(data)


def cifar_batch(content: bytes, where: str) -> tuple[int, list[int], list[str]]:
    """Where in the pickle of a batch its pixels start, labels and names of its pictures.

    Raises UserError for anything but a dictionary of CIFAR-10's kind.
    """
    batch = _unpickle(content, where)
    try:
        data, labels = batch[b"data"], [int(label) for label in batch[b"labels"]]
        names = [name.decode() for name in batch[b"filenames"]]
        shape, pixels = data.shape, data.pixels
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{where} is no batch of CIFAR-10") from None
    start = content.find(pixels)
    if shape != (len(labels), CIFAR_BYTES) or len(pixels) != len(labels) * CIFAR_BYTES or start < 0:
        raise UserError(f"{where} does not hold its {len(labels):,} pictures as CIFAR-10 does")
    if len(names) != len(labels):
        raise UserError(f"{where} has {len(names):,} names for {len(labels):,} labels")
    return start, labels, names


def cifar_names(content: bytes, where: str) -> list[str]:
    """The names of the classes, from batches.meta."""
    meta = _unpickle(content, where)
    try:
        return [name.decode() for name in meta[b"label_names"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{where} names no classes") from None


def cifar_picture(file: str, start: int) -> npt.NDArray[np.uint8]:
    """The picture (32, 32, 3) whose pixels start at a byte of the file, or of its content if it
    is compressed. Raises UnreadableImage if it is not wholly there.
    """
    try:
        if file.endswith(COMPRESSED):
            data = os.pread(unpacked(file).fileno(), CIFAR_BYTES, start)
        else:
            with open(file, "rb") as stored:
                stored.seek(start)
                data = stored.read(CIFAR_BYTES)
    except (OSError, UserError) as error:
        raise UnreadableImage(_reason(error)) from error
    if len(data) < CIFAR_BYTES:
        raise UnreadableImage("the file ends in the middle of it")
    pixels = np.frombuffer(data, np.uint8).reshape(CIFAR_SHAPE)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


@functools.lru_cache(maxsize=1)
def unpacked(file: str) -> IO[bytes]:
    """The content of a gzip file in a temporary one, once per process."""
    target = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process lives)
    try:
        with gzip.open(file) as source:
            limited = _Limited(source, MAX_UNPACKED_BYTES)
            shutil.copyfileobj(limited, target)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be unpacked: {_reason(error)}") from None
    target.flush()
    return target


class _Limited:
    def __init__(self, file: gzip.GzipFile, limit: int) -> None:
        self._file, self._left = file, limit

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it swells to more than CIFAR-10 has")
        return data


_local = threading.local()


class _ParquetReader:
    """Pictures of one file by row, fast if rows are asked for in order.

    Held once per thread, not passed on to a forked process: neither can use another's place.
    """

    def __init__(self, file: str) -> None:
        self._file, self._process, self._stamp = file, os.getpid(), _stamp(file)
        self._table = _opened_parquet(file)
        self._column = _columns(self._table.schema_arrow, file).image
        counts = [
            self._table.metadata.row_group(group).num_rows
            for group in range(self._table.num_row_groups)
        ]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._batches: Iterator[Any] = iter(())
        self._pictures: Any = []  # of the batch read last
        self._start = self._stop = 0  # its rows
        self._group = -1

    def has_open(self, file: str) -> bool:
        key = (self._file, self._process, self._stamp)
        return key == (file, os.getpid(), _stamp(file))

    def picture(self, row: int) -> bytes | None:
        group = int(np.searchsorted(self._ends, row, side="right"))
        if group == len(self._ends):
            raise UnreadableImage(f"the file has no row {row:,}")
        if group != self._group or row < self._start:
            self._batches = self._table.iter_batches(
                ROWS_AT_A_TIME, row_groups=[group], columns=[self._column], use_threads=False
            )
            self._start = self._stop = int(self._ends[group - 1]) if group else 0
            self._group = group
        while row >= self._stop:
            self._pictures = _leaf(next(self._batches), self._column)
            self._start, self._stop = self._stop, self._stop + len(self._pictures)
        picture = self._pictures[row - self._start].as_py()
        assert picture is None or isinstance(picture, bytes)
        return picture


def _stamp(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size


def _opened_parquet(file: str) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError("reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        # Buffered: a column of pictures is not to be in memory as a whole.
        return parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
    except Exception as error:
        raise UserError(f"{file} cannot be read as parquet: {_reason(error)}") from None


def _columns(schema: Any, file: str) -> Columns:
    types = importlib.import_module("pyarrow").types
    features = _huggingface_features(schema)
    fields = {field.name: field.type for field in schema}

    def kind(name: str) -> object:
        feature = features.get(name)
        return feature.get("_type") if isinstance(feature, dict) else None

    def holds_pictures(name: str) -> bool:
        return _is_binary(types, fields[name]) or _bytes_field(types, fields[name])

    image = _first(fields, IMAGE_COLUMNS, lambda n: kind(n) == "Image", holds_pictures)
    label = _first(
        fields,
        LABEL_COLUMNS,
        lambda n: kind(n) == "ClassLabel",
        lambda n: types.is_integer(fields[n]) or types.is_string(fields[n]),
    )
    if image is None or label is None:
        missing = "image (bytes and path, or just bytes)" if image is None else "label"
        raise UserError(f"{file} has no column {missing}; its columns: {', '.join(fields)}")
    is_struct = types.is_struct(fields[image])
    inner = {field.name for field in fields[image]} if is_struct else set()
    names = features[label].get("names") if kind(label) == "ClassLabel" else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = None
    return Columns(
        image=f"{image}.bytes" if is_struct else image,
        path=f"{image}.path" if "path" in inner else None,
        label=label,
        names=None if names is None else tuple(names),
    )


def _first(fields: dict[str, Any], known: tuple[str, ...], surely: Any, fits: Any) -> str | None:
    """The column that the schema declares, else the first well-known name of a fitting type."""
    declared = [name for name in fields if surely(name)]
    candidates = [*declared, *(name for name in known if name in fields)]
    return next((name for name in candidates if fits(name)), None)


def _is_binary(types: Any, column: Any) -> bool:
    return bool(types.is_binary(column) or types.is_large_binary(column))


def _bytes_field(types: Any, column: Any) -> bool:
    return types.is_struct(column) and any(
        field.name == "bytes" and _is_binary(types, field.type) for field in column
    )


def _huggingface_features(schema: Any) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _leaf(batch: Any, path: str) -> Any:
    """The column of a batch at a path such as "image.bytes"."""
    name, _, inner = path.partition(".")
    if name not in batch.schema.names:
        return batch.column(path)
    column = batch.column(name)
    if not inner:
        return column
    # Not `field`: rows without a picture have a null around it.
    return importlib.import_module("pyarrow.compute").struct_field(column, inner)


def _mean_bytes(group: Any) -> int:
    """Of a row, of which the picture is nearly all. Never below 0, whatever the file says.

    The column would say it better, but asking Arrow for its metadata ends the process if they
    are damaged.
    """
    return max(int(group.total_byte_size) // max(int(group.num_rows), 1), 0)


def _known_label(label: object, names: tuple[str, ...] | None) -> int | str | None:
    """-1 stands for "unknown" in Hugging Face's sets."""
    if isinstance(label, str):
        return label or None
    if not isinstance(label, int) or label < 0:
        return None
    if names is None:
        return int(label)
    return names[label] if label < len(names) else None


class _Dtype:
    def __init__(self, name: object, *rest: object) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """What a pickle says of an array, without NumPy doing what the pickle says."""

    shape: tuple[int, ...]
    pixels: bytes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, pixels = state
        if not (isinstance(dtype, _Dtype) and dtype.name == "u1" and not is_fortran):
            raise ValueError("an array that is not of bytes, row by row")
        if not isinstance(pixels, bytes):
            raise ValueError("an array whose content is not in bytes")
        self.shape, self.pixels = tuple(shape), pixels


def _new_array(*_: object) -> _Array:
    return _Array()


class _Unpickler(pickle._Unpickler):
    """Rebuilds dictionaries, lists, strings, numbers and arrays; runs nothing.

    Written in Python: the one in C can be told to take any amount of memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _new_array,
            ("numpy._core.multiarray", "_reconstruct"): _new_array,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
        }
        if (module, name) not in allowed:
            raise UserError(f"it asks for {module}.{name}, which no data set needs")
        return allowed[module, name]


def _unpickle(content: bytes, where: str) -> Any:
    if len(content) > MAX_PICKLE_BYTES:
        raise UserError(f"{where} has {len(content):,} bytes, more than a batch of CIFAR-10")
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{where} is refused: {error}") from None
    # A damaged pickle can raise anything.
    except Exception as error:
        raise UserError(f"{where} is no pickle that can be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
