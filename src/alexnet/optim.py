"""The paper's stochastic gradient descent (Section 5), with the learning rate inside the velocity.

    v <- momentum * v - weight_decay * lr * w - lr * g
    w <- w + v

This is also what the 2012 source does (weights.cu), which adds two rules: biases have a rate of
their own and no weight decay, and a rate of zero freezes a layer entirely. `torch.optim.SGD` keeps
the rate outside the velocity: at a constant rate the two are the same, after a drop they are not.

Not here: how the rates change during training (schedule.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from alexnet import fused, passes
from alexnet.errors import UserError, suggest

# lr, momentum, weight decay, and the tensors' dtype and device
Bucket = tuple[float, float, float, torch.dtype, torch.device]


def paper_sgd_step_reference(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One update in place, tensor by tensor, in the order of the equation of Section 5.

    Slow and obvious; `PaperSGD.step` must agree with it.
    """
    for w, g, v in zip(weights, grads, velocities, strict=True):
        v.mul_(momentum)
        v.sub_(weight_decay * lr * w)
        v.sub_(lr * g)
        w.add_(v)


class PaperSGD(torch.optim.Optimizer):
    """Momentum SGD of Section 5; the state of a parameter is its `velocity`, in units of weights.

    Args:
        params: parameters, or groups of them with `lr`, `momentum` and `weight_decay` of their own.
        lr: learning rate, zero or more. A group whose rate is zero is frozen: its weights do not
            decay and its velocity neither moves them nor fades (source: weights.cu).
        momentum: share of the velocity that a step keeps, in [0, 1).
        weight_decay: multiplies the rate, as in the paper.

    Parameters without a gradient are left alone. A wrong setting raises `UserError`.

    `copies` holds, for float32 weights that a network computes with in bfloat16, what it computes
    with: their gradients are the weights', and each step writes them anew.
    """

    copies: dict[Tensor, Tensor]

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.copies = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its settings."""
        settings = {**self.defaults, **param_group}
        if not settings["lr"] >= 0:
            raise UserError(f"lr is {settings['lr']}; a learning rate is zero or more")
        if not 0 <= settings["momentum"] < 1:
            raise UserError(f"momentum is {settings['momentum']}; it must be in [0, 1)")
        if not settings["weight_decay"] >= 0:
            raise UserError(f"weight_decay is {settings['weight_decay']}; it must be zero or more")
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """v <- momentum * v - weight_decay * lr * w - lr * g;   w <- w + v   (Section 5)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for (lr, momentum, weight_decay, _, _), weights in self._buckets().items():
            grads = [grad for w in weights if (grad := self._grad(w)) is not None]
            velocities = [self._velocity(w) for w in weights]
            copies = [self.copies.get(w) for w in weights]
            _update(weights, grads, velocities, copies, lr, momentum, weight_decay)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for copy in self.copies.values():
            copy.grad = None

    @torch.no_grad()
    def use_copies(self, copies: Mapping[Tensor, Tensor]) -> None:
        """Compute with these bfloat16 copies {weight: copy} from now on; they are written here."""
        self.copies = dict(copies)
        self.write_copies()

    @torch.no_grad()
    def write_copies(self) -> None:
        """Make the copies equal to the weights, which somebody else has changed."""
        for weight, copy in self.copies.items():
            copy.copy_(weight)

    def _grad(self, weight: Tensor) -> Tensor | None:
        return self.copies[weight].grad if weight in self.copies else weight.grad

    def _buckets(self) -> dict[Bucket, list[Tensor]]:
        """Parameters to move, together where one kernel can update them together."""
        buckets: dict[Bucket, list[Tensor]] = {}
        for group in self.param_groups:
            for w in group["params"]:
                if group["lr"] != 0 and self._grad(w) is not None:
                    settings = (group["lr"], group["momentum"], group["weight_decay"])
                    buckets.setdefault((*settings, w.dtype, w.device), []).append(w)
        return buckets

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        velocity: Tensor = state["velocity"]
        return velocity


def _update(
    weights: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    copies: list[Tensor | None],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """`paper_sgd_step_reference` in one pass over memory where that is possible, else in four."""
    if any(copy is not None for copy in copies):
        for tensors in zip(weights, grads, velocities, copies, strict=True):
            _update_with_copy(*tensors, lr, momentum, weight_decay)
        return
    # The kernel takes no velocities without momentum.
    if momentum > 0 and all(map(_is_fusable, weights, grads, velocities)):
        # torch's kernel computes v <- momentum*v + (1 - dampening)*(g + weight_decay*w) and
        # w <- w - rate*v. With 1 - dampening = -lr and rate = -1 that is our equation. Forming
        # 1 - dampening costs 1e-16, absolute: nothing in float32, too much in float64.
        torch._fused_sgd_(
            weights,
            grads,
            velocities,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=-1.0,
            dampening=1.0 + lr,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        return
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, weights, alpha=-weight_decay * lr)
    torch._foreach_add_(velocities, grads, alpha=-lr)
    torch._foreach_add_(weights, velocities)


def _update_with_copy(
    weight: Tensor,
    grad: Tensor,
    velocity: Tensor,
    copy: Tensor | None,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One weight by its bfloat16 gradient; the copy follows."""
    if grad.stride() != weight.stride():
        grad = torch.empty_like(weight, dtype=grad.dtype).copy_(grad)
    fits = copy is not None and weight.stride() == velocity.stride() == copy.stride()
    if fits and weight.device.type == "cpu" and fused.has_kernels("cpu"):
        passes.update(weight, grad, velocity, copy, lr, momentum, weight_decay)
        return
    _update([weight], [grad.to(weight.dtype)], [velocity], [None], lr, momentum, weight_decay)
    if copy is not None:
        copy.copy_(weight)


def _is_fusable(weight: Tensor, grad: Tensor, velocity: Tensor) -> bool:
    # The kernel walks over memory and does not look at strides, so they must agree. The velocity's
    # are those of `zeros_like`, which leaves no gaps.
    return (
        weight.dtype == grad.dtype == velocity.dtype == torch.float32
        and weight.device.type in ("cpu", "cuda")
        and weight.stride() == grad.stride() == velocity.stride()
    )


def parameter_groups(
    model: nn.Module,
    lr: float = 0.01,
    bias_lr: float = 0.02,
    weight_decay: float = 0.0005,
    bias_decay: float = 0.0,
    layer_weight_decay: Mapping[str, float] | None = None,
    layer_lr: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for `PaperSGD`, one for the weights and one for the biases of each layer.

    Args:
        model: its parameters are called `<layer>.weight` and `<layer>.bias`.
        lr, weight_decay: of the weights.
        bias_lr, bias_decay: of the biases. The defaults are the source's: twice the rate of the
            weights, no decay.
        layer_weight_decay: decay of the weights of the layers whose name begins with a key,
            e.g. `{"conv": 0.004, "fc": 0.03}`; the longest key that fits decides.
        layer_lr: factor of both rates of such layers; 0 freezes them.

    Returns:
        Groups in the order of the model, with the keys `params`, `lr`, `weight_decay`, and for
        schedules and logs `layer` ("conv1"), `kind` ("weight" or "bias") and `base_lr`.

    Raises:
        UserError: a key of `layer_weight_decay` or `layer_lr` fits no layer, or all are frozen.
    """
    overrides, factors = dict(layer_weight_decay or {}), dict(layer_lr or {})
    parameters = dict(model.named_parameters())
    layers = {name.rpartition(".")[0] for name in parameters}
    _check_keys("weight decay", overrides, layers)
    _check_keys("a rate", factors, layers)
    if all(_longest_fit(layer, factors, 1.0) == 0 for layer in layers):
        raise UserError("every layer is frozen: nothing would be learned")
    groups: list[dict[str, Any]] = []
    for name, parameter in parameters.items():
        layer, _, kind = name.rpartition(".")
        assert kind in ("weight", "bias"), f"{name} is neither a weight nor a bias"
        is_bias = kind == "bias"
        rate = (bias_lr if is_bias else lr) * _longest_fit(layer, factors, 1.0)
        decay = bias_decay if is_bias else _longest_fit(layer, overrides, weight_decay)
        group = {"params": [parameter], "lr": rate, "weight_decay": decay}
        groups.append(group | {"layer": layer, "kind": kind, "base_lr": rate})
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    return groups


def _check_keys(what: str, overrides: Mapping[str, float], layers: Iterable[str]) -> None:
    layers = sorted(layers)
    for key in overrides:
        if not any(layer.startswith(key) for layer in layers):
            raise UserError(f"{what} is set for {key!r}, but no layer{suggest(key, layers)}")


def _longest_fit(layer: str, overrides: Mapping[str, float], default: float) -> float:
    fitting = [key for key in overrides if layer.startswith(key)]
    return overrides[max(fitting, key=len)] if fitting else default
