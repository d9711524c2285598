"""One run of an experiment: what decides its outcome, and the JSON line that it leaves.

A trial is a training, or something that reads trainings and pictures: an average of networks,
neighbours, a baseline. Its name holds a checksum of everything that decides its outcome, so two
claims that need the same run share it, and a changed setting is another run. Whatever a table or
a figure needs is in the line; the run folder serves trials that read it.

Not here: which trials a claim needs (`plans.py`), in which order they run (`campaign.py`).
"""

import hashlib
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from alexnet import averaging, baselines, checkpoint
from alexnet.config import DataConfig, EvaluateConfig, Recipe, diff
from alexnet.dataset import PackedDataset
from alexnet.evaluate import predictions_path
from alexnet.findings import colour_index
from alexnet.log import environment, read_log
from alexnet.model import AlexNet, build
from alexnet.networks import Conv, Full
from alexnet.opening import open_dataset
from alexnet.predictions import Predictions, mean_over_views, predict, score
from alexnet.randomness import permutation
from alexnet.retrieval import features, nearest
from alexnet.stall import entropy
from alexnet.step import find_device
from alexnet.train import Diverged, first_of, train
from alexnet.weights import load

Kind = Literal["train", "average", "retrieval", "baseline"]
Line = dict[str, Any]

TRAIN_PICTURES = 10_000  # over which the training error is counted at the end, at most
LEFT_CHANCE = 0.95  # of ln(classes): a smoothed loss below it has left chance
LOSS_MEMORY_STEPS = 10
NEIGHBOURS = 6  # Figure 4
# What decides how fast and where, but not what comes out.
NOT_DECISIVE = (
    *("device", "threads", "loader_threads", "log_steps", "checkpoint_minutes"),
    *("keep_checkpoints", "scales_steps", "stall_steps", "stall_margin"),
)


@dataclass(frozen=True)
class Trial:
    """`of`: names of the trials whose run folders it reads; `options`: what no recipe holds."""

    kind: Kind
    scale: str
    arm: str
    seed: int
    recipe: Recipe
    of: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """E.g. "imagenette-no-lrn-seed0-1f0c9a2b"."""
        text = json.dumps([self.kind, self.seed, self.of, self.options, self.departures()])
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.scale}-{self.arm}-seed{self.seed}-{digest}"

    def settings(self) -> dict[str, Any]:
        """What decides the outcome: the recipe without names of files and of machines."""
        decisive = self.recipe.as_dict()
        del decisive["name"], decisive["base"]
        for setting in NOT_DECISIVE:
            del decisive["system"][setting]
        return decisive

    def departures(self) -> dict[str, Any]:
        """Settings that are not a recipe's defaults: a new setting renames no old trial."""
        defaults, decisive = Recipe().as_dict(), self.settings()
        return {
            f"{section}.{setting}": value
            for section, values in decisive.items()
            for setting, value in values.items()
            if value != defaults[section][setting]
        }


def train_trial(scale: str, arm: str, seed: int, recipe: Recipe, **more: Any) -> Trial:
    return Trial("train", scale, arm, seed, diff(recipe, system={"seed": seed}), **more)


@dataclass(frozen=True)
class Place:
    """Where trials run: the results' folder, what DATA each trial reads, device and threads."""

    out: Path
    data: Mapping[str, str]  # by the `dataset` of a recipe
    device: str = "auto"
    threads: int = 0

    def run(self, name: str) -> Path:
        return self.out / "runs" / name


def carry_out(trial: Trial, place: Place, progress: Callable[[str], None] = print) -> Line:
    """Run a trial, go on with it where it was interrupted, and return its line.

    Raises UserError for data or packages that are missing, and `train.Interrupted`.
    """
    began = time.perf_counter()
    work = {
        "train": _trained,
        "average": _averaged,
        "retrieval": _retrieved,
        "baseline": _baseline,
    }[trial.kind]
    pictures = pictures_of(open_for(trial.recipe.data, place))
    results = work(trial, place, progress)
    seconds = time.perf_counter() - began + results.pop("earlier_seconds", 0.0)
    facts = environment(find_device(place.device))
    versions = {key: facts[key] for key in ("alexnet", "commit", "torch", "device", "cpu")}
    return {
        "trial": trial.name,
        "kind": trial.kind,
        "scale": trial.scale,
        "arm": trial.arm,
        "seed": trial.seed,
        "of": list(trial.of),
        "options": dict(trial.options),
        "settings": trial.settings(),
        "pictures": pictures,
        "results": results,
        "seconds": round(seconds, 2),
        "environment": {**versions, "threads": facts["threads"], "started": facts["started"]},
    }


def open_for(data: DataConfig, place: Place) -> PackedDataset:
    """The pictures of a trial. Raises UserError where they are not there."""
    return open_dataset(
        place.data.get(data.dataset, data.dataset),
        image_px=data.image_px,
        num_train=data.num_train or None,
        num_val=data.num_val or None,
        num_classes=data.num_classes or None,
        val_fraction=data.val_fraction,
    )


def pictures_of(dataset: PackedDataset) -> Line:
    """What tells pictures of one name from others of that name: counts, and their mean colour."""
    return {
        "classes": len(dataset.class_names),
        **{name: len(split) for name, split in dataset.splits.items()},
        "mean_rgb": dataset.statistics.rgb_mean.round(2).tolist(),
    }


# --- Trainings ------------------------------------------------------------------------------------


def _trained(trial: Trial, place: Place, progress: Callable[[str], None]) -> Line:
    run, dataset = place.run(trial.name), open_for(trial.recipe.data, place)
    recipe = diff(
        trial.recipe,
        data={"dataset": place.data.get(trial.recipe.data.dataset, trial.recipe.data.dataset)},
        system={"device": place.device, "threads": place.threads},
        network={"weights": str(place.run(trial.of[0])) if trial.of else ""},
    )
    resume = (run / "recipe.json").is_file() and bool(checkpoint.available(run / "checkpoints"))
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
    if place.threads:
        torch.set_num_threads(place.threads)
    console = Console(file=_Lines(progress), width=200)
    try:
        summary = train(recipe, dataset, run, resume=resume, console=console)
        results = {
            "diverged": False,
            "errors": _errors(summary),
            "epochs": summary["epochs"],
            "steps": summary["steps"],
            "images_per_second": round(summary["images_per_second"], 1),
            "earlier_seconds": _earlier_seconds(run, recipe, summary["images_per_second"]),
            **_measured(run, dataset, recipe),
        }
    except Diverged:
        results = {"diverged": True, "errors": {}, "epochs": 0.0, "steps": 0}
    results |= _of_log(run, dataset)
    for folder in ("checkpoints", "tensorboard"):
        shutil.rmtree(run / folder, ignore_errors=True)
    return results


def _earlier_seconds(run: Path, recipe: Recipe, images_per_second: float) -> float:
    """What the steps before an interruption took, at the rate of those after it."""
    begun = [e["step"] for e in read_log(run / "log.jsonl") if e["event"] in ("start", "resume")]
    return float(begun[-1] * recipe.optimizer.batch_size / images_per_second)


class _Lines(io.StringIO):
    """Hands what a training says to the queue's own display, line by line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def write(self, text: str) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            self.say(line)
        return len(text)


def _errors(summary: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Counts by split and views, as "val/10"."""
    counts = ("images", "top1_wrong", "top5_wrong")
    return {
        f"{found['split']}/{found['views']}": {key: found[key] for key in counts}
        for found in summary["evaluations"]
    }


def _measured(run: Path, dataset: PackedDataset, recipe: Recipe) -> Line:
    """The training error without dropout and noise, and the colours of conv1."""
    device = find_device(recipe.system.device)
    model = load(run, device)
    some = first_of(dataset.splits["train"], EvaluateConfig(train_pictures=TRAIN_PICTURES))
    preprocessing = model.card.preprocessing
    kernels = model.get_parameter("conv1.weight").detach().float().cpu().numpy()
    found: Line = {"colour": _colours(kernels, recipe.system.seed)}
    if recipe.evaluate.train_pictures:
        predictions = predict(
            model,
            some,
            preprocessing,
            views=1,
            batch_size=recipe.evaluate.batch_size,
            device=device,
        )
        wrong = score(predictions)
        found["train_error"] = {"images": wrong.images, "top1_wrong": wrong.top1_wrong}
    return found


def _colours(kernels: np.ndarray, seed: int) -> Line:
    """`findings.colour_index`, as it stands in a line."""
    found = colour_index(kernels, seed)
    return {
        "kernels": [round(share, 4) for share in found.kernels],
        "halves": list(found.halves),
        "parted_p": found.parted_p,
    }


def _of_log(run: Path, dataset: PackedDataset) -> Line:
    """The course of the training: errors by epoch, when the loss left chance, and stalls."""
    events = read_log(run / "log.jsonl")
    steps = [(event["step"], event["loss"]) for event in events if event["event"] == "step"]
    chance = entropy(np.bincount(dataset.splits["train"].labels).tolist())
    curve = [
        [event["split"], round(event["epoch"], 4), event["top1_wrong"], event["images"]]
        for event in events
        if event["event"] == "evaluation" and "loss" in event
    ]
    losses = [loss for _, loss in steps]
    every = max(1, len(losses) // 100)
    return {
        "curve": curve,
        "chance_loss": chance,
        "left_chance": left_chance(losses, chance),
        "loss": [[step, loss] for step, loss in steps[::every]],
        "highest_loss": max((loss for loss in losses if loss is not None), default=None),
        "stalls": [event["reason"] for event in events if event["event"] == "stall"],
    }


def left_chance(losses: Sequence[float | None], chance: float) -> int | None:
    """The first step, from 1, whose smoothed loss is below 95 % of guessing's; None: not yet."""
    smoothed = math.nan
    for step, loss in enumerate(losses, 1):
        if loss is None:
            return None
        loss = min(loss, 2 * chance)  # one spike does not outlast what follows
        if math.isnan(smoothed):
            smoothed = loss
        smoothed += (loss - smoothed) / LOSS_MEMORY_STEPS
        if step >= LOSS_MEMORY_STEPS and smoothed < LEFT_CHANCE * chance:
            return step
    return None


# --- Trials that read trainings -------------------------------------------------------------------


def _averaged(trial: Trial, place: Place, progress: Callable[[str], None]) -> Line:
    views = dict(trial.options)["views"]
    members = [
        Predictions.load(predictions_path(place.run(name), "val", views)) for name in trial.of
    ]
    return averaging.compare(members, trial.seed)


def _retrieved(trial: Trial, place: Place, progress: Callable[[str], None]) -> Line:
    """Precision at 6: how many of the nearest training pictures are of the query's class."""
    dataset, device = open_for(trial.recipe.data, place), find_device(place.device)
    train, val = dataset.splits["train"], dataset.splits["val"]
    count = min(dict(trial.options)["queries"], len(val))
    chosen = np.sort(permutation(trial.seed, "retrieval: queries", 0, len(val))[:count])
    queries = type(val)(
        val.name, val.images[chosen], val.labels[chosen], [val.sources[i] for i in chosen]
    )
    model = load(place.run(trial.of[0]), device)
    untrained = build(model.network, model.num_classes, torch.Generator().manual_seed(trial.seed))
    preprocessing, batch_size = model.card.preprocessing, trial.recipe.evaluate.batch_size
    settings: dict[str, Any] = {"batch_size": batch_size, "device": device}

    def by_layer(net: AlexNet) -> Callable[[Any], np.ndarray]:
        return lambda split: features(net, split, preprocessing, **settings)

    def by(vectors: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], np.ndarray]:
        return lambda split: mean_over_views(vectors, split, preprocessing, views=1, **settings)

    ways = {
        "last hidden layer": by_layer(model),
        "last pool": by(partial(last_pool, model)),
        "pixels": by(lambda crops: crops.flatten(1)),
        "untrained network": by_layer(untrained.eval().to(device)),
    }
    found: Line = {}
    for way, vectors in ways.items():
        progress(f"neighbours by {way}")
        near, _ = nearest(
            vectors(train), vectors(queries), min(NEIGHBOURS, len(train)), device=device
        )
        found[way] = float((train.labels[near] == queries.labels[:, None]).mean())
    shares = np.bincount(train.labels, minlength=model.num_classes) / len(train)
    found["chance"] = float(shares[queries.labels].mean())
    return {"precision": found, "queries": count, "searched": len(train)}


def last_pool(model: AlexNet, crops: torch.Tensor) -> torch.Tensor:
    """What the first fully connected layer reads: (B, N)."""
    first = next(layer.name for layer in model.network.layers if isinstance(layer, Full))
    assert isinstance(model.network.layers[0], Conv)
    read: list[torch.Tensor] = []
    hook = model.get_submodule(first).register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0])
    )
    try:
        model(crops)
    finally:
        hook.remove()
    return read[0]


def _baseline(trial: Trial, place: Place, progress: Callable[[str], None]) -> Line:
    return baselines.measure(
        open_for(trial.recipe.data, place),
        trial.arm,
        seed=trial.seed,
        tried=dict(trial.options)["tried"],
        say=progress,
        threads=place.threads,
    )


# --- Lines ----------------------------------------------------------------------------------------


def read_lines(out: Path) -> dict[str, Line]:
    """{name: line} of all trials that are done; a line cut short by a crash is not."""
    return {line["trial"]: line for line in read_log(out / "results.jsonl") if "trial" in line}


def error_of(line: Line, what: str = "val/1") -> float:
    """A top-1 error in percent: "val/1", "val/10", "train", or "gap", val/1 less train.

    A training that diverged is as wrong as it can be.
    """
    results = line["results"]
    if results.get("diverged"):
        return 100.0
    if what == "gap":
        return error_of(line) - error_of(line, "train")
    if what == "val/10" and line["kind"] == "baseline":  # it has no views
        what = "val/1"
    counts = results["train_error"] if what == "train" else results["errors"][what]
    return 100.0 * float(counts["top1_wrong"]) / int(counts["images"])


def train_curve(line: Line, split: str = "train") -> list[tuple[float, float]]:
    """(epoch, top-1 error in percent) of each evaluation during the training."""
    curve = line["results"]["curve"]
    return [(epoch, 100 * wrong / images) for s, epoch, wrong, images in curve if s == split]


def epochs_to(line: Line, error: float) -> float | None:
    """Epochs until the training error is at most `error` percent, between two evaluations.

    The crossing is placed on the straight line between them. None: not reached.
    """
    before = (0.0, math.nan)
    for epoch, found in train_curve(line):
        if found <= error:
            if math.isnan(before[1]) or before[1] == found:
                return epoch
            share = (before[1] - error) / (before[1] - found)
            return before[0] + share * (epoch - before[0])
        before = (epoch, found)
    return None
