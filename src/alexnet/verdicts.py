"""What a set of paired runs says about a claim: a mean, an interval, a verdict.

Runs of two arms are paired by their seed: the same order of pictures, the same crops, and the same
first weights where shapes allow. Differences have the unit of the measure (points of error); their
mean has a 95 % interval by Student's t, and a p-value by flipping signs, which assumes nothing of
their distribution. Nothing here knows what a claim is about (`claims.py`).
"""

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
# Below this the interval of a t distribution says next to nothing, and no verdict is given.
FEWEST_PAIRS = 3
EXACT_PAIRS = 14  # sign flips are counted one by one up to here: 2**14
RANDOM_FLIPS = 20_000
NEARLY_EVERY = 0.9  # a share below it is not "every run", whatever a test may have missed

Verdict = Literal["holds", "does not hold here", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` independent values with its 95 % interval; infinite where n is 1."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        return {
            "mean": self.mean,
            "low": self.low if finite else None,
            "high": self.high if finite else None,
            "n": self.n,
        }


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval. Raises ValueError for no values: there is no number without n."""
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def ratio_estimate(ratios: Sequence[float]) -> Estimate:
    """Geometric mean of ratios above zero, with the interval of their logarithms."""
    logs = estimate([math.log(ratio) for ratio in ratios])
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p: how often a mean so far from 0 comes about if each sign were a coin's toss.

    With n pairs it cannot be below 2 / 2**n: 0.0625 for five. Beyond EXACT_PAIRS random flips are
    counted, the observed signs among them: never 0.
    """
    n = len(differences)
    if n == 0:
        raise ValueError("a test needs at least one difference")
    observed = abs(math.fsum(differences)) * (1 - 1e-12)
    if n <= EXACT_PAIRS:
        flips = list(itertools.product((1, -1), repeat=n))
    else:
        draw = random.Random(0)
        flips = [tuple(draw.choice((1, -1)) for _ in range(n)) for _ in range(RANDOM_FLIPS)]
        flips.append((1,) * n)
    sums = [abs(math.fsum(s * d for s, d in zip(f, differences, strict=True))) for f in flips]
    return sum(total >= observed for total in sums) / len(flips)


def median_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """The median and an interval of order statistics that covers it with 95 % or more.

    Values may be infinite. None for fewer than six: no order statistics reach so far.
    """
    ordered, n = sorted(values), len(values)
    below = 0  # values left out at each end
    while 2 * _binomial_half(n, below) <= 1 - CONFIDENCE:
        below += 1
    if below == 0:
        return None
    return statistics.median(ordered), ordered[below - 1], ordered[n - below]


def _binomial_half(n: int, most: int) -> float:
    """P(X <= most) for n tosses of a coin."""
    return math.ldexp(sum(math.comb(n, k) for k in range(most + 1)), -n)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided exact p of paired yes or no: pairs where only the one, or only the other, is."""
    n = only_first + only_second
    return min(1.0, 2 * _binomial_half(n, min(only_first, only_second))) if n else 1.0


def verdict_above(found: Estimate, claimed: float) -> Verdict:
    """Of a claim that something is above zero, by `claimed` in the paper.

    It holds if the whole interval is above zero. It does not hold here if the whole interval is
    below zero, or below a quarter of what the paper has: then what is left is not its effect.
    """
    if found.n < FEWEST_PAIRS:
        return "undecided"
    if found.low > 0:
        return "holds"
    return "does not hold here" if found.high < max(claimed, 0) / 4 else "undecided"


def verdict_at_most(found: Estimate, margin: float) -> Verdict:
    """Of a claim that something is no more than nothing: decided by a stated margin."""
    if found.n < FEWEST_PAIRS:
        return "undecided"
    if found.high < margin:
        return "holds"
    return "does not hold here" if found.low > margin else "undecided"


def verdict_every(count: int, n: int, high: float) -> Verdict:
    """Of a claim about every run, which is so in `count` of `n`; `high` of its Wilson interval."""
    if n < FEWEST_PAIRS:
        return "undecided"
    if count == n:
        return "holds"
    return "does not hold here" if high < NEARLY_EVERY else "undecided"


def size_words(found: Estimate, claimed: float | None) -> str:
    """Whether the paper's figure lies in the interval."""
    if claimed is None or found.n < FEWEST_PAIRS:
        return "-"
    if found.low <= claimed <= found.high:
        return "agrees"
    if found.mean * claimed < 0:
        return "other sign"
    return "smaller here" if abs(found.mean) < abs(claimed) else "larger here"


# --- Student's t, which neither Python nor NumPy has ----------------------------------------------


def t_quantile(probability: float, degrees: int) -> float:
    """The value below which Student's t with so many degrees of freedom lies so often, > 1/2."""
    assert 0.5 < probability < 1, probability
    low, high = 0.0, 1.0
    while t_cumulative(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_cumulative(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_cumulative(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0: the closed sums for odd and even degrees (Abramowitz, Stegun 26.7)."""
    theta = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    if degrees % 2:
        term, total = cosine, 0.0
        for k in range(1, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        share = 2 / math.pi * (theta + sine * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        share = sine * total
    return (1 + share) / 2
