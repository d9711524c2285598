"""Draws are a pure function of (seed, purpose, epoch, index), and look independent.

The statistical limits are five standard errors of a true uniform or normal sample; the draws are
fixed, so a test that passes once passes always.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from alexnet.randomness import integers, normal, permutation, uniform

COUNT = 100_000
GOLDEN_UNIFORM = [0.09394573850165922, 0.4997827326253673]
GOLDEN_NORMAL = [-0.04731006420082655, -0.39267911313369147]
GOLDEN_ORDER = [4, 2, 7, 1, 6, 5, 3, 0]
WORD = 2**64


def splitmix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) in Python's integers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def one_uniform(seed: int, purpose: str, epoch: int, index: int, draw: int) -> float:
    key = int.from_bytes(
        hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()[:8], "little"
    )
    golden = 0x9E3779B97F4A7C15
    state = splitmix((key + (index + 1) * golden) % WORD)
    return (splitmix((state + (draw + 1) * golden) % WORD) >> 11) * 2.0**-53


@given(
    seed=st.integers(-(2**63), 2**63),
    purpose=st.sampled_from(["crop", "flip", "colour", "order"]),
    epoch=st.integers(0, 1000),
    index=st.integers(0, 2**62),
)
def test_a_draw_is_the_counter_hash_of_its_coordinates(
    seed: int, purpose: str, epoch: int, index: int
) -> None:
    drawn = uniform(seed, purpose, epoch, np.array([index]), draws=3)
    expected = [[one_uniform(seed, purpose, epoch, index, draw) for draw in range(3)]]
    assert_array_equal(drawn, np.array(expected))


def test_the_stream_of_a_seed_never_changes() -> None:
    # Held as numbers: a run that is resumed by a later version must see the same crops.
    assert uniform(0, "crop", 0, np.array([0, 1]))[:, 0].tolist() == GOLDEN_UNIFORM
    assert permutation(0, "order", 0, 8).tolist() == GOLDEN_ORDER
    assert normal(0, "colour", 0, np.array([0, 1]))[:, 0] == pytest.approx(GOLDEN_NORMAL)


@given(
    indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
    draws=st.integers(1, 4),
    data=st.data(),
)
def test_a_draw_does_not_depend_on_what_is_drawn_with_it(
    indices: list[int], draws: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(indices))), min_size=1))
    index = np.array(indices)
    for draw in (uniform, normal):
        together = draw(3, "crop", 2, index, draws=draws)
        assert together.shape == (len(indices), draws)
        assert together.dtype == np.float64
        assert_array_equal(together[chosen], draw(3, "crop", 2, index[chosen], draws=draws))


@pytest.mark.parametrize("draw", [uniform, normal])
def test_seed_purpose_epoch_and_index_each_change_every_draw(
    draw: Callable[..., NDArray[np.float64]],
) -> None:
    index = np.arange(1000)
    base = draw(1, "crop", 1, index)
    others = {
        "seed": draw(2, "crop", 1, index),
        "purpose": draw(1, "flip", 1, index),
        "epoch": draw(1, "crop", 2, index),
        "index": draw(1, "crop", 1, index + 1),
        "the slashes between them": draw(11, "crop", 1, index),
    }
    for what, other in others.items():
        equal = int((base == other).sum())
        assert equal == 0, f"changing {what} left {equal} of 1000 draws as they were"
        correlation = np.corrcoef(base[:, 0], other[:, 0])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(1000), f"{what}: correlation {correlation:.3f}"


def test_uniform_draws_fill_the_unit_interval_evenly() -> None:
    drawn = uniform(0, "crop", 0, np.arange(COUNT), draws=2)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    for column in drawn.T:
        counts, _ = np.histogram(column, bins=100, range=(0, 1))
        chi_squared = ((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum()
        assert abs(chi_squared - 99) < 5 * np.sqrt(2 * 99), f"chi squared {chi_squared:.1f} of 99"


def test_neighbouring_images_and_neighbouring_draws_are_uncorrelated() -> None:
    drawn = uniform(0, "crop", 0, np.arange(COUNT), draws=2) - 0.5
    limit = 5 / np.sqrt(COUNT)
    for lag in (1, 2, 32, 128):
        correlation = 12 * (drawn[:-lag, 0] * drawn[lag:, 0]).mean()
        assert abs(correlation) < limit, f"lag {lag}: {correlation:.4f}"
    between_draws = 12 * (drawn[:, 0] * drawn[:, 1]).mean()
    assert abs(between_draws) < limit, f"{between_draws:.4f}"


def test_normal_draws_have_the_moments_and_tails_of_a_standard_normal() -> None:
    drawn = normal(0, "colour", 0, np.arange(COUNT), draws=3)
    assert np.isfinite(drawn).all()
    for column in drawn.T:
        # E z^p and the standard deviation of z^p, p = 1..4
        for power, (moment, deviation) in enumerate(
            [(0, 1), (1, np.sqrt(2)), (0, np.sqrt(15)), (3, np.sqrt(96))], start=1
        ):
            measured = (column**power).mean()
            error = abs(measured - moment) / (deviation / np.sqrt(COUNT))
            assert error < 5, f"E z^{power} = {measured:.4f}, not {moment}"
        beyond_two = (np.abs(column) > 2).mean()
        assert abs(beyond_two - 0.0455) < 5 * np.sqrt(0.0455 / COUNT), f"{beyond_two:.4f}"
    correlation = np.corrcoef(drawn.T)
    assert np.abs(correlation - np.eye(3)).max() < 5 / np.sqrt(COUNT), f"{correlation}"


@given(high=st.integers(1, 1000))
def test_integers_stay_below_their_limit(high: int) -> None:
    drawn = integers(0, "crop", 0, np.arange(2000), high)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < high


def test_every_offset_of_a_crop_is_drawn_equally_often() -> None:
    offsets = integers(0, "crop", 0, np.arange(COUNT), 33)[:, 0]  # 256 - 224 + 1 places
    counts = np.bincount(offsets, minlength=33)
    chi_squared = ((counts - COUNT / 33) ** 2 / (COUNT / 33)).sum()
    assert abs(chi_squared - 32) < 5 * np.sqrt(2 * 32), f"chi squared {chi_squared:.1f} of 32"


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 100), count=st.integers(0, 300))
def test_a_permutation_has_every_index_once(seed: int, epoch: int, count: int) -> None:
    order = permutation(seed, "order", epoch, count)
    assert order.dtype == np.int64
    assert_array_equal(np.sort(order), np.arange(count))


def test_each_epoch_and_seed_has_an_order_of_its_own() -> None:
    base = permutation(0, "order", 0, 1000)
    for seed, epoch in [(0, 1), (0, 2), (1, 0)]:
        fixed = int((permutation(seed, "order", epoch, 1000) == base).sum())
        assert fixed < 8, f"seed {seed}, epoch {epoch}: {fixed} places agree, about 1 expected"


def test_all_orders_of_four_are_equally_likely() -> None:
    orders = [tuple(permutation(0, "order", epoch, 4)) for epoch in range(4800)]
    _, counts = np.unique(np.array(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    chi_squared = ((counts - 200) ** 2 / 200).sum()
    assert abs(chi_squared - 23) < 5 * np.sqrt(2 * 23), f"chi squared {chi_squared:.1f} of 23"
