"""Averages of networks: what they gain, and whether searched weights gain more (Section 6).

The 2012 source searched the weights of an average on the very pictures that it then scored
(`avg-valid.py`): coordinate by coordinate, from 0 to 1 in steps of 0.05. Here the search sees one
half of the pictures and is scored on the other, both ways round.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.metrics import TOP_K, label_ranks
from alexnet.predictions import Predictions, ensemble, score
from alexnet.randomness import permutation

STEP = 0.05
PASSES = 5
BOOTSTRAPS = 2000

Reals = NDArray[np.float64]
Wrong = NDArray[np.bool_]


def wrong_pictures(probabilities: Reals, labels: NDArray[np.int64], guesses: int) -> Wrong:
    """(N, C), (N,) -> (N,): whose label is missed by the first so many guesses."""
    wrong: Wrong = label_ranks(probabilities, labels).numpy() >= guesses
    return wrong


def search_weights(
    members: NDArray[np.floating], labels: NDArray[np.int64], guesses: int
) -> list[float]:
    """Weights of an average by the source's search: (M, N, C), (N,) -> M weights in 0..1.

    All start at 0.5. One at a time takes the first value of the grid with strictly fewer wrong
    pictures than any before; up to five passes, or until one changes nothing.
    """
    weights = [0.5] * len(members)
    total = np.tensordot(np.array(weights), members, axes=1)  # (N, C)
    fewest = int(wrong_pictures(total, labels, guesses).sum())
    for _ in range(PASSES):
        before = list(weights)
        for index, member in enumerate(members):
            without = total - weights[index] * member
            for step in range(round(1 / STEP) + 1):
                candidate = step * STEP
                tried = without + candidate * member
                count = int(wrong_pictures(tried, labels, guesses).sum())
                if count < fewest:
                    fewest, weights[index], total = count, candidate, tried
            total = without + weights[index] * member
        if weights == before:
            break
    return weights


def compare(members: Sequence[Predictions], seed: int) -> dict[str, Any]:
    """One network against the equal average of all, and searched against equal weights.

    Top-5 guesses decide the search as in the source, or the first where five cover the half of
    the classes. Intervals are over pictures, by bootstrap.
    """
    labels = members[0].labels
    guesses = TOP_K if members[0].probabilities.shape[1] > 2 * TOP_K else 1
    average = ensemble(members)
    single = np.stack([wrong_pictures(m.probabilities, labels, 1) for m in members])  # (M, N)
    together = wrong_pictures(average.probabilities, labels, 1)
    stacked = np.stack([member.probabilities for member in members]).astype(np.float64)
    order = permutation(seed, "halves of a weight search", 0, len(labels))
    folds = []
    searched, equal = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    for turn, half in enumerate((order[::2], order[1::2])):
        other = (order[1::2], order[::2])[turn]
        weights = search_weights(stacked[:, half], labels[half], guesses)
        mixed = np.tensordot(np.array(weights), stacked[:, other], axes=1)
        searched[other] = wrong_pictures(mixed, labels[other], guesses)
        equal[other] = wrong_pictures(stacked[:, other].mean(0), labels[other], guesses)
        folds.append([round(weight, 2) for weight in weights])
    on_all = search_weights(stacked, labels, guesses)
    mixed = np.tensordot(np.array(on_all), stacked, axes=1)
    return {
        "members": len(members),
        "images": len(labels),
        "views": members[0].views,
        "networks": [member.network for member in members],
        "single_wrong": single.sum(1).tolist(),
        "average_wrong": score(average).top1_wrong,
        "gain_over_pictures": _bootstrap(single.mean(0) - together, seed),
        "search_guesses": guesses,
        "search_weights": folds,
        "searched_wrong": int(searched.sum()),
        "equal_wrong": int(equal.sum()),
        "searched_on_what_is_scored_wrong": int(wrong_pictures(mixed, labels, guesses).sum()),
        "search_gain_over_pictures": _bootstrap(equal.astype(float) - searched, seed),
    }


def _bootstrap(gains: Reals, seed: int) -> list[float]:
    """Mean and 95 % percentile interval over pictures, in points."""
    draw = np.random.default_rng(seed)
    size = len(gains)
    means = [gains[draw.integers(0, size, size)].mean() for _ in range(BOOTSTRAPS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return [100 * float(gains.mean()), 100 * float(low), 100 * float(high)]
