"""The Triton kernels against the same float64 loops: interpreted on a CPU, compiled, on a GPU."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alexnet import fused
from alexnet.fused import Chain
from alexnet.networks import Pool, ResponseNorm, SpatialNorm
from test_fused import PAPER, SOURCE_1, chain_oracle, close, gradient_oracle, grid, run

SCRIPT = Path(__file__).with_name("interpret_triton.py")

# chain, columns, maps, height and width, dtype
CASES = [
    (PAPER, 2, 96, (7, 9), torch.float32),
    (PAPER, 2, 96, (7, 7), torch.bfloat16),
    (PAPER, 2, 256, (5, 5), torch.float32),
    (SOURCE_1, 2, 96, (8, 7), torch.float32),
    (SOURCE_1, 1, 20, (6, 6), torch.bfloat16),
    (Chain(True, ResponseNorm(per_column=False), Pool()), 1, 36, (6, 5), torch.float32),
    (Chain(norm=ResponseNorm(size=9, alpha=1e-3, k=1.0)), 1, 64, (3, 4), torch.float32),
    (Chain(relu_before=True, norm=ResponseNorm(size=4, beta=0.5)), 2, 24, (3, 3), torch.float32),
    (Chain(True, ResponseNorm(size=1), Pool(size=2)), 3, 18, (5, 4), torch.float32),
    (Chain(relu_before=True, pool=Pool()), 1, 30, (9, 6), torch.float32),
    (Chain(pool=Pool(), relu_after=True), 1, 32, (8, 8), torch.bfloat16),
    (Chain(pool=Pool(size=4, stride=2)), 1, 16, (9, 9), torch.float32),
    (Chain(norm=SpatialNorm()), 1, 70, (6, 7), torch.float32),
    (Chain(relu_before=True, norm=SpatialNorm(size=4, beta=0.5)), 1, 20, (5, 5), torch.bfloat16),
]  # fmt: skip


def expected(chain: Chain, x: torch.Tensor, dy: np.ndarray, columns: int) -> list[np.ndarray]:
    images = list(zip(x.double().numpy(), dy, strict=True))
    y = [chain_oracle(chain, image, columns)[0] for image, _ in images]
    dx = [gradient_oracle(chain, image, gradient, columns) for image, gradient in images]
    return [np.stack(y), np.stack(dx)]


def inputs(chain: Chain, maps: int, size: tuple[int, int], dtype: torch.dtype, seed: int) -> Any:
    x = grid((1, maps, *size), seed, 12, 3.0).to(dtype)
    shape = chain_oracle(Chain(pool=chain.pool), x[0].double().numpy(), 1)[0].shape
    return x, grid((1, *shape), seed + 1, 9, 0.25)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_the_interpreted_kernels_are_those_of_the_formulas() -> None:
    pytest.importorskip("triton")
    cases, wanted = [], []
    for number, (chain, columns, maps, size, dtype) in enumerate(CASES):
        x, dy = inputs(chain, maps, size, dtype, number)
        settings = fused.settings(chain, columns)
        cases.append((settings, x, dy))
        wanted.append(expected(chain, x, dy.numpy(), columns))
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=pickle.dumps(cases),
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    results = pickle.loads(done.stdout)
    for case, (y, dx), (wanted_y, wanted_dx) in zip(CASES, results, wanted, strict=True):
        for actual, exact in ((y, wanted_y), (dx, wanted_dx)):
            # The interpreter cuts bfloat16 off where a GPU rounds.
            tolerance = 2.0**-7 if case[-1] == torch.bfloat16 else 3e-6
            atol = 2e-6 * np.abs(exact).max()
            np.testing.assert_allclose(
                actual.double().numpy(), exact, rtol=tolerance, atol=atol, err_msg=str(case)
            )


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_on_a_gpu_are_those_of_the_formulas(case: Any) -> None:
    chain, columns, maps, size, dtype = case
    seed = int(torch.seed() % 2**31)  # fresh inputs in every run; a failure prints them
    print("seed", seed)
    x, dy = inputs(chain, maps, size, dtype, seed)
    y, dx = run(chain, x.cuda(), dy.numpy(), columns)
    wanted_y, wanted_dx = expected(chain, x, dy.numpy(), columns)
    close(y, wanted_y, dtype)
    close(dx, wanted_dx, dtype)


@pytest.mark.gpu
def test_the_kernels_on_a_gpu_are_the_same_to_the_bit_every_time() -> None:
    x, dy = inputs(PAPER, 96, (27, 27), torch.bfloat16, 1)
    first = run(PAPER, x.cuda(), dy.numpy(), 2)
    for _ in range(5):
        for again, before in zip(run(PAPER, x.cuda(), dy.numpy(), 2), first, strict=True):
            np.testing.assert_array_equal(again, before)
