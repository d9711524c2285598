"""Whether a network is as sure as it is right: confidence against accuracy, from predictions alone.

The confidence is the probability of the first guess. Equal bins of it, the expected calibration
error over them (Guo and others, 2017), and what a perfectly calibrated network would show with as
few pictures. Not here: drawing (`figures.py`) and counting errors (`metrics.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexnet.findings import guessed_classes
from alexnet.predictions import Predictions, mean_log_probability

BINS = 10
DRAWS = 500  # of networks that are perfectly calibrated
SPAN = (0.025, 0.975)  # the middle 95 % of them


@dataclass(frozen=True)
class Bin:
    """The pictures whose confidence is in (low, high]: how many, how many right, how sure."""

    low: float
    high: float
    images: int
    right: int
    confidence: float  # the mean; nan in an empty bin

    @property
    def accuracy(self) -> float:
        return self.right / self.images if self.images else math.nan


@dataclass(frozen=True)
class Calibration:
    """Of one set of predictions; `by_chance`: where 95 % of perfectly calibrated networks fall."""

    bins: tuple[Bin, ...]
    expected_error: float
    by_chance: tuple[float, float]
    log_loss: float  # mean -ln of the right label's probability

    @property
    def images(self) -> int:
        return sum(entry.images for entry in self.bins)

    @property
    def right(self) -> int:
        return sum(entry.right for entry in self.bins)

    @property
    def confidence(self) -> float:
        """The mean over all pictures."""
        sure = math.fsum(entry.images * entry.confidence for entry in self.bins if entry.images)
        return sure / self.images


def calibration(predictions: Predictions, *, bins: int = BINS, seed: int = 0) -> Calibration | None:
    """None where there is no picture, or a probability is not a number.

    A tie with another class is a miss, as everywhere. The seed draws `by_chance`.
    """
    confidence = predictions.probabilities.max(axis=1, initial=0).astype(np.float64)
    if not len(confidence) or not np.isfinite(confidence).all():
        return None
    right = guessed_classes(predictions) == predictions.labels
    numbers = bin_numbers(confidence, bins)
    chance = np.random.default_rng(seed)
    drawn = (chance.random(len(confidence)) < confidence for _ in range(DRAWS))
    by_chance = [_expected_error(confidence, one, numbers, bins) for one in drawn]
    low, high = np.quantile(by_chance, SPAN)
    return Calibration(
        tuple(_bin(number, bins, confidence, right, numbers == number) for number in range(bins)),
        _expected_error(confidence, right, numbers, bins),
        (float(low), float(high)),
        -mean_log_probability(predictions),
    )


def bin_numbers(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """The bin of each confidence: (number / bins, (number + 1) / bins]."""
    numbers = np.ceil(confidence * bins).astype(np.int64) - 1
    return numbers.clip(0, bins - 1)


def _bin(
    number: int,
    bins: int,
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    inside: NDArray[np.bool_],
) -> Bin:
    images = int(inside.sum())
    mean = float(confidence[inside].mean()) if images else math.nan
    return Bin(number / bins, (number + 1) / bins, images, int(right[inside].sum()), mean)


def _expected_error(
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    numbers: NDArray[np.int64],
    bins: int,
) -> float:
    """sum_b n_b / n * |accuracy_b - confidence_b|.

    As sum_b |sum of (right - confidence) in b| / n, in which no empty bin is divided by.
    """
    gaps = np.bincount(numbers, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
