"""The fused chains against float64 loops that share no code with them, and their switches."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import oracles
from alexnet import fused, native
from alexnet.errors import UserError
from alexnet.fused import Chain
from alexnet.networks import Pool, ResponseNorm, SpatialNorm

Array = NDArray[np.float64]

PAPER = Chain(relu_before=True, norm=ResponseNorm(), pool=Pool())
SOURCE_1 = Chain(norm=ResponseNorm(alpha=1e-4 / 5), pool=Pool(), relu_after=True)
CHAINS = [PAPER, SOURCE_1]

# float32 inside, so that a bfloat16 result is off by its own rounding alone.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _kernels() -> None:
    try:
        native.compiled("fused.cpp")
    except UserError as error:
        pytest.skip(str(error))


# -- the oracle: values by `oracles`, gradients by the Jacobian of the printed formula


def chain_oracle(chain: Chain, x: Array, columns: int) -> tuple[Array, Array, Array]:
    """The output, the unpooled output, and x after the first ReLU; maps (C, H, W)."""
    before = oracles.relu(x) if chain.relu_before else x
    norm = chain.norm
    if isinstance(norm, ResponseNorm):
        normed = oracles.response_norm(
            before, size=norm.size, alpha=norm.alpha, beta=norm.beta, k=norm.k, columns=columns
        )
    elif norm is not None:
        normed = oracles.spatial_norm(
            before, size=norm.size, alpha=norm.alpha, beta=norm.beta, k=norm.k
        )
    else:
        normed = before
    y = normed
    if chain.pool is not None:
        y = oracles.pool(y, size=chain.pool.size, stride=chain.pool.stride, kind="max")
    return (oracles.relu(y) if chain.relu_after else y), normed, before


def gradient_oracle(chain: Chain, x: Array, dy: Array, columns: int) -> Array:
    """dx for one image: to the first largest unit of each window, then through the norm."""
    y, normed, before = chain_oracle(chain, x, columns)
    if chain.pool is None:
        unpooled = dy.copy()
    else:
        unpooled = np.zeros_like(normed)
        size, stride = chain.pool.size, chain.pool.stride
        for c, i, j in np.ndindex(*y.shape):
            if chain.relu_after and y[c, i, j] <= 0:
                continue
            top, left = i * stride, j * stride
            window = normed[c, top : top + size, left : left + size]
            row, column = np.unravel_index(int(np.argmax(window)), window.shape)
            unpooled[c, top + row, left + column] += dy[c, i, j]
    dx = through_norm(chain.norm, before, unpooled, columns)
    return np.where(x > 0, dx, 0.0) if chain.relu_before else dx


def through_norm(
    norm: ResponseNorm | SpatialNorm | None, x: Array, dy: Array, columns: int
) -> Array:
    """Sum over units u of dy[u] * d y[u] / d x[v], unit by unit."""
    if norm is None:
        return dy
    dx = np.zeros_like(x)
    for u in np.ndindex(*x.shape):
        window = window_of(norm, u, x.shape, columns)
        s = norm.k + norm.alpha * float((x[window] ** 2).sum())
        dx[u] += dy[u] * s**-norm.beta
        factor = 2 * norm.alpha * norm.beta * s ** (-norm.beta - 1)
        dx[window] -= dy[u] * x[u] * factor * x[window]
    return dx


def window_of(
    norm: ResponseNorm | SpatialNorm, u: tuple[int, ...], shape: tuple[int, ...], columns: int
) -> tuple[Any, ...]:
    c, i, j = u
    if isinstance(norm, ResponseNorm):
        per_column = shape[0] // columns
        first = c // per_column * per_column
        start = c - norm.size // 2
        stop = min(start + norm.size, first + per_column)
        return slice(max(start, first), stop), i, j
    rows, across = (
        slice(max(0, at - norm.size // 2), at - norm.size // 2 + norm.size) for at in (i, j)
    )
    return c, rows, across


def run(chain: Chain, x: Tensor, dy: Array, columns: int) -> tuple[Array, Array]:
    leaf = x.detach().requires_grad_()
    y = fused.apply(chain, leaf, columns, "fused")
    (dx,) = torch.autograd.grad(y, leaf, torch.from_numpy(dy).to(y.dtype))
    assert dx.dtype == y.dtype == x.dtype
    return y.detach().double().numpy(), dx.double().numpy()


def grid(shape: tuple[int, ...], seed: int, steps: int, scale: float) -> Tensor:
    """Signed values on a coarse grid: with many ties, and nothing between a tie and a win."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-steps, steps + 1, shape, generator=generator).double() * scale


def close(actual: Array, expected: Array, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    largest = float(np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=2e-6 * largest + 1e-30)


response_norms = st.builds(
    ResponseNorm,
    size=st.integers(1, 8) | st.just(5),
    alpha=st.sampled_from([1e-4, 1e-4 / 5, 0.01]),
    beta=st.sampled_from([0.75, 0.75, 0.5, 1.0]),
    k=st.sampled_from([2.0, 1.0]),
)
spatial_norms = st.builds(
    SpatialNorm,
    size=st.integers(1, 6),
    alpha=st.sampled_from([0.001 / 25, 0.01]),
    beta=st.sampled_from([0.75, 0.75, 0.5]),
)
pools = st.integers(1, 4).flatmap(
    lambda size: st.builds(Pool, size=st.just(size), stride=st.integers(max(1, size - 2), size))
)
chains = st.builds(
    Chain,
    relu_before=st.booleans(),
    norm=st.none() | response_norms,
    pool=st.none() | pools | st.just(Pool()),
    relu_after=st.booleans(),
).filter(lambda chain: (chain.norm or chain.pool) and (chain.pool or not chain.relu_after))


@settings(max_examples=120)
@given(
    chain=chains,
    columns=st.sampled_from([1, 2, 3]),
    maps_per_column=st.integers(1, 9) | st.sampled_from([15, 16, 17, 32, 33, 48]),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    steps=st.sampled_from([1, 3, 50]),
    scale=st.sampled_from([1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(["channels_last", "contiguous", "sliced"]),
    seed=st.integers(0, 10_000),
)
def test_every_chain_is_that_of_the_formulas(
    chain: Chain,
    columns: int,
    maps_per_column: int,
    height: int,
    width: int,
    steps: int,
    scale: float,
    dtype: torch.dtype,
    layout: str,
    seed: int,
) -> None:
    if chain.pool is not None:
        assume(min(height, width) >= chain.pool.size)
    num_maps = columns * maps_per_column
    x = grid((2, num_maps, height, width), seed, steps, scale).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.cat([x, x], 3)[..., :width]
    assert fused.is_fusable(chain, x, columns)
    expected = [chain_oracle(chain, image, columns)[0] for image in x.double().numpy()]
    dy = grid((2, *expected[0].shape), seed + 1, 5, 0.5).numpy()
    y, dx = run(chain, x, dy, columns)
    close(y, np.stack(expected), dtype)
    gradients = [
        gradient_oracle(chain, image, gradient, columns)
        for image, gradient in zip(x.double().numpy(), dy, strict=True)
    ]
    close(dx, np.stack(gradients), dtype)


@pytest.mark.parametrize("maps", [96, 256])
@pytest.mark.parametrize("chain", CHAINS, ids=["paper", "source"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_papers_stages_at_their_width(chain: Chain, maps: int, dtype: torch.dtype) -> None:
    x = grid((1, maps, 7, 7), maps, 60, 2.0).to(dtype)
    dy = grid((1, maps, 3, 3), 1, 9, 0.25).numpy()
    y, dx = run(chain, x, dy, 2)
    image = x[0].double().numpy()
    close(y[0], chain_oracle(chain, image, 2)[0], dtype)
    close(dx[0], gradient_oracle(chain, image, dy[0], 2), dtype)


@given(
    size=st.integers(1, 4),
    stride=st.integers(1, 4),
    side=st.integers(4, 9),
    relu_before=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_ties_go_where_torch_sends_them(
    size: int, stride: int, side: int, relu_before: bool, seed: int
) -> None:
    assume(size - 2 <= stride <= size)
    x = grid((1, 20, side, side), seed, 2, 1.0).float().requires_grad_()
    chain = Chain(relu_before=relu_before, pool=Pool(size=size, stride=stride))
    ours = fused.apply(chain, x, 1, "fused")
    theirs = F.max_pool2d(F.relu(x) if relu_before else x, size, stride, ceil_mode=True)
    dy = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ours, theirs)
    # A unit of several windows adds their gradients in another order than torch's.
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, dy)[0],
        torch.autograd.grad(theirs, x, dy)[0],
        rtol=1e-6,
        atol=1e-6,
    )
