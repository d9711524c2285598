"""An index: the features of pictures on the disk, and what finds the near ones fast (Section 6.1).

    INDEX/index.json          format, model, layer, classes, parts, searches, checksums
    INDEX/part-0/features.npy float32 or float16 (N, D), memory-mapped
    INDEX/part-0/squares.npy  float64 (N,): |f|^2 of each row
    INDEX/part-0/labels.npy   int64 (N,), a class of index.json or -1
    INDEX/part-0/places.npy   int64 (N, 2): split of the packed data set (or -1), row in it
    INDEX/part-0/names.txt    N names, a line each as in sources.txt
    INDEX/removed-K.npy       int64: rows, over all parts, that are no longer there
    INDEX/ivfpq-K.faiss, hnsw-K.faiss, codes-256-K.npy, codes-256-K.safetensors

What is added makes a new part; what changes gets a new name (K), and `index.json` is written last:
a command that is interrupted leaves the index as it was. An index knows by its sha256 the model
that made it and refuses another. Not here: making one (`indexing.py`), searching (`searching.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.dataset import Names
from alexnet.errors import UserError, suggest
from alexnet.files import read_json, sha256_of, write_json
from alexnet.packing import SPLITS

FORMAT = "alexnet-index"
VERSION = 1
DTYPES = ("float32", "float16")
PART_FILES = ("features.npy", "squares.npy", "labels.npy", "places.npy", "names.txt")


@dataclass(frozen=True)
class Origin:
    """Where the pictures of a part came from: a packed data set, or files seen from a folder."""

    kind: str  # "packed" or "files"
    path: str


@dataclass(frozen=True)
class Part:
    """Pictures that were added together. `rows` counts them; `sha256` is by file name.

    command: a checksum of what was asked for; given again, it has nothing to add.
    """

    name: str
    rows: int
    origin: Origin
    command: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Description:
    """index.json. `searches` holds, by name, a file, its sha256 and the settings it was made with.

    model: sha256 of the weights' contents, path, network and layer; features are right after the
    layer's nonlinearity, of the central view, as `model.features` gives them.
    """

    model: dict[str, Any]
    width: int
    dtype: str
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    removed: dict[str, Any] | None = None
    searches: dict[str, dict[str, Any]] = field(default_factory=dict)
    generation: int = 0

    def to_json(self) -> dict[str, Any]:
        parts = [{**vars(part), "origin": vars(part.origin)} for part in self.parts]
        return {"format": FORMAT, "version": VERSION, **vars(self), "parts": parts}


class Rows:
    """The features of an index as one array (N, D), read as they are used.

    Knows what `retrieval.nearest` asks of an array: ndim, shape, len, slices and rows by number.
    `live` (N,) are the rows, over all parts, that are still there, ascending.
    """

    ndim = 2

    def __init__(self, parts: Sequence[NDArray[Any]], live: NDArray[np.int64]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._live = live
        self.shape = (len(live), parts[0].shape[1])

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        at = self._live[rows]
        if isinstance(rows, slice) and len(at) and at[-1] - at[0] + 1 == len(at):
            return self._stretch(int(at[0]), int(at[-1]) + 1)
        taken = np.empty((len(at), self.shape[1]), self._parts[0].dtype)
        which = np.searchsorted(self._starts, at, side="right") - 1
        for number in np.unique(which):
            here = which == number
            taken[here] = self._parts[number][at[here] - self._starts[number]]
        return taken

    def _stretch(self, start: int, stop: int) -> NDArray[Any]:
        pieces = [
            part[max(start - begin, 0) : max(stop - begin, 0)]
            for part, begin in zip(self._parts, self._starts[:-1], strict=True)
        ]
        pieces = [piece for piece in pieces if len(piece)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Index:
    """An open index. Rows are numbered over the pictures that are still there, 0..N-1."""

    def __init__(self, path: Path, description: Description) -> None:
        self.path = path
        self.description = description
        self.parts = [_open_part(path / part.name, part, description) for part in description.parts]
        total = sum(part.rows for part in description.parts)
        self.is_live = np.ones(total, np.bool_)
        if description.removed is not None:
            removed = _load(path / description.removed["file"], np.int64)
            if len(removed) and not 0 <= removed.min() <= removed.max() < total:
                raise _damaged(path / description.removed["file"], "a row is not in the index")
            self.is_live[removed] = False
        self.live = np.flatnonzero(self.is_live)

    def __len__(self) -> int:
        return len(self.live)

    @property
    def width(self) -> int:
        return self.description.width

    @cached_property
    def features(self) -> Rows:
        return Rows([part["features"] for part in self.parts], self.live)

    @cached_property
    def squares(self) -> NDArray[np.float64]:
        return np.concatenate([part["squares"] for part in self.parts])[self.live]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.concatenate([part["labels"] for part in self.parts])[self.live]

    def name(self, row: int) -> str:
        part, at = self.place(row)
        return str(self.parts[part]["names"][at])

    def places(self, row: int) -> tuple[Origin, str, int, str]:
        """(origin, split, row in the split or -1, name) of a row, for whoever shows its picture."""
        part, at = self.place(row)
        split, place = self.parts[part]["places"][at]
        split_name = SPLITS[split] if split >= 0 else ""
        return self.description.parts[part].origin, split_name, int(place), self.name(row)

    def names(self) -> Iterator[str]:
        return (self.name(row) for row in range(len(self)))

    def label(self, row: int) -> str:
        """The class name of a row; empty where it has none."""
        label = int(self.labels[row])
        return self.description.classes[label] if label >= 0 else ""

    def place(self, row: int) -> tuple[int, int]:
        """(part, row in the part) of a row."""
        at = int(self.live[row])
        for number, part in enumerate(self.description.parts):
            if at < part.rows:
                return number, at
            at -= part.rows
        raise IndexError(row)

    def bytes_per_picture(self) -> float:
        return self.width * np.dtype(self.description.dtype).itemsize


def is_index(path: Path) -> bool:
    return (path / "index.json").is_file()


def open_index(path: Path) -> Index:
    """Open an index; features stay on the disk. Sizes are checked, contents by `verify_index`.

    Raises UserError, naming the file that is wrong and the way out.
    """
    if not is_index(path):
        there = "it holds no index.json" if path.exists() else "it is not there"
        raise UserError(
            f"{path} is no index: {there}; make one with: alexnet index MODEL DATA INDEX"
        )
    return Index(path, read_description(path))


def read_description(path: Path) -> Description:
    """Raises UserError where index.json is damaged or of another version."""
    found = read_json(path / "index.json")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _damaged(path / "index.json", f"its format is not {FORMAT!r}")
    if found.get("version") != VERSION:
        raise UserError(
            f"{path} is of index version {found.get('version')}, this alexnet reads {VERSION}; "
            "make it again"
        )
    try:
        parts = tuple(
            Part(**{**part, "origin": Origin(**part["origin"])}) for part in found["parts"]
        )
        del found["format"], found["version"]
        changed = {"parts": parts, "classes": tuple(found["classes"])}
        description = Description(**{**found, **changed})
        if description.dtype not in DTYPES or not parts or description.width < 1:
            raise ValueError("it names no features")
        str(description.model["sha256"])
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path / "index.json", str(error)) from None
    return description


def write_description(path: Path, description: Description) -> None:
    write_json(path / "index.json", description.to_json())


def verify_index(index: Index) -> None:
    """Compare the checksum of every file; raises UserError naming the first that differs."""
    described = index.description
    wanted: dict[str, str] = {}
    for part in described.parts:
        wanted |= {f"{part.name}/{file}": checksum for file, checksum in part.sha256.items()}
    for entry in (
        *([described.removed] if described.removed else []),
        *described.searches.values(),
    ):
        wanted |= entry["sha256"]
    for file, checksum in wanted.items():
        if not (index.path / file).is_file() or sha256_of(index.path / file) != checksum:
            raise _damaged(index.path / file, "its sha256 is not the one in index.json")


def check_model(index: Index, sha256: str, named: str | Path) -> None:
    """Raises UserError where the model is not the one that made the index."""
    made = index.description.model
    if sha256 != made["sha256"]:
        raise UserError(
            f"{index.path} was made with another model than {named}: network {made['network']}, "
            f"sha256 {str(made['sha256'])[:12]}, not {sha256[:12]}; "
            "give that one, or index the pictures anew"
        )


def find_search(index: Index, name: str) -> dict[str, Any]:
    """The entry of a search that the index has, e.g. "hnsw" or "codes-256"."""
    entry = index.description.searches.get(name)
    if entry is None:
        known = ("exact", *index.description.searches)
        raise UserError(
            f"{index.path} has no search {name!r}{suggest(name, known)}; the same `alexnet index` "
            f"command with --fast {name} adds it"
        )
    return entry


def _open_part(folder: Path, part: Part, description: Description) -> dict[str, Any]:
    features = _load(folder / "features.npy", np.dtype(description.dtype), mapped=True)
    if features.shape != (part.rows, description.width):
        raise _damaged(folder / "features.npy", f"its shape is {features.shape}")
    squares = _load(folder / "squares.npy", np.float64)
    labels = _load(folder / "labels.npy", np.int64)
    places = _load(folder / "places.npy", np.int64)
    for name, array, shape in (
        ("squares.npy", squares, (part.rows,)),
        ("labels.npy", labels, (part.rows,)),
        ("places.npy", places, (part.rows, 2)),
    ):
        if array.shape != shape:
            raise _damaged(folder / name, f"its shape is {array.shape}")
    if part.rows and not -1 <= labels.min() <= labels.max() < len(description.classes):
        raise _damaged(folder / "labels.npy", "a label is not one of the classes")
    names = Names(folder / "names.txt", part.rows)
    return {
        "features": features,
        "squares": squares,
        "labels": labels,
        "places": places,
        "names": names,
    }


def _load(path: Path, dtype: Any, mapped: bool = False) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise _damaged(path, "it is not there") from None
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from None
    if array.dtype != dtype:
        raise _damaged(path, f"it holds {array.dtype}")
    return array


def _damaged(path: Path, reason: str) -> UserError:
    reason = " ".join(reason.split())[:200]
    return UserError(f"{path} is damaged ({reason}); remove the index and make it again")
