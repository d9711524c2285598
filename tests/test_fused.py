"""The fused chains against float64 loops that share no code with them, and their switches."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
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
from alexnet import chain_op, files, fused, layers, native
from alexnet.errors import UserError
from alexnet.fused import Chain
from alexnet.model import build
from alexnet.networks import NETWORKS, Dropout, Pool, ResponseNorm, SpatialNorm
from alexnet.optim import PaperSGD

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
    (dx,) = torch.autograd.grad(y, leaf, torch.from_numpy(dy).to(y))
    assert dx.dtype == y.dtype == x.dtype
    return y.detach().double().cpu().numpy(), dx.double().cpu().numpy()


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
    size=st.integers(1, 8) | st.sampled_from([5, 9]),
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
    norm=st.none() | response_norms | spatial_norms,
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


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_splitting_a_networks_steps_leaves_none_out(name: str) -> None:
    for layer in NETWORKS[name].layers:
        steps: list[object] = []
        for part in fused.split(layer.then):
            steps += steps_of(part) if isinstance(part, Chain) else [part]
        assert tuple(steps) == layer.then


def steps_of(chain: Chain) -> list[object]:
    steps = ["relu" if chain.relu_before else None, chain.norm, chain.pool]
    return [step for step in (*steps, "relu" if chain.relu_after else None) if step is not None]


def test_the_longest_chains_are_found() -> None:
    norm, spatial, pool = ResponseNorm(), SpatialNorm(), Pool()
    assert fused.split(("relu", norm, pool)) == (Chain(True, norm, pool),)
    assert fused.split((norm, pool, "relu")) == (Chain(False, norm, pool, True),)
    expected = (Chain(True, norm), Chain(False, spatial, pool))
    assert fused.split(("relu", norm, spatial, pool)) == expected
    assert fused.split(("relu", pool, norm)) == (Chain(True, None, pool), Chain(False, norm))
    assert fused.split(("relu", Pool("avg"), Dropout())) == ("relu", Pool("avg"), Dropout())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chain", [*CHAINS, Chain(norm=SpatialNorm(), pool=Pool())], ids=str)
def test_the_result_is_the_same_to_the_bit_whatever_the_threads(
    chain: Chain, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 96, 15, 15, generator=generator).to(dtype)
    dy = torch.randn(5, 96, 7, 7, generator=generator).double().numpy()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(chain, x, dy, 2))
    finally:
        torch.set_num_threads(before)
    for y, dx in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])


@pytest.mark.parametrize("chain", [*CHAINS, Chain(norm=SpatialNorm(), pool=Pool())], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_what_is_no_number_or_huge_spreads_as_in_the_references(chain: Chain, value: float) -> None:
    x = torch.randn(2, 96, 9, 9, generator=torch.Generator().manual_seed(1))
    x[0, 50, 4, 4] = value
    norm = chain.norm
    assert norm is not None
    constants = {"size": norm.size, "alpha": norm.alpha, "beta": norm.beta, "k": norm.k}
    theirs = F.relu(x) if chain.relu_before else x
    if isinstance(norm, ResponseNorm):
        theirs = layers.response_norm_reference(theirs, columns=2, **constants)
    else:
        theirs = layers.spatial_norm_reference(theirs, **constants)
    theirs = F.max_pool2d(theirs, 3, 2)
    theirs = F.relu(theirs) if chain.relu_after else theirs
    torch.testing.assert_close(fused.apply(chain, x, 2, "fused"), theirs, equal_nan=True)


def test_an_empty_batch_stays_empty() -> None:
    x = torch.zeros(0, 96, 9, 9, requires_grad=True)
    y = fused.apply(PAPER, x, 2, "fused")
    y.sum().backward()
    assert y.shape == (0, 96, 4, 4)
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_float64_is_done_plainly() -> None:
    x = grid((1, 96, 9, 9), 0, 50, 1.0)
    expected = chain_oracle(PAPER, x[0].numpy(), 2)[0]
    np.testing.assert_allclose(fused.apply(PAPER, x, 2, "fused")[0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_operation_keeps_the_rules_of_torch_library(training: bool) -> None:
    x = torch.randn(2, 32, 7, 7).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(training)
    arguments = (x, True, 1, 5, 1e-4, 0.75, 2.0, 2, 3, 2, False, training)
    torch.library.opcheck(chain_op.chain, arguments)


def test_the_compiler_of_torch_sees_one_operation() -> None:
    x = torch.randn(2, 32, 7, 7, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return fused.apply(PAPER, x, 2, "fused").square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected, actual = (torch.autograd.grad(f(x), x)[0] for f in (loss, compiled))
    assert torch.equal(actual, expected)


def test_a_plain_model_exports_without_operations_of_its_own() -> None:
    model = build("small", 4).eval()
    images = torch.randn(1, 3, 56, 56)
    for kernels, found in (("fused", True), ("plain", False)):
        model.kernels = kernels
        program = torch.export.export(model, (images,))
        assert ("alexnet.chain" in str(program.graph)) == found


def trained(kernels: str, dtype: torch.dtype, network: str) -> tuple[list[float], Tensor]:
    """Losses and weights of 20 steps on fixed pictures."""
    model = build(network, 4, torch.Generator().manual_seed(0)).to(dtype)
    model.kernels = kernels
    generator = torch.Generator().manual_seed(1)
    px = model.network.input_px
    images = 60 * torch.randn(16, 3, px, px, generator=generator)
    labels = torch.randint(4, (16,), generator=generator)
    optimizer = PaperSGD(model.parameters(), lr=0.0005)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.eval()(images.to(dtype)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([weight.detach().double().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("network", ["small", "cifar10-11pct", "cifar10-18pct"])
def test_twenty_steps_of_training_follow_those_in_float64(network: str) -> None:
    exact_losses, exact = trained("plain", torch.float64, network)
    moved = float((exact - trained_from(network)).norm())
    assert exact_losses[-1] < exact_losses[0]
    for kernels in ("plain", "fused"):
        losses, weights = trained(kernels, torch.float32, network)
        np.testing.assert_allclose(losses[:10], exact_losses[:10], rtol=2e-6)
        # By and by rounding decides between two almost equal units of a pool, in either form.
        np.testing.assert_allclose(losses, exact_losses, rtol=2e-4)
        assert float((weights - exact).norm()) < 0.02 * moved


def trained_from(network: str) -> Tensor:
    model = build(network, 4, torch.Generator().manual_seed(0)).double()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


# -- switches, and what happens where nothing can be compiled


def test_the_environment_says_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused.has_kernels("cpu")
    monkeypatch.setenv("ALEXNET_KERNELS", "plain")
    assert not fused.has_kernels("cpu")
    assert fused.has_kernels("cpu", "fused")
    monkeypatch.setenv("ALEXNET_KERNELS", "quick")
    with pytest.raises(UserError, match="ALEXNET_KERNELS is 'quick'; it is auto, fused or plain"):
        fused.has_kernels("cpu")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CXX", "no-such-compiler")
    caches = (native.compiled, fused._reason_against)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_plain_functions_work_and_one_line_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = torch.randn(1, 96, 9, 9)
    for _ in range(2):
        assert torch.equal(fused.apply(PAPER, x, 2), PAPER.plain(x, 2))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "there is no C++ compiler (no-such-compiler)" in said[0]
    with pytest.raises(UserError, match="kernels cannot be fused"):
        fused.apply(PAPER, x, 2, "fused")


def fake_compiler(folder: Path, body: str) -> Path:
    path = folder / "compiler"
    path.write_text(f"#!{sys.executable}\nimport shutil, sys\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("no_compiler")
def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "sys.exit('fused.cpp:1: error: no such thing' if '-c' in sys.argv else 0)"
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, body)))
    with pytest.raises(UserError, match=r"cannot compile C\+\+: fused.cpp:1: error: no such"):
        native.compiled("fused.cpp")


@pytest.mark.usefixtures("no_compiler")
def test_a_damaged_library_in_the_cache_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = next((files.cache_folder() / "kernels").glob("fused-*.so"))
    body = f"if '-shared' in sys.argv: shutil.copy({str(made)!r}, sys.argv[-1])"
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, body)))
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    native.compiled("fused.cpp")
    (library,) = (tmp_path / "cache" / "kernels").iterdir()
    whole = library.read_bytes()
    for damaged in (whole[:1000], b"", whole[:5000] + b"?" + whole[5001:]):
        library.unlink()
        library.write_bytes(damaged)
        native.compiled.cache_clear()
        native.compiled("fused.cpp")
        assert library.read_bytes() == whole


@pytest.mark.slow
def test_processes_that_compile_at_the_same_time_all_get_a_library(tmp_path: Path) -> None:
    code = "import torch; from alexnet import native; print(native.compiled('fused.cpp').lanes())"
    environment = {**os.environ, "ALEXNET_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate()[0].strip() for process in processes]
    assert answers in (["4"] * 3, ["8"] * 3, ["16"] * 3)
    assert len(list((tmp_path / "kernels").iterdir())) == 1
