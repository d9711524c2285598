"""Imagenette from five layouts, killed fifty times, and its statistics by NumPy in float64.

    PYTHONPATH=tests python records/2026-11-20_one-pack/one_pack.py IMAGENETTE WORK [LAYOUT ...]

IMAGENETTE holds train/ and val/; WORK needs 20 GB. `tests/layouts.py` writes the other layouts.
Named LAYOUTs alone are compared with the WORK/packed of an earlier run.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import layouts

KILLS = 50
LAYOUTS = {
    "tar of tars (ILSVRC)": layouts.ilsvrc_with_folders,
    "parquet": layouts.parquet,
    "WebDataset": layouts.webdataset,
    "CSV": layouts.table,
}


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = digest
    return found


def command(source: Path, target: Path, classes: Path) -> list[str]:
    options = ["--name", "imagenette", "--classes", str(classes)]
    return [sys.executable, "-m", "alexnet", "prepare", str(source), str(target), *options]


def remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def killed_often(source: Path, target: Path, classes: Path) -> Iterator[bool]:
    """Prepare again and again, killed by SIGKILL with all workers at random moments.

    KILLS in all; yields, each time that it is done, whether the bytes are `target`'s.
    """
    draw = random.Random(0)
    kills = 0
    again = target.with_name("again")
    while kills < KILLS:
        process = subprocess.Popen(command(source, again, classes), start_new_session=True)
        # Looking at the source takes the first second or two; notes are taken every three.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.5, 9))
        if process.poll() is None and (kills < KILLS):
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        code = process.wait()
        assert code in (0, -signal.SIGKILL), code
        if kills == KILLS and code:
            subprocess.run(command(source, again, classes), check=True)
        if again.exists():
            yield digests(again) == digests(target)
            remove(again)


def statistics(folder: Path) -> dict[str, float]:
    """Largest difference of each statistic from float64 over the whole training set."""
    images = np.load(folder / "train" / "images.npy", mmap_mode="r")
    mean = np.zeros(images.shape[1:])
    total, products = np.zeros(3), np.zeros((3, 3))
    for start in range(0, len(images), 64):
        part = images[start : start + 64].astype(np.float64)
        mean += part.sum(axis=0)
        pixels = part.reshape(-1, 3)
        total += pixels.sum(axis=0)
    count = len(images) * images.shape[1] * images.shape[2]
    centre = total / count
    for start in range(0, len(images), 64):
        pixels = images[start : start + 64].reshape(-1, 3).astype(np.float64) - centre
        products += pixels.T @ pixels
    with np.load(folder / "statistics.npz") as found:
        covariance = products / count
        values, vectors = np.linalg.eigh(covariance)
        projected = np.abs(vectors[:, ::-1].T @ found["eigenvectors"])
        return {
            "mean image": float(np.abs(found["mean_image"] - mean / len(images)).max()),
            "RGB mean": float(np.abs(found["rgb_mean"] - centre).max()),
            "covariance": float(np.abs(found["rgb_covariance"] - covariance).max()),
            "eigenvalues": float(np.abs(found["eigenvalues"] - values[::-1]).max()),
            "eigenvectors": float(np.abs(projected - np.eye(3)).max()),
        }


def from_folder(source: Path, work: Path, classes: Path) -> None:
    started = time.monotonic()
    subprocess.run(command(source, work / "packed", classes), check=True)
    seconds = time.monotonic() - started
    expected = digests(work / "packed")
    print(json.dumps({"source": "folder", "seconds": round(seconds, 1), "files": expected}))
    differences = statistics(work / "packed")
    print(json.dumps({"differences from float64": differences}), flush=True)
    same_bytes = list(killed_often(source, work / "packed", classes))
    print(json.dumps({"source": "folder", "kills": KILLS, "same bytes": same_bytes}), flush=True)


def main(source: Path, work: Path, chosen: list[str]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    classes = work / "classes.txt"
    classes.write_text("".join(f"{p.name}\n" for p in sorted((source / "train").iterdir())))
    if not chosen:
        from_folder(source, work, classes)
    expected = digests(work / "packed")
    for name in chosen or LAYOUTS:
        make = LAYOUTS[name]
        layout = make(source, work / "layout")
        started = time.monotonic()
        subprocess.run(command(layout, work / "other", classes), check=True)
        seconds = time.monotonic() - started
        same = digests(work / "other") == expected
        print(json.dumps({"source": name, "seconds": round(seconds, 1), "same bytes": same}))
        sys.stdout.flush()
        remove(work / "layout")
        remove(work / "other")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
