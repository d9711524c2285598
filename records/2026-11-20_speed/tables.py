"""Print what `alexnet bench step|evaluate|train --json` and `--layers --json` wrote, as tables.

python records/2026-11-20_speed/tables.py records/2026-11-20_speed/step.json
"""

import json
import sys
from typing import Any

GOALS = (
    ("alexnet-fp32", "stock-eager-fp32", 2.2),
    ("alexnet-bf16", "stock-eager-fp32", 3.6),
    ("alexnet-bf16", "stock-eager-bf16", 2.9),
    ("alexnet-fp32", "torchvision-eager-fp32", 0.9),
    ("alexnet-fp32", "torchvision-compiled-fp32", 0.9),
    ("alexnet-bf16", "torchvision-eager-bf16", 1.0),
    ("alexnet-bf16", "torchvision-compiled-bf16", 1.0),
    ("alexnet-fp32", "stock-sliced-compiled-fp32", 1.3),
    ("alexnet-bf16", "stock-sliced-compiled-bf16", 1.3),
    ("alexnet-fp32", "keras-torch-fp32", 2.0),
    ("alexnet-bf16", "keras-torch-bf16", 2.0),
    ("alexnet-fp32", "keras-jax-fp32", 2.0),
)


def print_rows(found: dict[str, Any]) -> None:
    rows = found["rows"]
    print("| row | images/s | least to most | n | of the floor | peak memory | first, s |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for name in sorted(rows, key=lambda name: -rows[name]["images_per_second"]):
        row = rows[name]
        print(
            f"| {name} | {row['images_per_second']:.1f} | {row['slowest']:.1f} to "
            f"{row['fastest']:.1f} | {len(row['seconds'])} | {row['share_of_floor']:.0%} | "
            f"{row['peak_bytes'] / 1e9:.2f} GB | {row['first_seconds']:.0f} |"
        )
    print("\n| ratio | found | goal |\n|---|---:|---:|")
    for ours, theirs, goal in GOALS:
        if ours in rows and theirs in rows:
            ratio = rows[ours]["images_per_second"] / rows[theirs]["images_per_second"]
            print(f"| {ours} over {theirs} | {ratio:.2f} | {goal} |")
    for name, reason in found["missing"].items():
        print(f"\nnot measured: {name}: {reason}")
    print("\n", found["machine"], found["measured_flops"])


def print_layers(found: dict[str, Any]) -> None:
    for precision, rows in found["layers"].items():
        print(f"\n| {precision}, ms | forward | input | weight | sum | floor | of the floor |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, row in rows.items():
            parts = [row[key] for key in ("forward", "input_gradient", "weight_gradient")]
            values = " | ".join(f"{1e3 * value:.1f}" for value in (*parts, row["seconds"]))
            share = row["floor"] / row["seconds"]
            print(f"| {name} | {values} | {1e3 * row['floor']:.1f} | {share:.0%} |")
    print("\n", found["machine"], found["measured_flops"], found["bytes_per_second"])


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with open(path) as file:
            found = json.load(file)
        print(f"\n{path}")
        (print_layers if "layers" in found else print_rows)(found)
