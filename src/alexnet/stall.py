"""What a training that does not learn looks like from inside, and what helps.

The paper says nothing of this. Its recipe is known for runs whose loss stays at ln(classes), and
whoever met one was left alone with it. `StallDetector` watches the loss, `layer_scales` measures
each layer on one batch, `explain` puts both into plain words.

Not here: any change of the recipe. The detector reports; people decide.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- What each layer looks like -----------------------------------------------------------------


@dataclass(frozen=True)
class LayerScales:
    """One layer on one batch. A unit is a map of a convolution, or a fully connected neuron.

    Activations are taken right after the nonlinearity; the last layer's are the logits.
    """

    name: str
    input_rms: float  # of what the layer reads: after norms, pools and dropout
    activation_std: float
    activation_mean_abs: float
    picture_spread: float  # 0: the same answer to every picture; 1: nothing in common
    dead_share: float  # of the units, those that are zero for every picture, everywhere
    gradient_norm: float  # of the mean loss by the weights
    weight_norm: float

    @property
    def activation_rms(self) -> float:
        """Exact where no activation is negative, as after a ReLU; otherwise an upper bound."""
        return math.hypot(self.activation_std, self.activation_mean_abs)

    @property
    def relative_gradient(self) -> float:
        return self.gradient_norm / self.weight_norm if self.weight_norm > 0 else 0.0


class Inspectable(Protocol):
    """A model that gives each layer's activations: name -> (B, C, H, W) or (B, N), in order."""

    def activations(self, images: Tensor) -> dict[str, Tensor]: ...


def layer_scales(model: nn.Module, images: Tensor, labels: Tensor) -> list[LayerScales]:
    """Measure every layer with one forward and one backward pass, in the weights' precision.

    The model runs in the mode that it is in: in training mode with one draw of dropout masks. Its
    weights and their gradients, its mode and all random generators are left as they were.

    Args:
        model: `Inspectable`; the names of its activations are those of submodules with a weight.
        images: (B, 3, H, W) with at least two pictures, as `forward` takes them.
        labels: (B,) int64.
    """
    assert len(images) > 1, "the spread between pictures takes two of them"
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(_unchanged_randomness(model, images.device))
        stack.enter_context(_recorded_inputs(model, inputs))
        stack.enter_context(torch.autocast(images.device.type, enabled=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_frozen_layers_thawed(model))
        dtype = next(model.parameters()).dtype
        activations = cast(Inspectable, model).activations(images.to(dtype))
        weights = {name: model.get_parameter(f"{name}.weight") for name in activations}
        loss = F.cross_entropy(next(reversed(activations.values())), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
    return [
        _measure(name, inputs[name], activations[name].detach(), gradient, weight.detach())
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    ]


def _measure(name: str, x: Tensor, y: Tensor, gradient: Tensor, weight: Tensor) -> LayerScales:
    rms = y.square().mean().sqrt().item()
    between_pictures = y.var(dim=0, correction=0).mean().sqrt().item()
    units = y.transpose(0, 1).flatten(1)  # (C, B * H * W) or (N, B)
    return LayerScales(
        name=name,
        input_rms=x.square().mean().sqrt().item(),
        activation_std=y.std(correction=0).item(),
        activation_mean_abs=y.abs().mean().item(),
        picture_spread=between_pictures / rms if rms != 0 else 0.0,
        dead_share=(units == 0).all(dim=1).float().mean().item(),
        gradient_norm=gradient.norm().item(),
        weight_norm=weight.norm().item(),
    )


@contextmanager
def _recorded_inputs(model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0].detach()

        return record

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen_layers_thawed(model: nn.Module) -> Iterator[None]:
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _unchanged_randomness(model: nn.Module, device: torch.device) -> Iterator[None]:
    values = [value for module in model.modules() for value in vars(module).values()]
    states = [(value, value.get_state()) for value in values if isinstance(value, torch.Generator)]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def scales_table(scales: Sequence[LayerScales]) -> str:
    """Return the measurements as a table in plain text, one line per layer."""
    lines = ["layer    input rms   act. std  mean |act.|  spread  dead   gradient    weights"]
    for s in scales:
        lines.append(
            f"{s.name:<8}{s.input_rms:>10.3g} {s.activation_std:>10.3g} "
            f"{s.activation_mean_abs:>12.3g} {s.picture_spread:>7.3f} {s.dead_share:>5.0%} "
            f"{s.gradient_norm:>10.3g} {s.weight_norm:>10.3g}"
        )
    return "\n".join(lines)


# --- When a run does not learn ------------------------------------------------------------------

Kind = Literal["flat", "high", "dead", "non-finite"]

# A layer with so few units alive passes next to nothing on, in either direction.
DEAD_LAYER_SHARE = 0.9


@dataclass(frozen=True)
class Stall:
    """One finding of the detector; losses are in nats."""

    kind: Kind
    step: int
    loss: float  # smoothed, but as it came if it is not finite
    chance_loss: float  # of somebody who knows the shares of the classes and no picture
    highest_loss: float
    reason: str  # one line


class StallDetector:
    """Notices that a run does not learn; each kind of finding is returned once.

    - `non-finite`: a loss is infinite or not a number. At once.
    - `flat`: for `after_steps` steps the smoothed loss has been no lower than the loss of guessing
      less `margin` of it, and is within `margin` of it now.
    - `high`: the same, but the smoothed loss is above that band now.
    - `dead`: a layer has `DEAD_LAYER_SHARE` of its units, or more, at zero for every picture.

    The loss of guessing is ln(num_classes), or the entropy of the labels where `label_counts`, the
    images of each class, are given: a net that only learns that the classes are unequal gets there.
    The average forgets with a time constant of a tenth of `after_steps`. Losses enter it cut off at
    twice the loss of guessing, so that one spike does not outlast what follows.
    """

    def __init__(
        self,
        num_classes: int,
        after_steps: int = 1000,
        margin: float = 0.01,
        label_counts: Sequence[int] = (),
    ) -> None:
        self.chance_loss = entropy(label_counts) if label_counts else math.log(num_classes)
        self.after_steps = after_steps
        self.margin = margin
        self.smoothed_loss = 0.0
        self.highest_loss = 0.0
        self.last_step = 0
        self.last_low_step = 0
        self.found: list[str] = []

    def observe(self, step: int, loss: float) -> Stall | None:
        """Take note of the loss of one step (from 1, rising; gaps are allowed)."""
        if not math.isfinite(loss):
            return self._find("non-finite", step, loss, f"the loss is {loss} at step {step}")
        self.highest_loss = max(self.highest_loss, loss)
        self._smooth(step, loss)
        low, high = ((1 + sign * self.margin) * self.chance_loss for sign in (-1, 1))
        if self.smoothed_loss < low:
            self.last_low_step = step
        steps = step - self.last_low_step
        if steps < self.after_steps:
            return None
        kind: Kind = "high" if self.smoothed_loss > high else "flat"
        reason = (
            f"the loss is {self.smoothed_loss:.3f}; for {steps} steps it has been no lower than "
            f"{low:.3f}, and mere guessing costs {self.chance_loss:.3f}"
        )
        return self._find(kind, step, self.smoothed_loss, reason)

    def observe_layers(self, step: int, scales: Sequence[LayerScales]) -> Stall | None:
        """Take note of a measurement by `layer_scales`."""
        dead = [layer for layer in scales if layer.dead_share >= DEAD_LAYER_SHARE]
        if not dead:
            return None
        shares = ", ".join(f"{layer.dead_share:.0%} of {layer.name}" for layer in dead)
        reason = f"units that are zero for every picture: {shares}"
        return self._find("dead", step, self.smoothed_loss, reason)

    def state_dict(self) -> dict[str, Any]:
        """Return what the detector remembers, as plain numbers and words."""
        return {
            "smoothed_loss": self.smoothed_loss,
            "highest_loss": self.highest_loss,
            "last_step": self.last_step,
            "last_low_step": self.last_low_step,
            "found": list(self.found),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        assert state.keys() == self.state_dict().keys()
        for name, value in state.items():
            setattr(self, name, list(value) if name == "found" else value)

    def _smooth(self, step: int, loss: float) -> None:
        loss = min(loss, 2 * self.chance_loss)
        if self.last_step == 0:
            self.smoothed_loss, self.last_low_step = loss, step - 1
        keep = math.exp(-10 * (step - self.last_step) / self.after_steps)
        self.smoothed_loss = keep * self.smoothed_loss + (1 - keep) * loss
        self.last_step = step

    def _find(self, kind: Kind, step: int, loss: float, reason: str) -> Stall | None:
        if kind in self.found:
            return None
        self.found.append(kind)
        return Stall(kind, step, loss, self.chance_loss, self.highest_loss, reason)


def entropy(counts: Sequence[int]) -> float:
    """Return the entropy in nats of the shares of `counts`: ln(n) if all n are equal."""
    total = sum(counts)
    return -sum(n / total * math.log(n / total) for n in counts if n > 0)


# --- What it means ------------------------------------------------------------------------------
#
# Each rule looks for one kind of evidence and returns what is seen and means, and what helps. The
# thresholds lie well away from what `paper` and `source` show with fresh weights.

Advice = tuple[str, str]


def explain(stall: Stall, scales: Sequence[LayerScales]) -> str:
    """Say in plain words what is seen, what it means and what helps; several lines of text.

    `scales` are the layers in order, from `layer_scales` on a training batch; the last one gives
    the logits. Advice is given only where the measurements call for it; what they cannot show
    (wrong labels, a rate that is too low) comes last.
    """
    advice = [found for rule in RULES if (found := rule(stall, scales))]
    lines = [f"Step {stall.step}: {stall.reason}."]
    for seen, helps in advice:
        lines += [f"- {seen}", f"  What helps: {helps}"]
    if stall.kind in ("flat", "high"):
        start = (
            "Not to be seen here:" if advice else "Signals and gradients reach every layer. Then"
        )
        lines.append(
            f"- {start} labels that do not belong to their pictures (look at some), a learning "
            "rate that is too low or too high (try a third and three times), or too few steps: "
            "with 1000 classes some thousand steps at chance are normal."
        )
    lines.append("The recipe was not changed.")
    return "\n".join(lines)


def _not_finite(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    if stall.kind != "non-finite":
        return None
    helps = "go back to the last good checkpoint with a lower learning rate, or in full precision."
    for s in scales:
        if not math.isfinite(s.input_rms):
            seen = f"What {s.name} reads is not finite, and no layer before it is at fault."
            return seen, "check the data set (`alexnet check`) and its mean image."
        if not math.isfinite(s.weight_norm):
            return f"The weights of {s.name} are no longer finite.", helps
        if not math.isfinite(s.activation_std):
            return f"The weights of {s.name} are finite, its activations are not.", helps
    if not all(math.isfinite(s.gradient_norm) for s in scales):
        return "All activations are finite, the gradients are not.", helps
    return "On this batch all is finite: one step or one picture was at fault.", helps


def _input_scale(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    rms = scales[0].input_rms if scales else 1.0
    if rms < 0.5:
        seen = (
            f"The pictures reach the net with an rms of {rms:.2g}: pixels in 0..1, or no picture."
        )
    elif rms > 100:
        seen = f"The pictures reach the net with an rms of {rms:.3g}: their mean is not subtracted."
    else:
        return None
    return seen, "feed pixels on the 0..255 scale less the mean image; their rms is near 60."


def _dead_units(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    dead = [f"{s.dead_share:.0%} of {s.name}" for s in scales if s.dead_share > 0.5]
    if not dead:
        return None
    seen = (
        f"Units that are zero for every picture: {', '.join(dead)}. A dead ReLU gets no gradient "
        "and stays dead; steps that were too long for the weights usually killed it."
    )
    helps = (
        "start again with a lower learning rate, smaller first weights, or the paper's biases "
        "of 1; dead units do not recover."
    )
    return seen, helps


def _doubled_dropout(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    # Between fully connected layers nothing but dropout can change the scale. Plain dropout at a
    # half divides the rms by sqrt(2), inverted dropout multiplies it by as much.
    for before, after in pairwise(scales):
        between_full = before.name.startswith("fc") and after.name.startswith("fc")
        if between_full and after.input_rms > 1.2 * before.activation_rms > 0:
            seen = (
                f"{after.name} reads {after.input_rms / before.activation_rms:.2f} times what "
                f"{before.name} gives: dropout is inverted and enlarges the units that it keeps. "
                "The paper's rates and first weights are too large for that."
            )
            helps = (
                "the paper's dropout, a plain mask in training and x0.5 at test, or the smaller "
                "first weights and biases of `caffe`."
            )
            return seen, helps
    return None


def _wild_start(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    if not stall.highest_loss > 2 * stall.chance_loss:
        return None
    seen = (
        f"The loss once was {stall.highest_loss:.3g}, far above the {stall.chance_loss:.2f} of "
        "guessing: steps as large as those gradients ruin first weights."
    )
    return seen, "smaller first weights in the last layers, or a lower learning rate."


def _large_scores(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    if not scales or not scales[-1].activation_std > 1.5:
        return None
    last = scales[-1]
    seen = (
        f"The scores of {last.name} vary by {last.activation_std:.1f}: while they are guesses, "
        f"that alone costs some {last.activation_std**2 / 2:.1f} nats."
    )
    helps = "smaller first weights in the fully connected layers, and a lower learning rate."
    return seen, helps


def _equal_scores(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    if not scales or not scales[-1].activation_std < 0.01:
        return None
    seen = f"All scores of {scales[-1].name} are nearly equal, whatever the picture and the class."
    helps = "larger first weights or a higher learning rate; less weight decay."
    return seen, helps


def _same_answer(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    blind = next((s for s in scales[:-1] if s.picture_spread < 0.005), None)
    if blind is None:
        return None
    seen = (
        f"From {blind.name} on the net answers the same to every picture: pictures make up "
        f"{blind.picture_spread:.2%} of its activations, the rest comes from biases."
    )
    helps = (
        "larger first weights before it (the 2012 source has a std of 0.03 instead of 0.01 in "
        "conv3 to conv5), or smaller biases."
    )
    return seen, helps


def _vanishing_gradients(stall: Stall, scales: Sequence[LayerScales]) -> Advice | None:
    reference = scales[-1].relative_gradient if scales else 0.0
    faint = [s.name for s in scales[:-1] if s.relative_gradient < 1e-3 * reference]
    if not faint:
        return None
    seen = (
        f"Next to its weights, the gradient in {', '.join(faint)} is less than a thousandth of "
        f"that in {scales[-1].name}: the error does not arrive there."
    )
    helps = "larger first weights in the layers in between, and pixels on the 0..255 scale."
    return seen, helps


RULES = (
    _not_finite,
    _input_scale,
    _doubled_dropout,
    _dead_units,
    _wild_start,
    _large_scores,
    _equal_scores,
    _same_answer,
    _vanishing_gradients,
)
