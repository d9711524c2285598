"""Square pictures that are decoded when they are asked for, and crops of any pictures (Section 2).

To the rest of the code they look like the memory-mapped array of a packed data set: `shape`,
`dtype`, one picture by its number, some by a slice or an array of numbers. `JpegPictures` are a
packed data set's that keeps JPEG files instead of pixels, `ListedPictures` are read straight from
wherever they lie, with no preparation. `read_crops` is the innermost loop of the feed.

Not here: finding pictures (sources.py), packing them (packing.py) or noting where they lie
(straight.py), order and draws (loader.py).
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.errors import UserError
from alexnet.images import UnreadableImage, resize_and_crop
from alexnet.listing import Place, read_picture
from alexnet.workers import available_cores

try:
    import simplejpeg  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    simplejpeg = None

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]

JPEG_QUALITY = 90

# Decoding leaves the interpreter to other threads; more than these wait for it all the same.
MAX_DECODING_THREADS = 16

# Places of pictures as five numbers: kind, which file, first byte, bytes, time of change.
PLACE_KINDS = ("file", "span", "cifar")
PLACE_FIELDS = 5


class DecodedPictures:
    """(N, S, S, 3) uint8 whose pictures are made by `decode(number)` each time they are read.

    As with a memory map, a slice reads nothing: it is one of these again, and `np.asarray` of it
    its pixels. An array of numbers gives an array of pictures.

    `unreadable`: why `decode` raises UnreadablePicture for a number, if that is known.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        decode: Callable[[int], Pixels],
        numbers: Sequence[int],
        image_px: int,
        unreadable: Mapping[int, str] | None = None,
    ) -> None:
        self._decode = decode
        self._numbers = numbers
        self._image_px = image_px
        self.unreadable = {} if unreadable is None else unreadable

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
            numbers = self._numbers[key]
            return DecodedPictures(self._decode, numbers, self._image_px, self.unreadable)
        if isinstance(key, (int, np.integer)):
            return self._decode(self._numbers[int(key)])
        return self._stack([self._numbers[index] for index in key])

    def part(self, rows: Sequence[int] | Numbers) -> "DecodedPictures":
        numbers = [self._numbers[row] for row in rows]
        return DecodedPictures(self._decode, numbers, self._image_px, self.unreadable)

    def readable(self) -> Numbers:
        """The rows of the pictures that are not known to be unreadable."""
        known = [row for row, number in enumerate(self._numbers) if number not in self.unreadable]
        return np.array(known, np.int64)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("pictures that are decoded are always a copy")
        pictures = self._stack(self._numbers)
        return pictures if dtype is None else pictures.astype(dtype, copy=False)

    def _stack(self, numbers: Sequence[int]) -> Pixels:
        pictures = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def fill(row: int) -> None:
            pictures[row] = self._decode(numbers[row])

        threads = min(available_cores(), MAX_DECODING_THREADS, len(numbers))
        if threads < 2:
            for row in range(len(numbers)):
                fill(row)
            return pictures
        with ThreadPoolExecutor(threads, thread_name_prefix="decoder") as pool:
            list(pool.map(fill, range(len(numbers))))  # raises what the first one raised
        return pictures


class JpegPictures(DecodedPictures):
    """Pictures that lie in one file as JPEGs, one after another.

    offsets: (N + 1,) int64, the first byte of each, and the end of the last. Reading a picture
    that is damaged raises UserError.
    """

    def __init__(self, file: Path, offsets: Numbers, image_px: int) -> None:
        self._jpegs, self._offsets = np.memmap(file, np.uint8, "r"), offsets
        read = partial(_read_jpeg, file, self._jpegs, offsets, image_px)
        super().__init__(read, range(len(offsets) - 1), image_px)

    def file(self, number: int) -> Pixels:
        """The bytes of one JPEG, (bytes,) uint8, not decoded."""
        return np.array(self._jpegs[self._offsets[number] : self._offsets[number + 1]])


class UnreadablePicture(UserError):
    """A picture that cannot be decoded was found after its number had been given out."""


class ListedPictures(DecodedPictures):
    """Pictures of one split, scaled and cut from wherever they lie each time they are read.

    For the impatient: nothing is prepared, so every epoch pays for decoding whole photographs.
    places: (N, PLACE_FIELDS) int64; files: those that places count; names: of the pictures.

    A file that is not as it was when it was listed raises UserError. So the bytes are always the
    same, and a picture that cannot be decoded never can be: it raises UnreadablePicture, each
    time, and is noted in the file `noted` (a line of JSON each), which tells later readers.
    """

    def __init__(
        self,
        places: Numbers,
        files: Sequence[str],
        names: Sequence[str],
        image_px: int,
        noted: Path,
        resampling: str = "bicubic",
    ) -> None:
        self._places, self._files, self._names = places, files, names
        self._resampling, self._noted = resampling, noted
        self._found = _read_notes(noted, len(places))
        # Of a picture that can be read; for the process, since its threads share their filters.
        warnings.filterwarnings("ignore", module="PIL")
        super().__init__(self._read, range(len(places)), image_px, self._found)

    def left_out(self) -> list[dict[str, str]]:
        """The unreadable ones so far, as dataset.json names what is left out."""
        found = sorted(self._found.copy().items())
        return [{"path": self._names[number], "reason": reason} for number, reason in found]

    def _read(self, number: int) -> Pixels:
        if number not in self._found:
            place = self._place(number)
            _check_unchanged(place, self._names[number])
            try:
                return resize_and_crop(read_picture(place), self._image_px, self._resampling)
            except UnreadableImage as error:
                _check_unchanged(place, self._names[number])  # it may have gone just now
                self._note(number, str(error))
        raise UnreadablePicture(
            f"{self._names[number]} cannot be read ({self._found[number]}); remove it, or "
            "pack the pictures with alexnet prepare, which leaves such pictures out"
        )

    def _place(self, number: int) -> Place:
        kind, file, start, size, mtime_ns = self._places[number].tolist()
        return Place(PLACE_KINDS[kind], self._files[file], start, size, mtime_ns)

    def _note(self, number: int, reason: str) -> None:
        self._found[number] = reason
        line = json.dumps({"number": number, "reason": reason}) + "\n"
        # Whoever comes later finds out again.
        with contextlib.suppress(OSError), open(self._noted, "ab") as file:
            file.write(line.encode())


def read_crops(
    images: Pixels | DecodedPictures,
    indices: Numbers,
    tops: Numbers,
    lefts: Numbers,
    size_px: int,
    out: Pixels,
) -> list[int]:
    """Cut one window from each picture `indices` names, into `out` (B, size, size, 3).

    tops, lefts: (B,) int64. Each copy and each decoding leaves the interpreter to other threads.
    Returns the rows of unreadable pictures, whose part of `out` holds anything.
    """
    if isinstance(images, np.ndarray):
        images = np.asarray(images)  # a memory map's own indexing is Python, and slow
    unreadable = []
    windows = zip(indices.tolist(), tops.tolist(), lefts.tolist(), strict=True)
    for row, (index, top, left) in enumerate(windows):
        try:
            out[row] = images[index][top : top + size_px, left : left + size_px]
        except UnreadablePicture:
            unreadable.append(row)
    return unreadable


def check_size(images: Pixels | DecodedPictures) -> None:
    """Raises UserError where the file of a memory map has become shorter than the map.

    The system kills a process that reads beyond the end. A file that was removed is not shorter:
    it stays for as long as it is mapped.
    """
    if not isinstance(images, np.memmap) or images.filename is None:
        return
    while isinstance(images.base, np.memmap):  # a slice does not know where it begins
        images = images.base
    assert images.filename is not None
    with contextlib.suppress(FileNotFoundError):
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


def _check_unchanged(place: Place, name: str) -> None:
    """Raises UserError unless the file of a picture is as it was when it was listed."""
    try:
        status = os.stat(place.file)
    except OSError as error:
        raise UserError(
            f"{name} cannot be read any more ({place.file}: {error.strerror}); put it back and go "
            "on with --resume, or start a new run"
        ) from error
    same_size = place.kind != "file" or status.st_size == place.size
    if not same_size or status.st_mtime_ns != place.mtime_ns:
        raise UserError(
            f"{name} has changed since its run began ({place.file}); put the old file back, with "
            "its time (cp -p), and go on with --resume, or start a new run"
        )


def _read_notes(path: Path, count: int) -> dict[int, str]:
    """What `ListedPictures` noted; lines that make no sense are passed over."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError):
                note = json.loads(line)
                if 0 <= note["number"] < count:
                    found[int(note["number"])] = str(note["reason"])
    return found
