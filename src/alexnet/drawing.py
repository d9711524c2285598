"""How the figures look and are saved: colours, type, and the two file formats.

A figure is saved as SVG and PNG, or becomes markup for a page that has a light and a dark side:
there its text uses the page's type and its colours are the page's variables. The global state of
matplotlib is left alone. Not here: any figure (`figures.py`).
"""

import html
import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Four neutral colours, and Okabe and Ito's, which people with any kind of colour vision can tell
# apart. In a page each becomes the CSS variable of its name, so that a dark page can change it.
COLOURS = {
    "ink": "#1b1e23",
    "soft": "#5d6570",
    "line": "#d8dce2",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "sky": "#56b4e9",
    "orange": "#e69f00",
    "vermillion": "#d55e00",
    "green": "#009e73",
}
INK, SOFT, LINE, PAPER = (COLOURS[name] for name in ("ink", "soft", "line", "paper"))
PNG_DPI = 200  # twice matplotlib's 100, for dense screens and print
WIDTH = 10.4  # inches; the page is as wide, at 100 pixels to the inch
NARROW = 4.3  # inches, for a telephone
MARGIN = 0.12  # inches around what is drawn
TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}

STYLE = {
    "font.family": ["DejaVu Sans"],  # the one that comes with matplotlib: the same picture anywhere
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 9.0,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    "figure.dpi": 100,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and edited
    "svg.hashsalt": "alexnet",  # the same figure is the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with these settings and no others, whatever the user's own matplotlib has."""
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
    del settings["backend"]  # the one setting that rc_context would not put back
    with matplotlib.rc_context(settings):
        yield


def save(figure: "Figure", folder: Path, name: str) -> tuple[Path, Path]:
    """Write folder/name.svg and folder/name.png, each atomically. Raises UserError if it cannot."""
    paths = folder / f"{name}.svg", folder / f"{name}.png"
    with style():
        with atomic_file(paths[0]) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None}, facecolor=PAPER)
        with atomic_file(paths[1]) as temporary:
            figure.savefig(temporary, format="png", dpi=PNG_DPI, facecolor=PAPER)
    return paths


def save_one(figure: "Figure", path: Path) -> None:
    """Write one file, in the format of its suffix, atomically."""
    form = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if form == "svg" else None
    with style(), atomic_file(path) as temporary:
        figure.savefig(temporary, format=form, dpi=PNG_DPI, metadata=metadata, facecolor=PAPER)


def inline_svg(figure: "Figure", name: str, description: str) -> str:
    """The figure as an <svg> element: it scales with its place and takes its colours from the page.

    `name` must be unique in the page: it keeps the ids of two figures apart.
    """
    target = io.StringIO()
    with style():
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    for colour, value in COLOURS.items():
        text = text.replace(value, f"var(--{colour})")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    width_px = round(100 * figure.get_figwidth())  # the size that its type is made for
    opening = (
        f'<svg {view[0]} style="max-width:{width_px}px" role="img" '
        f'aria-label="{html.escape(description)}">'
    )
    return opening + text[text.index(">") + 1 :].strip()


def chart(width: float, height: float, title: str) -> "Figure":
    """An empty figure of so many inches, which lays out its axes by itself; a title adds to it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = _wrapped(title, width)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(width, height + _title_height(lines)), layout=layout)
    if lines:
        figure.suptitle("\n".join(lines), x=MARGIN / width, ha="left", **TITLE)
    return figure


def canvas(width: float, height: float, title: str) -> tuple["Figure", "Axes"]:
    """A figure and one axes without marks, measured in inches from its left and from its top.

    For many small pictures: an axes for each would take seconds to lay out.
    """
    from matplotlib.figure import Figure

    lines = _wrapped(title, width)
    full_height = height + _title_height(lines)
    figure = Figure(figsize=(width, full_height))
    axes = figure.add_axes((0, 0, 1, height / full_height))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    if lines:
        top = 1 - MARGIN / full_height
        figure.text(MARGIN / width, top, "\n".join(lines), va="top", **TITLE)
    return figure, axes


def _wrapped(title: str, width: float) -> list[str]:
    """At so many letters of the title's size to an inch; "79.3 %" stays whole."""
    return textwrap.wrap(title.replace(" %", "\N{NO-BREAK SPACE}%"), round(9.3 * width))


def _title_height(lines: list[str]) -> float:
    return 0.22 * len(lines) + 0.22 if lines else 0.0
