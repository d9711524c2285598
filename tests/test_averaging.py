"""Averages of networks, and the search for their weights, against plain loops."""

import numpy as np
import pytest

from alexnet import averaging
from alexnet.predictions import Predictions


def members(count: int, pictures: int = 200, classes: int = 12) -> list[Predictions]:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, pictures)
    found = []
    for quality in np.linspace(0.5, 2.5, count):
        logits = draw.normal(size=(pictures, classes))
        logits[np.arange(pictures), labels] += quality
        odds = np.exp(logits)
        shares = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
        found.append(Predictions(shares, labels, "val", 10))
    return found


def test_the_search_is_the_sources_written_out() -> None:
    """avg-valid.py in plain loops: coordinate by coordinate, strict improvements only."""
    some = members(3, 60)
    stacked = np.stack([m.probabilities for m in some]).astype(np.float64)
    labels = some[0].labels

    def wrong(weights: list[float]) -> int:
        total = sum(w * p for w, p in zip(weights, stacked, strict=True))
        own = total[np.arange(len(labels)), labels][:, None]
        return int(((total >= own).sum(1) - 1 >= 5).sum())

    weights, fewest = [0.5] * 3, wrong([0.5] * 3)
    for _ in range(5):
        before = list(weights)
        for index in range(3):
            for step in range(21):
                tried = [*weights[:index], step * 0.05, *weights[index + 1 :]]
                if wrong(tried) < fewest:
                    fewest, weights = wrong(tried), tried
        if weights == before:
            break
    assert averaging.search_weights(stacked, labels, 5) == pytest.approx(weights)


def test_an_average_is_compared_on_pictures_that_the_search_did_not_see() -> None:
    found = averaging.compare(members(4), 0)
    assert found["members"] == 4
    assert found["average_wrong"] < np.mean(found["single_wrong"])
    mean, low, high = found["gain_over_pictures"]
    assert low < mean < high
    expected = (np.mean(found["single_wrong"]) - found["average_wrong"]) / 200 * 100
    assert mean == pytest.approx(expected)
    assert len(found["search_weights"]) == 2
    assert found["searched_on_what_is_scored_wrong"] <= found["searched_wrong"] + 200
