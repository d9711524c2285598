"""How long a training step waits for a checkpoint: written in the step, and beside it.

    python records/2026-11-20_survival/pause.py --network paper --steps 5 > pause.json

Saves after every step of a training of the full-size network, in turns: not at all, by
`checkpoint.save` in the step as it was before, by `Saver` as it is. The pause is what the saving
call takes; the step after it is timed too, since the thread that writes takes its share of it.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from alexnet import checkpoint
from alexnet.config import diff
from alexnet.loader import batches
from alexnet.opening import open_dataset
from alexnet.recipes import find_recipe
from alexnet.saving import Saver
from alexnet.step import network_input, start, train_step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="paper")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    recipe = diff(
        find_recipe("paper-2012"),
        network={"name": options.network},
        optimizer={"batch_size": options.batch_size},
        system={"device": options.device},
    )
    dataset = open_dataset("shapes", image_px=256, num_train=64, num_val=32, num_classes=16)
    training = start(recipe, dataset)
    folder = Path(tempfile.mkdtemp())
    saver = Saver(folder, keep=1)
    found: dict[str, dict[str, list[float]]] = {}
    feed = batches(dataset.splits["train"], recipe, step=0, stop=10**6, device=training.device)
    for turn in range(options.steps + 1):
        for way in ("none", "in the step", "beside it"):
            train_step(training, *network_input(training, next(feed)))
            synchronize(training.device)
            training.step += 1
            began = time.perf_counter()
            if way == "in the step":
                checkpoint.save(folder, training.step, training.state_dict(), keep=1)
            elif way == "beside it":
                saver.save(training.state_dict())
            pause = time.perf_counter() - began
            train_step(training, *network_input(training, next(feed)))
            synchronize(training.device)
            after = time.perf_counter() - began - pause
            saver.finish()
            written = time.perf_counter() - began
            if turn:  # the first is warming up, and the copy's memory is made
                for name, value in (("pause", pause), ("step", after), ("written", written)):
                    found.setdefault(way, {}).setdefault(f"{name}_seconds", []).append(value)
    size = next(folder.glob("step-*.pt")).stat().st_size
    medians = {
        way: {name: statistics.median(values) for name, values in measured.items()}
        for way, measured in found.items()
    }
    print(json.dumps({"bytes": size, "median": medians, "all": found, "torch": torch.__version__}))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
