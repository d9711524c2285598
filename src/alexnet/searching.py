"""Near pictures and near duplicates in an index, and the pictures themselves to show them.

The exact search is the paper's: Euclidean distance between the activations of the last hidden
layer (Section 6.1, Figure 4). Not here: how an index is made (`indexing.py`), figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet import approximate
from alexnet.codes import Codes, Encoder, hamming_nearest
from alexnet.dataset import PackedDataset, open_packed
from alexnet.errors import UserError
from alexnet.files import sha256_of
from alexnet.gather import read_square
from alexnet.index import Index, check_model, find_search
from alexnet.retrieval import distances_to, nearest
from alexnet.trained import TrainedAlexNet
from alexnet.weights import load, weights_file

DUPLICATES_LOOKED_AT = 8  # nearest of each picture; more copies of one still join into a group
QUERIES_AT_A_TIME = 256
MISSING_GREY = 225
SMALLEST_SQUARE = float(np.finfo(np.float64).tiny)  # two pictures without any feature are the same


@dataclass(frozen=True)
class Near:
    """One picture that was found. `distance`: Euclidean, or the bits in which codes differ."""

    row: int
    name: str
    label: str
    distance: float


class Searcher:
    """One way of searching an index, open: "exact", or one of the searches it was made with."""

    def __init__(self, index: Index, by: str = "exact") -> None:
        self.index, self.by = index, by
        if by != "exact":
            self.entry = find_search(index, by)
            self.file = index.path / self.entry["file"]
        # Opened at once: what is wrong with the files is said before a query is computed.
        _ = (self.codes, self.encoder) if by.startswith("codes-") else by == "exact" or self.made

    def nearest(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows int64 (Q, count) nearest to features (Q, D), and distances float32, nearest first.

        Raises UserError where the index holds fewer pictures, or the width differs.
        """
        index = self.index
        if queries.ndim != 2 or queries.shape[1] != index.width:
            raise UserError(f"queries {queries.shape} are not rows of {index.width} features")
        if not 1 <= count <= len(index):
            raise UserError(f"{count} neighbours asked of {len(index)} pictures")
        if self.by.startswith("codes-"):
            rows, bits = hamming_nearest(
                self.codes, self.encoder.encode(queries), count, index.is_live
            )
            return np.searchsorted(index.live, rows), bits.astype(np.float32)
        if self.by == "exact":
            return self._exact(queries, count)
        found = approximate.candidates(index, self.made, self.entry["settings"], queries, count)
        indices = np.empty((len(queries), count), np.int64)
        distances = np.empty((len(queries), count), np.float32)
        for number, (query, proposed) in enumerate(zip(queries, found, strict=True)):
            rows = np.unique(proposed[proposed >= 0])
            if len(rows) < count:  # the lists around the query hold too few
                exact = self._exact(query[None], count)
                indices[number], distances[number] = exact[0][0], exact[1][0]
                continue
            away = distances_to(index.features, rows, query)  # type: ignore[arg-type]
            first = np.argsort(away, kind="stable")[:count]
            indices[number], distances[number] = rows[first], away[first]
        return indices, distances

    def find(self, queries: NDArray[np.float32], count: int) -> list[list[Near]]:
        """The nearest of each query, with names and labels."""
        rows, distances = self.nearest(queries, count)
        return [
            [
                Near(int(row), self.index.name(int(row)), self.index.label(int(row)), float(away))
                for row, away in zip(*pair, strict=True)
            ]
            for pair in zip(rows, distances, strict=True)
        ]

    def bytes_per_picture(self) -> float:
        """Of what is looked through; candidates are measured from the features, too."""
        if self.by == "exact":
            return self.index.bytes_per_picture()
        if self.by.startswith("codes-"):
            return float(self.codes.shape[1])
        return float(self.file.stat().st_size / len(self.index.is_live))

    def _exact(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        index = self.index
        return nearest(index.features, queries, count, squares=index.squares)  # type: ignore[arg-type]

    @cached_property
    def made(self) -> Any:
        made = approximate.load(self.file)
        if made.ntotal != len(self.index.is_live) or made.d != self.index.width:
            raise UserError(f"{self.file} is of another index; make the index again")
        return made

    @cached_property
    def codes(self) -> Codes:
        codes: Codes = np.load(self.file, allow_pickle=False)
        bits = int(self.entry["settings"]["bits"])
        if codes.shape != (len(self.index.is_live), bits // 8) or codes.dtype != np.uint8:
            raise UserError(f"{self.file} is of another index; make the index again")
        return codes

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder.load(self.index.path / self.entry["encoder"])


def load_model_of(index: Index, model: Path | None = None, device: Any = "cpu") -> TrainedAlexNet:
    """The network that made the index, from where it was or from `model`.

    Raises UserError where it is not there or is another one.
    """
    path = Path(index.description.model["path"]) if model is None else model
    if model is None and not path.exists():
        raise UserError(f"the model of {index.path} is no longer at {path}; name it with --model")
    file = weights_file(path)
    check_model(index, sha256_of(file), path)
    return load(file, device)


def query_features(
    index: Index, model: TrainedAlexNet, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Features (B, D) of prepared squares (B, S, S, 3), as those of the index were made."""
    return model.vectors(model.feature_function(index.description.model["layer"]), pixels)


# Near duplicates


@dataclass(frozen=True)
class Pair:
    """Two rows of the index that are nearly the same; `distance` is relative, 0 for a copy."""

    first: int
    second: int
    distance: float


def near_duplicates(
    searcher: Searcher,
    threshold: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Pairs of pictures whose features are nearly the same, each once, nearest first.

    The distance is |f - g| / sqrt(|f|^2 + |g|^2): 0 for copies, 1 for features with nothing in
    common. Each picture is compared with the 8 nearest to it.
    """
    index = searcher.index
    count = min(DUPLICATES_LOOKED_AT + 1, len(index))
    squares = index.squares
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(index), QUERIES_AT_A_TIME):
        rows = slice(start, min(start + QUERIES_AT_A_TIME, len(index)))
        queries = np.asarray(index.features[rows], np.float32)
        all_near, _ = searcher.nearest(queries, count)
        for at, (query, near) in enumerate(zip(queries, all_near, strict=True), start):
            others = near[near != at]
            size = np.sqrt(np.maximum(squares[at] + squares[others], SMALLEST_SQUARE))
            away = distances_to(index.features, others, query) / size  # type: ignore[arg-type]
            for other, distance in zip(
                others[away <= threshold], away[away <= threshold], strict=True
            ):
                found[min(at, int(other)), max(at, int(other))] = float(distance)
        if progress is not None:
            progress(rows.stop, len(index))
    pairs = [Pair(first, second, distance) for (first, second), distance in found.items()]
    return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))


def groups(pairs: list[Pair]) -> list[list[int]]:
    """Rows joined by pairs, each group ascending, in the order of their first rows."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = row = parent[parent[row]]
        return row

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    joined: dict[int, list[int]] = {}
    for row in sorted(parent):
        joined.setdefault(root(row), []).append(row)
    return list(joined.values())


# Pictures


class Shelf:
    """The pictures of an index, read again from where they came; grey where they are gone."""

    def __init__(self, index: Index, image_px: int) -> None:
        self.index, self.image_px = index, image_px
        self._packed: dict[str, PackedDataset | None] = {}

    def picture(self, row: int) -> NDArray[np.uint8]:
        """The square (S, S, 3) that was indexed."""
        origin, split, place, name = self.index.places(row)
        grey = np.full((self.image_px, self.image_px, 3), MISSING_GREY, np.uint8)
        if origin.kind == "packed":
            dataset = self._open(origin.path)
            there = dataset is not None and split in dataset.splits
            if not there or dataset.splits[split].sources[place] != name:  # type: ignore[union-attr]
                return grey
            return np.array(dataset.splits[split].images[place])  # type: ignore[union-attr]
        found = read_square(str(Path(origin.path) / name), self.image_px)
        return grey if isinstance(found, str) else found

    def _open(self, path: str) -> PackedDataset | None:
        if path not in self._packed:
            try:
                self._packed[path] = open_packed(Path(path))
            except UserError:
                self._packed[path] = None
        return self._packed[path]
