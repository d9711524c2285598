"""Collect losses, layer scales and errors of run folders into small CSV files beside this script.

    python collect.py RUNS        RUNS holds source-seed0, paper-inverted-seed1, ...
    python figure.py              draws losses.png and scales.png from them
"""

import csv
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCALES = ("activation_std", "dead_share", "image_spread", "gradient_norm", "weight_norm")


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def write(name: str, header: list[str], rows: list[list]) -> None:
    with open(HERE / name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(folder: Path) -> None:
    losses, scales, errors = [], [], []
    for run in sorted(path.parent for path in folder.glob("*/log.jsonl")):
        for event in events(run):
            kind, step = event["event"], event["step"]
            if kind == "step":
                losses.append([run.name, step, f"{event['loss']:.4f}"])
            elif kind == "scales":
                for layer in event["layers"]:
                    values = [f"{layer[key]:.4g}" for key in SCALES]
                    scales.append([run.name, step, layer["name"], *values])
            elif kind == "evaluation":
                counts = [event[key] for key in ("views", "images", "top1_wrong", "top5_wrong")]
                errors.append([run.name, step, f"{event['epoch']:.2f}", *counts])
    write("losses.csv", ["run", "step", "loss"], losses)
    write("scales.csv", ["run", "step", "layer", *SCALES], scales)
    header = ["run", "step", "epoch", "views", "images", "top1_wrong", "top5_wrong"]
    write("errors.csv", header, errors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
