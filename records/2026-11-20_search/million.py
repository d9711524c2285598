"""A million features around real ones: how fast, how right and how large each search is.

    python million.py make INDEX FEATURES.npy      # an index of generated features
    python million.py measure INDEX QUERIES.npy exact ivfpq hnsw codes-256 codes-128

Generated: a point between a real picture and one of its 50 nearest, plus noise of a twentieth of
their spread, and, as after a ReLU, nothing below zero. Queries are other, real pictures.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from alexnet import indexing
from alexnet.files import sha256_of
from alexnet.index import PART_FILES, Description, Origin, Part, open_index, write_description
from alexnet.retrieval import nearest, squares_of
from alexnet.searching import Searcher

COUNT = 1_000_000
BLOCK = 20_000
TOP = 6
QUERIES = 100


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def make(path: Path, real: np.ndarray, dtype: str, count: int = COUNT) -> None:
    folder = path / "part-0"
    folder.mkdir(parents=True)
    near, _ = nearest(real, real, 51)
    spread = real.std()
    rng = np.random.default_rng(0)
    shape = (count, real.shape[1])
    made = np.lib.format.open_memmap(folder / "features.npy", "w+", np.dtype(dtype), shape)
    for start in range(0, count, BLOCK):
        rows = min(BLOCK, count - start)
        at = rng.integers(len(real), size=rows)
        other = near[at, rng.integers(1, 51, size=rows)]
        share = rng.random((rows, 1), np.float32)
        noise = rng.standard_normal((rows, real.shape[1]), np.float32) * (spread / 20)
        made[start : start + rows] = np.maximum(
            real[at] + share * (real[other] - real[at]) + noise * (real[at] > 0), 0
        )
    made.flush()
    np.save(folder / "squares.npy", squares_of(made))
    np.save(folder / "labels.npy", np.full(count, -1, np.int64))
    np.save(folder / "places.npy", np.full((count, 2), -1, np.int64))
    (folder / "names.txt").write_text("".join(f"generated/{i}\n" for i in range(count)))
    sums = {file: sha256_of(folder / file) for file in PART_FILES}
    part = Part("part-0", count, Origin("files", "."), "", sums)
    model = {"sha256": "generated", "path": "", "network": "", "layer": ""}
    write_description(path, Description(model, real.shape[1], dtype, (), (part,)))


def build(path: Path, name: str) -> dict:
    index = open_index(path)
    begun = time.perf_counter()
    index = indexing._make_searches(index, [name], None)
    seconds = time.perf_counter() - begun
    settings = index.description.searches[name]["settings"]
    return {"build": name, "seconds": seconds, "peak_mb": peak_mb(), "settings": settings}


def measure(path: Path, queries: np.ndarray, name: str, truth_file: Path) -> dict:
    index = open_index(path)
    before = now_mb()
    begun = time.perf_counter()
    searcher = Searcher(index, name)
    opening = time.perf_counter() - begun
    searcher.nearest(queries[:1], TOP)  # what is read once: squares, files
    single, cpu = [], time.process_time()
    ones = queries[1 : 11 if name == "exact" else 201]
    for query in ones:
        begun = time.perf_counter()
        searcher.nearest(query[None], TOP)
        single.append(time.perf_counter() - begun)
    cpu = (time.process_time() - cpu) / len(ones)
    batch = queries[:QUERIES]
    begun, batch_cpu = time.perf_counter(), time.process_time()
    found, _ = searcher.nearest(batch, TOP)
    seconds = time.perf_counter() - begun
    batch_cpu = time.process_time() - batch_cpu
    if name == "exact":
        np.save(truth_file, found)
    truth = np.load(truth_file)
    recall = np.mean([len(np.intersect1d(a, b)) / TOP for a, b in zip(truth, found)])
    return {
        "search": name,
        "pictures": len(index),
        "one_query_ms": [1000 * float(np.quantile(single, q)) for q in (0.5, 0.05, 0.95)],
        "one_query_cpu_ms": 1000 * cpu,
        "queries_per_second_in_batches": len(batch) / seconds,
        "batch_cpu_ms_per_query": 1000 * batch_cpu / len(batch),
        "recall_at_6": float(recall),
        "recall_queries": len(truth),
        "bytes_per_picture": searcher.bytes_per_picture(),
        "opening_s": opening,
        "own_memory_mb": now_mb() - before,
        "peak_rss_mb": peak_mb(),
    }


def main() -> None:
    command, path, file, *names = sys.argv[1:]
    path = Path(path)
    if command == "make":
        make(path, np.load(file), names[0] if names else "float32")
    elif command == "build":
        print(json.dumps(build(path, file)), flush=True)
    else:
        for name in names:
            truth = path / "truth.npy"
            print(json.dumps(measure(path, np.load(file)[:2000], name, truth)), flush=True)


if __name__ == "__main__":
    main()
