"""Predictions of one network over a whole split, saved, averaged and looked into (Section 4.1).

`predict` takes any callable from crops to logits and leaves `Predictions`, one averaged softmax
per picture; everything after it works from saved predictions and needs neither the pictures nor
the network. Ten views are the paper's: corners, centre and mirror images.

Not here: counting and intervals (`metrics.py`), and any search for ensemble weights on the split
that is scored, as the 2012 `avg-valid.py` did.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alexnet.augment import Preprocessing, check_views, mean_of_views
from alexnet.collectives import ALONE, Group
from alexnet.dataset import Split
from alexnet.errors import UserError
from alexnet.files import atomic_file
from alexnet.metrics import TOP_K, ErrorCount, count_errors, label_ranks
from alexnet.pictures import UnreadablePicture, check_size

PICTURES_AT_A_TIME = 4096  # whose vectors the ranks exchange at once

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
    group: Group = ALONE,
) -> Predictions:
    """Softmax of every picture of the split, averaged over one or ten views (Section 4.1).

    `logits_of` maps crops float32 (B, 3, crop, crop) on `device` to logits (B, C) of any float
    type; a module goes in evaluation mode. `batch_size` counts crops. The fields of Predictions
    that only the caller knows keep their defaults. The ranks of `group` share the work, and each
    gets all of it. Of pictures that
    are read straight from their files, those that cannot be decoded are left out. Raises as
    `mean_over_views` does.
    """

    def probabilities_of(crops: Tensor) -> Tensor:
        return logits_of(crops).float().softmax(1)

    while True:
        try:
            probabilities = mean_over_views(
                probabilities_of,
                split,
                preprocessing,
                views=views,
                batch_size=batch_size,
                device=device,
                progress=progress,
                group=group,
            )
            break
        except UnreadablePicture:
            split = split.readable()
    return Predictions(
        probabilities,
        np.array(split.labels, np.int64),
        split.name,
        views,
        pictures_sha256=hashlib.sha256(
            "\n".join(split.sources).encode(errors="surrogatepass")
        ).hexdigest(),
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
    group: Group = ALONE,
) -> np.ndarray:
    """One vector per picture, float32 (N, K): `vectors_of` averaged over the picture's views.

    `vectors_of` maps crops (B, 3, crop, crop) to (B, K) and never sees more than `batch_size`
    crops; the last batch is short, no picture is repeated or left out. `progress` is called with
    the pictures done and their number. The ranks of `group` take the batches in turn, so that each
    batch, and with it each number, is the one that a single rank computes; all get all vectors.
    Raises UserError for views other than 1 and 10, an empty
    split, or pictures of another size than the mean image.
    """
    check_views(views)
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
    pictures_per_batch = max(1, batch_size // views)
    means: np.ndarray | None = None
    queued: tuple[int, Tensor] | None = None
    starts = range(0, len(split), pictures_per_batch)
    for start in starts[group.rank :: group.size]:
        # A copy: torch warns about a read-only memory map.
        check_size(split.images)
        pictures = torch.from_numpy(np.array(split.images[start : start + pictures_per_batch]))
        mean = mean_of_views(
            vectors_of, pictures.to(device), on_device, views=views, batch_size=batch_size
        )
        if means is None:
            means = np.zeros((len(split), mean.shape[1]), np.float32)
        # Fetched one batch late, so that an accelerator works while the next pictures are read.
        if queued is not None:
            _store(means, *queued)
        queued = start, mean
        if progress is not None:
            progress(start + len(pictures), len(split))
    if queued is not None and means is not None:
        _store(means, *queued)
    means = _of_all_ranks(means, len(split), group)
    if progress is not None and group.size > 1:
        progress(len(split), len(split))
    return means


def _of_all_ranks(means: np.ndarray | None, count: int, group: Group) -> np.ndarray:
    """The vectors that the ranks have, zero where they are another's, added up: exact."""
    if group.size > 1:
        widths = group.objects(None if means is None else means.shape[1], "width of vectors")
        width = next(width for width in widths if width is not None)
        means = np.zeros((count, width), np.float32) if means is None else means
        for start in range(0, count, PICTURES_AT_A_TIME):
            group.sum(torch.from_numpy(means[start : start + PICTURES_AT_A_TIME]), "vectors")
    assert means is not None
    return means


def _store(means: np.ndarray, start: int, mean: Tensor) -> None:
    means[start : start + len(mean)] = mean.cpu().numpy()


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
    for weight, member in zip(normalised(weights, len(predictions)), predictions, strict=True):
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


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
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
