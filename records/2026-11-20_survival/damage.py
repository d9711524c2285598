"""Truncate and flip a checkpoint of a training at random places; it is never loaded as good.

    python records/2026-11-20_survival/damage.py RUN --out damage.csv

RUN has two checkpoints or more. Of each kind of damage, 200 to the newest checkpoint and
100 to its checksum; `load_newest` has to pass it over for the one before, and to say so.
"""

import argparse
import collections
import csv
import random
import shutil
import tempfile
from pathlib import Path

import torch

from alexnet import checkpoint


def damaged(data: bytes, kind: str, draw: random.Random) -> tuple[bytes, int]:
    place = draw.randrange(len(data))
    if kind == "cut":
        return data[:place], place
    if kind == "bit":
        changed = data[place] ^ (1 << draw.randrange(8))
        return data[:place] + bytes([changed]) + data[place + 1 :], place
    length = min(4096, len(data) - place)  # a block of zeros, as a lost write leaves it
    return data[:place] + bytes(length) + data[place + length :], place


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) / "checkpoints"
    shutil.copytree(options.run / "checkpoints", folder)
    for path in folder.glob("best-*"):
        path.unlink()
    newest, before = checkpoint.available(folder)[:2]
    draw, rows, found = random.Random(0), [], collections.Counter()
    cases = [(newest, kind, 200) for kind in ("cut", "bit", "zeros")]
    cases += [(newest.with_suffix(".sha256"), kind, 100) for kind in ("cut", "bit")]
    for path, kind, count in cases:
        whole = path.read_bytes()
        for _ in range(count):
            broken, place = damaged(whole, kind, draw)
            path.write_bytes(broken)
            warnings: list[str] = []
            step = checkpoint.load_newest(folder, warnings.append)["step"]
            path.write_bytes(whole)
            # Zeros over zeros, or a last line end that is cut, damage nothing.
            harmless = broken == whole or (path != newest and broken.strip() == whole.strip())
            harmless |= path != newest and broken.split()[:1] == whole.split()[:1]
            passed_over = step == checkpoint.step_of(before) and len(warnings) == 1
            result = "harmless" if harmless else "passed over" if passed_over else "LOADED"
            if harmless:
                assert step == checkpoint.step_of(newest)
            rows.append([path.suffix, kind, place, len(whole), result])
            found[path.suffix, kind, result] += 1
    with open(options.out, "w", newline="") as file:
        csv.writer(file).writerows([["file", "damage", "place", "bytes", "result"], *rows])
    for (suffix, kind, result), count in found.items():
        print(f"{suffix} {kind}: {count} {result}")
    print(f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
