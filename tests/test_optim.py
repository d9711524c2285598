"""The update rule of Section 5 and of the 2012 source, held to the loops of `oracles.update`."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn

import oracles
from alexnet.errors import UserError
from alexnet.optim import PaperSGD, paper_sgd_step_reference

SHAPES = [(3, 2, 2), (4,), (2, 3), (2,)]


def parameters(seed: int, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in SHAPES
    ]


def gradients(seed: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def take_step(optimizer: torch.optim.Optimizer, grads: list[Tensor]) -> None:
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad.to(weight)
    optimizer.step()


rates = st.sampled_from([0.02, 0.01, 0.001, 0.00001, 0.3, 0.0])


@given(
    seed=st.integers(0, 100),
    schedule=st.lists(st.tuples(rates, rates), min_size=1, max_size=8),
    momentum=st.sampled_from([0.9, 0.0, 0.5]),
    decays=st.sampled_from([(0.0005, 0.0), (0.0005, 0.0005), (0.3, 0.01)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_step_is_the_equation_of_section_5(
    seed: int,
    schedule: list[tuple[float, float]],
    momentum: float,
    decays: tuple[float, float],
    dtype: torch.dtype,
) -> None:
    weights = parameters(seed, dtype)
    optimizer = PaperSGD(
        [
            {"params": weights[:2], "weight_decay": decays[0]},
            {"params": weights[2:], "weight_decay": decays[1]},
        ],
        momentum=momentum,
    )
    expected = [(w.detach().double().numpy().copy(), np.zeros(w.shape)) for w in weights]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for step, lrs in enumerate(schedule):
        grads = gradients(seed, step)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        take_step(optimizer, grads)
        for i, ((w, v), grad) in enumerate(zip(expected, grads, strict=True)):
            part = i // 2
            expected[i] = oracles.update(
                w,
                v,
                grad.numpy(),
                lr=lrs[part],
                momentum=momentum,
                weight_decay=decays[part],
            )
            what = f"tensor {i} after step {step} of {schedule}"
            new_weight, new_velocity = expected[i]
            moved = optimizer.state[weights[i]].get("velocity", torch.zeros(()))
            largest = float(np.abs(new_velocity).max())
            assert_allclose(
                moved.double().expand(weights[i].shape),
                new_velocity,
                rtol=10 * tolerance,
                atol=10 * tolerance * largest,
                err_msg=f"velocity of {what}",
            )
            assert_allclose(
                weights[i].detach().double(),
                new_weight,
                rtol=tolerance,
                atol=tolerance * (1 + step),
                err_msg=what,
            )


def test_the_defaults_are_those_of_section_5() -> None:
    [group] = PaperSGD(parameters(0)).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 0.0005)


def test_the_reference_step_is_the_equation_of_section_5() -> None:
    weights = [w.detach() for w in parameters(1)]
    velocities = gradients(1, 7)
    grads = gradients(1, 8)
    expected = [
        oracles.update(w.numpy(), v.numpy(), g.numpy(), lr=0.05, momentum=0.9, weight_decay=0.01)
        for w, v, g in zip(weights, velocities, grads, strict=True)
    ]
    paper_sgd_step_reference(weights, grads, velocities, 0.05, 0.9, 0.01)
    for w, v, (expected_w, expected_v) in zip(weights, velocities, expected, strict=True):
        assert_allclose(w.numpy(), expected_w, rtol=1e-12)
        assert_allclose(v.numpy(), expected_v, rtol=1e-12)


def test_a_rate_of_zero_freezes_weights_and_velocity() -> None:
    weights = parameters(2)
    optimizer = PaperSGD([{"params": weights[:2]}, {"params": weights[2:]}], lr=0.1)
    take_step(optimizer, gradients(2, 0))
    before = copy.deepcopy([w.detach() for w in weights])
    velocity = copy.deepcopy([optimizer.state[w]["velocity"] for w in weights])
    optimizer.param_groups[0]["lr"] = 0.0
    for step in range(1, 4):
        take_step(optimizer, gradients(2, step))
    for i in (0, 1):
        assert_array_equal(weights[i].detach(), before[i], err_msg=f"tensor {i} moved")
        assert_array_equal(optimizer.state[weights[i]]["velocity"], velocity[i])
    for i in (2, 3):
        assert not torch.equal(weights[i], before[i]), f"tensor {i} did not move"


def distance(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_torch_sgd_agrees_until_the_rate_drops_and_parts_after_it() -> None:
    ours, theirs = parameters(3), parameters(3)
    paper = PaperSGD(ours, lr=0.1, momentum=0.9, weight_decay=0.01)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(10):
        take_step(paper, gradients(3, step))
        take_step(sgd, gradients(3, step))
        apart = distance(ours, theirs)
        assert apart < 1e-12, f"{apart} apart at a constant rate, step {step}"

    velocity = [paper.state[w]["velocity"].clone() for w in ours]
    weights = [w.detach().clone() for w in ours]
    for optimizer in (paper, sgd):
        optimizer.param_groups[0]["lr"] = 0.01
    take_step(paper, gradients(3, 10))
    take_step(sgd, gradients(3, 10))
    # torch scales the whole buffer by the new rate: the old velocity moves the weights 10 times
    # less, 0.9 * v * (1 - 0.01 / 0.1) less in all. The gradient's own part is the same.
    for w, w_torch, w_before, v in zip(ours, theirs, weights, velocity, strict=True):
        moved_more = (w - w_before) - (w_torch - w_before)
        assert_allclose(moved_more.detach(), 0.9 * v * 0.9, rtol=1e-9, atol=1e-12)
    apart = distance(ours, theirs)
    assert apart > 0.01, f"only {apart} apart after the drop"


def test_a_saved_optimizer_continues_to_the_same_weights() -> None:
    def run(interrupted: bool) -> list[nn.Parameter]:
        weights = parameters(4)
        optimizer = PaperSGD(weights, lr=0.1)
        for step in range(6):
            if interrupted and step == 3:
                state = copy.deepcopy(optimizer.state_dict())
                weights = [nn.Parameter(w.detach().clone()) for w in weights]
                optimizer = PaperSGD(weights, lr=0.7)
                optimizer.load_state_dict(state)
            take_step(optimizer, gradients(4, step))
        return weights

    for i, (a, b) in enumerate(zip(run(False), run(True), strict=True)):
        assert_array_equal(a.detach(), b.detach(), err_msg=f"tensor {i}")


def test_a_parameter_without_a_gradient_does_not_decay() -> None:
    weights = parameters(5)
    before = weights[0].detach().clone()
    optimizer = PaperSGD(weights, lr=0.1, weight_decay=0.5)
    for weight, grad in list(zip(weights, gradients(5, 0), strict=True))[1:]:
        weight.grad = grad
    optimizer.step()
    assert_array_equal(weights[0].detach(), before)


@pytest.mark.parametrize(
    "setting", [{"lr": -0.1}, {"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}]
)
def test_a_setting_out_of_range_is_named(setting: dict[str, float]) -> None:
    [name] = setting
    with pytest.raises(UserError, match=name):
        PaperSGD(parameters(6), **setting)
