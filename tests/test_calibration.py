"""Whether a network is as sure as it is right, against plain loops and networks made to measure."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Annotation

from alexnet.calibration import calibration
from alexnet.figures import reliability
from alexnet.predictions import Predictions


def predictions(confidence: np.ndarray, right: np.ndarray) -> Predictions:
    """Of two classes; the first guess is always class 0, so that the labels say what is right."""
    rows = np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)
    return Predictions(rows, np.where(right, 0, 1).astype(np.int64), "val", 1)


def expected_error(confidence: list[float], right: list[bool], bins: int) -> float:
    """The definition, bin by bin."""
    total = 0.0
    for number in range(bins):
        inside = [
            index
            for index, value in enumerate(confidence)
            if number / bins < value <= (number + 1) / bins
        ]
        if inside:
            accuracy = sum(right[index] for index in inside) / len(inside)
            mean = sum(confidence[index] for index in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


@given(
    st.lists(st.tuples(st.floats(0.51, 1), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([1, 4, 10, 15]),
)
def test_the_expected_error_is_the_gap_of_each_bin_by_its_pictures(
    drawn: list[tuple[float, bool]], bins: int
) -> None:
    confidence = np.array([value for value, _ in drawn], np.float32).astype(np.float64)
    right = [hit for _, hit in drawn]
    found = calibration(predictions(confidence, np.array(right)), bins=bins)
    assert found is not None
    expected = expected_error(confidence.tolist(), right, bins)
    assert found.expected_error == pytest.approx(expected, abs=1e-9)
    assert (found.images, found.right) == (len(right), sum(right))
    assert found.confidence == pytest.approx(confidence.mean())


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one() -> None:
    found = calibration(predictions(np.array([0.75, 0.7501, 1.0]), np.ones(3, bool)), bins=4)
    assert found is not None
    assert [entry.images for entry in found.bins] == [0, 0, 1, 2]
    assert math.isnan(found.bins[0].accuracy)


def test_the_log_loss_of_a_guess_is_ln_of_the_classes() -> None:
    guess = Predictions(np.full((6, 8), 1 / 8, np.float32), np.arange(6), "val", 1)
    found = calibration(guess)
    assert found is not None
    assert found.log_loss == pytest.approx(math.log(8), abs=1e-6)
    assert found.right == 0  # every picture is a tie, and a tie is a miss


def test_nothing_is_said_of_probabilities_that_are_no_numbers() -> None:
    assert calibration(predictions(np.array([math.nan, 0.9]), np.ones(2, bool))) is None
    assert calibration(predictions(np.array([]), np.array([], bool))) is None


def test_chance_holds_a_network_that_is_right_as_often_as_it_is_sure() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(20):
        confidence = draw.uniform(0.5, 1, 400)
        right = draw.random(400) < confidence
        found = calibration(predictions(confidence, right))
        assert found is not None
        inside += found.by_chance[0] <= found.expected_error <= found.by_chance[1]
        boaster = calibration(predictions(np.full(400, 0.99), right))
        assert boaster is not None
        assert boaster.expected_error > boaster.by_chance[1]
    assert inside >= 16


@pytest.mark.parametrize("narrow", [False, True])
def test_the_reliability_diagram_counts_the_pictures_of_each_bin(narrow: bool) -> None:
    draw = np.random.default_rng(1)
    confidence = draw.uniform(0.5, 1, 300)
    found = calibration(predictions(confidence, draw.random(300) < confidence))
    assert found is not None
    figure = reliability(found, narrow=narrow)
    (points,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    shown = [entry for entry in found.bins if entry.images]
    np.testing.assert_allclose(points.get_xdata(), [100 * entry.confidence for entry in shown])
    np.testing.assert_allclose(points.get_ydata(), [100 * entry.accuracy for entry in shown])
    counts = [text.get_text() for text in figure.axes[1].findobj(Annotation)]
    assert counts == [str(entry.images) for entry in found.bins]
