"""One HTML page that stands alone: its style, its pictures and its numbers inside one file.

The small parts of which a report is built. What comes from outside (class names, paths, messages)
is escaped here; what is called `markup` is HTML already. No script, no font, nothing to load: the
page forbids itself all of that. Not here: what the page says (`report.py`, `exhibits.py`).
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

import numpy as np
from PIL import Image

EXACT_UP_TO_PX = 96  # smaller pictures are shown enlarged, pixel by pixel: JPEG would be seen
JPEG_QUALITY = 86
UNBROKEN = re.compile(r"\d[\d.,\u2013]* (?:%|steps?|classes|epochs)|top-\d")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, header: str, sections: Iterable[str], footer: str) -> str:
    """The whole page from the markup of its parts."""
    style = files("alexnet").joinpath("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
{header}
</header>
<main>
{"".join(sections)}</main>
<footer>
{footer}
</footer>
</body>
</html>
"""


def text(value: object) -> str:
    """Plain text as markup, fit for attributes too."""
    return html.escape(str(value))


def prose(words: object) -> str:
    """Plain text as markup: `commands` as code, and no line ends within "4.2 %" or "top-1"."""
    parts = text(words).split("`")
    parts[::2] = [UNBROKEN.sub(r'<span class="whole">\g<0></span>', part) for part in parts[::2]]
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    return "".join(parts)


def section(kicker: str, statement: str, *parts: str) -> str:
    """A part of the story: what it is about, what it says, and the markup that shows it."""
    heading = f"<h2>{prose(statement)}</h2>\n" if statement else ""
    body = "\n".join(part for part in parts if part)
    return f'<section>\n<p class="kicker">{text(kicker)}</p>\n{heading}{body}\n</section>\n'


def missing(why: str) -> str:
    """The line that stands where something could not be shown."""
    return f'<p class="missing">{prose(why)}</p>'


def about(words: str, *, markup: str = "") -> str:
    """A paragraph that explains what is shown; `markup` follows the words."""
    return f'<p class="about">{prose(words)}{markup}</p>'


def callout(title: str, words: str, *, markup: str = "") -> str:
    """What a reader must not miss."""
    strong = f"<strong>{prose(title)}</strong>" if title else ""
    return f'<div class="callout">{strong}<p>{prose(words)}</p>{markup}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table of markup cells. A head that ends in ">" belongs to a column of numbers."""
    marks = [' class="number"' if head.endswith(">") else "" for head in heads]
    top = "".join(
        f'<th scope="col"{mark}>{text(head.rstrip(">"))}</th>'
        for head, mark in zip(heads, marks, strict=True)
    )
    lines = (
        "".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(row, marks, strict=True))
        for row in rows
    )
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, one under the other: values are markup, those that are empty left out."""
    body = "\n".join(
        f'<tr><th scope="row">{text(name)}</th><td>{value}</td></tr>'
        for name, value in rows
        if value
    )
    return f'<table class="facts"><tbody>\n{body}\n</tbody></table>'


def code(value: object) -> str:
    """Text as a machine writes it; nothing for nothing."""
    return f"<code>{text(value)}</code>" if value else ""


def folded(summary: str, content: str) -> str:
    """Plain text that opens on a click."""
    return f"<details><summary>{text(summary)}</summary><pre>{text(content)}</pre></details>"


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Large numbers with what they are: (name, value)."""
    body = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values
    )
    return f'<dl class="tiles">{body}</dl>' if body else ""


def chart(wide: str, narrow: str = "") -> str:
    """An <svg> as a figure; where there is a narrow one, the screen decides which is shown."""
    if not narrow:
        return f'<figure class="chart">{wide}</figure>'
    return (
        f'<figure class="chart wide-screen">{wide}</figure>'
        f'<figure class="chart narrow-screen">{narrow}</figure>'
    )


def picture(pixels: np.ndarray, description: str, *, kind: str = "picture") -> str:
    """An <img> of pixels uint8 (H, W, 3) or (H, W, 4): exact when small, JPEG when not."""
    exact = pixels.shape[2] == 4 or pixels.shape[0] <= EXACT_UP_TO_PX
    target = io.BytesIO()
    if exact:
        Image.fromarray(pixels).save(target, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(target, "JPEG", quality=JPEG_QUALITY, optimize=True)
    data = base64.b64encode(target.getvalue()).decode()
    uri = f"data:image/{'png' if exact else 'jpeg'};base64,{data}"
    mark = f"{kind} exact" if exact else kind
    return f'<img class="{mark}" src="{uri}" alt="{text(description)}">'


# Numbers as a reader wants them


def percent(fraction: float, images: int = 0) -> str:
    """4.2 %; with two decimals where there are pictures enough for them."""
    return f"{100 * fraction:.{_decimals(images)}f} %"


def interval(low: float, high: float, images: int = 0) -> str:
    """3.4-5.2 %, with a dash."""
    decimals = _decimals(images)
    return f"{100 * low:.{decimals}f}\u2013{100 * high:.{decimals}f} %"


def _decimals(images: int) -> int:
    return 2 if images >= 10_000 else 1


def plain(number: float) -> str:
    """A learning rate without an exponent: 0.00001."""
    return np.format_float_positional(number, precision=3, fractional=False, trim="-")


def duration(seconds: float) -> str:
    """41 s, 2 min 41 s, 3 h 5 min, 5 days 4 h."""
    total = round(seconds)
    for name, length, rest_name, rest_length in (
        ("days", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if total >= length:
            count, rest = divmod(total, length)
            unit = "day" if name == "days" and count == 1 else name
            return f"{count} {unit} {rest // rest_length} {rest_name}"
    return f"{total} s"


def counted(number: int, one: str, many: str = "") -> str:
    """1 picture, 2,000 pictures, 16 classes."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def short(number: int) -> str:
    """61.0 M, 369 k, 812."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.{1 if number < 100 * size else 0}f} {letter}"
    return str(number)


def views_in_words(views: int) -> str:
    return {1: "centre view", 10: "ten views"}.get(views, f"{views} views")
