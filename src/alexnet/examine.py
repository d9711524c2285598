"""What is odd about one picture, and what `prepare` does with it.

The picture is read by the function that `prepare` reads it with, which gives an account of what it
did; so what is said here is what happens there.

Not here: going through a source, duplicates (audit.py), the reading itself (images.py).
"""

import codecs
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath

from PIL import Image

from alexnet.images import Decoded, UnreadableImage, central_square, decode
from alexnet.likeness import fingerprint
from alexnet.listing import Listed, read_bytes, read_picture
from alexnet.oddities import known

KINDS = {
    "crash": "ends the process that decodes it",
    "empty": "no bytes",
    "not-a-picture": "something else, whatever its name says",
    "truncated": "its end is missing",
    "broken": "damaged",
    "unsupported": "pixels of a kind that has no meaning as RGB",
    "refused": "not taken from the source",
    "enormous": "more than 25 million pixels",
    "zero-filled": "ends in zeros, as interrupted downloads do",
    "blank": "every pixel is the same",
    "wrong-name": "not of the format that its name says",
    "cmyk": "four inks",
    "ycck": "four inks, as luminance and colour differences",
    "grey": "greyscale",
    "palette": "colours from a palette",
    "colour-space": "another colour space than RGB",
    "alpha": "transparency",
    "16-bit": "more than 8 bits per colour",
    "animated": "several frames",
    "several-pictures": "several pictures in one file",
    "rotated": "turned upright by its EXIF block",
    "tiny": "shorter side below 32 pixels",
    "small": "shorter side below that of the packed pictures",
    "extreme-shape": "less than a quarter of it is in the central square",
    "duplicate": "the same bytes as another",
    "near-duplicate": "the same picture as another, scaled or compressed once more",
    "warning": "read, with a warning",
    "known": "a known oddity of ImageNet",
}

TINY_PX = 32
ENORMOUS_PIXELS = 25_000_000
EXTREME_RATIO = 4
ZERO_FILLED_BYTES = 1024

KEPT = "kept"

_FORMATS_OF_SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm", ".pbm"), ("PPM",)),
    **{f".{name}": (name.upper(),) for name in ("png", "gif", "bmp", "webp", "avif")},
}

_BEGINNINGS = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"pk\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip data",
    b"%pdf": "a PDF",
    b"%!ps": "PostScript",
    b"8bps": "a Photoshop file",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"{": "JSON",
}


@dataclass(frozen=True)
class Seen:
    """What a worker found out about the picture at `position`."""

    position: int
    found: tuple[tuple[str, str, str], ...]  # kind, detail, action
    digest: bytes = b""
    fingerprint: bytes = b""
    thumbnail: bytes = b""


def look_at(position: int, listed: Listed, image_px: int) -> Seen:
    """Everything odd about one picture, and what it looks like."""
    found: list[tuple[str, str, str]] = []
    data = b""
    with _told() as told:
        try:
            if listed.place.kind == "cifar":
                decoded = Decoded(read_picture(listed.place), "", ())
                data = decoded.image.tobytes()
            else:
                data = read_bytes(listed.place)
                found += _zero_filled(data)
                decoded = decode(data)
        except UnreadableImage as error:
            found.append((error.kind, _detail(error, data), left_out(str(error))))
            return Seen(position, tuple(found))
    found += _wrong_name(listed.name, decoded.format)
    found += [(step.kind, step.what, step.done) for step in decoded.steps]
    found += _shape(decoded.image, image_px)
    if told:
        found.append(("warning", "; ".join(dict.fromkeys(told)), KEPT))
    oddity = known(listed.name, [kind for kind, _, _ in found])
    if oddity is not None:
        found.append(("known", f"{oddity.what} ({oddity.source})", KEPT))
    digest = blake2b(data, digest_size=16).digest()
    return Seen(position, tuple(found), digest, *fingerprint(decoded.image))


def left_out(reason: str) -> str:
    return f"left out: {reason}"


def _detail(error: UnreadableImage, data: bytes) -> str:
    if error.kind != "not-a-picture":
        return str(error)
    return what_it_is(data)


def what_it_is(data: bytes) -> str:
    """What a file is that is no picture, in words."""
    if not data.strip(b"\0"):
        return "nothing but zeros"
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, words in _BEGINNINGS.items():
        if start.startswith(beginning):
            return words
    if b"<svg" in start:
        return "an SVG drawing"
    if start.startswith(b"<?xml"):
        return "XML"
    if data[4:8] == b"ftyp":
        return "a HEIF picture or a film"
    return "text" if _is_text(data[:512]) else "nothing that is known"


def _is_text(data: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)  # may end within a character
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _zero_filled(data: bytes) -> list[tuple[str, str, str]]:
    zeros = len(data) - len(data.rstrip(b"\0"))
    if zeros == len(data) or zeros < max(ZERO_FILLED_BYTES, len(data) // 100):
        return []
    return [("zero-filled", f"the last {zeros:,} of its {len(data):,} bytes are zero", KEPT)]


def _wrong_name(name: str, format: str) -> list[tuple[str, str, str]]:
    suffix = PurePosixPath(name).suffix
    right = _FORMATS_OF_SUFFIXES.get(suffix.lower(), (format,))
    if not format or format in right:
        return []
    return [("wrong-name", f"{format} named {suffix}", f"read as {format}")]


def _shape(image: Image.Image, image_px: int) -> list[tuple[str, str, str]]:
    width, height = image.size
    side = central_square(image.size)[2]
    size = f"{width:,} x {height:,}"
    found = []
    if width * height > ENORMOUS_PIXELS:
        found.append(("enormous", size, KEPT))
    if side < min(TINY_PX, image_px):
        found.append(("tiny", size, f"enlarged from {side} px"))
    elif side < image_px:
        found.append(("small", size, f"enlarged from {side} px"))
    longer = max(width, height)
    if longer > EXTREME_RATIO * side:
        found.append(("extreme-shape", size, f"cut to {100 * side / longer:.2g}% of it"))
    lowest, highest = zip(*image.getextrema(), strict=True)
    if lowest == highest:
        found.append(("blank", f"{size}, all of it RGB {lowest}", KEPT))
    return found


@contextmanager
def _told() -> Iterator[list[str]]:
    """Collect what Pillow would print, as a warning or in its log."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector, logger = Collector(logging.WARNING), logging.getLogger("PIL")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate
        messages[:] = [
            " ".join(message.split())
            for message in (*messages, *(str(warning.message) for warning in caught))
            # The limit is ours, and what is over it is reported as enormous.
            if "decompression bomb" not in message
        ]
