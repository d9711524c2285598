"""Errors of trained networks over a whole split, alone and averaged (Sections 4.1 and 6).

`predict` takes any callable from crops to logits and leaves `Predictions`, one averaged softmax
per picture; everything after it (scores, ensembles, tables) works from saved predictions and needs
neither the pictures nor the network. Ten views are the paper's: corners, centre and mirror images.

Not here: counting and intervals (`metrics.py`), and any search for ensemble weights on the split
that is scored, as the 2012 `avg-valid.py` did.
"""

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from alexnet.augment import Preprocessing, centre_view, ten_views
from alexnet.dataset import PackedDataset, Split, open_packed
from alexnet.errors import UserError, suggest
from alexnet.files import atomic_file, read_json, sha256_of
from alexnet.metrics import TOP_K, ErrorCount, count_errors, label_ranks, wilson_interval
from alexnet.prepare import open_dataset
from alexnet.weights import ModelCard
from alexnet.weights import load as load_model

VIEWS = (1, 10)
PRECISIONS = ("fp32", "bf16")

# Below this a float32 probability may be zero, and one picture would make the mean infinite.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says about every picture of a split, and where that comes from.

    probabilities: float32 (N, C), softmax averaged over the views; labels: int64 (N,).
    The checksums tell whether two predictions are of the same weights (model.safetensors), of the
    same packed data set (dataset.json) and of the same pictures (Split.sources, in order).
    """

    probabilities: np.ndarray
    labels: np.ndarray
    split: str
    views: int
    network: str = ""
    recipe: str = ""
    dataset: str = ""
    class_names: tuple[str, ...] = ()
    seed: int | None = None
    precision: str = "fp32"
    weights_sha256: str = ""
    data_sha256: str = ""
    pictures_sha256: str = ""

    def save(self, path: Path) -> None:
        """Write one .npz file, atomically. Raises UserError when it cannot be written."""
        meta = {name: getattr(self, name) for name in _META}
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                probabilities=self.probabilities,
                labels=self.labels,
                meta=np.array(json.dumps(meta)),
            )

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` wrote. Raises UserError when it is missing or damaged."""
        if not path.is_file():
            raise UserError(f"{path} is not there; `alexnet evaluate` writes it")
        try:
            with np.load(path, allow_pickle=False) as archive:
                meta = json.loads(str(archive["meta"]))
                predictions = cls(
                    probabilities=archive["probabilities"],
                    labels=archive["labels"],
                    **{**meta, "class_names": tuple(meta["class_names"])},
                )
            _check(predictions)
        # numpy, zipfile, zlib and json each have their own exceptions for a damaged archive.
        except Exception as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it and run `alexnet evaluate` again"
            ) from None
        return predictions


_META = (
    "split",
    "views",
    "network",
    "recipe",
    "dataset",
    "class_names",
    "seed",
    "precision",
    "weights_sha256",
    "data_sha256",
    "pictures_sha256",
)


def _check(predictions: Predictions) -> None:
    probabilities, labels = predictions.probabilities, predictions.labels
    if probabilities.ndim != 2 or probabilities.dtype != np.float32:
        raise ValueError(f"probabilities are {probabilities.dtype} {probabilities.shape}")
    if labels.shape != probabilities.shape[:1] or labels.dtype != np.int64:
        raise ValueError(f"labels are {labels.dtype} {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < probabilities.shape[1]:
        raise ValueError(f"a label is not one of {probabilities.shape[1]} classes")
    if len(predictions.class_names) not in (0, probabilities.shape[1]):
        raise ValueError(f"{len(predictions.class_names)} names, {probabilities.shape[1]} classes")


def predict(
    logits_of: Callable[[Tensor], Tensor],
    split: Split,
    preprocessing: Preprocessing,
    *,
    views: int,
    batch_size: int,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Softmax of every picture of the split, averaged over one or ten views (Section 4.1).

    `logits_of` maps crops float32 (B, 3, crop, crop) on `device` to logits (B, C) of any float
    type; a module goes in evaluation mode. `batch_size` counts crops. The fields of Predictions
    that only the caller knows keep their defaults. Raises as `mean_over_views` does.
    """

    def probabilities_of(crops: Tensor) -> Tensor:
        return logits_of(crops).float().softmax(1)

    probabilities = mean_over_views(
        probabilities_of,
        split,
        preprocessing,
        views=views,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    return Predictions(
        probabilities,
        np.array(split.labels, np.int64),
        split.name,
        views,
        pictures_sha256=hashlib.sha256("\n".join(split.sources).encode()).hexdigest(),
    )


@torch.inference_mode()
def mean_over_views(
    vectors_of: Callable[[Tensor], Tensor],
    split: Split,
    preprocessing: Preprocessing,
    *,
    views: int,
    batch_size: int,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """One vector per picture, float32 (N, K): `vectors_of` averaged over the picture's views.

    `vectors_of` maps crops (B, 3, crop, crop) to (B, K) and never sees more than `batch_size`
    crops; the last batch is short, no picture is repeated or left out. `progress` is called with
    the pictures done and their number. Raises UserError for views other than 1 and 10, an empty
    split, or pictures of another size than the mean image.
    """
    _check_views(views)
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")
    if len(split) == 0:
        raise UserError(f"the split {split.name!r} has no pictures")
    size_px, mean_px = split.images.shape[1], preprocessing.image_px
    if size_px != mean_px:
        raise UserError(
            f"the pictures are {size_px} px wide and the network's mean image {mean_px} px; "
            f"prepare the data set with {mean_px} px"
        )
    on_device = preprocessing.to(torch.device(device))
    make_views = centre_view if views == 1 else ten_views
    pictures_per_batch = max(1, batch_size // views)
    means: np.ndarray | None = None
    queued: tuple[int, Tensor] | None = None
    for start in range(0, len(split), pictures_per_batch):
        # A copy: torch warns about a read-only memory map.
        pictures = torch.from_numpy(np.array(split.images[start : start + pictures_per_batch]))
        crops = make_views(pictures.to(device), on_device)  # (B, 3, c, c) or (B, 10, 3, c, c)
        parts = torch.split(crops.flatten(0, -4), batch_size)
        vectors = torch.cat([vectors_of(part) for part in parts]).float()  # (B * views, K)
        mean = vectors.view(len(pictures), views, -1).mean(1)  # (B, K)
        if means is None:
            means = np.empty((len(split), mean.shape[1]), np.float32)
        # Fetched one batch late, so that an accelerator works while the next pictures are read.
        if queued is not None:
            _store(means, *queued)
        queued = start, mean
        if progress is not None:
            progress(start + len(pictures), len(split))
    assert means is not None
    assert queued is not None
    _store(means, *queued)
    return means


def _store(means: np.ndarray, start: int, mean: Tensor) -> None:
    means[start : start + len(mean)] = mean.cpu().numpy()


def _check_views(views: int) -> None:
    if views not in VIEWS:
        raise UserError(
            f"{views} views: choose 1 (the centre crop) or 10 (the paper's ten patches)"
        )


def score(predictions: Predictions) -> ErrorCount:
    """Wrong pictures by the first guess and by the first five."""
    return count_errors(predictions.probabilities, predictions.labels)


def mean_log_probability(predictions: Predictions) -> float:
    """Mean natural log of the probability of the right label, which training maximises (3.5).

    Of the average over the views, as in the source's logged triple (with the other sign). A
    probability that has underflowed counts as the smallest normal float32, log -87.3.
    """
    rows = np.arange(len(predictions.labels))
    own = predictions.probabilities[rows, predictions.labels].astype(np.float64)
    return float(np.log(np.maximum(own, SMALLEST_PROBABILITY)).mean())


def ensemble(
    predictions: Sequence[Predictions], weights: Sequence[float] | None = None
) -> Predictions:
    """Average the softmax outputs of several networks (Section 6, "5 CNNs").

    Equal weights unless given; they are divided by their sum, which the 2012 `avg-test.py` leaves
    out and no ranking depends on. Raises UserError when the predictions are of other pictures,
    views or classes, or the weights do not fit.
    """
    if not predictions:
        raise UserError("an average needs the predictions of at least one network")
    first, *others = predictions
    for other in others:
        _check_same_pictures(first, other)
    total = np.zeros(first.probabilities.shape, np.float64)
    for weight, member in zip(_normalised(weights, len(predictions)), predictions, strict=True):
        total += weight * member.probabilities
    return replace(
        first,
        probabilities=total.astype(np.float32),
        network=_joined(member.network for member in predictions),
        recipe=_joined(member.recipe for member in predictions),
        precision=_joined(member.precision for member in predictions),
        seed=None,
        weights_sha256="",
        data_sha256="",
    )


def _check_same_pictures(first: Predictions, other: Predictions) -> None:
    if (other.split, other.views) != (first.split, first.views):
        raise UserError(
            f"predictions of {first.split!r} with {first.views} views cannot be averaged with "
            f"those of {other.split!r} with {other.views}"
        )
    if other.class_names != first.class_names:
        difference = class_difference(first.class_names, other.class_names)
        raise UserError(
            f"the runs disagree on the classes: {difference}; average runs of one data set"
        )
    if other.probabilities.shape != first.probabilities.shape:
        raise UserError(
            f"the runs disagree: {first.probabilities.shape} and {other.probabilities.shape} "
            "(pictures, classes); average runs of one data set"
        )
    same_labels = np.array_equal(other.labels, first.labels)
    if not same_labels or other.pictures_sha256 != first.pictures_sha256:
        raise UserError(
            f"the runs disagree on the pictures of {first.split!r}; evaluate them on the same "
            "data set (--data)"
        )


def class_difference(names: Sequence[str], others: Sequence[str]) -> str:
    """Say in a few words where two lists of class names part."""
    if len(names) != len(others):
        return f"{len(names)} and {len(others)} of them"
    for index, (name, other) in enumerate(zip(names, others, strict=True)):
        if name != other:
            return f"class {index} is {name!r} and {other!r}"
    return "none"


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise UserError(f"{len(weights)} weights for {count} runs; give one for each")
    total = math.fsum(weights)
    if not (all(math.isfinite(w) and w >= 0 for w in weights) and 0 < total < math.inf):
        given = ", ".join(f"{w:g}" for w in weights)
        raise UserError(f"weights {given}: none may be negative and one must be above zero")
    return [weight / total for weight in weights]


def _joined(names: Iterable[str]) -> str:
    return " + ".join(dict.fromkeys(names))


@dataclass(frozen=True)
class ClassErrors:
    """The errors among the pictures of one class."""

    label: int
    name: str
    errors: ErrorCount


def per_class_errors(predictions: Predictions) -> list[ClassErrors]:
    """One entry per class in the order of the labels; a class without pictures counts none."""
    ranks = label_ranks(predictions.probabilities, predictions.labels).numpy()
    num_classes = predictions.probabilities.shape[1]

    def counted(among: np.ndarray) -> list[int]:
        per_class: list[int] = np.bincount(
            predictions.labels[among], minlength=num_classes
        ).tolist()
        return per_class

    counts = zip(counted(ranks >= 1), counted(ranks >= TOP_K), counted(ranks >= 0), strict=True)
    return [
        ClassErrors(label, _class_name(predictions, label), ErrorCount(*count))
        for label, count in enumerate(counts)
    ]


@dataclass(frozen=True)
class Confusion:
    """`images` of the `label_images` pictures of one class were taken for another."""

    label: int
    name: str
    guess: int
    guess_name: str
    images: int
    label_images: int


def most_confused(predictions: Predictions, count: int = 10) -> list[Confusion]:
    """Pairs (right class, first guess) by their number of pictures, most first; ties by class.

    Every picture that is wrong by `score` is in one pair, ties of probability included.
    """
    probabilities, labels = predictions.probabilities, predictions.labels
    num_classes = probabilities.shape[1]
    wrong = np.flatnonzero(label_ranks(probabilities, labels).numpy() >= 1)
    others = np.where(np.isnan(probabilities[wrong]), np.inf, probabilities[wrong])
    others[np.arange(len(wrong)), labels[wrong]] = -np.inf
    pairs, images = np.unique(labels[wrong] * num_classes + others.argmax(1), return_counts=True)
    label_images = np.bincount(labels, minlength=num_classes)
    found = []
    for index in np.argsort(-images, kind="stable")[:count]:
        label, guess = divmod(int(pairs[index]), num_classes)
        names = _class_name(predictions, label), _class_name(predictions, guess)
        found.append(
            Confusion(
                label, names[0], guess, names[1], int(images[index]), int(label_images[label])
            )
        )
    return found


def _class_name(predictions: Predictions, label: int) -> str:
    return predictions.class_names[label] if predictions.class_names else str(label)


@dataclass(frozen=True)
class PaperResult:
    """A row of the tables of Section 6, or an error quoted in the text; errors as fractions.

    `networks` counts the members of an average by what the paper calls them; it is empty for
    methods that are no network. `views` is None where the paper does not say.
    """

    method: str
    networks: tuple[tuple[str, int], ...]
    views: int | None
    top1_error: float
    top5_error: float | None


@dataclass(frozen=True)
class PaperTable:
    """What the paper reports on one set of pictures, and how to know that set."""

    names: frozenset[str]  # of data sets, in lower case, letters and digits only
    splits: tuple[str, ...]
    num_classes: int
    images: int
    results: tuple[PaperResult, ...]


# In Section 6, "CNN" is the network of Section 3 and "CNN*" the one with a sixth conv layer, which
# the paper trained on the 15 million pictures of ImageNet Fall 2011 first.
PAPER_WORDS = {"paper": "CNN", "source": "CNN", "sixth-conv": "CNN*"}
PAPER_TABLES = (
    PaperTable(
        frozenset({"ilsvrc2010", "lsvrc2010", "imagenet2010"}),
        ("test",),
        num_classes=1000,
        images=150_000,
        results=(
            PaperResult("sparse coding", (), None, 0.471, 0.282),
            PaperResult("SIFT + FVs", (), None, 0.457, 0.257),
            PaperResult("CNN", (("CNN", 1),), 10, 0.375, 0.170),
            PaperResult("CNN, centre patch", (("CNN", 1),), 1, 0.390, 0.183),
        ),
    ),
    PaperTable(
        frozenset({"ilsvrc2012", "lsvrc2012", "imagenet2012", "imagenet1k", "imagenet"}),
        ("val",),
        num_classes=1000,
        images=50_000,
        results=(
            PaperResult("1 CNN", (("CNN", 1),), 10, 0.407, 0.182),
            PaperResult("5 CNNs", (("CNN", 5),), 10, 0.381, 0.164),
            PaperResult("1 CNN*", (("CNN*", 1),), 10, 0.390, 0.166),
            PaperResult("7 CNNs*", (("CNN", 5), ("CNN*", 2)), 10, 0.367, 0.154),
        ),
    ),
    PaperTable(
        frozenset({"cifar10"}),
        ("test", "val"),
        num_classes=10,
        images=10_000,
        results=(
            PaperResult("4 layers, no norm", (("cifar10-13pct", 1),), None, 0.13, None),
            PaperResult("4 layers, norm", (("cifar10-11pct", 1),), None, 0.11, None),
        ),
    ),
)
# A data set may have lost a few pictures: the raw ILSVRC-2010 test set of 2012 had 149,998.
SMALLEST_SHARE_OF_IMAGES = 0.999


@dataclass(frozen=True)
class Score:
    """The errors of one run, or of the average of several."""

    name: str
    networks: tuple[str, ...]
    recipe: str
    seed: int | None
    split: str
    views: int
    num_classes: int
    errors: ErrorCount
    mean_log_probability: float

    def as_dict(self) -> dict[str, Any]:
        """What `alexnet evaluate --json` prints for it; intervals are 95 %."""
        log_probability = self.mean_log_probability
        return {
            "name": self.name,
            "networks": list(self.networks),
            "recipe": self.recipe,
            "seed": self.seed,
            **self.errors.as_dict(),
            "top1_interval": list(wilson_interval(self.errors.top1_wrong, self.errors.images)),
            "top5_interval": list(wilson_interval(self.errors.top5_wrong, self.errors.images)),
            "mean_log_probability": log_probability if math.isfinite(log_probability) else None,
        }


def score_of(name: str, predictions: Predictions, networks: tuple[str, ...]) -> Score:
    return Score(
        name,
        networks,
        predictions.recipe,
        predictions.seed,
        predictions.split,
        predictions.views,
        predictions.probabilities.shape[1],
        score(predictions),
        mean_log_probability(predictions),
    )


@dataclass(frozen=True)
class TableRow:
    """Ours, the paper's, or both where they are of the same experiment."""

    ours: Score | None
    paper: PaperResult | None


def results_table(scores: Sequence[Score], dataset_name: str) -> list[TableRow]:
    """Our scores, each beside the paper's of the same pictures, networks and views.

    What the paper reports on these pictures besides follows in rows of its own. A data set is the
    paper's by its name, its split, its classes and its number of pictures.
    """
    published = _published(scores, dataset_name)
    rows = [TableRow(ours, _same_experiment(ours, published)) for ours in scores]
    beside = {id(row.paper) for row in rows}
    return rows + [TableRow(None, result) for result in published if id(result) not in beside]


def _published(scores: Sequence[Score], dataset_name: str) -> tuple[PaperResult, ...]:
    name = "".join(character for character in dataset_name.lower() if character.isalnum())
    for table in PAPER_TABLES:
        if name in table.names and all(
            score.split in table.splits
            and score.num_classes == table.num_classes
            and SMALLEST_SHARE_OF_IMAGES * table.images <= score.errors.images <= table.images
            for score in scores
        ):
            return table.results
    return ()


def _same_experiment(ours: Score, published: Iterable[PaperResult]) -> PaperResult | None:
    members = Counter(PAPER_WORDS.get(network, network) for network in ours.networks)
    for result in published:
        if members == dict(result.networks) and result.views in (None, ours.views):
            return result
    return None


def print_results(rows: Sequence[TableRow], title: str, console: Console | None = None) -> None:
    """Print errors in percent with 95 % intervals, the paper's beside ours where it has them."""
    with_paper = any(row.paper is not None for row in rows)
    few_classes = any(row.ours is not None and row.ours.num_classes <= TOP_K for row in rows)
    caption = "in brackets: 95 % interval, over images and not over seeds"
    if few_classes:
        caption += f"\n{TOP_K} guesses cover all classes: top-5 says nothing"
    table = Table(title=title, caption=caption)
    table.add_column("run", overflow="fold")
    for heading in ("views", "images", "top-1 error %", "top-5 error %"):
        table.add_column(heading, justify="right")
    if with_paper:
        table.add_column("paper")
        table.add_column("top-1 / top-5 %", justify="right")
    for row in rows:
        table.add_row(*_our_cells(row.ours), *(_paper_cells(row.paper) if with_paper else ()))
    (console or Console()).print(table)


def _our_cells(ours: Score | None) -> tuple[str, ...]:
    if ours is None:
        return ("", "", "", "", "")
    errors = ours.errors
    cells = [escape(ours.name), str(ours.views), f"{errors.images:,}"]
    for wrong in (errors.top1_wrong, errors.top5_wrong):
        low, high = wilson_interval(wrong, errors.images)
        cells.append(f"{100 * wrong / errors.images:.2f} ({100 * low:.1f}-{100 * high:.1f})")
    return tuple(cells)


def _paper_cells(paper: PaperResult | None) -> tuple[str, str]:
    if paper is None:
        return ("", "")
    top5 = "-" if paper.top5_error is None else f"{100 * paper.top5_error:.1f}"
    return (paper.method, f"{100 * paper.top1_error:.1f} / {top5}")


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
) -> EvaluationResult:
    """Score the network of each run on every picture of a split, and the average of them all.

    `data` is any data set; without it, each run's own. Predictions are kept in the run folder as
    `predictions_{split}_{views}.npz` and used again for the same weights, data set and precision;
    a run whose own data set is gone still has its saved predictions. `batch_size` counts crops;
    `progress` is called with the run, the pictures done and their number.

    Raises UserError, before any prediction, for a run that is not there or has no model, and for
    views, weights, precision or a batch size that cannot be; then for data that a run cannot use:
    other classes, other pictures than the first run's, a split it does not have.
    """
    _check_views(views)
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}{suggest(precision, PRECISIONS)}")
    if not run_dirs:
        raise UserError("name at least one run folder")
    _normalised(weights, len(run_dirs))
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
) -> Predictions:
    """Saved predictions of these very weights on this very data set, else new ones, saved."""
    path, model_path = predictions_path(run, split, views), run / "model.safetensors"
    weights_sha256 = sha256_of(model_path)
    wanted = (split, views, precision, weights_sha256)
    saved = _saved(path, wanted)
    packed = _packed_data_of(run) if data is None else None
    if saved is not None and packed is not None and not packed.exists():
        return saved
    model = load_model(model_path)
    card = model.card
    assert isinstance(card, ModelCard)
    if packed is not None:
        dataset = _open_own(run, packed)
    else:
        dataset = open_dataset(str(data), image_px=card.preprocessing.image_px)
    _check_data(run, card.class_ids, dataset, split)
    data_sha256 = sha256_of(dataset.path / "dataset.json")
    if saved is not None and saved.data_sha256 == data_sha256:
        return saved
    model.to(device)

    def logits_of(crops: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits: Tensor = model(crops)
            return logits

    predictions = predict(
        logits_of,
        dataset.splits[split],
        card.preprocessing,
        views=views,
        batch_size=batch_size,
        device=device,
        progress=None if progress is None else partial(progress, run),
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
    predictions.save(path)
    return predictions


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
