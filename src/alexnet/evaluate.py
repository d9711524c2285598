"""Errors of trained networks over a whole split, alone and averaged (Section 6).

`evaluate_runs` is what the command does: it opens run folders and data, predicts what is not
predicted yet, keeps the predictions in the run folders, and scores them.

Not here: predicting and averaging (`predictions.py`), the paper's own errors (`results.py`).
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet import fused, memory
from alexnet.augment import check_views
from alexnet.dataset import PackedDataset, open_packed
from alexnet.errors import UserError, suggest
from alexnet.files import read_json, sha256_of
from alexnet.model import AlexNet
from alexnet.opening import open_dataset
from alexnet.parallel import ALONE, Ranks
from alexnet.predictions import (
    Predictions,
    class_difference,
    ensemble,
    normalised,
    predict,
)
from alexnet.results import Score, TableRow, results_table, score_of
from alexnet.weights import ModelCard
from alexnet.weights import load as load_model

PRECISIONS = ("fp32", "bf16", "fp64")


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate_runs` found: one score per run, and one of their average if several."""

    dataset: str
    split: str
    views: int
    runs: tuple[Score, ...]
    ensemble: Score | None

    @property
    def rows(self) -> tuple[Score, ...]:
        return self.runs if self.ensemble is None else (*self.runs, self.ensemble)

    def table(self) -> list[TableRow]:
        return results_table(self.rows, self.dataset)

    def as_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "split": self.split,
            "views": self.views,
            "runs": [run.as_dict() for run in self.runs],
            "ensemble": None if self.ensemble is None else self.ensemble.as_dict(),
            "paper": [asdict(row.paper) for row in self.table() if row.paper is not None],
        }


def evaluate_runs(
    run_dirs: Sequence[Path],
    *,
    data: str | None = None,
    split: str = "val",
    views: int = 1,
    weights: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    batch_size: int = 128,
    progress: Callable[[Path, int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> EvaluationResult:
    """Score the network of each run on every picture of a split, and the average of them all.

    `data` is any data set; without it, each run's own. Predictions are kept in the run folder as
    `predictions_{split}_{views}.npz` and used again for the same weights, data set and precision;
    a run whose own data set is gone still has its saved predictions. `batch_size` counts crops;
    `progress` is called with the run, the pictures done and their number. The `ranks`
    share the work; each gets the result, and the first writes the files.

    Raises UserError, before any prediction, for a run that is not there or has no model, and for
    views, weights, precision or a batch size that cannot be; then for data that a run cannot use:
    other classes, other pictures than the first run's, a split it does not have.
    """
    check_views(views)
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}{suggest(precision, PRECISIONS)}")
    if not run_dirs:
        raise UserError("name at least one run folder")
    normalised(weights, len(run_dirs))
    for run in run_dirs:
        _check_run(run)
    predictions = [
        _predictions_of(
            run,
            data=data,
            split=split,
            views=views,
            device=torch.device(device),
            precision=precision,
            batch_size=batch_size,
            progress=progress,
            ranks=ranks,
        )
        for run in run_dirs
    ]
    scores = tuple(
        score_of(str(run), member, (member.network,))
        for run, member in zip(run_dirs, predictions, strict=True)
    )
    average = None
    if len(predictions) > 1:
        networks = tuple(member.network for member in predictions)
        kind = "average" if weights is None else "weighted average"
        average = score_of(
            f"{kind} of {len(predictions)}", ensemble(predictions, weights), networks
        )
    return EvaluationResult(predictions[0].dataset, split, views, scores, average)


def predictions_path(run: Path, split: str, views: int) -> Path:
    return run / f"predictions_{split}_{views}.npz"


def _check_run(run: Path) -> None:
    if not run.is_dir():
        raise UserError(f"the run folder {run} is not there")
    if not (run / "model.safetensors").is_file():
        raise UserError(
            f"{run} has no model.safetensors: it is no run folder, or its training has not ended"
        )


def _predictions_of(
    run: Path,
    *,
    data: str | None,
    split: str,
    views: int,
    device: torch.device,
    precision: str,
    batch_size: int,
    progress: Callable[[Path, int, int], None] | None,
    ranks: Ranks,
) -> Predictions:
    """Saved predictions of these very weights on this very data set, else new ones, saved."""
    path, model_path = predictions_path(run, split, views), run / "model.safetensors"
    weights_sha256 = sha256_of(model_path)
    wanted = (split, views, precision, weights_sha256)
    saved = _saved(path, wanted)
    if not all(ranks.everyone.objects(saved is not None, "saved predictions")):
        saved = None
    packed = _packed_data_of(run) if data is None else None
    if saved is not None and packed is not None and not packed.exists():
        return saved
    model = load_model(model_path)
    card = model.card
    assert isinstance(card, ModelCard)
    if packed is not None:
        dataset = _open_own(run, packed)
    else:
        image_px = card.preprocessing.image_px
        dataset = ranks.one_after_another(lambda: open_dataset(str(data), image_px=image_px))
    _check_data(run, card.class_ids, dataset, split)
    data_sha256 = sha256_of(dataset.path / "dataset.json")
    if saved is not None and saved.data_sha256 == data_sha256:
        return saved
    predictions = predict(
        evaluator(model, device, precision),
        dataset.splits[split],
        card.preprocessing,
        views=views,
        batch_size=batch_size,
        device=device,
        progress=None if progress is None else partial(progress, run),
        group=ranks.everyone,
    )
    recipe, seed = _recipe_and_seed(run)
    predictions = replace(
        predictions,
        network=model.network.name,
        recipe=recipe,
        dataset=dataset.name,
        class_names=dataset.class_names,
        seed=seed,
        precision=precision,
        weights_sha256=weights_sha256,
        data_sha256=data_sha256,
    )
    if ranks.speaks:
        predictions.save(path)
    return predictions


def evaluator(
    model: AlexNet, device: torch.device, precision: str = "fp32"
) -> Callable[[Tensor], Tensor]:
    """The network as it evaluates fastest on a device: float32 crops to logits.

    Moves the model. In bf16 its weights become bfloat16 once, which autocast does for each batch.
    """
    model.to(device).to(memory_format=torch.channels_last)
    model.to(torch.float64 if precision == "fp64" else torch.float32)
    fast = fused.choice(model.kernels) != "plain"
    if fast and device.type == "cpu":
        memory.keep()
    if fast and precision == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        return lambda crops: model(crops.to(torch.bfloat16))

    def logits_of(crops: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(crops.double() if precision == "fp64" else crops)  # type: ignore[no-any-return]

    return logits_of


def _saved(path: Path, wanted: tuple[str, int, str, str]) -> Predictions | None:
    """Predictions kept in the run folder, if they are the wanted ones; damaged ones are not."""
    if not path.exists():
        return None
    with contextlib.suppress(UserError):
        saved = Predictions.load(path)
        if (saved.split, saved.views, saved.precision, saved.weights_sha256) == wanted:
            return saved
    return None


def _recipe_and_seed(run: Path) -> tuple[str, int | None]:
    """For the table; the weights predict without them."""
    if not (run / "recipe.json").exists():
        return "", None
    recipe = read_json(run / "recipe.json")
    if not isinstance(recipe, dict):
        raise UserError(f"{run / 'recipe.json'} is damaged: it holds no recipe")
    return str(recipe.get("name", "")), dict(recipe.get("system", {})).get("seed")


def _packed_data_of(run: Path) -> Path:
    environment = read_json(run / "environment.json")
    if not isinstance(environment, dict) or not environment.get("data_path"):
        raise UserError(
            f"{run / 'environment.json'} does not say where the data set is; use --data"
        )
    return Path(environment["data_path"])


def _open_own(run: Path, packed: Path) -> PackedDataset:
    if not packed.exists():
        raise UserError(f"the data set of {run}, {packed} is not there; name one with --data")
    return open_packed(packed)


def _check_data(run: Path, class_ids: Sequence[str], dataset: PackedDataset, split: str) -> None:
    if split not in dataset.splits:
        known = suggest(split, dataset.splits)
        raise UserError(f"the data set {dataset.name} has no split {split!r}{known}")
    if tuple(class_ids) != dataset.class_ids:
        difference = class_difference(class_ids, dataset.class_ids)
        raise UserError(
            f"{run} and the data set {dataset.name} have other classes ({difference}); "
            "evaluate a run on the classes that it was trained on"
        )
