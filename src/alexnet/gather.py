"""Pictures that a user names: found, read ahead in threads, in batches.

Files, folders (with everything below), patterns such as "holidays/**/*.jpg", and "-" for names on
standard input. Each is read by the function that `prepare` uses. A picture that cannot be read
stops nothing: it is named, with the reason.

Not here: data sets with classes and splits (`sources.py`).
"""

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import UserError
from alexnet.images import SUFFIXES, UnreadableImage, resize_and_crop
from alexnet.listing import Place, read_picture
from alexnet.workers import available_cores

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Gathered:
    """Some pictures, in their order: `paths`, for each the reason why it cannot be read or None.

    pixels: uint8 (B, S, S, 3), of those that can.
    """

    paths: tuple[str, ...]
    reasons: tuple[str | None, ...]
    pixels: Pixels

    @property
    def readable(self) -> tuple[str, ...]:
        pairs = zip(self.paths, self.reasons, strict=True)
        return tuple(path for path, reason in pairs if reason is None)

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        pairs = zip(self.paths, self.reasons, strict=True)
        return tuple((path, reason) for path, reason in pairs if reason is not None)


def picture_paths(named: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[str]:
    """The files that are meant, in order; those of a folder or a pattern sorted.

    Whatever is named itself is taken, so that what is wrong with it is said when it is read. Of a
    folder, files count whose suffix is that of a picture, hidden ones left out. "-" reads a path
    a line from `stdin`. Raises UserError for a folder without pictures or a pattern that nothing
    matches.
    """
    for name in named:
        if name == "-" and stdin is not None:
            yield from _lines(stdin)
        elif os.path.isdir(name):
            yield from pictures_below(name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            yield from _matches(name)
        else:
            yield name


def pictures_below(folder: str) -> Iterator[str]:
    """Pictures in a folder and deeper, sorted. Raises UserError if there are none."""
    count = 0
    for parent, subfolders, files in os.walk(folder, onerror=_unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if _is_picture(name):
                count += 1
                yield os.path.join(parent, name)
    if not count:
        raise UserError(f"no pictures in {folder} (looked for {' '.join(sorted(SUFFIXES))})")


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}")


def _matches(pattern: str) -> Iterator[str]:
    found = sorted(glob.glob(pattern, recursive=True))
    files = [path for path in found if not os.path.isdir(path)]
    if not files:
        raise UserError(f"no file matches {pattern!r}")
    yield from [path for path in files if _is_picture(os.path.basename(path))] or files


def _lines(stdin: BinaryIO) -> Iterator[str]:
    for line in stdin:
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def read_pictures(
    paths: Iterable[str], image_px: int, *, batch_size: int, threads: int = 0
) -> Iterator[Gathered]:
    """Read `batch_size` pictures at a time, the next while the caller works with the last.

    `threads` 0: one per core. Raises UserError only where the disk fails, not the picture.
    """
    names = iter(paths)
    with ThreadPoolExecutor(threads or available_cores()) as pool:

        def start() -> tuple[tuple[str, ...], list[Future[Pixels | str]]]:
            block = tuple(islice(names, batch_size))
            return block, [pool.submit(read_square, path, image_px) for path in block]

        block, reading = start()
        while block:
            following, then_reading = start()
            yield _gathered(block, [future.result() for future in reading], image_px)
            block, reading = following, then_reading


def _gathered(paths: tuple[str, ...], read: Sequence[Pixels | str], image_px: int) -> Gathered:
    reasons = tuple(result if isinstance(result, str) else None for result in read)
    whole = [result for result in read if not isinstance(result, str)]
    pixels = np.stack(whole) if whole else np.empty((0, image_px, image_px, 3), np.uint8)
    return Gathered(paths, reasons, pixels)


def read_square(path: str, image_px: int) -> Pixels | str:
    """One picture (S, S, 3), shorter side to `image_px` and the central square; or why not."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            return "not a file, but a folder, a pipe or a device"
        return resize_and_crop(read_picture(Place("file", path)), image_px)
    except FileNotFoundError:
        return "it is not there"
    except UnreadableImage as error:
        return str(error)
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte in it
        return getattr(error, "strerror", None) or str(error)
