"""Which trainings repeat their bits, and what --deterministic costs.

    python records/2026-11-20_survival/deterministic.py --network source --steps 8
    python records/2026-11-20_survival/deterministic.py --network source --steps 200 \\
        --batch-size 128 --device cuda --precision bf16

Trains some steps twice each way and compares every bit of the weights; then times steps, in turns.
"""

import argparse
import json
import statistics
import time

import torch

from alexnet.config import Recipe, diff
from alexnet.dataset import PackedDataset
from alexnet.loader import batches
from alexnet.opening import open_dataset
from alexnet.recipes import find_recipe
from alexnet.step import Training, network_input, repeat_bits, start, train_step


def trained(recipe: Recipe, dataset: PackedDataset, steps: int) -> tuple[Training, list[float]]:
    training, seconds = start(recipe, dataset), []
    for batch in batches(dataset.splits["train"], recipe, step=0, stop=steps):
        images, labels = network_input(training, batch)
        began = time.perf_counter()
        train_step(training, images, labels)
        if training.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return training, seconds


def weights(training: Training) -> list[torch.Tensor]:
    return [weight.detach().cpu().clone() for weight in training.model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="source")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    dataset = open_dataset("shapes", image_px=256, num_train=64, num_val=32, num_classes=16)
    base = diff(
        find_recipe("source-2012"),
        network={"name": options.network},
        optimizer={"batch_size": options.batch_size},
        system={"device": options.device, "precision": options.precision},
    )
    found: dict[str, object] = {"torch": torch.__version__, "device": options.device}
    threads = (1, 2) if options.device == "cpu" else (1,)
    seconds: dict[str, list[float]] = {}
    ends: dict[tuple[bool, int], list[torch.Tensor]] = {}
    for turn in range(options.rounds):
        for deterministic in (False, True):
            for count in threads:
                recipe = diff(base, system={"deterministic": deterministic, "threads": count})
                training, took = trained(recipe, dataset, options.steps)
                way = f"{'deterministic' if deterministic else 'free'}, {count} threads"
                if turn:
                    again = same(weights(training), ends[deterministic, count])
                    found[f"same bits again: {way}"] = bool(found.get(way, True)) and again
                ends[deterministic, count] = weights(training)
                seconds.setdefault(way, []).extend(took[2:])
    repeat_bits(always=False)
    for count in threads:
        found[f"free as deterministic, {count} threads"] = same(
            ends[False, count], ends[True, count]
        )
    if len(threads) > 1:
        found["1 thread as 2"] = same(ends[False, 1], ends[False, 2])
        found["largest difference, 1 thread and 2"] = max(
            float((a - b).abs().max()) for a, b in zip(ends[False, 1], ends[False, 2], strict=True)
        )
    found["seconds"] = {
        way: {"median": statistics.median(took), "least": min(took), "n": len(took)}
        for way, took in seconds.items()
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
