"""The fast training step equals the plain one and the float64 one, step for step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import alexnet
from alexnet import fused, memory, passes, products, step
from alexnet.augment import (
    Preprocessing,
    add_colour_noise,
    colour_divisor,
    colour_shift,
    flip_where,
    subtract_mean,
)
from alexnet.config import diff
from alexnet.loader import read_batch
from alexnet.opening import open_dataset
from alexnet.optim import paper_sgd_step_reference
from alexnet.recipes import find_recipe

STEPS = 20
FAST = fused.has_kernels("cpu")
needs_kernels = pytest.mark.skipif(not FAST, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALEXNET_KERNELS", raising=False)


# --- Products ----------------------------------------------------------------------------------


def double(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


def check_gradients(fast, plain, tensors, tolerance: float) -> None:
    """Both functions of the tensors, and the gradients of a random sum, against float64."""
    tensors = [t.requires_grad_() for t in tensors]
    exact = double(tensors)
    y, wanted = fast(*tensors), plain(*exact)
    weights = torch.randn_like(wanted)
    y.backward(weights.to(y.dtype))
    wanted.backward(weights.to(y.dtype).double())
    gradients = [(a.grad, b.grad) for a, b in zip(tensors, exact, strict=True)]
    for found, true in [(y, wanted), *gradients]:
        assert (found.double() - true).abs().max() <= tolerance * true.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("fold", [False, True, None])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("channels", "maps", "kernel", "stride", "padding", "groups", "px"),
    [
        (3, 16, 11, 4, 0, 1, 43),
        (3, 16, 11, 4, 2, 1, 31),
        (3, 8, 5, 2, 2, 1, 17),
        (8, 16, 5, 1, 2, 2, 9),
        (16, 8, 3, 1, 1, 1, 7),
    ],
)
def test_a_convolution_and_its_gradients_are_those_of_float64(
    dtype, tolerance, fold, relu, channels, maps, kernel, stride, padding, groups, px
) -> None:
    if fold and groups > 1:
        pytest.skip("only conv1, which is joined, is folded")
    torch.manual_seed(0)
    x = torch.randn(3, channels, px, px).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(maps, channels // groups, kernel, kernel).to(dtype)
    bias = torch.randn(maps).to(dtype)
    geometry = {"stride": stride, "padding": padding, "groups": groups}

    def plain(x, weight, bias):
        y = F.conv2d(x, weight, bias, **geometry)
        return F.relu(y) if relu else y

    def fast(x, weight, bias):
        return products.convolve(x, weight, bias, **geometry, relu=relu, fold=fold)

    check_gradients(fast, plain, [x, weight, bias], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("relu", [False, True])
def test_a_matrix_product_and_its_gradients_are_those_of_float64(dtype, tolerance, relu) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(5, 37).to(dtype), torch.randn(11, 37).to(dtype), torch.randn(11)]
    tensors[2] = tensors[2].to(dtype)

    def plain(x, weight, bias):
        y = F.linear(x, weight, bias)
        return F.relu(y) if relu else y

    check_gradients(lambda x, w, b: products.linear(x, w, b, relu=relu), plain, tensors, tolerance)


@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(12, 24),
    st.integers(12, 24),
)
@settings(max_examples=40, deadline=None)
def test_folding_pixels_into_channels_changes_no_product(stride, kernel, padding, height, width):
    x = torch.randint(-9, 9, (1, 2, height, width)).double()
    weight = torch.randint(-9, 9, (3, 2, kernel, kernel)).double()
    folded = products.fold_pixels(x, weight, stride, padding)
    assert torch.equal(F.conv2d(*folded), F.conv2d(x, weight, None, stride, padding))


def test_a_gradient_that_nobody_needs_is_not_computed() -> None:
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3, requires_grad=True)
    products.convolve(x, weight, None, stride=1, padding=0, groups=1).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_the_model_computes_the_same_with_and_without_the_fast_forms() -> None:
    model = alexnet.build("small", 5, torch.Generator().manual_seed(0)).eval()
    images = torch.randn(2, 3, *2 * [model.network.input_px])
    fast = model(images)
    model.kernels = "plain"
    torch.testing.assert_close(fast, model(images), rtol=1e-4, atol=1e-5)


def test_a_hook_on_a_layer_is_called() -> None:
    model = alexnet.build("small", 5)
    seen = []
    model.conv2.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(torch.randn(2, 3, *2 * [model.network.input_px]))
    assert len(seen) == 1


# --- The two passes ----------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("mean_at", ["crop", "centre"])
@pytest.mark.parametrize("convention", ["none", "paper", "source"])
@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (58.0, 57.0, 57.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_in_one_pass_is_that_of_the_plain_functions(mean_at, convention, std, dtype):
    generator = np.random.default_rng(0)
    crops = torch.from_numpy(generator.integers(0, 256, (5, 13, 13, 3), np.uint8))
    top, left = (torch.from_numpy(generator.integers(0, 4, 5)) for _ in range(2))
    flip = torch.tensor([True, False, True, False, True])
    mean = torch.from_numpy(generator.uniform(0, 255, (16, 16, 3)).astype(np.float32))
    normals, basis = torch.randn(5, 3), torch.randn(3, 3)
    known = Preprocessing(mean, 13, mean_at, std)
    wanted = subtract_mean(flip_where(crops, flip), top, left, flip, known)
    shift, divisor = None, 1.0
    if convention != "none":
        wanted = add_colour_noise(wanted, normals, basis, convention)
        shift, divisor = colour_shift(normals, basis, 0.1), colour_divisor(convention, 0.1)
    border = torch.full_like(top, known.border_px)
    at_crop = mean_at == "crop"
    found = passes.prepare(
        crops,
        top if at_crop else border,
        left if at_crop else border,
        flip,
        mean,
        shift,
        mirror_mean=at_crop,
        input_std=std,
        divisor=divisor,
        out_px=15,
        dtype=dtype,
    )
    assert found.shape == (5, 3, 15, 15)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found[:, :, 13:].any()
    assert not found[..., 13:].any()
    torch.testing.assert_close(found[:, :, :13, :13], wanted.to(dtype), rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 16384, 50001])
def test_the_update_in_one_pass_is_the_equation_of_section_5(grad_dtype, count) -> None:
    torch.manual_seed(0)
    weight, velocity = torch.randn(count), torch.randn(count)
    grad = torch.randn(count).to(grad_dtype)
    copy = torch.zeros(count, dtype=torch.bfloat16)
    exact = [t.double() for t in (weight, grad, velocity)]
    paper_sgd_step_reference(*([t] for t in exact), 0.01, 0.9, 0.0005)
    passes.update(weight, grad, velocity, copy, 0.01, 0.9, 0.0005)
    torch.testing.assert_close(weight.double(), exact[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(velocity.double(), exact[2], rtol=1e-6, atol=1e-6)
    assert torch.equal(copy, weight.to(torch.bfloat16))


# --- Whole trainings ---------------------------------------------------------------------------


def beginning(kernels: str, precision: str, network: str) -> tuple[step.Training, list]:
    """A training on pictures of `shapes`, and its two batches."""
    recipe = diff(
        find_recipe("shapes"),
        network={"name": network, "dropout": "none"},
        optimizer={"batch_size": 24},
        system={"kernels": kernels, "precision": precision, "device": "cpu"},
    )
    dataset = open_dataset(
        "shapes", image_px=recipe.data.image_px, num_train=48, num_val=8, num_classes=8
    )
    training = step.start(recipe, dataset)
    training.model.train()
    return training, [read_batch(dataset.splits["train"], recipe, 0, i) for i in range(2)]


def rates_at(training: step.Training, number: int) -> list[float]:
    """A tenth of the recipe's, and a drop half way, where the paper's rule parts from others.

    At the full rate two trainings part soon by themselves: where two units tie, or one is almost
    zero, rounding decides which way a gradient goes.
    """
    drop = 100 if number >= STEPS // 2 else 10
    return [group["base_lr"] / drop for group in training.optimizer.param_groups]


def trained(kernels: str, precision: str, network: str = "small") -> tuple[list[float], dict]:
    """The losses of 20 steps on fixed pictures, and the weights after them."""
    training, found = beginning(kernels, precision, network)
    losses = []
    for number in range(STEPS):
        rates = rates_at(training, number)
        for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        images, labels = step.network_input(training, found[number % 2])
        losses.append(step.train_step(training, images, labels).item())
    return losses, dict(training.model.named_parameters())


def exactly_trained(network: str = "small") -> tuple[list[float], dict]:
    """The same in float64: plain operations, autograd, and the equation of Section 5."""
    training, found = beginning("plain", "fp32", network)
    model = training.model.double().train()
    weights = [group["params"][0] for group in training.optimizer.param_groups]
    decays = [group["weight_decay"] for group in training.optimizer.param_groups]
    momentum = training.recipe.optimizer.momentum
    velocities = [torch.zeros_like(weight) for weight in weights]
    losses = []
    for number in range(STEPS):
        images, labels = step.network_input(training, found[number % 2])
        loss = F.cross_entropy(model(images.double()), labels)
        grads = torch.autograd.grad(loss, weights)
        losses.append(loss.item())
        with torch.no_grad():
            settings_of = zip(rates_at(training, number), decays, strict=True)
            for (lr, decay), w, g, v in zip(settings_of, weights, grads, velocities, strict=True):
                v.copy_(momentum * v - decay * lr * w - lr * g)
                w.add_(v)
    return losses, dict(model.named_parameters())


def distance(found: dict, true: dict, begun: dict) -> float:
    """How far the weights are from the true ones, in units of the way that those have gone."""
    away = sum(
        float((found[name].detach().double() - true[name].detach()).square().sum()) for name in true
    )
    way = sum(float((true[name].detach() - begun[name]).square().sum()) for name in true)
    return (away / way) ** 0.5


@pytest.fixture(scope="module")
def truth() -> tuple[list[float], dict, dict]:
    model = beginning("plain", "fp32", "small")[0].model
    begun = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    return *exactly_trained(), begun


@pytest.mark.parametrize(
    ("kernels", "precision", "loss_within", "weights_within"),
    [
        ("plain", "fp32", 1e-3, 0.02),
        ("auto", "fp32", 1e-3, 0.02),
        ("plain", "bf16", 0.05, 0.6),
        ("auto", "bf16", 0.05, 0.6),
    ],
)
def test_twenty_steps_are_those_of_float64(
    truth, kernels, precision, loss_within, weights_within
) -> None:
    losses, true, begun = truth
    found, weights = trained(kernels, precision)
    assert np.abs(np.subtract(found, losses)).max() < loss_within
    assert distance(weights, true, begun) < weights_within
    if precision == "fp32":  # before the first tie
        assert np.abs(np.subtract(found, losses))[:5].max() < 5e-6


def test_the_first_losses_of_the_fast_step_are_the_plain_ones_at_the_full_size() -> None:
    torch.manual_seed(0)
    images = 60 * torch.randn(2, 3, 224, 224)
    for name in ("paper", "source"):
        model = alexnet.build(name, 10, torch.Generator().manual_seed(0)).eval()
        fast = model(images)
        model.kernels = "plain"
        torch.testing.assert_close(fast, model(images), rtol=1e-3, atol=1e-4)


# --- Weights and their copies ------------------------------------------------------------------


def test_in_bf16_the_weights_stay_float32_and_their_copies_follow() -> None:
    training, batches = beginning("auto", "bf16", "small")
    before = training.model.get_parameter("fc8.weight").detach().clone()
    step.train_step(training, *step.network_input(training, batches[0]))
    for name, weight in training.model.named_parameters():
        assert weight.dtype == torch.float32
        assert weight.grad is None
        assert torch.equal(training.copies[name], weight.to(torch.bfloat16))
    assert not torch.equal(before, training.model.get_parameter("fc8.weight"))


def test_a_frozen_layer_does_not_move_and_has_no_gradient() -> None:
    training, batches = beginning("auto", "bf16", "small")
    for group in training.optimizer.param_groups:
        if group["layer"] == "conv1":
            group["lr"] = 0.0
            group["params"][0].requires_grad_(False)
    before = training.model.get_parameter("conv1.weight").detach().clone()
    step.train_step(training, *step.network_input(training, batches[0]))
    assert torch.equal(before, training.model.get_parameter("conv1.weight"))
    assert training.copies["conv1.weight"].grad is None
    assert training.copies["conv2.weight"].grad is not None


def test_a_resumed_training_goes_on_with_the_weights_that_were_saved() -> None:
    first, batches = beginning("auto", "bf16", "small")
    step.train_step(first, *step.network_input(first, batches[0]))
    second, _ = beginning("auto", "bf16", "small")
    second.load_state_dict(first.state_dict())
    losses = [
        step.train_step(training, *step.network_input(training, batches[1])).item()
        for training in (first, second)
    ]
    assert losses[0] == losses[1]


def test_memory_is_kept_once_or_the_system_is_no_glibc() -> None:
    assert memory.keep() in (True, False)
    assert memory.keep() == memory.keep()
