"""Collect losses, layer scales and errors of run folders into small CSV files beside this script.

python collect.py RUNS        RUNS holds source-seed0, paper-inverted-seed1, ...
python figure.py              draws losses.png and scales.png from them
"""

import csv
import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCALES = ("activation_std", "dead_share", "picture_spread", "gradient_norm", "weight_norm")
OLD_NAMES = {"image_spread": "picture_spread"}  # of the first runs here


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def write(name: str, header: list[str], rows: list[list]) -> None:
    with open(HERE / name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(folder: Path) -> None:
    losses, scales, errors, commits = [], [], [], []
    for run in sorted(path.parent for path in folder.glob("*/log.jsonl")):
        environment = json.loads((run / "environment.json").read_text())
        measured = [event for event in events(run) if event["event"] == "step"]
        rate = statistics.median(event["images_per_second"] for event in measured[5:])
        versions = [environment[key] for key in ("commit", "torch", "python", "started")]
        commits.append([run.name, *versions, f"{rate:.1f}"])
        for event in events(run):
            kind, step = event["event"], event["step"]
            if kind == "step":
                losses.append([run.name, step, f"{event['loss']:.4f}"])
            elif kind == "scales":
                for named in event["layers"]:
                    layer = {OLD_NAMES.get(key, key): value for key, value in named.items()}
                    values = [f"{layer[key]:.4g}" for key in SCALES]
                    scales.append([run.name, step, layer["name"], *values])
            elif kind == "evaluation":
                counts = [event[key] for key in ("views", "images", "top1_wrong", "top5_wrong")]
                row = [run.name, step, f"{event['epoch']:.2f}", *counts]
                errors += [row] if row not in errors else []
        if (run / "ten.json").exists():  # of alexnet evaluate RUN --views 10 --json
            scored = json.loads((run / "ten.json").read_text())
            found = scored["runs"][0]
            counts = [found[key] for key in ("images", "top1_wrong", "top5_wrong")]
            errors.append([run.name, step, row[2], scored["views"], *counts])
    write("losses.csv", ["run", "step", "loss"], losses)
    write("scales.csv", ["run", "step", "layer", *SCALES], scales)
    header = ["run", "step", "epoch", "views", "images", "top1_wrong", "top5_wrong"]
    write("errors.csv", header, errors)
    header = ["run", "commit", "torch", "python", "started", "images_per_second"]
    write("commits.csv", header, commits)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
