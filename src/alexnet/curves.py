"""The learning curves of a run: loss, validation errors and speed, from the log to the figure.

A loss that stays at ln(classes) is the loss of a guess; the figure marks it, for it is where a
training that does not learn is found. Not here: reading the log (`material.py`), how a figure looks
and is saved (`drawing.py`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from alexnet.drawing import COLOURS, LINE, NARROW, PAPER, SOFT, WIDTH, chart, style
from alexnet.material import Event, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING_SHARE = 1 / 25  # of the run: the window of the smoothed curves
MAX_CURVE_POINTS = 800
MAX_MARKED_DROPS = 6
MAX_DOTS = 40


@dataclass(frozen=True)
class Curves:
    """The log as columns, one-dimensional and in the order of the steps; errors are fractions.

    What was not finite, or not logged, is nan.
    """

    steps: np.ndarray
    epochs: np.ndarray
    losses: np.ndarray
    rates: np.ndarray
    images_per_second: np.ndarray
    wait_share: np.ndarray
    check_steps: np.ndarray  # the checks are the evaluations on the validation set, one view
    check_epochs: np.ndarray
    check_losses: np.ndarray
    top1_errors: np.ndarray
    top5_errors: np.ndarray
    drops: tuple[tuple[int, float, float], ...] = ()  # (step, epoch, new learning rate)

    def smoothed(self, values: np.ndarray) -> np.ndarray:
        return smooth(values, max(1, round(len(values) * SMOOTHING_SHARE)))


def curves(run: Run) -> Curves:
    """Loss, speed and validation errors over the run, and where the learning rate changed."""
    steps = list(run.of("step"))
    # The last check stands in the log twice, the second time without its loss.
    checks: dict[int, Event] = {}
    for event in run.of("evaluation"):
        if event.get("split", "val") == "val" and event.get("views", 1) == 1:
            checks[event["step"]] = {**checks.get(event["step"], {}), **event}
    drops = tuple(
        (int(event["step"]), _number(event, "epoch"), _number(event, "lr"))
        for event in run.of("rate")
        if event["step"] > 0 and math.isfinite(_number(event, "lr"))
    )
    return Curves(
        steps=_column(steps, "step"),
        epochs=_column(steps, "epoch"),
        losses=_column(steps, "loss"),
        rates=_column(steps, "lr"),
        images_per_second=_column(steps, "images_per_second"),
        wait_share=_column(steps, "wait_share"),
        check_steps=_column(checks.values(), "step"),
        check_epochs=_column(checks.values(), "epoch"),
        check_losses=_column(checks.values(), "loss"),
        top1_errors=_column(checks.values(), "top1_error"),
        top5_errors=_column(checks.values(), "top5_error"),
        drops=drops,
    )


def _number(event: Event, key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _column(events: Iterable[Event], key: str) -> np.ndarray:
    return np.array([_number(event, key) for event in events], np.float64)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the known values in a window of about `width` around each one; nan if there are none.

    At the start the window narrows evenly, so that a steep fall is not drawn before it happens; at
    the end it keeps what lies behind, so that the last value is as calm as the others.
    """
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    place = np.arange(len(values))
    reach = np.minimum(place, width // 2)
    low, high = place - reach, np.minimum(place + reach + 1, len(values))
    with np.errstate(invalid="ignore"):
        means: np.ndarray = (sums[high] - sums[low]) / (counts[high] - counts[low])
    return means


def learning_curves(
    curves: Curves, num_classes: int | None, *, narrow: bool = False, title: str = ""
) -> "Figure":
    """Loss, validation errors and speed over the run; `narrow` puts the three under one another.

    The loss stands beside ln(classes), the loss of a guess, where a run that does not learn stays.
    """
    by_epoch = bool(np.isfinite(curves.epochs).any() and np.nanmax(curves.epochs) >= 2)
    with style():
        if narrow:
            figure = chart(NARROW, 7.8, title)
            loss, errors, speed = figure.subplots(3, 1, height_ratios=[3.2, 2.6, 1.8])
        else:
            figure = chart(WIDTH, 4.3, title)
            grid = figure.add_gridspec(2, 2, width_ratios=[1.75, 1], height_ratios=[1.55, 1])
            loss = figure.add_subplot(grid[:, 0])
            errors, speed = (figure.add_subplot(grid[row, 1]) for row in (0, 1))
        _draw_loss(loss, curves, num_classes, by_epoch)
        _draw_errors(errors, curves, by_epoch)
        _draw_speed(speed, curves, by_epoch)
        for axes in (loss, errors, speed):
            axes.set_xlabel("epoch" if by_epoch else "step")
    return figure


def _draw_loss(axes: "Axes", curves: Curves, num_classes: int | None, by_epoch: bool) -> None:
    x = curves.epochs if by_epoch else curves.steps
    known = curves.losses[np.isfinite(curves.losses)]
    axes.set_title("Loss")
    if not len(known):
        return _say(axes, "no finite loss in the log")
    guess = np.log(num_classes) if num_classes else 0.0
    smoothed = curves.smoothed(curves.losses)
    _line(axes, x, curves.losses, "sky", 0.8, alpha=0.55)
    _line(axes, x, smoothed, "blue", 2.0)
    ends = [(float(smoothed[np.isfinite(smoothed)][-1]), "training", "blue")]
    # Spikes would press the rest flat: they may leave the top, which is then said.
    top = max(1.2 * guess, 1.08 * float(np.quantile(known, 0.98)))
    if known.max() < 1.25 * top:
        top = max(top, 1.03 * float(known.max()))
    checked = np.isfinite(curves.check_losses)
    if checked.any():
        check_x = (curves.check_epochs if by_epoch else curves.check_steps)[checked]
        losses = curves.check_losses[checked]
        _dots(axes, check_x, losses, "vermillion")
        ends.append((float(losses[-1]), "validation", "vermillion"))
        top = max(top, min(1.05 * float(losses.max()), 2 * top))
    _frame(axes, x, top)
    if known.max() > top:
        _note(axes, f"highest: {known.max():.3g}", at=(0.02, 0.98), va="top")
    if num_classes:
        axes.axhline(guess, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"a guess: ln {num_classes:,} = {guess:.2f}",
            (1, guess),
            (0, 4),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            color=SOFT,
            fontsize=8.5,
        )
    _label_ends(axes, ends, "{:.2f}")
    _mark_drops(axes, curves, by_epoch)


def _draw_errors(axes: "Axes", curves: Curves, by_epoch: bool) -> None:
    x = curves.check_epochs if by_epoch else curves.check_steps
    axes.set_title("Validation error, centre view")
    ends, top = [], 0.0
    for name, errors, colour in (
        ("top-1", curves.top1_errors, "vermillion"),
        ("top-5", curves.top5_errors, "orange"),
    ):
        known = np.isfinite(errors)
        if not known.any() or (name == "top-5" and not errors[known].any()):
            continue  # with few classes five guesses cover them all: a line at zero says nothing
        percent = 100 * errors[known]
        _dots(axes, x[known], percent, colour)
        ends.append((float(percent[-1]), name, colour))
        top = max(top, float(percent.max()))
    if not ends:
        return _say(axes, "not evaluated during training")
    _frame(axes, curves.epochs if by_epoch else curves.steps, min(1.1 * top, 104.0) or 1.0)
    axes.yaxis.set_major_formatter("{x:g} %")
    _label_ends(axes, ends, "{:.1f} %")


def _draw_speed(axes: "Axes", curves: Curves, by_epoch: bool) -> None:
    x = curves.epochs if by_epoch else curves.steps
    speed = curves.images_per_second
    axes.set_title("Pictures per second")
    known = speed[np.isfinite(speed)]
    if not len(known):
        return _say(axes, "not in the log")
    _line(axes, x, speed, "green", 0.8, alpha=0.4)
    _line(axes, x, curves.smoothed(speed), "green", 1.6)
    top = float(np.quantile(known, 0.98))
    _frame(axes, x, 1.3 * max(top, 1e-9))
    axes.yaxis.set_major_formatter("{x:,.0f}" if top >= 10 else "{x:g}")
    axes.locator_params(axis="y", nbins=4)
    median = float(np.median(known))
    waits = curves.wait_share[np.isfinite(curves.wait_share)]
    words = f"median {median:,.0f}" if median >= 10 else f"median {median:.2g}"
    if len(waits):
        words += f", {100 * waits.mean():.0f} % of the time waiting for data"
    _note(axes, words, at=(0.02, 0.05), va="bottom")


def thin(values: np.ndarray, at_most: int) -> np.ndarray:
    """Indices of about `at_most` known values that draw the same line: the ends of each bin."""
    known = np.flatnonzero(np.isfinite(values))
    if len(known) <= at_most:
        return known
    keep = {int(known[0]), int(known[-1])}
    for part in np.array_split(known, at_most // 2):
        keep |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    return np.array(sorted(keep))


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places as little as can be (in squares) so that no two are nearer than `gap`."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    # Places less their share of gaps need only not fall: neighbours that do are pooled.
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([places[index] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    moved = [fmean(pool) for pool in pools for _ in pool]
    result = dict(zip(order, (place + rank * gap for rank, place in enumerate(moved)), strict=True))
    return [result[index] for index in range(len(places))]


def _line(
    axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str, width: float, *, alpha: float = 1.0
) -> None:
    at = thin(y, MAX_CURVE_POINTS)
    axes.plot(x[at], y[at], color=COLOURS[colour], linewidth=width, alpha=alpha)


def _dots(axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str) -> None:
    axes.plot(
        x,
        y,
        color=COLOURS[colour],
        linewidth=1.6,
        marker="o" if len(x) <= MAX_DOTS else "",
        markersize=4,
        markerfacecolor=PAPER,
        markeredgewidth=1.4,
        clip_on=False,
        zorder=4,
    )


def _frame(axes: "Axes", x: np.ndarray, top: float) -> None:
    """From zero to the last step, and from zero to `top`."""
    known = x[np.isfinite(x)]
    axes.set(xlim=(0, max(float(known.max()), 1.0) if len(known) else 1), ylim=(0, top))
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y")


def _label_ends(axes: "Axes", ends: list[tuple[float, str, str]], number: str) -> None:
    """Name each line, in its colour, right of its end: (last value, name, colour)."""
    top = axes.get_ylim()[1]
    height = axes.bbox.height / axes.figure.dpi  # inches
    gap = top * 0.36 / height  # two lines of text are about 0.36 inches high
    ends = sorted(ends)
    wanted = [min(max(value, gap / 2), top) for value, _, _ in ends]
    for (value, name, colour), place in zip(ends, spread(wanted, gap), strict=True):
        axes.annotate(
            f"{name}\n{number.format(value)}",
            (1, place),
            (6, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            color=COLOURS[colour],
            fontsize=8.5,
            linespacing=1.15,
        )


def _mark_drops(axes: "Axes", curves: Curves, by_epoch: bool) -> None:
    """A line where the learning rate changed, and the new rate above unless there are many."""
    right = axes.get_xlim()[1]
    labelled_to = 0.12 * right  # the title stands there
    for step, epoch, rate in curves.drops:
        place = epoch if by_epoch else step
        axes.axvline(place, color=LINE, linewidth=1.2, zorder=0)
        if len(curves.drops) <= MAX_MARKED_DROPS and place > labelled_to:
            axes.annotate(
                f"rate {np.format_float_positional(rate, precision=3, fractional=False, trim='-')}",
                (place, 1),
                (0, 4),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                ha="center",
                color=SOFT,
                fontsize=8,
            )
            labelled_to = place + 0.15 * right


def _note(axes: "Axes", words: str, *, at: tuple[float, float], va: str) -> None:
    axes.text(*at, words, transform=axes.transAxes, va=va, color=SOFT, fontsize=8.5)


def _say(axes: "Axes", words: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=SOFT)
