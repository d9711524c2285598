"""The same training on 1, 2 and 4 ranks: losses, weights, the order of images and their crops.

    python check_meshes.py FOLDER          trains into FOLDER, prints one line of JSON per mesh

By the command `alexnet train` in float64, with dropout, colour noise, and a last minibatch that is
short and does not divide: 309 pictures in minibatches of 32.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from alexnet import checkpoint
from alexnet.config import from_dict
from alexnet.files import read_json
from alexnet.loader import num_batches, read_batch
from alexnet.opening import open_dataset

STEPS = 50
MESHES = [("one", 1), ("data=2", 2), ("columns=2", 2), ("hybrid", 2)]
MESHES += [("data=4", 4), ("columns=2,data=2", 4), ("hybrid", 4)]
FLAGS = ["train", "--no-report", "--precision", "fp64", "--max-steps", str(STEPS)]
FLAGS += ["--batch-size", "32", "--set", "system.log_steps=1", "--set", "evaluate.views=1"]
FLAGS += ["--set", "data.num_train=309", "--set", "data.num_val=50", "--set", "data.num_classes=6"]


def train(run, way, size):
    command = [sys.executable, "-m", "alexnet"]
    if size > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(size), "-m", "--", "alexnet"]
    parallel = ["--parallel", way] if size > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *FLAGS, *parallel, "--run", str(run)], check=True, env=environment)


def events(run, kind):
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


def same_pictures(recipe, size):
    """Whether the parts of all ranks, put together, are the batches of one: bit for bit."""
    split = open_dataset(
        "shapes", image_px=64, num_train=309, num_val=50, num_classes=6
    ).splits["train"]
    per_epoch = num_batches(recipe, len(split))
    for step in range(STEPS):
        epoch, index = divmod(step, per_epoch)
        whole = read_batch(split, recipe, epoch, index)
        parts = [read_batch(split, recipe, epoch, index, rank=r, ranks=size) for r in range(size)]
        for name in ("crops", "labels", "top", "left", "flip", "colour"):
            if not torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)):
                return False
    return True


def main():
    folder = Path(sys.argv[1])
    runs = {}
    for way, size in MESHES:
        run = runs[way, size] = folder / f"{way.replace('=', '').replace(',', '-')}-{size}"
        if not (run / "summary.json").exists():
            train(run, way, size)
    one = runs["one", 1]
    recipe = from_dict(read_json(one / "recipe.json"))
    expected = [event["loss"] for event in events(one, "step")]
    last = checkpoint.load_newest(one / "checkpoints", print)
    table = [expected]
    for (way, size), run in runs.items():
        losses = [event["loss"] for event in events(run, "step")]
        table.append(losses)
        state = checkpoint.load_newest(run / "checkpoints", print)
        weights = max(
            float((state["model"][n] - w).abs().max()) for n, w in last["model"].items()
        )
        velocities = max(
            float((state["optimizer"]["state"][i]["velocity"] - s["velocity"]).abs().max())
            for i, s in last["optimizer"]["state"].items()
        )
        evaluations = [
            [(e["images"], e["top1_wrong"]) for e in events(r, "evaluation")] for r in (run, one)
        ]
        print(
            json.dumps(
                {
                    "mesh": way,
                    "ranks": size,
                    "steps": len(losses),
                    "first_loss": losses[0],
                    "last_loss": losses[-1],
                    "losses": float(np.abs(np.array(losses) - expected).max()),
                    "weights": weights,
                    "velocities": velocities,
                    "same_dropout_stream": torch.equal(state["dropout"], last["dropout"]),
                    "same_evaluations": evaluations[0] == evaluations[1],
                    "evaluations": len(evaluations[0]),
                    "same_pictures_and_crops": same_pictures(recipe, size),
                }
            ),
            flush=True,
        )


main()
