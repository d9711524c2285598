"""One picture, from a file or from bytes to RGB pixels (Section 2 of the paper).

`read_image` decodes with Pillow and makes every kind of picture RGB; `resize_and_crop` is the
paper's only other preprocessing, "rescale so that the shorter side is 256, then cut out the
central 256x256". Training, evaluation, prediction and indexing all call these two, so that a
network never meets pictures prepared in another way.

Not here: walking folders and packing (prepare.py), random crops and mean subtraction (augment.py).
"""

import contextlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

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

# Pillow widens the filter when it shrinks, so this is antialiased; when it enlarges, it is the
# cubic interpolation of the authors' later make-data.py.
RESAMPLING = Image.Resampling.BICUBIC

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
    """A picture that cannot be decoded; the message is the reason, in one line."""


def read_image(source: Path | bytes) -> Image.Image:
    """Decode one picture, a file or its bytes, to RGB, upright.

    The orientation noted in EXIF is applied, so that pixels are as people see the picture. Of
    several frames the first is taken. Colour profiles are ignored, as in 2012. How the other
    kinds of picture become RGB stands at `to_rgb`.

    Raises UnreadableImage for anything that is not wholly there: broken, truncated or empty
    files, unknown formats, more than MAX_PIXELS pixels.
    """
    try:
        with _opened(source) as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImage(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
            image.load()
            return to_rgb(_upright(image))
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"not a picture in a known format ({', '.join(FORMATS)})") from None
    # Pillow's decoders fail on damaged files with nearly every kind of exception there is.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(" ".join(reason.split())[:200]) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow to RGB, sensibly.

    Greyscale, palette, CMYK and YCCK are converted by Pillow; what is transparent is shown on
    white; of 16 bits the upper 8 count, as Pillow does for 16-bit colour. Raises
    UnreadableImage for pixels without a fixed range (floating point, 32-bit integers).
    """
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, which have no fixed range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _upper_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_and_crop(image: Image.Image, size_px: int) -> npt.NDArray[np.uint8]:
    """Shorter side to `size_px`, then the central square: RGB picture -> (size_px, size_px, 3).

    The square is cut by whole pixels of the source, half a pixel up and to the left where the
    middle falls between two, so that a picture whose shorter side fits already is only cut.
    Resampling starts from the square, yet sees the pixels around it: the same as resizing the
    whole and cutting then, but a 1 x 20,000 picture needs no 256 x 5,120,000 one on the way.
    """
    assert image.mode == "RGB"
    assert size_px > 0
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = (left, top, left + side, top + side)
    return np.array(image.resize((size_px, size_px), RESAMPLING, box=square))


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator[IO[bytes]]:
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if not file.read(1):
            raise UnreadableImage("empty file")
        file.seek(0)
        yield file


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        orientation = 1
    step = _UPRIGHT.get(orientation)
    return image if step is None else image.transpose(step)


def _upper_8_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise UnreadableImage("32-bit integer pixels, which have no fixed range")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
