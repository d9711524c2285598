"""Write scales.csv: scales of each layer of seed 0 of claim 17, every 50 steps.

    python records/2026-11-28_claims/scales.py PACKED RUNS
"""

import csv
import json
import sys
from pathlib import Path

from alexnet.config import diff
from alexnet.opening import open_dataset
from alexnet.scales import Scale
from alexnet.stall_claim import STALL_ARMS, stalls
from alexnet.train import train

KEYS = ("activation_std", "dead_share", "picture_spread", "gradient_norm", "weight_norm")
TEN_SHAPES = [arm.name for arm in STALL_ARMS if arm.pictures and not arm.classes]


def main(packed: str, runs: Path) -> None:
    with open(Path(__file__).with_name("scales.csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "step", "layer", *KEYS])
        for trial in stalls(Scale("imagenette", precision="bf16"), [0], {}):
            if trial.arm in TEN_SHAPES:
                continue
            data, run = trial.recipe.data, runs / trial.arm
            source = "shapes" if data.dataset == "shapes" else packed
            counts = {key: getattr(data, key) or None for key in SIZES}
            dataset = open_dataset(source, image_px=data.image_px, **counts)
            settings = {"device": "cpu", "threads": 1, "scales_steps": 50}
            train(diff(trial.recipe, data={"dataset": source}, system=settings), dataset, run)
            for event in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
                for layer in event["layers"] if event["event"] == "scales" else ():
                    found = (f"{layer[key]:.4g}" for key in KEYS)
                    writer.writerow([trial.arm, event["step"], layer["name"], *found])


SIZES = ("num_train", "num_val", "num_classes")

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
