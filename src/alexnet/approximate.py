"""Search among millions by FAISS: inverted lists of product codes, and a graph (not in the paper).

`ivfpq` keeps a short code of every picture in lists by its nearest centre and looks through the
lists around a query; `hnsw` walks a graph of near pictures. Both only propose candidates: their
exact distances, from the features on the disk, decide. How far each looks is chosen by measuring
the share of true neighbours among those found for a sample of the pictures themselves, with a
margin for new ones, and is saved. Not here: binary codes (`codes.py`), the files (`index.py`).
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import UserError, suggest
from alexnet.index import Index
from alexnet.retrieval import nearest

NAMES = ("ivfpq", "hnsw", "codes-256", "codes-128")
TRAINED_ON = 100_000
ADDED_AT_A_TIME = 16_384
RECALL = 0.95  # of six neighbours, aimed at on the sample
SAMPLE = 100
NEIGHBOURS = 6
MARGIN = 8  # how much further than the sample needs: new pictures lie further out than it does
CANDIDATES = 128  # measured exactly, for each query
BYTES_PER_CODE = 32
LINKS = 16
BUILD_DEPTH = 60

Progress = Callable[[str, int, int], None]


def check_name(name: str) -> None:
    """Raises UserError for no such search, or where FAISS is not installed for it."""
    if name not in NAMES:
        raise UserError(f"no search {name!r}{suggest(name, NAMES)}")
    if not name.startswith("codes-"):
        faiss()


def faiss() -> Any:
    """The module. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise UserError(
            "this search needs FAISS: pip install 'alexnet[search]'; exact search and codes do not"
        ) from None


def build(index: Index, name: str, progress: Progress | None) -> tuple[Any, dict[str, Any]]:
    """(FAISS index over all rows, settings). Rows that were removed are in it, and passed over."""
    library = faiss()
    total, width = len(index.is_live), index.width
    settings: dict[str, Any] = {"kind": name, "candidates": CANDIDATES}
    if name == "hnsw":
        made = library.IndexHNSWSQ(width, library.ScalarQuantizer.QT_fp16, LINKS)
        made.hnsw.efConstruction = BUILD_DEPTH
        settings |= {"links": LINKS, "build_depth": BUILD_DEPTH}
        made.train(_sample(index))
    else:
        lists = max(1, min(round(4 * total**0.5), total // 40))
        pieces = _pieces(width)
        bits = 8 if total >= 256 * 40 else max(1, int(np.log2(max(total // 40, 2))))
        quantizer = library.IndexFlatL2(width)
        made = library.IndexIVFPQ(quantizer, width, lists, pieces, bits)
        made.own_fields = True
        quantizer.this.disown()
        made.cp.min_points_per_centroid = 1  # small sets train without a warning
        made.pq.cp.min_points_per_centroid = 1
        made.cp.seed = made.pq.cp.seed = 0
        settings |= {"lists": lists, "pieces": pieces, "bits": bits}
        if progress is not None:
            progress(f"training {name}", 0, total)
        made.train(_sample(index))
    _add(made, index, 0, progress, name)
    settings["depth"] = _choose_depth(index, made, settings)
    return made, settings


def extend(index: Index, path: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What was made of fewer rows, with the new ones added; the settings stay."""
    made = load(path)
    _add(made, index, made.ntotal, None, "")
    return made, settings


def save(made: Any, path: Path) -> None:
    faiss().write_index(made, str(path))


def load(path: Path) -> Any:
    """Raises UserError where the file is missing or damaged."""
    library = faiss()
    try:
        return library.read_index(str(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-120:]
        raise UserError(f"{path} is damaged ({reason}); make the index again") from None


def candidates(
    index: Index, made: Any, settings: dict[str, Any], queries: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """Rows of the index (Q, C) that may be near, -1 where there are fewer; C is `count` or more."""
    library = faiss()
    depth = int(settings["depth"])
    wanted = min(max(int(settings["candidates"]), 2 * count), len(index))
    options: dict[str, Any] = {}
    if len(index) < len(index.is_live):
        gone = np.flatnonzero(~index.is_live).astype(np.int64)
        # The selector keeps no copy of the array: both must live until the search is done.
        batch = library.IDSelectorBatch(gone)
        options["sel"] = library.IDSelectorNot(batch)
    if settings["kind"] == "hnsw":
        parameters = library.SearchParametersHNSW(efSearch=max(depth, wanted), **options)
    else:
        parameters = library.SearchParametersIVF(nprobe=depth, **options)
    _, rows = made.search(np.ascontiguousarray(queries, np.float32), wanted, params=parameters)
    there = rows >= 0
    found = np.full(rows.shape, -1, np.int64)
    found[there] = np.searchsorted(index.live, rows[there])
    return found


def _add(made: Any, index: Index, done: int, progress: Progress | None, name: str) -> None:
    total, start = len(index.is_live), 0
    for part in index.parts:
        features = part["features"]
        for at in range(max(done - start, 0), len(features), ADDED_AT_A_TIME):
            made.add(np.ascontiguousarray(features[at : at + ADDED_AT_A_TIME], np.float32))
            if progress is not None:
                progress(f"building {name}", made.ntotal, total)
        start += len(features)


def _sample(index: Index) -> NDArray[np.float32]:
    """At most TRAINED_ON rows, evenly spaced."""
    rows = np.linspace(0, len(index) - 1, min(TRAINED_ON, len(index))).astype(np.int64)
    return np.ascontiguousarray(index.features[rows], np.float32)


def _pieces(width: int) -> int:
    """Into how many parts a vector is cut: the largest divisor up to BYTES_PER_CODE."""
    return max(n for n in range(1, min(BYTES_PER_CODE, width) + 1) if width % n == 0)


def _choose_depth(index: Index, made: Any, settings: dict[str, Any]) -> int:
    """MARGIN times the smallest power of two that reaches RECALL on a sample of the index."""
    deepest = int(settings.get("lists", 1024))
    count = min(NEIGHBOURS + 1, len(index))
    rows = np.random.default_rng(0).permutation(len(index))[:SAMPLE]
    queries = np.ascontiguousarray(index.features[np.sort(rows)], np.float32)
    true, _ = nearest(index.features, queries, count, squares=index.squares)  # type: ignore[arg-type]
    depth = 1 if settings["kind"] == "ivfpq" else 16
    while True:
        found = candidates(index, made, settings | {"depth": depth}, queries, count)
        hits = sum(len(np.intersect1d(t, f)) for t, f in zip(true, found, strict=True))
        if hits >= RECALL * true.size or depth >= deepest:
            return min(MARGIN * depth, deepest)
        depth = min(2 * depth, deepest)
