"""One picture, from a file or from bytes to RGB pixels (Section 2 of the paper).

`read_image` decodes with Pillow and makes every kind of picture RGB; `resize_and_crop` is the
paper's only other preprocessing, "rescale so that the shorter side is 256, then cut out the
central 256x256". Training, evaluation, prediction and indexing all call these two, so that a
network never meets pictures prepared in another way.

Not here: walking folders and packing (prepare.py), random crops and mean subtraction (augment.py).
"""

import contextlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

# What Pillow may try. Its other readers are left out: some start a second program (EPS calls
# Ghostscript), and no data set of pictures needs them.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")

# Names that make a file count as a picture; what it really is, its first bytes decide.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".avif"}
)

# Pillow's own limit for refusing a decompression bomb: about half a gigabyte of RGB.
MAX_PIXELS = 178_956_970

# Pillow widens the filter when it shrinks, so all but "nearest" are antialiased; when it enlarges,
# "bicubic" is the cubic interpolation of the authors' later make-data.py.
RESAMPLING = {
    name: Image.Resampling[name.upper()]
    for name in ("bicubic", "bilinear", "lanczos", "hamming", "box", "nearest")
}

# What Pillow says of a file that ends too soon, and of one that it has no reader for.
_REASONS = {
    "truncated": re.compile(r"truncated|unexpected end|not enough", re.IGNORECASE),
    "unsupported": re.compile(r"not supported|unsupported", re.IGNORECASE),
}

_BEGINNINGS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG"),
    "GIF": re.compile(rb"GIF8"),
    "TIFF": re.compile(rb"II[*+]\x00|MM\x00[*+]"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
}

# Formats that may hold several pictures, and what those are to each other.
_SEVERAL = {
    "GIF": "frames",
    "PNG": "frames",
    "WEBP": "frames",
    "AVIF": "frames",
    "TIFF": "pictures",
    "MPO": "pictures",
}

_MODE_KINDS = {"1": "grey", "L": "grey", "P": "palette", "CMYK": "cmyk"}
_MODE_WORDS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey",
    "P": "palette",
    "PA": "palette",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "CMYK": "four inks (CMYK)",
}

# The next marker of a JPEG, compressed pixels skipped: in those, 0xFF is followed by 0, by the
# number of a restart, or by filling.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

# Any bits do that differ from what libjpeg fills up with; the restarts are for files that have
# them, where nothing is decoded before the next one.
_NOISE = b"".join(
    bytes((37 * byte + 11 * restart) % 251 for byte in range(200)) + bytes([0xFF, 0xD0 + restart])
    for restart in range(8)
)

_UPRIGHT_WORDS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored upside down",
    5: "turned by 90 degrees and mirrored",
    6: "turned by 90 degrees clockwise",
    7: "turned by 90 degrees and mirrored",
    8: "turned by 90 degrees anticlockwise",
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """A picture that cannot be decoded; the message is the reason, in one line.

    `kind` is "empty", "not-a-picture", "truncated", "broken", "enormous", or "unsupported" for
    pixels that are whole but have no fixed range.
    """

    def __init__(self, reason: str, kind: str = "broken") -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Step:
    """What was done to a picture on its way to upright RGB, and what about it asked for that."""

    kind: str  # of the oddity, as `alexnet check` names it
    what: str
    done: str


@dataclass(frozen=True)
class Decoded:
    """A picture as RGB, upright; what it is, whatever its name says; what was done to it."""

    image: Image.Image
    format: str  # as Pillow names it
    steps: tuple[Step, ...]


def read_image(source: Path | bytes) -> Image.Image:
    """Decode one picture, a file or its bytes, to RGB, upright.

    The orientation noted in EXIF is applied, so that pixels are as people see the picture. Of
    several frames the first is taken. Colour profiles are ignored, as in 2012. How the other
    kinds of picture become RGB stands at `to_rgb`.

    Raises UnreadableImage for anything that is not wholly there: broken, truncated or empty
    files, unknown formats, more than MAX_PIXELS pixels.
    """
    return decode(source).image


def decode(source: Path | bytes) -> Decoded:
    """`read_image`, with an account of what was done."""
    try:
        with _opened(source) as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(f"{width} x {height} pixels")
            format = image.format or ""
            sixteen_bits = _sixteen_bit_colour(image)
            ycck = image.mode == "CMYK" and image.info.get("adobe_transform") == 2
            image.load()
            if format == "PNG":
                _check_png(file)
            if format in ("JPEG", "MPO") and _may_be_cut(image):
                _check_jpeg_end(file, image)
            upright, turned = _upright(image)
            rgb, converted = _to_rgb(upright, ycck)
            steps = (sixteen_bits, _first_of_several(file, format), turned, converted)
            return Decoded(rgb, format, tuple(step for step in steps if step is not None))
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise _unidentified(source) from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(f"{int(pixels[0]):,} pixels" if pixels else "the picture") from None
    # Pillow's decoders fail on damaged files with nearly every kind of exception there is.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        kinds = [kind for kind, words in _REASONS.items() if words.search(reason)]
        raise UnreadableImage(" ".join(reason.split())[:200], *kinds[:1]) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow to RGB, sensibly.

    Greyscale, palette, CMYK and YCCK are converted by Pillow; what is transparent is shown on
    white; of 16 bits the upper 8 count, as Pillow does for 16-bit colour. Raises
    UnreadableImage for pixels without a fixed range (floating point, 32-bit integers).
    """
    return _to_rgb(image)[0]


def resize_and_crop(
    image: Image.Image, size_px: int, resampling: str = "bicubic"
) -> npt.NDArray[np.uint8]:
    """Shorter side to `size_px`, then the central square: RGB picture -> (size_px, size_px, 3).

    The square is cut by whole pixels of the source, half a pixel up and to the left where the
    middle falls between two, so that a picture whose shorter side fits already is only cut.
    Resampling starts from the square, yet sees the pixels around it: the same as resizing the
    whole and cutting then, but a 1 x 20,000 picture needs no 256 x 5,120,000 one on the way.
    """
    assert image.mode == "RGB"
    assert size_px > 0
    left, top, side = central_square(image.size)
    square = (left, top, left + side, top + side)
    return np.array(image.resize((size_px, size_px), RESAMPLING[resampling], box=square))


def central_square(size: tuple[int, int]) -> tuple[int, int, int]:
    """(left, top, side) in whole pixels of the square that is cut from a picture of this size."""
    width, height = size
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator[IO[bytes]]:
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if not file.read(1):
            raise UnreadableImage("empty file", "empty")
        file.seek(0)
        yield file


def _unidentified(source: Path | bytes) -> UnreadableImage:
    with _opened(source) as file:
        head = file.read(16)
    for format, beginning in _BEGINNINGS.items():
        if beginning.match(head):
            return UnreadableImage(f"begins as {format} does, but its header is cut or damaged")
    known = ", ".join(FORMATS)
    return UnreadableImage(f"not a picture in a known format ({known})", "not-a-picture")


def _too_large(size: str) -> UnreadableImage:
    return UnreadableImage(f"{size}, more than {MAX_PIXELS:,}, the limit", "enormous")


def _upright(image: Image.Image) -> tuple[Image.Image, Step | None]:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        orientation = 1
    operation = _UPRIGHT.get(orientation)
    if operation is None:
        return image, None
    step = Step("rotated", f"EXIF orientation {orientation}", _UPRIGHT_WORDS[orientation])
    return image.transpose(operation), step


def _to_rgb(image: Image.Image, ycck: bool = False) -> tuple[Image.Image, Step | None]:
    mode = image.mode
    if mode == "F":
        raise UnreadableImage("floating-point pixels, which have no fixed range", "unsupported")
    if mode == "I" or mode.startswith("I;16"):
        step = Step("16-bit", "16 bits of grey per pixel", "converted to RGB from the upper 8 bits")
        return _upper_8_bits(image).convert("RGB"), step
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        step = Step("alpha", f"{_MODE_WORDS.get(mode, mode)} with transparency", "shown on white")
        return Image.alpha_composite(white, layer).convert("RGB"), step
    if mode == "RGB":
        return image, None
    words = "four inks (YCCK)" if ycck else _MODE_WORDS.get(mode, f"colours as {mode}")
    kind = "ycck" if ycck else _MODE_KINDS.get(mode, "colour-space")
    return image.convert("RGB"), Step(kind, words, "converted to RGB")


def _upper_8_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise UnreadableImage("32-bit integer pixels, which have no fixed range", "unsupported")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _sixteen_bit_colour(image: Image.Image) -> Step | None:
    """Pillow itself takes the upper 8 bits of 16-bit colour; how it unpacks tells of it."""
    if image.mode.startswith("I"):
        return None  # 16-bit grey is told by its mode
    raw_modes = [str(tile[3]) for tile in getattr(image, "tile", [])]
    if not any(";16" in raw for raw in raw_modes):
        return None
    return Step("16-bit", "16 bits per colour", "the upper 8 bits kept")


def _first_of_several(file: IO[bytes], format: str) -> Step | None:
    if format not in _SEVERAL:
        return None
    try:
        # Opened anew: counting moves some of Pillow's readers to another frame.
        file.seek(0)
        with Image.open(file, formats=FORMATS) as image:
            count = getattr(image, "n_frames", 1)
    except Exception:  # damage behind the first frame
        return None
    if count < 2:
        return None
    noun = _SEVERAL[format]
    kind = "animated" if noun == "frames" else "several-pictures"
    return Step(kind, f"{count:,} {noun}", f"the first of {count:,} {noun} taken")


def _check_png(file: IO[bytes]) -> None:
    """Raises UnreadableImage where the checksum of compressed pixels is wrong.

    Pillow does not look, and makes black pixels of a download that was filled up with zeros.
    """
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = int.from_bytes(head[:4]), head[4:]
        if name == b"IEND":
            return
        if name != b"IDAT":
            file.seek(length + 4, os.SEEK_CUR)
            continue
        checksum = zlib.crc32(file.read(length), zlib.crc32(name))
        if checksum != int.from_bytes(file.read(4)):
            raise UnreadableImage("the checksum of its pixels is wrong")


def _may_be_cut(jpeg: Image.Image) -> bool:
    """Whether the last pixel has the value that libjpeg gives to what is missing.

    Of a progressive file only details may be missing, which leaves no such trace.
    """
    last = jpeg.getpixel((jpeg.width - 1, jpeg.height - 1))
    values = last if isinstance(last, tuple) else (last,)
    return "progressive" in jpeg.info or all(value in (127, 128) for value in values)


def _check_jpeg_end(file: IO[bytes], image: Image.Image) -> None:
    """Raises UnreadableImage if the compressed pixels end before the picture does.

    libjpeg paints what is missing grey and warns of it in a way that Pillow does not pass on. So
    something more is put behind the compressed pixels: if that changes the picture, they were
    not all there.
    """
    file.seek(0)
    continued = _with_noise_at_the_end(file.read())
    if continued is None:
        return
    with Image.open(BytesIO(continued), formats=("JPEG",)) as other:
        changed = ImageChops.difference(image.convert("RGB"), other.convert("RGB")).getbbox()
    if changed is not None:
        share = 1 - changed[1] / image.height
        raise UnreadableImage(
            f"the compressed pixels end early, which spoils up to {share:.0%} of the rows",
            "truncated",
        )


def _with_noise_at_the_end(data: bytes) -> bytes | None:
    """The JPEG with noise and restart markers behind its last scan; None if it has no end."""
    position = 2
    while (found := _MARKER.search(data, position)) is not None:
        marker, position = found[0][-1], found.end()
        if marker == 0xD9:
            return data[: position - 2] + _NOISE + data[position - 2 :]
        if marker != 0xDA:  # between scans: a segment with its length
            position += int.from_bytes(data[position : position + 2])
    return None
