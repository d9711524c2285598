"""The benchmark of norms and pools: rivals that do the same, and figures that follow from times."""

import io
import json
from contextlib import redirect_stdout

import pytest
import torch
from torch import Tensor

from alexnet.bench_norm import RIVALS, STAGES, Stage, bench_norm
from alexnet.cli_norm import print_rows
from alexnet.errors import UserError
from alexnet.networks import ResponseNorm


def one_column(stage: Stage) -> Stage:
    """The stage as the stock rivals do it."""
    steps = tuple(
        ResponseNorm(step.size, step.alpha, step.beta, step.k, per_column=False)
        if isinstance(step, ResponseNorm)
        else step
        for step in stage.steps
    )
    return Stage(steps, 32, 11)


@pytest.mark.parametrize("rival", ["plain", "stock", "window-sum-compiled"])
@pytest.mark.parametrize("name", STAGES)
def test_every_rival_computes_what_the_fused_kernels_do(
    name: str, rival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, dynamic: run)
    stage = one_column(STAGES[name])
    x = (20 * torch.randn(2, 32, 11, 11)).double().requires_grad_()

    def both(run: str, x: Tensor) -> tuple[Tensor, Tensor]:
        y = RIVALS[run](stage)(x)
        return y, torch.autograd.grad(y.square().sum(), x)[0]

    for ours, theirs in zip(both("fused", x), both(rival, x), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


def test_the_figures_follow_from_the_times() -> None:
    found = bench_norm(
        stages=("paper-2",), rivals=("fused", "plain"), precisions=("bf16",),
        batch_size=1, rounds=2, memory=False,
    )  # fmt: skip
    assert [row["rival"] for row in found["rows"]] == ["fused", "plain"]
    for row in found["rows"]:
        # x twice and dx; y and dy; a byte per window, twice
        assert row["moved_bytes"] == 3 * 2 * 256 * 27**2 + 2 * (2 + 1) * 256 * 13**2
        assert row["gb_per_s"] == row["moved_bytes"] / row["both"]["median"] / 1e9
        assert row["both"]["least"] <= row["both"]["median"] <= row["both"]["most"]
    json.dumps(found, allow_nan=False)
    with redirect_stdout(io.StringIO()) as drawn:
        print_rows(found["rows"])
    assert "paper-2" in drawn.getvalue()


def test_an_unknown_rival_is_named() -> None:
    with pytest.raises(UserError, match="no 'fussed' to measure"):
        bench_norm(rivals=("fussed",))
