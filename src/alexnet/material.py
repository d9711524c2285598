"""What a report is made of: the files of a run folder, its network and its pictures.

Reads what `train` and `evaluate` leave (recipe, environment, log, summary, predictions, weights)
and opens the data set. What is missing or damaged becomes a line that says so. Not here: what the
files mean (`findings.py`) and the page (`report.py`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.dataset import PackedDataset, Split, open_packed
from alexnet.errors import UserError
from alexnet.files import read_json, sha256_of
from alexnet.log import read_log
from alexnet.opening import open_dataset
from alexnet.predictions import Predictions
from alexnet.trained import TrainedAlexNet
from alexnet.weights import load

Event = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The readable files of one run folder; `notes` says in one line each what is not."""

    path: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    events: tuple[Event, ...]
    predictions: dict[tuple[str, int], Predictions]  # by (split, views)
    notes: tuple[str, ...]

    def of(self, kind: str) -> Iterator[Event]:
        """The events of one kind ("step", "evaluation", "rate", "stall", ...), in order."""
        return (event for event in self.events if event["event"] == kind)

    @property
    def last_step(self) -> int:
        return max((event["step"] for event in self.events), default=0)

    @property
    def finished(self) -> bool:
        return bool(self.summary) or any(self.of("end"))

    @property
    def network(self) -> str:
        return str(_section(self.recipe, "network").get("name") or "a network")

    @property
    def dataset(self) -> str:
        described = _section(self.environment, "dataset").get("name")
        asked_for = _section(self.recipe, "data").get("dataset")
        return str(described or asked_for or "an unknown data set")

    @property
    def seed(self) -> int:
        seed = _section(self.recipe, "system").get("seed")
        return seed if isinstance(seed, int) else 0


@dataclass(frozen=True)
class Material:
    """A run with its network and pictures; None is what it does not have, and `why` says why.

    `why` has the keys "predictions", "data" and "model".
    """

    run: Run
    predictions: Predictions | None  # those of the most views, of the test split if there are any
    dataset: PackedDataset | None
    split: Split | None  # the pictures of `predictions`
    model: TrainedAlexNet | None
    why: dict[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each class of `predictions`: numbers, if nothing names them."""
        if self.predictions is None:
            return self.dataset.class_names if self.dataset is not None else ()
        numbers = tuple(map(str, range(self.predictions.probabilities.shape[1])))
        return self.predictions.class_names or numbers

    @property
    def num_classes(self) -> int | None:
        known = _section(self.run.environment, "dataset").get("classes")
        return known if isinstance(known, int) else len(self.class_names) or None

    @property
    def figures(self) -> Path:
        """The folder of the figures as files."""
        return self.run.path / "figures"


def _section(whole: dict[str, Any], name: str) -> dict[str, Any]:
    part = whole.get(name)
    return part if isinstance(part, dict) else {}


def read_run(path: Path) -> Run:
    """Read a run folder. What is missing or damaged becomes a note, never an exception.

    Raises UserError when `path` is no run: neither recipe.json nor log.jsonl is in it.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name a run, as `alexnet train` made it")
    if not (path / "recipe.json").exists() and not (path / "log.jsonl").exists():
        raise UserError(
            f"{path} is not a run: it holds neither recipe.json nor log.jsonl; "
            "name a folder that `alexnet train` wrote"
        )
    notes: list[str] = []
    recipe = _read_object(path / "recipe.json", notes)
    environment = _read_object(path / "environment.json", notes)
    # A training that goes on has no summary yet, and the page says that it goes on.
    has_summary = (path / "summary.json").exists()
    summary = _read_object(path / "summary.json", notes) if has_summary else {}
    events = tuple(event for event in read_log(path / "log.jsonl") if _is_event(event))
    if not events:
        notes.append(f"{path / 'log.jsonl'} is not there, or holds no events")
    predictions = _read_predictions(path, notes)
    return Run(path, recipe, environment, summary, events, predictions, tuple(notes))


def _is_event(event: Event) -> bool:
    return isinstance(event.get("event"), str) and isinstance(event.get("step"), int)


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = read_json(path)
    except UserError as error:
        notes.append(str(error))
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path} is damaged: it holds no JSON object")
        return {}
    return value


def _read_predictions(path: Path, notes: list[str]) -> dict[tuple[str, int], Predictions]:
    """The saved predictions of these very weights; those of others are noted and left out."""
    weights = path / "model.safetensors"
    weights_sha256 = sha256_of(weights) if weights.is_file() else ""
    found = {}
    for file in sorted(path.glob("predictions_*_*.npz")):
        try:
            predictions = Predictions.load(file)
        except UserError as error:
            notes.append(str(error))
            continue
        if predictions.weights_sha256 not in ("", weights_sha256):
            notes.append(f"{file.name} is of other weights; run `alexnet evaluate {path}` again")
            continue
        found[predictions.split, predictions.views] = predictions
    return found


def gather(run: Run, data: str | None) -> Material:
    """Load the network and open the data set: `data` if given, else the run's own.

    Raises UserError when `data` cannot be opened; what the run itself lacks goes into `why`.
    """
    why: dict[str, str] = {}
    best = max(
        run.predictions.values(),
        key=lambda p: (p.split == "test", p.split == "val", p.views),
        default=None,
    )
    if best is None:
        why["predictions"] = f"No predictions are saved; `alexnet evaluate {run.path}` makes them."
    model = _load_model(run, why)
    dataset = _open_data(run, model, data, why)
    split = _split_of(best, dataset, why)
    return Material(run, best, dataset, split, model, why)


def _load_model(run: Run, why: dict[str, str]) -> TrainedAlexNet | None:
    path = run.path / "model.safetensors"
    if not path.exists():
        why["model"] = "There is no model.safetensors yet: training writes it at its end."
        return None
    try:
        return load(path)
    except UserError as error:
        why["model"] = f"The weights cannot be read: {error}."
        return None


def _open_data(
    run: Run, model: TrainedAlexNet | None, data: str | None, why: dict[str, str]
) -> PackedDataset | None:
    if data is not None:
        image_px = _section(run.recipe, "data").get("image_px", 256)
        if model is not None:
            image_px = model.card.preprocessing.image_px
        return open_dataset(data, image_px=image_px)
    place = run.environment.get("data_path")
    if not place:
        why["data"] = "environment.json does not say where the data set is; name it with --data."
        return None
    try:
        return open_packed(Path(place))
    except UserError as error:
        why["data"] = f"The data set cannot be opened: {error}."
        return None


def _split_of(
    predictions: Predictions | None, dataset: PackedDataset | None, why: dict[str, str]
) -> Split | None:
    """The pictures that were predicted, when the data set still holds these very ones."""
    if predictions is None or dataset is None:
        return None
    split = dataset.splits.get(predictions.split)
    if split is not None and np.array_equal(split.labels, predictions.labels):
        sources = hashlib.sha256(
            "\n".join(split.sources).encode(errors="surrogatepass")
        ).hexdigest()
        if predictions.pictures_sha256 in ("", sources):
            return split
    why["data"] = f"The saved predictions are not of the pictures in {dataset.path}."
    return None
