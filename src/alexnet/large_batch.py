"""Larger batches than the paper's 128, and what people do to train with them. A departure.

With more devices one may keep the batch, and with it the trajectory (the default), or let it grow
and have fewer steps. Then the rate is usually made larger, in proportion to the batch (Krizhevsky
2014 and Goyal et al., arXiv 1706.02677) or to its square root, comes up to that over some epochs,
and may be set for each layer by the norms of its weights and gradient (LARS, You et al., arXiv
1708.03888, as in the solver of NVCaffe). None of it is in the paper: a run that does so says it,
in its log, its summary, its report and on the screen (`departures`).

Not here: how images are divided among ranks (`loader.py`, `columns.py`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alexnet.config import OptimizerConfig, Recipe
from alexnet.optim import PaperSGD
from alexnet.schedule import Rates

PAPER_BATCH = OptimizerConfig().batch_size

WARM_UP = "warm-up"

# Sums, over the ranks that hold the parts of a parameter, of a number for each parameter's name.
SumParts = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def rate_factor(recipe: Recipe) -> float:
    """What the recipe's rates are multiplied by for the size of its batch."""
    ratio = recipe.optimizer.batch_size / PAPER_BATCH
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[recipe.optimizer.rate_scaling]


def warmed_up(rates: Rates, recipe: Recipe, epoch: float) -> Rates:
    """The rates of a schedule, smaller in the first epochs where the recipe has a warm-up.

    They rise in a straight line, from the unscaled rate where that is smaller, else from zero.
    """
    epochs = recipe.optimizer.warmup_epochs
    if epoch >= epochs:
        return rates
    factor = rate_factor(recipe)
    first = 1 / factor if factor > 1 else 0.0
    share = first + (1 - first) * epoch / epochs
    layers = {name: rate * share for name, rate in rates.layers.items()}
    weights, biases = rates.weights * share, rates.biases * share
    return replace(rates, weights=weights, biases=biases, layers=layers, reason=WARM_UP)


def departures(recipe: Recipe) -> list[str]:
    """What a recipe does otherwise than the paper for the sake of a larger batch, in words."""
    settings, found = recipe.optimizer, []
    if settings.batch_size > PAPER_BATCH:
        found.append(f"{settings.batch_size:,} pictures in a minibatch instead of {PAPER_BATCH}")
    if settings.rate_scaling != "none":
        how = {"linear": "in proportion to the batch", "sqrt": "with the root of the batch"}
        factor = f"{rate_factor(recipe):.4g}"
        found.append(f"rates times {factor}, {how[settings.rate_scaling]}")
    if settings.warmup_epochs:
        found.append(f"a warm-up of {settings.warmup_epochs:g} epochs")
    if settings.lars_trust:
        found.append(f"LARS with a trust of {settings.lars_trust:g}")
    return found


class Lars(PaperSGD):
    """`PaperSGD` with a rate for each parameter, from the norms of its weights and gradient.

        local = trust * |w| / (|g| + weight_decay * |w|)
        v <- momentum * v - lr * local * (g + weight_decay * w);   w <- w + v

    Where |w| or |g| is zero, as of fresh biases, local is `trust`. No value leaves the device.
    `sum_parts` adds up the squares of a parameter that is cut over several ranks.
    """

    def __init__(
        self, params: Any, momentum: float, trust: float, sum_parts: SumParts | None = None
    ) -> None:
        super().__init__(params, momentum=momentum)
        self.trust, self.sum_parts = trust, sum_parts

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update, as above."""
        assert closure is None, "gradients are known before"
        learning = [
            (f"{group['layer']}.{group['kind']}", group, weight)
            for group in self.param_groups
            for weight in group["params"]
            if group["lr"] != 0 and weight.grad is not None
        ]
        norms = self._norms({name: weight for name, _, weight in learning})
        decays = [group["weight_decay"] for group in self.param_groups]
        for name, group, weight in learning:
            w, g = norms[name]
            local = self.trust * w / (g + group["weight_decay"] * w)
            local = torch.where((w > 0) & (g > 0), local, self.trust)
            weight.grad.add_(weight, alpha=group["weight_decay"]).mul_(local)
            group["weight_decay"] = 0.0  # it is in the gradient now
        try:
            return super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _norms(self, weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        squares = {
            name: torch.stack([weight.square().sum(), weight.grad.square().sum()])
            for name, weight in weights.items()
            if weight.grad is not None
        }
        if self.sum_parts is not None:
            squares = self.sum_parts(squares)
        roots = {name: pair.sqrt() for name, pair in squares.items()}
        return {name: (pair[0], pair[1]) for name, pair in roots.items()}
