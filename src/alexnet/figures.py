"""The figures of a run: conv1 kernels (Figure 3), guesses and neighbours (Figure 4), errors.

Every function takes arrays and returns a matplotlib Figure; nothing is read or saved. Titles are
the caller's, who knows what the figure shows. Not here: how a figure looks and is saved
(`drawing.py`), the learning curves (`curves.py`), what needs the network beside its weights
(`inside_figures.py`) and the page around them (`exhibits.py`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alexnet.calibration import Calibration
from alexnet.drawing import COLOURS, INK, LINE, MARGIN, NARROW, SOFT, WIDTH, canvas, chart, style
from alexnet.findings import Guess, Neighbours, worst_first
from alexnet.metrics import wilson_interval
from alexnet.page import short
from alexnet.predictions import ClassErrors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KERNELS_PER_ROW = 16
MAX_CLASSES_SHOWN = 40
NEIGHBOUR_PX = 144  # 35 pictures lie in one SVG file
CELL_INK = "#1b1e22"  # on a shaded cell, which is light on a dark page too


# Kernels of the first layer


def kernel_grid(kernels: np.ndarray, *, per_row: int = KERNELS_PER_ROW) -> np.ndarray:
    """Kernels (O, 3, k, k) as one small picture, uint8 RGBA, one pixel per weight.

    Each kernel is scaled to its own range, so that the strong and the weak are both seen; a
    transparent pixel lies between neighbours.
    """
    count, _, height, width = kernels.shape
    rows, columns = -(-count // per_row), min(count, per_row)
    grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), np.uint8)
    low = kernels.min(axis=(1, 2, 3), keepdims=True)
    span = np.maximum(kernels.max(axis=(1, 2, 3), keepdims=True) - low, 1e-12)
    pictures = np.rint(255 * ((kernels - low) / span)).astype(np.uint8).transpose(0, 2, 3, 1)
    for index, picture in enumerate(pictures):
        top, left = index // per_row * (height + 1), index % per_row * (width + 1)
        grid[top : top + height, left : left + width, :3] = picture
        grid[top : top + height, left : left + width, 3] = 255
    return grid


def conv1_kernels(kernels: np.ndarray, columns: int, *, title: str = "") -> "Figure":
    """Figure 3 of any network: kernels (O, 3, k, k), those of column 0 above those of column 1."""
    grids = [kernel_grid(part) for part in np.array_split(kernels, columns)]
    width = WIDTH - 2 * MARGIN
    heights = [width * grid.shape[0] / grid.shape[1] for grid in grids]
    heading = 0.32 if columns > 1 else 0.0
    with style():
        height = sum(heights) + columns * (heading + MARGIN) + MARGIN
        figure, axes = canvas(WIDTH, height, title)
        top = MARGIN
        for number, (grid, tall) in enumerate(zip(grids, heights, strict=True)):
            if heading:
                axes.text(MARGIN, top + 0.13, f"column {number}", va="center", color=SOFT)
            put(axes, grid, MARGIN, top + heading, width, tall)
            top += heading + tall + MARGIN
    return figure


# Pictures


def first_name(class_name: str, at_most: int = 26) -> str:
    """The first of a class's synonyms ("tench, Tinca tinca"), cut to `at_most` letters."""
    name = class_name.split(",")[0].strip()
    return name if len(name) <= at_most else name[: at_most - 1].rstrip() + "\u2026"


def thumbnail(picture: np.ndarray, at_most_px: int) -> np.ndarray:
    """A picture (h, w, 3) uint8, smoothly made smaller when its longer side is above that."""
    longer = max(picture.shape[:2])
    if longer <= at_most_px:
        return picture
    height, width = (max(1, round(px * at_most_px / longer)) for px in picture.shape[:2])
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small)


def guesses(shown: Sequence[Guess], *, title: str = "") -> "Figure":
    """Figure 4, left: pictures with their right label and the bars of the most probable ones."""
    per_row = min(4, len(shown))
    rows = -(-len(shown) // per_row)
    bars = max(len(guess.names) for guess in shown)
    side, bar = 2.3, 0.22
    across, down = side + 0.28, side + 0.42 + bar * bars + 0.3
    with style():
        width = across * per_row - 0.28 + 2 * MARGIN
        figure, axes = canvas(width, down * rows - 0.3 + 2 * MARGIN, title)
        for index, guess in enumerate(shown):
            left, top = MARGIN + across * (index % per_row), MARGIN + down * (index // per_row)
            put(axes, guess.picture, left, top, side, side)
            name = first_name(guess.label)
            middle = left + side / 2, top + side + 0.2
            axes.text(*middle, name, ha="center", va="center", fontsize=10, fontweight="bold")
            _draw_bars(axes, guess, left, top + side + 0.4, side, bar)
    return figure


def _draw_bars(
    axes: "Axes", guess: Guess, left: float, top: float, width: float, height: float
) -> None:
    from matplotlib.patches import Rectangle

    lines = zip(guess.names, guess.probabilities, guess.is_right, strict=True)
    for number, (name, probability, is_right) in enumerate(lines):
        upper = top + number * height
        colour = COLOURS["orange" if is_right else "sky"]
        size = max(width * probability, 0.015), 0.86 * height
        axes.add_patch(Rectangle((left, upper), *size, color=colour, alpha=0.7, linewidth=0))
        middle, weight = upper + 0.43 * height, "bold" if is_right else "normal"
        text: dict[str, Any] = {"va": "center", "fontsize": 8, "fontweight": weight}
        axes.text(left + 0.05, middle, first_name(name), **text)
        axes.text(left + width - 0.04, middle, share(probability), ha="right", **text)


def share(probability: float) -> str:
    """A probability in whole percent; one that rounds to nothing is "<1 %"."""
    return f"{100 * probability:.0f} %" if probability >= 0.005 else "<1 %"


def neighbours(rows: Sequence[Neighbours], *, title: str = "") -> "Figure":
    """Figure 4, right: a new picture in the first column, then its nearest training pictures."""
    count = max(len(row.pictures) for row in rows)
    gap, apart = 0.08, 0.3
    side = (WIDTH - 2 * MARGIN - apart - gap * (count - 1)) / (count + 1)
    down = side + 0.32
    with style():
        figure, axes = canvas(WIDTH, down * len(rows) + MARGIN, title)
        for number, row in enumerate(rows):
            top = MARGIN + down * number
            put(axes, thumbnail(row.picture, NEIGHBOUR_PX), MARGIN, top, side, side)
            below = top + side + 0.13
            axes.text(MARGIN, below, first_name(row.label, 20), va="center", fontweight="bold")
            for place, (picture, label) in enumerate(zip(row.pictures, row.labels, strict=True)):
                left = MARGIN + side + apart + place * (side + gap)
                put(axes, thumbnail(picture, NEIGHBOUR_PX), left, top, side, side)
                same = label == row.label
                axes.text(
                    left,
                    below,
                    first_name(label, 20),
                    va="center",
                    fontsize=8.5,
                    color=SOFT if same else COLOURS["vermillion"],
                    fontstyle="normal" if same else "italic",
                )
    return figure


def put(
    axes: "Axes", picture: np.ndarray, left: float, top: float, width: float, height: float
) -> None:
    """Draw a picture into a rectangle of a canvas, in inches."""
    extent = (left, left + width, top + height, top)
    axes.imshow(picture, extent=extent, interpolation="nearest", aspect="auto")


# Errors by class


def class_errors(
    classes: Sequence[ClassErrors], *, narrow: bool = False, title: str = ""
) -> "Figure":
    """Top-1 error of each class with its counts and 95 % interval, worst first.

    Of more than 40 classes, the 20 worst and the 20 best, with a gap between.
    """
    ordered = worst_first(classes)
    half = MAX_CLASSES_SHOWN // 2
    cut = len(ordered) > MAX_CLASSES_SHOWN
    shown = [*ordered[:half], *ordered[-half:]] if cut else ordered
    places = np.array([index + (cut and index >= half) for index in range(len(shown))], float)
    errors = np.array([100 * entry.errors.top1_error for entry in shown])
    ends = [wilson_interval(entry.errors.top1_wrong, entry.errors.images) for entry in shown]
    low, high = 100 * np.array(ends).T
    with style():
        figure = chart(NARROW if narrow else 7.8, 0.6 + 0.23 * (places[-1] + 1), title)
        axes = figure.subplots()
        axes.barh(places, errors, color=COLOURS["sky"], height=0.68)
        axes.hlines(places, low, high, color=INK, linewidth=1.1)
        for place, entry, right in zip(places, shown, high, strict=True):
            axes.annotate(
                f"{entry.errors.top1_wrong:,} of {entry.errors.images:,}",
                (right, place),
                (5, 0),
                textcoords="offset points",
                va="center",
                color=SOFT,
                fontsize=8.5,
            )
        names = [first_name(entry.name, 18 if narrow else 32) for entry in shown]
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set(xlim=(0, 1.02 * high.max()), ylim=(places[-1] + 0.6, -0.6))
        axes.xaxis.tick_top()
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.locator_params(axis="x", nbins=4 if narrow else 8)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(axis="x")
        if cut:
            between = f"\u2026 {len(ordered) - len(shown):,} classes between \u2026"
            axes.text(0, half, between, va="center", color=SOFT, fontstyle="italic", fontsize=8.5)
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str], *, title: str = "") -> "Figure":
    """How often the class of a row is taken for the class of a column: counts (C, C).

    Shaded by the share of the row's pictures, hits blue and mistakes orange; zeros stay empty.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    hits = LinearSegmentedColormap.from_list("hits", ["#eaf2f8", "#5fa9d6"])
    mistakes = LinearSegmentedColormap.from_list("mistakes", ["#fdf3dc", COLOURS["orange"]])
    with style():
        side = 0.42 * size
        figure = chart(side + 1.9, side + 1.3, title)
        axes = figure.subplots()
        for row, column in np.argwhere(counts):
            shade = hits(shares[row, column])
            if row != column:  # a quarter of a class taken for another is as bad as it gets
                shade = mistakes(min(1.0, 4 * shares[row, column]))
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=shade, linewidth=0))
            axes.text(column, row, counts[row, column], ha="center", va="center", color=CELL_INK)
        labels = [first_name(name, 16) for name in names]
        axes.set_xticks(range(size), labels, rotation=50, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(size), labels)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.tick_params(length=0, labelcolor=INK)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        axes.set(xlabel="taken for", ylabel="right label")
        axes.spines[["left", "bottom"]].set_visible(False)
        for edge in np.arange(size + 1) - 0.5:
            axes.axhline(edge, color=LINE, linewidth=0.6, zorder=3)
            axes.axvline(edge, color=LINE, linewidth=0.6, zorder=3)
    return figure


def reliability(found: Calibration, *, narrow: bool = False, title: str = "") -> "Figure":
    """How often it is right by how sure it is, with 95 % intervals; below, how many pictures."""
    shown = [entry for entry in found.bins if entry.images]
    sure = 100 * np.array([entry.confidence for entry in shown])
    right = 100 * np.array([entry.accuracy for entry in shown])
    ends = [wilson_interval(entry.right, entry.images) for entry in shown]
    low, high = 100 * np.array(ends).T
    with style():
        figure = chart(NARROW if narrow else 6.2, 4.9 if narrow else 5.4, title)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        upper.plot((0, 100), (0, 100), color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        upper.text(
            *(94, 91),
            "as sure as right",
            rotation=45,
            rotation_mode="anchor",
            transform_rotates_text=True,
            ha="right",
            va="top",
            color=SOFT,
            fontsize=8.5,
        )
        upper.vlines(sure, low, high, color=INK, linewidth=1.1)
        upper.plot(sure, right, "o", color=COLOURS["blue"], markersize=6.5, clip_on=False, zorder=3)
        upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="right at the first guess")
        upper.yaxis.set_major_formatter("{x:g} %")
        upper.grid(axis="both")
        for entry in found.bins:
            centre, width = 50 * (entry.low + entry.high), 100 * (entry.high - entry.low)
            lower.bar(centre, entry.images, 0.86 * width, color=COLOURS["sky"])
            number = f"{entry.images:,}" if entry.images < 10_000 else short(entry.images)
            lower.annotate(
                number,
                (centre, entry.images),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=SOFT,
                fontsize=8,
            )
        lower.set(
            ylim=(0, 1.25 * max(entry.images for entry in shown)),
            yticks=(),
            ylabel="pictures",
            xlabel="how sure it is: the probability of its first guess",
        )
        lower.xaxis.set_major_formatter("{x:g} %")
        lower.set_xticks(range(0, 101, 20))
        lower.spines["left"].set_visible(False)
    return figure
