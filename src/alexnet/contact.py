"""A contact sheet of odd pictures: one that can be looked at says more than a table.

A row of thumbnails for each kind of finding, with class and name below. What cannot be read is a
grey tile with the reason. Not here: the findings (audit.py).
"""

import textwrap
import warnings
from collections.abc import Callable, Iterable
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from alexnet.audit import Audit, Finding, picture_at
from alexnet.examine import KINDS
from alexnet.images import UnreadableImage
from alexnet.listing import Listing, read_picture

OpenPicture = Callable[[Finding], Image.Image]

TILE_PX = 160
GAP_PX = 16
MARGIN_PX = 32
HEAD_PX = 40
CAPTION_PX = 58
COLUMNS = 6

PAPER, INK, FAINT, RULE = "#ffffff", "#1b1f24", "#6b7480", "#d8dde3"
TILE, TILE_EDGE = "#eceff2", "#c4cad1"


def sheet_of(audit: Audit, listing: Listing, per_kind: int = COLUMNS) -> Image.Image:
    """The contact sheet of an audit, with the first `per_kind` pictures of each kind."""

    def open_picture(finding: Finding) -> Image.Image:
        if finding.left_out:
            raise UnreadableImage(finding.detail)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are among the findings
            return read_picture(picture_at(listing, finding.position).place)

    findings = (finding for kind in audit.counts() for finding in audit.findings(kind, per_kind))
    return contact_sheet(findings, open_picture, counts=audit.counts())


def contact_sheet(
    findings: Iterable[Finding],
    open_picture: OpenPicture,
    *,
    counts: dict[str, int] | None = None,
) -> Image.Image:
    """RGB; a row or more for each kind, in the order of KINDS.

    `open_picture` may raise UnreadableImage; pictures are opened one at a time. `counts` says how
    many there are of each kind where not all are given.
    """
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    kinds = [kind for kind in KINDS if kind in by_kind]
    counts = counts or {kind: len(by_kind[kind]) for kind in kinds}
    row_px = TILE_PX + CAPTION_PX + GAP_PX
    rows = {kind: -(-len(by_kind[kind]) // COLUMNS) for kind in kinds}
    height = 2 * MARGIN_PX + sum(HEAD_PX + rows[kind] * row_px for kind in kinds)
    width = 2 * MARGIN_PX + COLUMNS * (TILE_PX + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", (width, max(height, 2 * MARGIN_PX + HEAD_PX)), PAPER)
    if not kinds:
        _text(sheet, (MARGIN_PX, MARGIN_PX), "Nothing odd was found.", 18, INK)
    top = MARGIN_PX
    for kind in kinds:
        _head(sheet, top, kind, counts[kind], len(by_kind[kind]))
        top += HEAD_PX
        remaining = iter(by_kind[kind])
        while row := list(islice(remaining, COLUMNS)):
            for column, finding in enumerate(row):
                _entry(sheet, MARGIN_PX + column * (TILE_PX + GAP_PX), top, finding, open_picture)
            top += row_px
    return sheet


def _head(sheet: Image.Image, top: int, kind: str, count: int, shown: int) -> None:
    right = sheet.width - MARGIN_PX
    ImageDraw.Draw(sheet).line((MARGIN_PX, top, right, top), RULE)
    _text(sheet, (MARGIN_PX, top + 9), kind, 18, INK)
    indent = MARGIN_PX + int(_font(18).getlength(kind)) + 12
    _text(sheet, (indent, top + 12), KINDS[kind], 14, FAINT)
    number = f"{count:,}" if shown == count else f"{shown:,} of {count:,}"
    _text(sheet, (right - int(_font(14).getlength(number)), top + 12), number, 14, FAINT)


def _entry(
    sheet: Image.Image, left: int, top: int, finding: Finding, open_picture: OpenPicture
) -> None:
    try:
        picture = open_picture(finding).convert("RGB")
    except UnreadableImage as error:
        sheet.paste(_unreadable(str(error)), (left, top))
    else:
        sheet.paste(_thumbnail(picture), (left, top))
    place = "/".join(part for part in (finding.split, finding.class_id) if part)
    name = finding.name.rpartition("/")[2]
    detail = "" if finding.left_out else finding.detail  # which the tile says
    for line, (text, colour) in enumerate(((place, FAINT), (name, INK), (detail, FAINT))):
        _text(sheet, (left, top + TILE_PX + 5 + 17 * line), _shortened(text, 12), 12, colour)


def _thumbnail(picture: Image.Image) -> Image.Image:
    """The whole picture within a tile; one far smaller than the tile stays visibly small."""
    tile = Image.new("RGB", (TILE_PX, TILE_PX), TILE)
    factor = min(TILE_PX / max(picture.size), 2.0)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    left, top = (TILE_PX - width) // 2, (TILE_PX - height) // 2
    tile.paste(small, (left, top))
    ImageDraw.Draw(tile).rectangle(
        (left - 1, top - 1, left + width, top + height), outline=TILE_EDGE
    )
    return tile


def _unreadable(reason: str) -> Image.Image:
    tile = Image.new("RGB", (TILE_PX, TILE_PX), TILE)
    ImageDraw.Draw(tile).rectangle((0, 0, TILE_PX - 1, TILE_PX - 1), outline=TILE_EDGE)
    _text(tile, (12, 12), "unreadable", 13, INK)
    for line, text in enumerate(textwrap.wrap(_drawable(reason), 22)[:7]):
        _text(tile, (12, 36 + 16 * line), text, 12, FAINT)
    return tile


def _shortened(text: str, size_px: int) -> str:
    """Cut in the middle, where names differ least, to the width of a tile."""
    text = _drawable(text)
    font = _font(size_px)
    if font.getlength(text) <= TILE_PX:
        return text
    kept = len(text)
    while kept > 2:
        kept -= 1
        short = f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
        if font.getlength(short) <= TILE_PX:
            return short
    return "…"


def _drawable(text: str) -> str:
    """What the font may lack, escaped; it has the letters of western languages."""
    return "".join(c if c.isprintable() and ord(c) < 0x250 else ascii(c)[1:-1] for c in text)[:400]


def _text(image: Image.Image, place: tuple[int, int], text: str, size_px: int, colour: str) -> None:
    ImageDraw.Draw(image).text(place, text, fill=colour, font=_font(size_px))


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
