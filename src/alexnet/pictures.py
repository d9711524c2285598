"""Square pictures that are decoded when they are asked for, and crops of any pictures (Section 2).

To the rest of the code they look like the memory-mapped array of a packed data set: `shape`,
`dtype`, one picture by its number, some by a slice or an array of numbers. `JpegPictures` are a
packed data set's that keeps JPEG files instead of pixels, `ListedPictures` are read straight from
wherever they lie, with no preparation. `read_crops` is the innermost loop of the feed.

Not here: finding pictures (sources.py), packing them (packing.py), order and draws (loader.py).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.errors import UserError
from alexnet.images import UnreadableImage, resize_and_crop
from alexnet.listing import Listing, Place, read_picture

try:
    import simplejpeg  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    simplejpeg = None

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]

JPEG_QUALITY = 90


class DecodedPictures:
    """(N, S, S, 3) uint8 whose pictures are made by `decode(number)` each time they are read.

    As with a memory map, a slice reads nothing: it is one of these again, and `np.asarray` of it
    its pixels. An array of numbers gives an array of pictures.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, decode: Callable[[int], Pixels], numbers: range, image_px: int) -> None:
        self._decode = decode
        self._numbers = numbers
        self._image_px = image_px

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), self._image_px, self._image_px, 3

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> Pixels: ...
    @overload
    def __getitem__(self, key: slice) -> "DecodedPictures": ...
    @overload
    def __getitem__(self, key: Numbers | Sequence[int]) -> Pixels: ...
    def __getitem__(self, key: Any) -> "Pixels | DecodedPictures":
        if isinstance(key, slice):
            return DecodedPictures(self._decode, self._numbers[key], self._image_px)
        if isinstance(key, (int, np.integer)):
            return self._decode(self._numbers[key])
        return self._stack([self._numbers[index] for index in key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("pictures that are decoded are always a copy")
        pictures = self._stack(self._numbers)
        return pictures if dtype is None else pictures.astype(dtype, copy=False)

    def _stack(self, numbers: Sequence[int]) -> Pixels:
        pictures = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for row, number in enumerate(numbers):
            pictures[row] = self._decode(number)
        return pictures


class JpegPictures(DecodedPictures):
    """Pictures that lie in one file as JPEGs, one after another.

    offsets: (N + 1,) int64, the first byte of each, and the end of the last. Reading a picture
    that is damaged raises UserError.
    """

    def __init__(self, file: Path, offsets: Numbers, image_px: int) -> None:
        read = partial(_read_jpeg, file, np.memmap(file, np.uint8, "r"), offsets, image_px)
        super().__init__(read, range(len(offsets) - 1), image_px)


class ListedPictures(DecodedPictures):
    """The pictures of one split of a listing, scaled and cut each time they are read.

    For the impatient: nothing is prepared, so every epoch pays for decoding and scaling whole
    photographs. What `prepare` would leave out cannot be left out here: a picture that cannot be
    read raises UserError, which names it. The places of all pictures are held in memory.

    labels: (N,) int64; names: where each picture comes from.
    """

    def __init__(
        self, listing: Listing, split: str, image_px: int, resampling: str = "bicubic"
    ) -> None:
        listed = [picture for picture in listing.pictures() if picture.split == split]
        self.labels = np.array([picture.label for picture in listed], np.int64)
        self.names = tuple(picture.name for picture in listed)
        places = [picture.place for picture in listed]
        read = partial(_read_listed, self.names, places, image_px, resampling)
        super().__init__(read, range(len(listed)), image_px)


def read_crops(
    images: Pixels | DecodedPictures,
    indices: Numbers,
    tops: Numbers,
    lefts: Numbers,
    size_px: int,
    out: Pixels,
) -> None:
    """Cut one window from each picture `indices` names, into `out` (B, size, size, 3).

    tops, lefts: (B,) int64. Each copy and each decoding leaves the interpreter to other threads.
    """
    if isinstance(images, np.ndarray):
        images = np.asarray(images)  # a memory map's own indexing is Python, and slow
    windows = zip(indices.tolist(), tops.tolist(), lefts.tolist(), strict=True)
    for row, (index, top, left) in enumerate(windows):
        out[row] = images[index][top : top + size_px, left : left + size_px]


def check_size(images: Pixels | DecodedPictures) -> None:
    """Raises UserError where the file of a memory map has become shorter than the map.

    The system kills a process that reads beyond the end. A file that was removed is not shorter:
    it stays for as long as it is mapped.
    """
    if not isinstance(images, np.memmap) or images.filename is None:
        return
    with suppress(FileNotFoundError):
        if Path(images.filename).stat().st_size < images.offset + images.nbytes:
            raise UserError(
                f"{images.filename} was cut short while it was in use; prepare the pictures again, "
                "or bring back the file"
            )


def encode_jpeg(pixels: Pixels, quality: int = JPEG_QUALITY) -> bytes:
    """One picture (S, S, 3) as a JPEG file, colours at half resolution (4:2:0)."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> Pixels:
    """The picture (S, S, 3) of a JPEG file that `encode_jpeg` made; damage raises any exception.

    Both decoders are libjpeg-turbo and give the same pixels; simplejpeg, the extra "jpeg", hands
    them over in half the time. `images.read_image` takes as long again, for its care for pictures
    of any origin.
    """
    if simplejpeg is not None:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
        return pixels
    return decode_jpeg_by_pillow(data)


def decode_jpeg_by_pillow(data: bytes) -> Pixels:
    with Image.open(BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image)


def _read_jpeg(file: Path, jpegs: Pixels, offsets: Numbers, image_px: int, number: int) -> Pixels:
    data = jpegs[offsets[number] : offsets[number + 1]].tobytes()
    try:
        pixels = decode_jpeg(data)
    # Decoders fail on damaged files with nearly every kind of exception there is.
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise _damaged(file, number, f"cannot be decoded: {reason}") from error
    if pixels.shape != (image_px, image_px, 3):
        raise _damaged(file, number, f"is an array of {pixels.shape}")
    return pixels


def _damaged(file: Path, number: int, what: str) -> UserError:
    return UserError(
        f"{file} is damaged (picture {number:,} {what}); remove the data set and prepare it again"
    )


def _read_listed(
    names: Sequence[str], places: Sequence[Place], image_px: int, resampling: str, number: int
) -> Pixels:
    try:
        return resize_and_crop(read_picture(places[number]), image_px, resampling)
    except UnreadableImage as error:
        raise UserError(
            f"{names[number]} cannot be read ({error}); remove it, or pack the pictures with "
            "alexnet prepare, which leaves such pictures out"
        ) from error
