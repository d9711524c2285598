"""What a run says, as numbers: the facts behind the figures and the report.

Results, mistakes, and a choice of pictures that anybody can repeat: each a pure function of what
was read. Not here: reading (`material.py`), drawing (`figures.py`) and the page (`report.py`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alexnet.material import Run
from alexnet.metrics import ErrorCount, count_errors, label_ranks
from alexnet.predictions import ClassErrors, Predictions
from alexnet.randomness import permutation

SPLITS_DRAWN = 1000  # random halves of the kernels that two columns are compared with


@dataclass(frozen=True)
class Result:
    """The errors of one evaluation over a whole split."""

    split: str
    views: int
    count: ErrorCount


def results(run: Run) -> list[Result]:
    """One per (split, views), from the best source: predictions, then the summary, then the log."""
    found: dict[tuple[str, int], ErrorCount] = {}
    for source in (run.of("evaluation"), run.summary.get("evaluations", [])):
        for entry in source:
            try:
                count = ErrorCount(entry["top1_wrong"], entry["top5_wrong"], entry["images"])
                found[entry["split"], int(entry["views"])] = count
            except (KeyError, TypeError, ValueError):
                continue  # a line of another version: the table goes without it
    for key, predictions in run.predictions.items():
        found[key] = count_errors(predictions.probabilities, predictions.labels)
    return [Result(*key, count) for key, count in sorted(found.items()) if count.images]


def headline_result(found: Sequence[Result]) -> Result | None:
    """The one that stands for the run: the test split before others, more views before fewer."""
    return max(found, key=lambda r: (r.split == "test", r.split == "val", r.views), default=None)


def worst_first(classes: Sequence[ClassErrors]) -> list[ClassErrors]:
    """From the highest error to the lowest; a class without pictures has none and is left out."""
    seen = [entry for entry in classes if entry.errors.images]
    return sorted(seen, key=lambda entry: (-entry.errors.top1_error, entry.label))


def guessed_classes(predictions: Predictions) -> np.ndarray:
    """The class that each picture is taken for, int64 (N,). A tie with the label is a miss."""
    labels, probabilities = predictions.labels, predictions.probabilities
    wrong = label_ranks(probabilities, labels).numpy() >= 1
    others = np.where(np.isnan(probabilities[wrong]), np.inf, probabilities[wrong])
    others[np.arange(len(others)), labels[wrong]] = -np.inf
    guessed = labels.copy()
    guessed[wrong] = others.argmax(axis=1)
    return guessed


def confusion(labels: np.ndarray, guessed: np.ndarray, num_classes: int) -> np.ndarray:
    """How often class (row) is taken for class (column): int64 (C, C)."""
    flat = np.bincount(labels * num_classes + guessed, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def colour_share(kernels: np.ndarray, columns: int) -> list[float]:
    """For each column, the share of its kernels' energy that is colour: kernels (O, 3, k, k).

    What a kernel has alike in red, green and blue sees light and dark, the rest sees colour. Random
    kernels have 2/3. Adding energies keeps dead kernels from counting. nan if all weights are 0.
    """
    shares = []
    for part in np.array_split(kernels.astype(np.float64), columns):
        colour = part - part.mean(axis=1, keepdims=True)
        energy = float((part**2).sum())
        shares.append(float((colour**2).sum()) / energy if energy else math.nan)
    return shares


@dataclass(frozen=True)
class ColourIndex:
    """How far two halves of conv1's kernels part into colour and light and dark.

    The share of energy that is colour, of each kernel and of each half (nan: all weights are 0),
    and how often a random half differs from the rest at least as much: under 0.05 the halves are
    parted more than by chance.
    """

    kernels: tuple[float, ...]
    halves: tuple[float, float]
    parted_p: float


def colour_index(kernels: np.ndarray, seed: int) -> ColourIndex:
    """Kernels (O, 3, k, k), the first half those of column 0; `seed` draws the random halves."""
    each = tuple(colour_share(kernel[None], 1)[0] for kernel in kernels)
    first, second = colour_share(kernels, 2)
    chance = np.random.default_rng(seed)
    at_least = 0
    for _ in range(SPLITS_DRAWN):
        one, other = colour_share(kernels[chance.permutation(len(kernels))], 2)
        at_least += not abs(one - other) < abs(first - second)  # nan parts nothing
    return ColourIndex(each, (first, second), (at_least + 1) / (SPLITS_DRAWN + 1))


@dataclass(frozen=True)
class Guess:
    """One picture with what the network says: Figure 4, left."""

    picture: np.ndarray  # (S, S, 3) uint8
    label: str
    names: tuple[str, ...]  # of the most probable classes, most probable first
    probabilities: tuple[float, ...]
    is_right: tuple[bool, ...]  # at most one


@dataclass(frozen=True)
class Neighbours:
    """One picture and the training pictures nearest to it in a layer: Figure 4, right."""

    picture: np.ndarray  # (S, S, 3) uint8
    label: str
    pictures: tuple[np.ndarray, ...]  # nearest first
    labels: tuple[str, ...]


def choose_right_and_wrong(
    labels: np.ndarray, right: np.ndarray, *, count: int, seed: int
) -> np.ndarray:
    """Pictures to show: half of them right, half wrong, or as near as there are; right ones first.

    labels (N,), right bool (N,) -> indices. Drawn by `seed` without looking, each from another
    class as far as there are classes.
    """
    order = permutation(seed, "report: guesses", 0, len(labels))
    wrong_wanted = min(count // 2, int((~right).sum()))
    right_wanted = min(count - wrong_wanted, int(right.sum()))
    wrong_wanted = min(count - right_wanted, int((~right).sum()))
    shown = _from_distinct_classes(order[right[order]], labels, right_wanted, taken=())
    taken = labels[shown].tolist()
    return np.concatenate(
        [shown, _from_distinct_classes(order[~right[order]], labels, wrong_wanted, taken=taken)]
    )


def choose_queries(labels: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """Pictures to search with, indices (count,), from distinct classes as far as there are any."""
    order = permutation(seed, "report: queries", 0, len(labels))
    return _from_distinct_classes(order, labels, min(count, len(labels)), taken=())


def _from_distinct_classes(
    order: np.ndarray, labels: np.ndarray, count: int, *, taken: Iterable[int]
) -> np.ndarray:
    """The first `count` of `order`, those of classes not taken yet before the others."""
    seen = set(taken)
    first: list[int] = []
    later: list[int] = []
    for index in order.tolist():
        label = int(labels[index])
        (later if label in seen else first).append(index)
        seen.add(label)
        if len(first) == count:
            break
    return np.array((first + later)[:count], np.int64)
