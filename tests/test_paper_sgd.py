"""Section 5's update rule: against a NumPy loop, against torch.optim.SGD, and through a file."""

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alexnet.errors import UserError
from alexnet.optim import PaperSGD, paper_sgd_step_reference, parameter_groups


def oracle(
    w: np.ndarray, g: np.ndarray, v: np.ndarray, lr: float, momentum: float, weight_decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Section 5, one scalar at a time in float64: the new weights and velocity."""
    w, v = w.astype(np.float64).copy(), v.astype(np.float64).copy()
    for i in np.ndindex(w.shape):
        v[i] = momentum * v[i] - weight_decay * lr * w[i] - lr * float(g[i])
        w[i] = w[i] + v[i]
    return w, v


def tiny_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 4, 3), flat=nn.Flatten(), fc6=nn.Linear(36, 6), fc8=nn.Linear(6, 3)
    )
    model = nn.Sequential(layers).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps `first` to `last - 1` of a fixed sequence of batches."""
    dtype = next(model.parameters()).dtype
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, 5, 5, generator=generator).to(dtype)
        labels = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def velocity(optimizer: PaperSGD, weight: Tensor) -> Tensor:
    return optimizer.state[weight]["velocity"]


@settings(max_examples=80, deadline=None)
@given(
    lr=st.floats(1e-6, 1.0),
    momentum=st.floats(0.0, 0.99),
    weight_decay=st.floats(0.0, 1.0),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_every_setting_follows_the_equation(lr, momentum, weight_decay, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
    reference = weight.detach().clone()
    reference_v = torch.zeros_like(reference)
    expected, expected_v = weight.detach().numpy().copy(), np.zeros(shape)
    optimizer = PaperSGD([weight], lr=lr, momentum=momentum, weight_decay=weight_decay)
    for _ in range(3):
        weight.grad = torch.randn(shape, generator=generator, dtype=dtype)
        optimizer.step()
        hyper = (lr, momentum, weight_decay)
        paper_sgd_step_reference([reference], [weight.grad], [reference_v], *hyper)
        expected, expected_v = oracle(expected, weight.grad.numpy(), expected_v, *hyper)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    )
    np.testing.assert_allclose(weight.detach().numpy(), expected, **tolerance)
    np.testing.assert_allclose(velocity(optimizer, weight).numpy(), expected_v, **tolerance)
    np.testing.assert_allclose(reference.numpy(), expected, **tolerance)
    np.testing.assert_allclose(reference_v.numpy(), expected_v, **tolerance)


def test_the_first_velocity_holds_the_rate():
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    weight.grad = torch.tensor([3.0], dtype=torch.float64)
    optimizer = PaperSGD([weight], lr=0.5, momentum=0.9, weight_decay=0.25)
    optimizer.step()
    assert velocity(optimizer, weight).item() == -0.25 * 0.5 * 2.0 - 0.5 * 3.0
    assert weight.item() == 2.0 - 1.75


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_small_rates_keep_the_precision_of_the_type(dtype, limit):
    grads = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    weight = nn.Parameter(torch.zeros(1000, dtype=dtype))
    weight.grad = grads
    optimizer = PaperSGD([weight], lr=1e-7)
    optimizer.step()
    error = (velocity(optimizer, weight).double() / (-1e-7 * grads.double()) - 1).abs().max()
    assert error < limit, f"relative error {error:.2e}"


def layouts() -> dict[str, tuple[Tensor, Tensor]]:
    """Weights and gradients of equal values whose places in memory agree, or do not."""
    generator = torch.Generator().manual_seed(1)
    w, g = torch.randn(2, 4, 6, 3, 2, generator=generator)
    last = torch.channels_last
    return {
        "contiguous": (w.clone(), g.clone()),
        "channels last": (w.contiguous(memory_format=last), g.contiguous(memory_format=last)),
        "weight channels last": (w.contiguous(memory_format=last), g.clone()),
        "gradient expanded": (w.clone(), g[:1, :1, :1, :1].expand_as(g)),
        "weight with gaps": (torch.stack([w, w], dim=-1)[..., 0], g.clone()),
        "both with gaps": (torch.stack([w, w], -1)[..., 0], torch.stack([g, g], -1)[..., 0]),
    }


@pytest.mark.parametrize("layout", layouts())
def test_the_layout_in_memory_changes_nothing(layout):
    w, g = layouts()[layout]
    expected, expected_v = oracle(w.numpy(), g.numpy(), np.zeros(w.shape), 0.1, 0.9, 0.01)
    weight = nn.Parameter(w)
    weight.grad = g
    optimizer = PaperSGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(velocity(optimizer, weight), expected_v, rtol=1e-5, atol=1e-6)
    assert torch.equal(weight.grad, layouts()[layout][1])


def test_it_agrees_with_torch_sgd_at_a_constant_rate():
    ours, theirs = tiny_model(torch.float64), tiny_model(torch.float64)
    train(ours, PaperSGD(ours.parameters(), lr=0.01, weight_decay=0.01), 0, 100)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    train(theirs, sgd, 0, 100)
    moved = (flat(ours) - flat(tiny_model(torch.float64))).abs().max()
    apart = (flat(ours) - flat(theirs)).abs().max()
    assert apart < 1e-12 < moved, f"apart by {apart:.1e} after moving by {moved:.1e}"


def test_after_a_rate_drop_it_steps_further_than_torch_sgd_by_the_factor_1_plus_9_times_0_9_to_k():
    # Under a constant gradient both glide at -lr*g/(1 - m). When the rate is divided by 10 torch
    # divides the glide at once; the paper's old velocity has to die out.
    grad, momentum, drop = 1.0, 0.9, 10.0
    ours = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    theirs = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    paper = PaperSGD([ours], lr=0.01, momentum=momentum, weight_decay=0.0)
    sgd = torch.optim.SGD([theirs], lr=0.01, momentum=momentum)

    def steps() -> tuple[float, float]:
        before = ours.item(), theirs.item()
        for weight, optimizer in ((ours, paper), (theirs, sgd)):
            weight.grad = torch.full_like(weight, grad)
            optimizer.step()
        return ours.item() - before[0], theirs.item() - before[1]

    for _ in range(400):
        steps()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for optimizer in (paper, sgd):
        optimizer.param_groups[0]["lr"] /= drop
    at_drop = ours.item(), theirs.item()
    ratios = []
    for k in range(1, 401):
        our_step, their_step = steps()
        ratios.append(our_step / their_step)
        assert ratios[-1] == pytest.approx(1 + (drop - 1) * momentum**k, rel=1e-9)
    assert ratios[0] == pytest.approx(9.1)  # the first step is nine times as long,
    assert sum(ratio > 2 for ratio in ratios) == 20  # for 20 steps more than twice as long,
    assert sum(ratio > 1.1 for ratio in ratios) == 42  # and 10 % too long for 42.
    further = (ours.item() - at_drop[0]) - (theirs.item() - at_drop[1])
    assert further / their_step == pytest.approx(81)  # In all, 81 steps at the new rate further.


def test_a_rate_of_zero_freezes_a_group_and_keeps_its_velocity():
    model = tiny_model()
    optimizer = PaperSGD(parameter_groups(model, weight_decay=0.5))
    train(model, optimizer, 0, 5)
    frozen = [group for group in optimizer.param_groups if group["layer"] == "conv1"]
    for group in frozen:
        group["lr"] = 0.0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocities = [velocity(optimizer, group["params"][0]).clone() for group in frozen]
    train(model, optimizer, 5, 10)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("conv1"), name
    for group, old in zip(frozen, velocities, strict=True):
        assert torch.equal(velocity(optimizer, group["params"][0]), old)
        assert old.abs().max() > 0


def test_a_parameter_without_a_gradient_is_left_alone():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    used.grad = torch.ones(3)
    optimizer = PaperSGD([used, unused], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert unused not in optimizer.state
    assert not torch.equal(used, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saving_and_loading_continues_bit_for_bit(dtype):
    whole = tiny_model(dtype)
    optimizer = PaperSGD(parameter_groups(whole))
    train(whole, optimizer, 0, 6)
    for group in optimizer.param_groups:
        group["lr"] /= 10
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(whole, optimizer, 6, 12)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = tiny_model(dtype)
    continued = PaperSGD(parameter_groups(resumed))
    resumed.load_state_dict(saved["model"])
    continued.load_state_dict(saved["optimizer"])
    assert [group["lr"] for group in continued.param_groups][:2] == [0.001, 0.002]
    train(resumed, continued, 6, 12)
    assert torch.equal(flat(resumed), flat(whole))


def test_a_closure_gives_the_loss():
    weight = nn.Parameter(torch.ones(1))
    optimizer = PaperSGD([weight], lr=0.1, weight_decay=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (3 * weight).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert weight.item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", -0.1),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, value):
    with pytest.raises(UserError, match=setting):
        PaperSGD([nn.Parameter(torch.ones(1))], **{setting: value})


def test_each_layer_has_a_group_of_weights_and_a_group_of_biases():
    model = tiny_model()
    groups = parameter_groups(model)
    names = [(group["layer"], group["kind"]) for group in groups]
    layers = ["conv1", "fc6", "fc8"]
    assert names == [(layer, kind) for layer in layers for kind in ("weight", "bias")]
    for group in groups:
        assert group["params"] == [getattr(model.get_submodule(group["layer"]), group["kind"])]
        rate, decay = (0.01, 0.0005) if group["kind"] == "weight" else (0.02, 0.0)
        assert (group["lr"], group["base_lr"], group["weight_decay"]) == (rate, rate, decay)


def test_weight_decay_is_set_by_layer_or_prefix_and_never_for_biases():
    groups = parameter_groups(
        tiny_model(), weight_decay=0.1, layer_weight_decay={"conv": 0.004, "fc": 0.03, "fc8": 1.0}
    )
    decay = {(group["layer"], group["kind"]): group["weight_decay"] for group in groups}
    weights = {layer: value for (layer, kind), value in decay.items() if kind == "weight"}
    assert weights == {"conv1": 0.004, "fc6": 0.03, "fc8": 1.0}
    assert {value for (_, kind), value in decay.items() if kind == "bias"} == {0.0}
    assert parameter_groups(tiny_model(), bias_decay=0.2)[1]["weight_decay"] == 0.2


def test_weight_decay_for_an_unknown_layer_is_refused():
    with pytest.raises(UserError, match=r"'fc9'.*did you mean 'fc[68]'"):
        parameter_groups(tiny_model(), layer_weight_decay={"fc9": 0.1})
