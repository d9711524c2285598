"""Statistics of paired runs: t against SciPy, sign flips by hand, verdicts at their edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import verdicts
from alexnet.metrics import wilson_interval
from alexnet.verdicts import Estimate, estimate, sign_flip_p, verdict_above, verdict_at_most

scipy_stats = pytest.importorskip("scipy.stats")


@given(st.integers(1, 60), st.floats(0, 50))
def test_students_t_is_scipys(degrees: int, t: float) -> None:
    expected = scipy_stats.t.cdf(t, degrees)
    assert verdicts.t_cumulative(t, degrees) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30])
def test_quantiles_are_scipys(degrees: int) -> None:
    expected = scipy_stats.t.ppf(0.975, degrees)
    assert verdicts.t_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_an_estimate_is_the_t_interval_of_the_mean(values: list[float]) -> None:
    found = estimate(values)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    half = scipy_stats.t.ppf(0.975, len(values) - 1) * error
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.high - found.mean == pytest.approx(half, abs=1e-9)
    assert found.mean - found.low == pytest.approx(half, abs=1e-9)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    found = estimate([2.0])
    assert (found.mean, found.n) == (2.0, 1)
    assert found.as_dict()["low"] is None
    with pytest.raises(ValueError):
        estimate([])


def test_intervals_cover_the_truth_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    draws = random.normal(1.0, 2.0, (4000, 5))
    covered = [found.low <= 1.0 <= found.high for found in map(estimate, draws.tolist())]
    assert 0.935 < np.mean(covered) < 0.965


def test_five_differences_of_one_sign_flip_to_2_in_32() -> None:
    assert sign_flip_p([1, 2, 3, 1, 5]) == pytest.approx(2 / 32)
    assert sign_flip_p([1, -1]) == 1.0
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9))
def test_sign_flips_are_scipys_permutation_test(values: list[float]) -> None:
    if max(map(abs, values)) < 1e-6:
        return
    rounded = [round(value, 3) for value in values]
    found = scipy_stats.permutation_test(
        (np.array(rounded),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(rounded) == pytest.approx(found.pvalue, abs=1e-9)


def test_many_pairs_are_flipped_at_random_and_alike_every_time() -> None:
    values = [0.5 + 0.1 * i for i in range(20)]
    assert sign_flip_p(values) == sign_flip_p(values) < 0.001


def test_ratios_are_averaged_as_logarithms() -> None:
    found = verdicts.ratio_estimate([2.0, 8.0])
    assert found.mean == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Estimate(1.0, 0.1, 1.9, 5), "holds"),
        (Estimate(1.0, -0.1, 2.1, 5), "undecided"),
        (Estimate(-1.0, -1.5, -0.5, 5), "does not hold here"),
        (Estimate(0.1, -0.1, 0.3, 5), "does not hold here"),  # at most a quarter of 1.4
        (Estimate(1.0, 0.9, 1.1, 2), "undecided"),  # two pairs decide nothing
    ],
)
def test_a_claimed_gain_holds_by_its_whole_interval(found: Estimate, verdict: str) -> None:
    assert verdict_above(found, 1.4) == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Estimate(0.0, -0.4, 0.4, 5), "holds"),
        (Estimate(0.2, -0.4, 0.8, 5), "undecided"),
        (Estimate(1.0, 0.6, 1.4, 5), "does not hold here"),
    ],
)
def test_no_worse_is_decided_by_a_margin(found: Estimate, verdict: str) -> None:
    assert verdict_at_most(found, 0.5) == verdict


@pytest.mark.parametrize(
    ("count", "n", "verdict"),
    [
        (2, 2, "undecided"),
        (3, 3, "holds"),
        (20, 20, "holds"),
        (19, 20, "undecided"),  # up to 99 % may be so
        (17, 20, "undecided"),
        (12, 20, "does not hold here"),
        (1, 5, "does not hold here"),
        (0, 3, "does not hold here"),
    ],
)
def test_every_run_has_to_be_so(count: int, n: int, verdict: str) -> None:
    assert verdicts.verdict_every(count, n, wilson_interval(count, n)[1]) == verdict


def test_the_papers_size_agrees_when_it_is_in_the_interval() -> None:
    assert verdicts.size_words(Estimate(1.0, 0.5, 1.5, 5), 1.4) == "agrees"
    assert verdicts.size_words(Estimate(0.5, 0.3, 0.7, 5), 1.4) == "smaller here"
    assert verdicts.size_words(Estimate(3.0, 2.0, 4.0, 5), 1.4) == "larger here"
    assert verdicts.size_words(Estimate(-3.0, -4.0, -2.0, 5), 1.4) == "other sign"
    assert verdicts.size_words(Estimate(3.0, 2.0, 4.0, 5), None) == "-"


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemars_test_is_scipys_of_a_coin(one: int, other: int) -> None:
    found = verdicts.mcnemar_p(one, other)
    expected = scipy_stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [6, 8, 9, 20, 33])
def test_the_interval_of_a_median_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    found = verdicts.median_interval(values.tolist())
    expected = scipy_stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    assert found is not None
    assert found == pytest.approx((float(np.median(values)), expected.low, expected.high))


def test_five_values_have_no_interval_of_their_median_and_late_ones_may_be_infinite() -> None:
    assert verdicts.median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert verdicts.median_interval([1.0, 2.0, 3.0, 4.0, 5.0, math.inf]) == (3.5, 1.0, math.inf)


def test_random_flips_never_give_a_p_of_zero() -> None:
    assert 0 < sign_flip_p([1.0] * 20) < 1e-4
