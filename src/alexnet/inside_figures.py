"""Figures of what is inside a network: the colours of conv1, what excites units, occlusion.

Arrays in, a matplotlib Figure out, as in `figures.py`. Not here: what is measured (`findings.py`,
`exciting.py`, `seeing.py`) and the page around it (`inside.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.drawing import COLOURS, INK, MARGIN, NARROW, SOFT, WIDTH, canvas, chart, style
from alexnet.figures import first_name, put, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BY_CHANCE = 2 / 3  # of a random kernel's energy is colour
COLOUR_BINS = 40
STACK = 1.0  # of dots, inches at most
DOT = 0.115  # inches
SMALLEST_SCALE = 0.1  # a change of probability that is drawn in full colour, at least
FALLS = np.array([213, 94, 0], np.float32)  # vermillion
RISES = np.array([0, 114, 178], np.float32)  # blue


@dataclass(frozen=True, eq=False)
class Unit:
    """One unit of a layer with the pictures that excite it most, strongest first."""

    layer: str
    number: int
    pictures: tuple[np.ndarray, ...]  # what it sees of each: (h, w, 3) uint8
    values: tuple[float, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Occluded:
    """A picture, and how the probability of its right label changes with a square at each place."""

    picture: np.ndarray  # (c, c, 3) uint8, what the network sees
    label: str
    guess: str  # what it is taken for
    probability: float  # of the right label, without a square
    with_square: NDArray[np.float32]  # (places, places)

    @property
    def heat(self) -> NDArray[np.uint8]:
        return heat_over(self.picture, self.with_square - self.probability)


# The colours of conv1


def colour_strips(
    columns: Sequence[Sequence[float]],
    means: Sequence[float],
    *,
    narrow: bool = False,
    title: str = "",
) -> "Figure":
    """A dot for each kernel by how much of its energy is colour, a row for each column.

    A line marks the share of the whole column, a dashed one that of kernels drawn at random.
    """
    stacks = [_stacked(shares) for shares in columns]
    highest = max((int(heights.max(initial=0)) for _, heights in stacks), default=0) + 1
    apart = min(DOT, STACK / highest)
    tall = apart * highest + 0.42
    with style():
        figure = chart(NARROW if narrow else 7.8, len(columns) * (tall + 0.18) + 0.5, title)
        rows = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
        for number, (axes, (places, heights), mean) in enumerate(
            zip(rows, stacks, means, strict=True)
        ):
            axes.plot(
                100 * places,
                apart * (heights + 0.5),
                "o",
                color=COLOURS["sky"],
                markeredgecolor=COLOURS["paper"],
                markeredgewidth=0.5,
                markersize=72 * DOT,
                clip_on=False,
                zorder=3,
            )
            axes.set(xlim=(0, 100), ylim=(0, tall))
            axes.set_yticks(())
            axes.spines["left"].set_visible(False)
            if len(columns) > 1:
                axes.set_title(f"column {number}")
            axes.axvline(100 * BY_CHANCE, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
            if not np.isnan(mean):
                axes.axvline(100 * mean, color=INK, linewidth=1.6)
                _beside(axes, 100 * mean, tall, f"{100 * mean:.0f} %", color=INK, weight="bold")
            if number == 0:
                _beside(axes, 100 * BY_CHANCE, tall, "drawn at random: 67 %", color=SOFT)
        rows[-1].xaxis.set_major_formatter("{x:g} %")
        rows[-1].set_xlabel("share of a kernel's energy that is colour")
    return figure


def _beside(axes: "Axes", x: float, top: float, words: str, **look: Any) -> None:
    """Words to the right of a line, at its upper end."""
    offset: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": 8.5}
    axes.annotate(words, (x, top), (4, -1), **offset, **look)


def _stacked(shares: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Dots that lie on others of about the same share: (place, height in dots) for each."""
    known = np.sort([value for value in shares if not np.isnan(value)])
    bins = np.minimum((known * COLOUR_BINS).astype(np.int64), COLOUR_BINS - 1)
    heights = np.arange(len(bins)) - np.searchsorted(bins, bins)
    return (bins + 0.5) / COLOUR_BINS, heights


# Pictures that excite


def exciting(units: Sequence[Unit], *, title: str = "") -> "Figure":
    """A row for each unit, with what it sees of the pictures that excite it most."""
    count = max(len(unit.pictures) for unit in units)
    name, gap = 1.0, 0.08
    side = (WIDTH - 2 * MARGIN - name - gap * (count - 1)) / count
    down = side + 0.3
    with style():
        figure, axes = canvas(WIDTH, down * len(units) + MARGIN, title)
        for row, unit in enumerate(units):
            top = MARGIN + down * row
            axes.text(MARGIN, top + 0.12, unit.layer, va="center", fontweight="bold")
            axes.text(MARGIN, top + 0.3, f"unit {unit.number}", va="center", color=SOFT)
            for column, (picture, value) in enumerate(zip(unit.pictures, unit.values, strict=True)):
                left = MARGIN + name + column * (side + gap)
                _place_whole(axes, picture, left, top, side)
                axes.text(left, top + side + 0.1, three_digits(value), va="center", color=SOFT)
    return figure


def three_digits(value: float) -> str:
    """28.8, 26.0, 5.00, 116."""
    return f"{value:#.3g}".rstrip(".")


def _place_whole(axes: "Axes", picture: np.ndarray, left: float, top: float, side: float) -> None:
    """Into the middle of a square, at its own proportions."""
    height, width = (side * px / max(picture.shape[:2]) for px in picture.shape[:2])
    put(axes, picture, left + (side - width) / 2, top + (side - height) / 2, width, height)


# Occlusion


def heat_over(picture: np.ndarray, change: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The picture (c, c, 3) in grey, tinted by the change (places, places) at each place.

    Vermillion where a square takes probability from the label, blue where it gives. Full colour
    is the largest change, but at least ten points: noise stays pale. The first and the last
    places are those with the square's middle on the border.
    """
    scale = max(float(np.abs(change).max()), SMALLEST_SCALE)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(change / scale)[None, None].float(),
        picture.shape[:2],
        mode="bilinear",
        align_corners=True,
    )[0, 0].numpy()[:, :, None]
    grey = picture.astype(np.float32).mean(axis=2, keepdims=True) * 0.42 + 140
    tint = np.where(smooth < 0, FALLS, RISES)
    weight = 0.85 * np.abs(smooth)
    levels: NDArray[np.uint8] = np.rint(grey * (1 - weight) + tint * weight).astype(np.uint8)
    return levels


def occlusion(shown: Sequence[Occluded], *, title: str = "") -> "Figure":
    """Each picture beside the map of what its right label depends on, three to a row."""
    per_row = min(3, len(shown))
    side, gap, apart = 1.55, 0.06, 0.3
    across, down = 2 * side + gap + apart, side + 0.55
    rows = -(-len(shown) // per_row)
    with style():
        width = across * per_row - apart + 2 * MARGIN
        figure, axes = canvas(width, down * rows + MARGIN + 0.2, title)
        key = "covering the place lowers (orange) or raises (blue) the probability of the label"
        axes.text(MARGIN, down * rows + MARGIN + 0.05, key, va="center", color=SOFT, fontsize=8.5)
        for index, one in enumerate(shown):
            left, top = MARGIN + across * (index % per_row), MARGIN + down * (index // per_row)
            put(axes, one.picture, left, top, side, side)
            put(axes, one.heat, left + side + gap, top, side, side)
            below = top + side + 0.14
            name = first_name(one.label)
            axes.text(left, below, name, va="center", fontsize=10, fontweight="bold")
            axes.text(left, below + 0.18, in_words(one), va="center", color=SOFT, fontsize=8.5)
    return figure


def in_words(one: Occluded) -> str:
    """E.g. "92 %; with a square 4 % to 93 %"."""
    low, high = float(one.with_square.min()), float(one.with_square.max())
    return f"{share(one.probability)}; with a square {share(low)} to {share(high)}"
