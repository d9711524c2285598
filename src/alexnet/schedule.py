"""How the learning rates change during training: the paper's rule and the 2012 source's.

The paper (Section 5) divides the rate by 10 whenever the validation error stops improving; the
authors did so by hand, and their notes are the tables here (layer-params-145.cfg and its
relatives). Their later nets let a formula do it (lr.cu): linear, exp, dexp, jdexp.

A schedule deals in shares of the rates that training starts with, so a table made for 0.01 also
serves another rate, and a table made for 93 epochs is stretched to any number of them. It draws no
random numbers and knows no optimizer; `set_rates` carries its shares over to one.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from alexnet.errors import UserError, suggest


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Every setting of every kind of schedule; the defaults are the paper's where it has one."""

    kind: str = "plateau"  # constant, plateau, epochs, linear, exp, dexp or jdexp
    epochs: float = 90.0  # length of the training; tables and formulas are stretched to it

    divisor: float = 10.0  # plateau: a drop divides all rates by this,
    drops: int = 3  # at most so many times,
    patience: int = 5  # after so many evaluations in a row that are no better than the best
    patience_steps: int = 500  # and so many steps: of few pictures an epoch is next to nothing
    min_improvement: float = 0.0  # by more than this, a fraction (0.001 is 0.1 % of the images)

    table: str = "source-2012"  # epochs: a name in TABLES
    bias_drop_epoch: float = 0.0  # epochs: biases fall to a tenth, in epochs of the table; 0: never

    factor: float = 1000.0  # formulas: the weights end at 1/factor of the rate they start with
    steps: int = 4  # dexp, jdexp: number of plateaus
    bias_factor: float = 10.0  # formulas: the biases follow dexp[bias_factor, bias_steps]
    bias_steps: int = 2
    noise: float = 0.0  # formulas: rates are multiplied by 1 + noise*|N(0, 1)|


@dataclass(frozen=True)
class Rates:
    """What holds at one moment; rates are shares of those that training starts with."""

    weights: float = 1.0
    biases: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)  # weights of one layer; 0: frozen
    colour_noise: bool = True
    noise: float = 0.0
    reason: str = "constant"

    def share(self, layer: str, kind: str, *, new: bool = False) -> float:
        """Return the share for a layer's "weight" or "bias". A frozen layer's biases are too.

        Layers that are `new` beside copied ones may have a share of their own, under "new".
        """
        own = self.layers.get(layer, self.layers.get("new") if new else None)
        if kind == "bias":
            return 0.0 if own == 0 else self.biases
        return self.weights if own is None else own


@dataclass(frozen=True)
class Change:
    """From `epoch` on, `what` has this value.

    `what`: weights, biases, colour_noise, a layer, or "new": the layers that were not copied.
    """

    epoch: float
    what: str
    value: float


@dataclass(frozen=True)
class Table:
    """A training led by hand: how long it was, in epochs, and what was changed when."""

    epochs: float
    changes: tuple[Change, ...]


def _by_hand(
    *,
    tenth: float,
    hundredth: float,
    conv1_low: float,
    conv1_frozen: float,
    last: float,
    end: float,
) -> Table:
    """The pattern of the source's notes: one row of epochs, the rates as shares of 0.01."""
    changes = (
        Change(tenth, "weights", 1 / 10),
        Change(hundredth, "weights", 1 / 100),
        Change(conv1_low, "conv1", 1 / 1000),
        Change(conv1_low, "colour_noise", 0),
        Change(conv1_frozen, "conv1", 0),
        Change(last, "weights", 1 / 1000),
    )
    return Table(end, changes)


def _all_rates(epoch: float, share: float) -> tuple[Change, ...]:
    return Change(epoch, "weights", share), Change(epoch, "biases", share)


# The source notes "epoch e: set". Its one staged script (run4.sh) shows that a change holds once e
# epochs are complete.
TABLES = {
    "source-2010": _by_hand(tenth=23, hundredth=51, conv1_low=68, conv1_frozen=72, last=78, end=93),
    "source-2012": _by_hand(tenth=25, hundredth=51, conv1_low=67, conv1_frozen=72, last=79, end=91),
    # Run 145-half, the one-GPU net. The notes freeze conv1 at 72, the committed file shows 1e-5.
    # When the other layers fell to 1e-5 is not recorded: 78 is taken from source-2010.
    "source-half": _by_hand(tenth=20, hundredth=48, conv1_low=66, conv1_frozen=72, last=78, end=96),
    # Run 147, pooling without overlap: no note that the colour noise was switched off.
    "source-no-overlap": Table(
        90,
        (
            Change(23, "weights", 1 / 10),
            Change(51, "weights", 1 / 100),
            Change(79, "conv1", 0),
            Change(79, "weights", 1 / 1000),
        ),
    ),
    # Run 148, no response normalisation.
    "source-no-lrn": _by_hand(
        tenth=22, hundredth=44, conv1_low=69, conv1_frozen=73, last=86, end=97
    ),
    # Run 146-2012-2011, the paper's "1 CNN*": everything copied but fc8, as shares of 0.001. The
    # new layer got 0.01 after 300 of the 1,251 batch files of an epoch.
    "source-finetune": Table(
        54,
        (
            Change(0, "conv1", 1 / 10),
            Change(300 / 1251, "new", 10),
            Change(5, "conv1", 1 / 100),
            Change(7, "conv1", 0),
            Change(9, "new", 1),
            *(Change(22, what, 1 / 10) for what in ("weights", "new")),
            Change(38, "colour_noise", 0),
            *(Change(42, what, 1 / 100) for what in ("weights", "new")),
        ),
    ),
    # Ours: of this net the source says only that it reaches 26 % in 80 seconds.
    "cifar10-80sec": Table(20, _all_rates(16, 1 / 10) + _all_rates(18, 1 / 100)),
    # How long the last part lasted is not recorded; it is taken to be as long as the one before.
    "cifar10-18pct": Table(140, _all_rates(120, 1 / 10) + _all_rates(130, 1 / 100)),
    # About 350 epochs on four fifths of the training set and 150 on all of it; here 500 on all.
    "cifar10-11pct": Table(520, _all_rates(500, 1 / 10) + _all_rates(510, 1 / 100)),
}


def linear(progress: float, factor: float) -> float:
    """From 1 to 1/factor in a straight line; `progress` is in [0, 1], here and below."""
    return (1 - progress) + progress / factor


def exp(progress: float, factor: float) -> float:
    """From 1 to 1/factor by equal ratios.

    The source's formula, b^(1 + p*q) with q = log(b/f)/log(b) - 1, is b*f^(-p) except at b = 1.
    """
    return float(factor**-progress)


def dexp(progress: float, factor: float, steps: int) -> float:
    """From 1 to 1/factor on `steps` plateaus of equal length and equal ratio; one is 1/factor."""
    return _level(_plateau(progress, steps), factor, steps)


def jdexp(progress: float, factor: float, steps: int) -> float:
    """As `dexp`, but halfway up to the level before in the second half of each later plateau.

    Halfway is the geometric mean. Only while progress is above 0.2 and below 0.9.
    """
    i = _plateau(progress, steps)
    level = _level(i, factor, steps)
    if i > 0 and progress * steps > i + 0.5 and 0.2 < progress < 0.9:
        return math.sqrt(level * _level(i - 1, factor, steps))
    return level


def _plateau(progress: float, steps: int) -> int:
    """Return the i whose plateau, i/steps < progress <= (i + 1)/steps, holds the progress."""
    return min(max(math.ceil(progress * steps) - 1, 0), steps - 1)


def _level(i: int, factor: float, steps: int) -> float:
    return 1 / factor if i == steps - 1 else float(factor ** (-i / (steps - 1)))


SMOOTH = {"linear": linear, "exp": exp}
STEPPED = {"dexp": dexp, "jdexp": jdexp}


class Schedule:
    """A constant rate, and what all schedules have in common."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config

    def rates(self, epoch: float) -> Rates:
        """Return what holds after `epoch` epochs, a number that may have a fraction."""
        return Rates()

    def observe(self, validation_error: float, steps: float = math.inf) -> bool:
        """Take note of an evaluation, an error in 0..1, `steps` after the one before.

        Returns whether the rates fell.
        """
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule remembers, as plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; `UserError` if another kind of schedule saved it."""
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise UserError(
                f"the checkpoint's schedule is not of kind {self.config.kind!r}; "
                "resume with the schedule that the run began with"
            )
        for name in mine:
            setattr(self, name, state[name])


class Plateau(Schedule):
    """Section 5: divide by 10 when the validation error stops improving, at most three times.

    An evaluation is *better* if its error is lower than the best by more than `min_improvement`;
    the best is the error of the last better evaluation (small gains thus add up until they
    count). The error has *stopped improving* when `patience` evaluations in a row are not better
    and lie `patience_steps` steps or more after the one that was. Then every rate is divided by
    `divisor` and the count starts again, with the same best. After `drops` drops the rates stay.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        super().__init__(config)
        self.best = math.inf
        self.bad_evaluations = 0
        self.bad_steps = 0.0
        self.drops = 0

    def rates(self, epoch: float) -> Rates:
        """Return rates that depend on the evaluations so far and not on the epoch."""
        share = self.config.divisor**-self.drops
        reason = "start"
        if self.drops:
            reason = (
                f"drop {self.drops} of {self.config.drops}: {self.config.patience} evaluations "
                f"no better than the best validation error, {100 * self.best:.2f} %"
            )
        return Rates(weights=share, biases=share, reason=reason)

    def observe(self, validation_error: float, steps: float = math.inf) -> bool:
        """Count the evaluation, an error in 0..1, `steps` after the one before.

        Returns whether the rates fell.
        """
        if validation_error < self.best - self.config.min_improvement:
            self.best = validation_error
            self._count_from_here()
            return False
        self.bad_evaluations += 1
        self.bad_steps += steps
        patient = (
            self.bad_evaluations < self.config.patience
            or self.bad_steps < self.config.patience_steps
        )
        if patient or self.drops == self.config.drops:
            return False
        self._count_from_here()
        self.drops += 1
        return True

    def _count_from_here(self) -> None:
        self.bad_evaluations, self.bad_steps = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the best error, the evaluations and steps since, and the drops."""
        return {
            "best": self.best,
            "bad_evaluations": self.bad_evaluations,
            "bad_steps": self.bad_steps,
            "drops": self.drops,
        }


class EpochTable(Schedule):
    """The source's hand-made schedules, stretched from their own length to `config.epochs`."""

    def __init__(self, config: ScheduleConfig) -> None:
        super().__init__(config)
        table = TABLES[config.table]
        self.epochs = table.epochs
        self.stretch = config.epochs / table.epochs
        changes = table.changes
        if config.bias_drop_epoch > 0:
            changes += (Change(config.bias_drop_epoch, "biases", 1 / 10),)
        self.changes = sorted(changes, key=lambda change: change.epoch)

    def rates(self, epoch: float) -> Rates:
        """Return the outcome of all changes whose epoch is over."""
        done = [change for change in self.changes if epoch >= change.epoch * self.stretch]
        values = {change.what: change.value for change in done}
        last = max((change.epoch for change in done), default=0.0)
        latest = [f"{c.what} x {c.value:g}" for c in done if c.epoch == last] or ["start"]
        return Rates(
            weights=values.pop("weights", 1.0),
            biases=values.pop("biases", 1.0),
            colour_noise=bool(values.pop("colour_noise", True)),
            layers=values,
            reason=f"{self.config.table}, epoch {last:g} of {self.epochs:g}: {', '.join(latest)}",
        )


class Formula(Schedule):
    """The source's rate classes: a formula for the weights, two dexp plateaus for the biases."""

    def rates(self, epoch: float) -> Rates:
        """Return the formula's value at the progress epoch/epochs, which ends at 1."""
        config = self.config
        progress = min(max(epoch / config.epochs, 0.0), 1.0)
        if config.kind in SMOOTH:
            weights = SMOOTH[config.kind](progress, config.factor)
            reason = f"{config.kind}[{config.factor:g}]"
        else:
            weights = STEPPED[config.kind](progress, config.factor, config.steps)
            reason = f"{config.kind}[{config.factor:g},{config.steps}]"
        biases = dexp(progress, config.bias_factor, config.bias_steps)
        return Rates(weights=weights, biases=biases, noise=config.noise, reason=reason)


KINDS: dict[str, type[Schedule]] = {
    "constant": Schedule,
    "plateau": Plateau,
    "epochs": EpochTable,
    **dict.fromkeys([*SMOOTH, *STEPPED], Formula),
}


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Return the schedule; `UserError` if a setting names nothing or makes no sense."""
    if config.kind not in KINDS:
        raise UserError(f"no schedule {config.kind!r}{suggest(config.kind, KINDS)}")
    if config.table not in TABLES:
        raise UserError(f"no table {config.table!r}{suggest(config.table, TABLES)}")
    at_least: dict[str, float] = {
        "drops": 0,
        "patience": 1,
        "patience_steps": 0,
        "min_improvement": 0,
        "bias_drop_epoch": 0,
        "factor": 1,
        "steps": 1,
        "bias_factor": 1,
        "bias_steps": 1,
        "noise": 0,
    }
    for name, least in at_least.items():
        if not least <= getattr(config, name) < math.inf:
            raise UserError(f"schedule.{name} is {getattr(config, name)}; it must be >= {least}")
    for name, above in {"epochs": 0, "divisor": 1}.items():
        if not above < getattr(config, name) < math.inf:
            raise UserError(f"schedule.{name} is {getattr(config, name)}; it must be > {above}")
    return KINDS[config.kind](config)


def noise_factor(noise: float, generator: torch.Generator) -> float:
    """Draw the source's 1 + noise*|N(0, 1)|. A `noise` of zero draws nothing and returns 1."""
    if noise == 0:
        return 1.0
    return 1.0 + noise * abs(torch.randn((), generator=generator, dtype=torch.float64).item())


def set_rates(
    groups: Iterable[dict[str, Any]], rates: Rates, generator: torch.Generator | None = None
) -> None:
    """Set `lr` in the groups of `optim.parameter_groups` to their `base_lr` times its share.

    The noise is drawn from `generator` once per group and call. (The source draws it anew for the
    gradient and the decay of one step.) A recipe with noise needs a generator.
    """
    for group in groups:
        group["lr"] = group["base_lr"] * rates.share(
            group["layer"], group["kind"], new=group.get("new", False)
        )
        if rates.noise:
            assert generator is not None, "rates with noise need a generator"
            group["lr"] *= noise_factor(rates.noise, generator)
