"""Larger batches: rates, warm-up and LARS, against their formulas; and that a run says so."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fabricate
from alexnet.columns import cut, cut_optimizer
from alexnet.config import Recipe, diff
from alexnet.files import read_json
from alexnet.hybrid import cut_hybrid
from alexnet.large_batch import Lars, departures, rate_factor, warmed_up
from alexnet.optim import parameter_groups
from alexnet.parallel import Ranks
from alexnet.schedule import Rates
from ranks import Crew
from test_columns import few_kernels, make


def test_rates_grow_with_the_batch_or_its_root() -> None:
    assert rate_factor(Recipe()) == 1
    assert rate_factor(diff(Recipe(), optimizer={"batch_size": 1024})) == 1
    for scaling, factor in (("linear", 8.0), ("sqrt", 8**0.5)):
        recipe = diff(Recipe(), optimizer={"batch_size": 1024, "rate_scaling": scaling})
        assert rate_factor(recipe) == pytest.approx(factor)


def test_a_warm_up_rises_from_the_unscaled_rate_to_the_schedules() -> None:
    settings = {"batch_size": 1024, "rate_scaling": "linear", "warmup_epochs": 4.0}
    recipe = diff(Recipe(), optimizer=settings)
    rates = Rates(weights=1.0, biases=0.5, layers={"conv1": 0.1})
    for epoch, share in ((0.0, 1 / 8), (2.0, 9 / 16), (3.0, 25 / 32)):
        found = warmed_up(rates, recipe, epoch)
        assert (found.weights, found.biases) == pytest.approx((share, share / 2))
        assert found.layers["conv1"] == pytest.approx(share / 10)
        assert found.reason == "warm-up"
    assert warmed_up(rates, recipe, 4.0) is rates
    unscaled = diff(Recipe(), optimizer={"warmup_epochs": 4.0})
    assert warmed_up(rates, unscaled, 1.0).weights == pytest.approx(0.25)


def test_only_the_papers_own_settings_are_no_departure() -> None:
    assert departures(Recipe()) == []
    assert departures(diff(Recipe(), optimizer={"batch_size": 64})) == []
    settings = {"batch_size": 256, "rate_scaling": "sqrt", "warmup_epochs": 5.0}
    assert departures(diff(Recipe(), optimizer=settings | {"lars_trust": 0.001})) == [
        "256 pictures in a minibatch instead of 128",
        "rates times 1.414, with the root of the batch",
        "a warm-up of 5 epochs",
        "LARS with a trust of 0.001",
    ]


def lars_steps(model: torch.nn.Module, optimizer: Lars, gradients: list[dict]) -> dict:
    own = getattr(model, "own", lambda name, whole: whole)
    for step in gradients:
        for name, weight in model.named_parameters():
            weight.grad = own(name, step[name]).clone()
        optimizer.step()
    return model.state_dict()


def some_gradients() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    shapes = {name: w.shape for name, w in make(few_kernels("paper")).named_parameters()}
    return [
        {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
        }
        for _ in range(3)
    ]


SETTINGS = {"lr": 2.0, "bias_lr": 4.0, "weight_decay": 0.01, "bias_decay": 0.0}


def test_lars_is_its_formula() -> None:
    model, gradients = make(few_kernels("paper")), some_gradients()
    expected = {name: w.detach().numpy().copy() for name, w in model.named_parameters()}
    velocities = {name: np.zeros_like(w) for name, w in expected.items()}
    for step in gradients:
        for name, w in expected.items():
            g, is_bias = step[name].numpy(), name.endswith("bias")
            lr, decay = (4.0, 0.0) if is_bias else (2.0, 0.01)
            local = 0.001
            if np.linalg.norm(w) > 0:
                local *= np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
            velocities[name] = 0.9 * velocities[name] - lr * local * (g + decay * w)
            expected[name] = w + velocities[name]
    optimizer = Lars(parameter_groups(model, **SETTINGS), 0.9, 0.001)
    found = lars_steps(model, optimizer, gradients)
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name].numpy(), weight, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def lars_of_part(ranks: Ranks) -> dict:
    whole = make(few_kernels("paper"))
    is_hybrid = ranks.plan.hybrid
    part = cut_hybrid(whole, ranks.everyone) if is_hybrid else cut(whole, ranks.columns)
    optimizer = Lars(parameter_groups(part, **SETTINGS), 0.9, 0.001, part.sum_parts)
    cut_optimizer(optimizer, part)
    return lars_steps(part, optimizer, some_gradients())


@pytest.mark.parametrize("way", ["columns=2", "hybrid"])
def test_lars_of_a_cut_network_has_the_norms_of_the_whole(crew: Crew, way: str) -> None:
    whole = make(few_kernels("paper"))
    optimizer = Lars(parameter_groups(whole, **SETTINGS), 0.9, 0.001)
    expected = lars_steps(whole, optimizer, some_gradients())
    for found in crew.run(lars_of_part, size=2, way=way):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-12, atol=1e-14)


def test_a_run_says_where_it_departs_from_the_paper(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--set", "optimizer.rate_scaling=sqrt", "--set", "optimizer.lars_trust=0.01")
    flags += ("--set", "optimizer.warmup_epochs=0.5", "--set", "evaluate.views=1")
    flags += ("--batch-size", "144", "--set", "data.num_train=288", "--max-steps", "2")
    shapes = [flag for flag in fabricate.SHAPES if flag not in ("--batch-size", "16")]
    shapes = [flag for flag in shapes if flag != "--no-report"]
    done = fabricate.alexnet(*shapes, *flags, "--run", run)
    assert done.code == 0, done
    words = "144 pictures in a minibatch instead of 128"
    assert f"a departure from the paper: {words}" in done.out
    (begun,) = fabricate.events(run, "start")
    assert begun["departs_from_paper"][0] == words
    assert read_json(run / "summary.json")["departs_from_paper"] == begun["departs_from_paper"]
    assert f"A departure from the paper: {words}" in (run / "report.html").read_text()
    rates = [event["lr"] for event in fabricate.events(run, "step")]
    factor = 1.125**0.5
    assert rates[1] / rates[0] == pytest.approx(factor, rel=0.01)  # after the warm-up
