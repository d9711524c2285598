"""Random numbers as a pure function of (seed, purpose, epoch, index).

The order of an epoch, each crop, flip and colour draw come from here, so they depend on neither
the number of workers, nor of ranks, nor on where training was interrupted: there is no state to
save. A counter-based generator: every draw hashes its own coordinates with the finaliser of
SplitMix64 (Steele, Lea and Flood, 2014), applied once per coordinate.

Not here: weights and dropout masks, which have generators of their own, saved in checkpoints.
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit words whose output bits look independent."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _bits(seed: int, purpose: str, epoch: int, index: ArrayLike, draws: int) -> NDArray[np.uint64]:
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    key = np.frombuffer(digest[:8], dtype="<u8").astype(np.uint64)  # (1,)
    row = np.atleast_1d(np.asarray(index, dtype=np.int64)).astype(np.uint64)
    column = np.arange(1, draws + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        state = _mix(key + (row + np.uint64(1)) * GOLDEN)  # (N,)
        return _mix(state[:, None] + column * GOLDEN)  # (N, draws)


def uniform(
    seed: int, purpose: str, epoch: int, index: ArrayLike, draws: int = 1
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1): (N,) integer indices -> (N, draws) float64."""
    bits = _bits(seed, purpose, epoch, index, draws) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def normal(
    seed: int, purpose: str, epoch: int, index: ArrayLike, draws: int = 1
) -> NDArray[np.float64]:
    """Standard normal numbers (Box-Muller): (N,) integer indices -> (N, draws) float64."""
    pairs = uniform(seed, purpose, epoch, index, 2 * draws)
    radius = np.sqrt(-2.0 * np.log1p(-pairs[:, :draws]))
    return radius * np.cos(2.0 * np.pi * pairs[:, draws:])


def integers(
    seed: int, purpose: str, epoch: int, index: ArrayLike, high: int, draws: int = 1
) -> NDArray[np.int64]:
    """Uniform integers in 0..high-1: (N,) integer indices -> (N, draws) int64."""
    return np.floor(uniform(seed, purpose, epoch, index, draws) * high).astype(np.int64)


def permutation(seed: int, purpose: str, epoch: int, count: int) -> NDArray[np.int64]:
    """A random order of 0..count-1, (count,) int64: the indices sorted by their own hash."""
    keys = _bits(seed, purpose, epoch, np.arange(count), 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)
