"""The stall detector on made-up losses, and its measurements and advice on small networks."""

import io
import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from alexnet.layers import dropout
from alexnet.model import build
from alexnet.networks import find_network, with_dropout
from alexnet.stall import (
    LayerScales,
    Stall,
    StallDetector,
    entropy,
    explain,
    layer_scales,
    scales_table,
)

LN10 = math.log(10)


class TinyNet(nn.Module):
    """Two convolutions and three full layers with dropout, for 8-pixel pictures, 4 classes."""

    def __init__(self, *, inverted: bool = False) -> None:
        super().__init__()
        self.inverted = inverted
        self.dropout_generator = torch.Generator().manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3, stride=2)
        self.fc6, self.fc7, self.fc8 = nn.Linear(90, 64), nn.Linear(64, 64), nn.Linear(64, 4)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for layer, std in zip(self.children(), (0.02, 0.15, 0.1, 0.15, 0.04), strict=True):
                layer.weight.normal_(0.0, std, generator=generator)
                layer.bias.zero_()

    def activations(self, images: Tensor) -> dict[str, Tensor]:
        conv1 = F.relu(self.conv1(images))
        conv2 = F.relu(self.conv2(conv1))
        fc6 = F.relu(self.fc6(conv2.flatten(1)))
        fc7 = F.relu(self.fc7(self.drop(fc6)))
        fc8 = self.fc8(self.drop(fc7))
        return {"conv1": conv1, "conv2": conv2, "fc6": fc6, "fc7": fc7, "fc8": fc8}

    def drop(self, x: Tensor) -> Tensor:
        generator = self.dropout_generator
        return dropout(x, 0.5, inverted=self.inverted, training=self.training, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        return self.activations(images)["fc8"]


def batch(count: int = 24, rms: float = 60.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = rms * torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.arange(count) % 4


def measured(model: nn.Module, images: Tensor | None = None) -> list[LayerScales]:
    pictures, labels = batch()
    return layer_scales(model, pictures if images is None else images, labels)


def flat_stall(highest_loss: float = 2.5) -> Stall:
    return Stall("flat", 500, LN10, LN10, highest_loss, "the loss is 2.303")


def advice(model: nn.Module, images: Tensor | None = None) -> str:
    return explain(flat_stall(), measured(model, images))


# The detector


def first_finding(losses: list[float], **settings: float) -> Stall | None:
    detector = StallDetector(10, **settings)
    found = (detector.observe(step, loss) for step, loss in enumerate(losses, start=1))
    return next((stall for stall in found if stall), None)


def noisy(level: float, count: int, noise: float = 0.03) -> list[float]:
    return list(np.random.default_rng(0).normal(level, noise, count))


def test_a_loss_that_stays_at_chance_is_found_after_the_given_number_of_steps():
    stall = first_finding(noisy(LN10, 300), after_steps=200)
    assert stall is not None
    assert (stall.kind, stall.step) == ("flat", 200)
    assert stall.chance_loss == LN10
    assert abs(stall.loss - LN10) < 0.01 * LN10
    assert "2.3" in stall.reason
    assert "200 steps" in stall.reason
    assert first_finding(noisy(LN10, 199), after_steps=200) is None


def test_a_loss_just_below_the_margin_is_no_stall_and_just_inside_is():
    assert first_finding([0.989 * LN10] * 400, after_steps=200) is None
    assert first_finding([0.991 * LN10] * 400, after_steps=200) is not None
    assert first_finding([0.991 * LN10] * 400, after_steps=200, margin=0.005) is None


def test_a_loss_that_falls_is_no_stall():
    # The `source` network on Imagenette: 2.12, 1.94, 1.56 and 1.36 at steps 50, 100, 200 and 260.
    curve = np.interp(np.arange(260), [0, 50, 100, 200, 260], [2.4, 2.12, 1.94, 1.56, 1.36])
    assert first_finding(list(curve), after_steps=50) is None


def test_a_loss_that_stays_above_chance_is_found_as_high():
    stall = first_finding(noisy(3.0, 300), after_steps=200)
    assert stall is not None
    assert (stall.kind, stall.step) == ("high", 200)


def test_a_run_that_fell_back_to_chance_is_found_from_where_it_did():
    detector = StallDetector(10, after_steps=100)
    losses = [1.5] * 300 + [LN10] * 300
    findings = [detector.observe(step, loss) for step, loss in enumerate(losses, start=1)]
    steps = [stall.step for stall in findings if stall]
    assert len(steps) == 1, steps
    assert 400 < steps[0] < 500


def test_one_spike_does_not_hide_that_a_run_learns():
    losses = [1.8] * 100 + [1e6] + [1.8] * 400
    assert first_finding(losses, after_steps=100) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_found_at_once(loss):
    stall = first_finding([2.0, loss])
    assert stall is not None
    assert (stall.kind, stall.step) == ("non-finite", 2)
    assert stall.highest_loss == 2.0


def test_each_kind_is_found_once():
    detector = StallDetector(10, after_steps=50)
    losses = [3.0] * 200 + [LN10] * 200 + [math.nan] * 3
    findings = [detector.observe(step, loss) for step, loss in enumerate(losses, start=1)]
    assert [stall.kind for stall in findings if stall] == ["high", "flat", "non-finite"]


def test_a_run_that_starts_at_a_late_step_is_given_its_time():
    detector = StallDetector(10, after_steps=50)
    assert [bool(detector.observe(step, LN10)) for step in (5000, 5048, 5049)] == [0, 0, 1]


def test_losses_may_be_reported_every_tenth_step():
    detector = StallDetector(10, after_steps=200)
    findings = [detector.observe(step, LN10) for step in range(10, 400, 10)]
    assert [stall.step for stall in findings if stall] == [210]


def test_unequal_classes_are_guessed_at_the_entropy_of_the_labels():
    counts = [900, 50, 50]
    guess = -(0.9 * math.log(0.9) + 0.1 * math.log(0.05))
    assert guess < 0.4 < math.log(3)
    assert entropy(counts) == pytest.approx(guess)
    assert entropy([7] * 10) == pytest.approx(LN10)
    assert entropy([3, 0]) == 0
    for label_counts, found in ((counts, True), ((), False)):
        detector = StallDetector(3, after_steps=20, label_counts=label_counts)
        assert any(detector.observe(step, guess) for step in range(1, 50)) == found


@given(
    losses=st.lists(st.sampled_from([1.5, 2.29, LN10, 2.4, 5.0, math.nan]), max_size=60),
    cut=st.integers(0, 60),
)
def test_a_saved_detector_continues_as_if_never_interrupted(losses, cut):
    whole, first, second = (StallDetector(10, after_steps=10) for _ in range(3))
    expected = [whole.observe(step, loss) for step, loss in enumerate(losses, start=1)]
    found = [first.observe(step, loss) for step, loss in enumerate(losses[:cut], start=1)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.observe(step, loss) for step, loss in enumerate(losses[cut:], start=cut + 1)]
    assert repr(found) == repr(expected)  # nan is not equal to itself


def test_a_dead_layer_is_found_once():
    healthy = measured(TinyNet())
    dead = [replace(s, dead_share=0.95 if s.name == "fc7" else s.dead_share) for s in healthy]
    detector = StallDetector(4)
    assert detector.observe_layers(1, healthy) is None
    stall = detector.observe_layers(2, dead)
    assert stall is not None
    assert (stall.kind, stall.step) == ("dead", 2)
    assert "95% of fc7" in stall.reason
    assert detector.observe_layers(3, dead) is None


# Measurements


@pytest.mark.parametrize("training", [True, False])
def test_the_scales_are_those_of_a_plain_numpy_computation(training):
    model, (images, labels) = TinyNet().train(training), batch()
    with torch.no_grad():
        model.conv2.bias[:4] = -1e6
    state = model.dropout_generator.get_state()
    scales = {s.name: s for s in layer_scales(model, images, labels)}
    model.dropout_generator.set_state(state)
    outputs = model.activations(images)
    F.cross_entropy(outputs["fc8"], labels).backward()
    assert list(scales) == list(outputs)
    for name, output in outputs.items():
        y = output.detach().double().numpy()
        units = [y[:, c] for c in range(y.shape[1])]
        weight = model.get_parameter(f"{name}.weight")
        between = np.sqrt(np.mean([np.var(column) for column in y.reshape(len(y), -1).T]))
        expected = {
            "activation_std": np.sqrt(np.mean((y - y.mean()) ** 2)),
            "activation_mean_abs": np.mean(np.abs(y)),
            "picture_spread": between / np.sqrt(np.mean(y**2)),
            "dead_share": sum(not unit.any() for unit in units) / len(units),
            "gradient_norm": np.sqrt(np.sum(weight.grad.double().numpy() ** 2)),
            "weight_norm": np.sqrt(np.sum(weight.detach().double().numpy() ** 2)),
        }
        actual = {key: getattr(scales[name], key) for key in expected}
        assert actual == pytest.approx(expected, rel=1e-4), name
    assert scales["conv2"].dead_share == pytest.approx(0.4)
    assert scales["conv1"].input_rms == pytest.approx(images.double().square().mean().sqrt())
    kept = math.sqrt(0.5) if training else 0.5
    assert scales["fc7"].input_rms == pytest.approx(kept * scales["fc6"].activation_rms, rel=0.1)


def test_measuring_leaves_the_model_as_it_was():
    model, (images, labels) = TinyNet(), batch()
    F.cross_entropy(model(images), labels).backward()
    model.fc6.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    own, everyones = model.dropout_generator.get_state(), torch.get_rng_state()
    first = layer_scales(model, images, labels)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.dropout_generator.get_state(), own)
    assert torch.equal(torch.get_rng_state(), everyones)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert layer_scales(model, images, labels) == first


def test_measuring_leaves_pytorchs_own_generator_alone():
    model, (images, labels) = TinyNet(), batch()
    model.dropout_generator = None
    before = torch.get_rng_state()
    layer_scales(model, images, labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_frozen_layer_is_measured_and_stays_frozen():
    model, (images, labels) = TinyNet(), batch()
    expected = layer_scales(model, images, labels)
    model.conv1.requires_grad_(False)
    assert layer_scales(model, images, labels) == expected
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["conv1.weight", "conv1.bias"]


def test_it_measures_under_no_grad_and_in_full_precision_under_autocast():
    model, (images, labels) = TinyNet(), batch()
    expected = layer_scales(model, images, labels)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer_scales(model, images, labels) == expected


def test_scales_are_plain_numbers_and_make_a_table():
    scales = measured(TinyNet())
    file = io.StringIO()
    json.dump([asdict(s) for s in scales], file)
    lines = scales_table(scales).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "conv1", "conv2", "fc6", "fc7", "fc8"]
    assert len({len(line) for line in lines}) == 1, lines
    assert f"{scales[0].gradient_norm:.3g}" in lines[1]


# Advice: each case is one change of a network that gives no cause for any

EVIDENCE = {
    "pixels in 0..1": "rms of",
    "mean": "mean is not subtracted",
    "inverted": "dropout is inverted",
    "dead": "zero for every picture",
    "wild": "The loss once was",
    "large scores": "vary by",
    "equal scores": "nearly equal",
    "same answer": "the same to every picture",
    "vanishing": "the error does not arrive",
}


def found(text: str) -> set[str]:
    return {name for name, phrase in EVIDENCE.items() if phrase in text}


def test_a_healthy_network_gives_no_cause_for_advice_but_labels_rate_and_patience():
    text = advice(TinyNet())
    assert found(text) == set(), text
    assert "Signals and gradients reach every layer" in text
    assert "labels that do not belong" in text
    assert "learning rate" in text
    assert text.startswith("Step 500: the loss is 2.303.")
    assert text.endswith("The recipe was not changed.")


def test_inverted_dropout_is_seen_in_training():
    text = advice(TinyNet(inverted=True))
    assert found(text) == {"inverted"}, text
    ratio = re.search(r"fc7 reads (\S+) times what fc6 gives", text)
    assert ratio
    assert float(ratio[1]) == pytest.approx(math.sqrt(2), rel=0.1)
    assert "x0.5 at test" in text
    assert "Not to be seen here: labels" in text
    assert "inverted" not in found(advice(TinyNet(inverted=True).eval()))


@pytest.mark.parametrize("dropout_convention", ["plain", "inverted"])
def test_the_small_network_with_fresh_weights_gives_cause_only_if_its_dropout_is_inverted(
    dropout_convention,
):
    network = with_dropout(find_network("small"), dropout_convention)
    model = build(network, num_classes=4, generator=torch.Generator().manual_seed(0))
    coarse = 60 * torch.randn(24, 3, 7, 7, generator=torch.Generator().manual_seed(4))
    text = advice(model, F.interpolate(coarse, size=56, mode="bilinear"))
    assert ("inverted" in found(text)) == (dropout_convention == "inverted"), text
    assert dropout_convention == "inverted" or found(text) == set(), text


@torch.no_grad()
def test_dead_units_are_named_with_their_share():
    model = TinyNet()
    model.conv2.bias[:6] = -1e6
    text = advice(model)
    assert "dead" in found(text)
    assert "60% of conv2" in text
    assert "of fc6" not in text
    model.conv2.bias[5] = 0.0  # half of them: not yet worth a word
    assert "dead" not in found(advice(model))


@torch.no_grad()
def test_gradients_that_do_not_arrive_are_named():
    model = TinyNet()
    model.fc6.weight *= 1e-4
    model.fc6.bias.normal_(0, 1, generator=torch.Generator().manual_seed(3))
    text = advice(model)
    assert "vanishing" in found(text), text
    assert "the gradient in conv2 is" in text
    assert "larger first weights" in text


@torch.no_grad()
def test_a_network_that_answers_the_same_to_every_picture_is_recognised():
    model = TinyNet()
    model.conv2.weight *= 1e-4
    model.conv2.bias.fill_(1.0)
    text = advice(model)
    assert "same answer" in found(text), text
    assert "From conv2 on" in text


@torch.no_grad()
def test_scores_that_are_all_equal_are_recognised():
    model = TinyNet()
    model.fc8.weight *= 1e-4
    # The same weights carry the error back: neither arrives.
    assert found(advice(model)) == {"equal scores", "vanishing"}


@torch.no_grad()
def test_scores_that_are_too_large_are_recognised():
    model = TinyNet()
    model.fc8.weight *= 10
    assert found(advice(model)) == {"large scores"}


def test_a_loss_that_once_was_wild_is_recalled():
    text = explain(flat_stall(highest_loss=9.1), measured(TinyNet()))
    assert found(text) == {"wild"}
    assert "9.1" in text
    assert "wild" not in found(explain(flat_stall(highest_loss=4.5), measured(TinyNet())))


def test_pictures_of_the_wrong_scale_are_recognised():
    images, _ = batch()
    assert "pixels in 0..1" in found(advice(TinyNet(), images / 255))
    raw = (images + 117).clamp(0, 255)
    assert "mean" in found(advice(TinyNet(), raw))
    assert "0..255" in advice(TinyNet(), raw)


def non_finite_advice(model: nn.Module, images: Tensor) -> str:
    stall = Stall("non-finite", 7, math.nan, LN10, 2.5, "the loss is nan at step 7")
    return explain(stall, measured(model, images))


@torch.no_grad()
def test_a_loss_that_is_not_finite_is_traced_to_where_it_begins():
    images, _ = batch()
    assert "On this batch all is finite" in non_finite_advice(TinyNet(), images)
    model = TinyNet()
    model.fc6.weight[0, 0] = math.nan
    text = non_finite_advice(model, images)
    assert "The weights of fc6" in text
    assert "lower learning rate" in text
    assert "labels" not in text
    assert found(text) == set(), text
    model = TinyNet()
    model.conv2.bias[0] = math.inf
    assert "The weights of conv2 are finite, its activations are not" in non_finite_advice(
        model, images
    )
    images[3, 0, 0, 0] = math.nan
    text = non_finite_advice(TinyNet(), images)
    assert "What conv1 reads is not finite" in text
    assert "check the data" in text


def test_a_run_that_is_killed_by_its_rate_is_found_and_explained_from_end_to_end():
    images, labels = batch(64)
    learns, dies = TinyNet(), TinyNet()
    findings = {}
    for name, model, lr in (("learns", learns, 0.01), ("dies", dies, 1.0)):
        detector = StallDetector(4, after_steps=60)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        for step in range(1, 121):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            stall = detector.observe(step, loss.item())
            if stall:
                findings[name] = (stall, explain(stall, layer_scales(model, images, labels)))
                break
    assert set(findings) == {"dies"}
    stall, text = findings["dies"]
    assert (stall.kind, stall.step) == ("flat", 60)
    assert {"wild", "dead"} <= found(text), text
