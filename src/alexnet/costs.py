"""What trials and whole experiments cost: seconds here, from what was measured, or by counting.

A training costs its steps; what a step of a network takes is known from the lines of finished
trials, else from a few steps made to see. Table 2 on ImageNet is counted in operations.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from alexnet.config import Recipe, diff
from alexnet.dataset import PackedDataset
from alexnet.loader import batches, num_batches
from alexnet.networks import find_network, trace
from alexnet.step import network_input, start, train_step
from alexnet.train import num_steps
from alexnet.trials import Line, Place, Trial, open_for

PROBE_STEPS = 4
WARM_UP_STEPS = 2
TRAIN_PASSES = 3  # forward, gradient of the inputs, gradient of the weights
OVERHEAD_SECONDS = 3.0  # of a training: files, loading, the last evaluation
# Of one core, pictures of 64 pixels (records/2026-11-28_claims).
BASELINE_SECONDS_PER_PICTURE = {"sift-fisher": 0.03, "sparse-coding": 0.05}
AVERAGE_SECONDS = 30.0


class Costs:
    """Seconds of trials on one device, by the lines of those that are done."""

    def __init__(self, place: Place, lines: Mapping[str, Line]) -> None:
        self.place, self.lines = place, lines
        self.datasets: dict[str, PackedDataset] = _DATASETS

    def seconds(self, trial: Trial) -> float:
        """An estimate; what was measured for another seed counts before any other."""
        same = [
            line["seconds"]
            for line in self.lines.values()
            if (line["kind"], line["scale"], line["arm"]) == (trial.kind, trial.scale, trial.arm)
            and line["settings"]["schedule"] == trial.settings()["schedule"]
        ]
        if same:
            return float(median(same))
        if trial.kind == "average":
            return AVERAGE_SECONDS
        dataset = self._dataset(trial)
        pictures = sum(map(len, dataset.splits.values()))
        if trial.kind == "baseline":
            return BASELINE_SECONDS_PER_PICTURE[trial.arm] * pictures
        macs = macs_of(trial.recipe, len(dataset.class_names))
        if trial.kind == "retrieval":
            return 3 * pictures * macs / self._macs_per_second(trial) + OVERHEAD_SECONDS
        steps = num_steps(trial.recipe, len(dataset.splits["train"]))
        trained = steps * trial.recipe.optimizer.batch_size * TRAIN_PASSES * macs
        epochs = steps / num_batches(trial.recipe, len(dataset.splits["train"]))
        watched = len(dataset.splits["val"]) + trial.recipe.evaluate.train_pictures
        times = epochs / trial.recipe.evaluate.every_epochs + sum(trial.recipe.views)
        work = trained + watched * times * macs
        return work / self._macs_per_second(trial) + OVERHEAD_SECONDS

    def _dataset(self, trial: Trial) -> PackedDataset:
        data = trial.recipe.data
        key = f"{self.place.data.get(data.dataset, data.dataset)} {data}"
        if key not in self.datasets:
            self.datasets[key] = open_for(data, self.place)
        return self.datasets[key]

    def _macs_per_second(self, trial: Trial) -> float:
        """Of the network that is most alike among the finished trainings, else of a few steps."""
        known = [
            line["results"]["images_per_second"] * TRAIN_PASSES * _line_macs(line)
            for line in self.lines.values()
            if line["kind"] == "train"
            and line["results"].get("images_per_second")
            and line["settings"]["network"]["name"].split("/")[0]
            == trial.recipe.network.name.split("/")[0]
        ]
        return float(median(known)) if known else self._probed(trial)

    def _probed(self, trial: Trial) -> float:
        key = f"{self.place.device} {trial.recipe.network.name.split('/')[0]}"
        if key not in _PROBED:
            dataset = self._dataset(trial)
            system = {"device": self.place.device, "threads": self.place.threads}
            rate = steps_per_second(diff(trial.recipe, system=system), dataset)
            macs = macs_of(trial.recipe, len(dataset.class_names))
            _PROBED[key] = rate * trial.recipe.optimizer.batch_size * TRAIN_PASSES * macs
        return _PROBED[key]


_DATASETS: dict[str, PackedDataset] = {}
_PROBED: dict[str, float] = {}


def _line_macs(line: Line) -> int:
    settings = line["settings"]
    classes = settings["data"]["num_classes"] or 10
    return sum(shape.macs for shape in trace(find_network(settings["network"]["name"]), classes))


def macs_of(recipe: Recipe, num_classes: int) -> int:
    """Multiply-adds of one picture, forward."""
    return sum(shape.macs for shape in trace(find_network(recipe.network.name), num_classes))


def steps_per_second(recipe: Recipe, dataset: PackedDataset) -> float:
    """Of a few real steps, after a few that warm up."""
    training = start(recipe, dataset)
    training.model.train()
    stop = WARM_UP_STEPS + PROBE_STEPS
    began = time.perf_counter()
    for number, batch in enumerate(batches(dataset.splits["train"], recipe, step=0, stop=stop)):
        if number == WARM_UP_STEPS:
            began = time.perf_counter()
        train_step(training, *network_input(training, batch)).item()
    return PROBE_STEPS / max(time.perf_counter() - began, 1e-6)


# --- Table 2 and the set of Fall 2009 on one GPU --------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A training of the paper's: which network, how many classes, pictures and epochs."""

    network: str
    num_classes: int
    pictures: int
    epochs: float
    note: str

    @cached_property
    def operations(self) -> float:
        """Floating point operations: conv1 needs no gradient of its input."""
        shapes = trace(find_network(self.network), self.num_classes)
        passes = TRAIN_PASSES * sum(shape.macs for shape in shapes) - shapes[0].macs
        return 2.0 * passes * self.pictures * self.epochs


@dataclass(frozen=True)
class Row:
    """A row of Section 6: its figures, and the trainings that it takes."""

    name: str
    paper: str
    source: str
    trainings: tuple[tuple[int, Training], ...]

    @property
    def operations(self) -> float:
        return sum(count * training.operations for count, training in self.trainings)


ILSVRC_2012 = 1_281_167
FALL_2009, FALL_2009_CLASSES = 8_900_000, 10_184
FALL_2011, FALL_2011_CLASSES = 15_000_000, 21_841
ONE = Training("source", 1000, ILSVRC_2012, 90, "source-2012")
# Run 146-2011 was stopped early in its ninth epoch, run 146-2012-2011 after 54.
PRETRAINED = Training(
    "source/sixth-conv", FALL_2011_CLASSES, FALL_2011, 8, "its convolutions from run 146-2009"
)
TUNED = Training("source/sixth-conv", 1000, ILSVRC_2012, 54, "from PRETRAINED, conv at a tenth")
HALF_2009 = Training(
    "source/sixth-conv", FALL_2009_CLASSES, FALL_2009 // 2, 28, "run 141-2009-half took 28 epochs"
)
TABLE_2 = (
    Row("1 CNN", "40.7 / 18.2", "40.66 / 18.21", ((1, ONE),)),
    Row("5 CNNs", "38.1 / 16.4", "-", ((5, ONE),)),
    Row("1 CNN*", "39.0 / 16.6", "38.99 / 16.62", ((1, PRETRAINED), (1, TUNED))),
    Row("7 CNNs*", "36.7 / 15.4", "-", ((5, ONE), (2, PRETRAINED), (2, TUNED))),
    Row("Fall 2009, halves", "67.4 / 40.9", "69.42 / 43.73 (131-2009)", ((1, HALF_2009),)),
)
# What one H200 sustains on this network is measured elsewhere; hours scale with it.
SUSTAINED_FLOP_PER_S = 100e12


def table_2_costs(flop_per_s: float = SUSTAINED_FLOP_PER_S) -> list[dict[str, Any]]:
    """Hours of each row of Table 2 on one GPU that sustains so many operations a second."""
    return [
        {
            "row": row.name,
            "paper": row.paper,
            "source": row.source,
            "trainings": [
                {
                    "count": count,
                    "network": training.network,
                    "classes": training.num_classes,
                    "pictures": training.pictures,
                    "epochs": training.epochs,
                }
                for count, training in row.trainings
            ],
            "operations": row.operations,
            "hours": row.operations / flop_per_s / 3600,
        }
        for row in TABLE_2
    ]
