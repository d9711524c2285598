"""Top-1 and top-5 errors as the paper reports them (Sections 2 and 6): counts over an exact set.

Results are integers that are added and divided once, so they depend on neither the batch size nor
a short last batch. Not here: how scores come about (`evaluate.py`) and the loss (`train.py`).
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOP_K = 5


@dataclass(frozen=True)
class ErrorCount:
    """Images whose label is missed by the first guess, and by the first five."""

    top1_wrong: int = 0
    top5_wrong: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.top5_wrong <= self.top1_wrong <= self.images:
            raise ValueError(
                f"impossible counts: {self.top5_wrong=} {self.top1_wrong=} {self.images=}"
            )

    def __add__(self, other: "ErrorCount") -> "ErrorCount":
        return ErrorCount(
            self.top1_wrong + other.top1_wrong,
            self.top5_wrong + other.top5_wrong,
            self.images + other.images,
        )

    @property
    def top1_error(self) -> float:
        """Fraction of the images; raises ValueError when there are none."""
        return _fraction(self.top1_wrong, self.images)

    @property
    def top5_error(self) -> float:
        """Fraction of the images; raises ValueError when there are none."""
        return _fraction(self.top5_wrong, self.images)

    def as_dict(self) -> dict[str, Any]:
        """The keys of `summary.json` and of the log."""
        return {
            "images": self.images,
            "top1_wrong": self.top1_wrong,
            "top5_wrong": self.top5_wrong,
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
        }


def label_ranks(scores: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> Tensor:
    """How many *other* classes score at least as much as the label: (N, C), (N,) -> int64 (N,).

    The label is among the first k guesses when its rank is below k. A tie counts against the
    network, always: one that gives every class the same score is wrong on every image, and the
    count is an integer that no order of the classes can change. (The 2012 source gives a label
    tied with m - 1 others 1/m of a hit, `src/layer_kernels.cu:96-118`; the two agree where there
    are no ties.) A score that is not a number is taken as a tie; a label with such a score is
    never found.

    Raises ValueError when the shapes do not fit or a label is not one of the C classes.
    """
    scores, labels = _as_tensor(scores), _as_tensor(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} are not (N, C) and (N,)"
        )
    labels = labels.to(device=scores.device, dtype=torch.int64)
    num_classes = scores.shape[1]
    if bool(((labels < 0) | (labels >= num_classes)).any()):
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} for {num_classes} classes"
        )
    own = scores.gather(1, labels[:, None])  # (N, 1)
    ranks = (~(scores < own)).sum(1) - 1  # the label itself is one that is not below
    return ranks.masked_fill(own[:, 0].isnan(), max(num_classes, TOP_K))


def count_errors(scores: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> ErrorCount:
    """Count wrong images: scores (N, C), logits or probabilities; labels int (N,).

    Ties count as wrong (`label_ranks` says why). With five classes or fewer, five guesses cover
    them all and the top-5 count is zero: true, and of no use.
    """
    ranks = label_ranks(scores, labels)
    wrong = torch.stack([ranks >= 1, ranks >= TOP_K]).sum(1).tolist()
    return ErrorCount(top1_wrong=wrong[0], top5_wrong=wrong[1], images=len(ranks))


def wilson_interval(wrong: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of an error, as fractions (low, high).

    It answers for the choice of the images, not for the seed of the training. Unlike p +- 2 sd it
    stays inside 0..1 and has a width when no image is wrong, or all are.
    Raises ValueError for no images, more wrong than images, or a confidence outside (0, 1).
    """
    if not 0 <= wrong <= images or not 0 < confidence < 1:
        raise ValueError(f"no interval for {wrong} wrong of {images} at confidence {confidence}")
    p = _fraction(wrong, images)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre = p + z * z / (2 * images)
    half_width = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def _fraction(wrong: int, images: int) -> float:
    if images == 0:
        raise ValueError("an error is a fraction of at least one image; none were counted")
    return wrong / images


def _as_tensor(values: Tensor | np.ndarray) -> Tensor:
    if isinstance(values, Tensor):
        return values
    # torch warns about memory that it could not write to, such as a read-only memory map.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
