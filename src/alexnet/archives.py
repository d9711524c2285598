"""Pictures in tar archives, found without unpacking, and hostile archives refused by name.

Headers are parsed by `tarfile`; we give it a window in which one header may take only so much,
and look at each member before anybody reads it. Three layouts are known: a tar of tars, one per
class (ILSVRC's training pictures, ImageNet's synsets); WebDataset, where files of one sample share
their name up to the first dot; and class folders. All three are read forwards only, so that
they work on a pipe as well.

Not here: which archive is which split, and where labels come from (sources.py, imagenet.py).
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Generic, Protocol, TypeVar, cast

from alexnet.errors import UserError
from alexnet.images import SUFFIXES
from alexnet.listing import MAX_PICTURE_BYTES

Refused = Callable[[str, str], None]
"""Called as refused(name, reason) for whatever is not taken and could have been a picture."""

Kept = TypeVar("Kept")

# One header, with the long name and the attributes that may stand before it.
MAX_HEADER_BYTES = 2**15

# Labels, lists and other files that are read whole.
SMALL_FILE_BYTES = 2**26
MAX_LABEL_BYTES = 2**16

# Blanks at an archive's end are looked through for a second archive behind it, this far.
BYTES_AFTER_THE_END = 2**20

# By how much a pipe can be set back: more than `tarfile` and we need, two blocks.
KEPT_BYTES = 1024

# The first picture of a pipe, and what stands before it, is read twice to know the layout.
REMEMBERED_BYTES = 2**25

CHUNK_BYTES = 2**18

# The folder of a split, under the names in use.
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz")


class NotAnArchive(ValueError):
    """What should be a tar archive is none; the message is one line that names it."""


class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def seek(self, position: int, /) -> int: ...


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name there, and its bytes in the outermost file.

    `path` is for messages: the archive, the archive inside it if it is nested, and the name.
    """

    name: str
    path: str
    start: int
    size: int


@dataclass(frozen=True)
class Found(Generic[Kept]):
    """A picture in an archive; `label` is its class by id or name, or by number from 0.

    `split` is None where nothing says which; `name` is the path below the class.
    """

    split: str | None
    label: str | int
    name: str
    kept: Kept


@dataclass(frozen=True)
class Archive:
    """A tar that is open: a file, or a Pipe; `where` is its name for messages."""

    file: Reader
    where: str
    size: int | None
    refused: Refused

    def members(self) -> Iterator[Member]:
        return members(self.file, self.where, self.refused, 0, self.size)

    def read(self, member: Member) -> bytes | None:
        """The bytes of a member; None, and a word to `refused`, if the archive ends before."""
        self.file.seek(member.start)
        data = self.file.read(member.size)
        if len(data) < member.size:
            self.refused(member.path, "the archive ends in the middle of it")
            return None
        return data


class Pipe:
    """A file to be read forwards, in which one may seek: onwards, and back a little.

    Compressed files are such, and end where they are damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0  # of the next read
        self._fetched = 0  # bytes read from the file
        self._tail = b""  # the last of them
        self._kept_bytes = KEPT_BYTES

    @property
    def can_return(self) -> bool:
        """Whether it can be set back to its start."""
        return len(self._tail) == self._fetched

    @contextlib.contextmanager
    def remembering(self, count: int) -> Iterator[None]:
        """Be able to go back by `count` bytes; from the place reached then, all can be read on."""
        self._kept_bytes = count
        yield
        self._kept_bytes = KEPT_BYTES

    def seek(self, position: int, /) -> int:
        while self._fetched < position and self._fetch(min(position - self._fetched, CHUNK_BYTES)):
            pass
        assert position >= self._fetched - len(self._tail)
        self._position = position
        return position

    def read(self, size: int, /) -> bytes:
        behind = max(self._fetched - self._position, 0)
        parts = [self._tail[len(self._tail) - behind :][:size]] if behind else []
        left = size - sum(map(len, parts))
        while left and self._position <= self._fetched:
            data = self._fetch(min(left, CHUNK_BYTES))
            if not data:
                break
            parts.append(data)
            left -= len(data)
        data = b"".join(parts)
        self._position += len(data)
        return data

    def _fetch(self, size: int) -> bytes:
        try:
            data = self._file.read(size) or b""
        except (OSError, EOFError, zlib.error, lzma.LZMAError):
            data = b""
        self._fetched += len(data)
        self._tail = (self._tail + data)[-self._kept_bytes :]
        return data


class _Window:
    """Part of a file as `tarfile` sees it, where one header may take MAX_HEADER_BYTES.

    Without that limit, a header of some bytes can ask for any amount of memory.
    """

    def __init__(self, file: Reader, start: int, size: int | None) -> None:
        self._file, self._start, self._size = file, start, size
        self._position = 0
        self.budget = MAX_HEADER_BYTES

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, /) -> int:
        if position < 0:
            raise tarfile.ReadError("a negative size")
        self._position = position
        return position

    def read(self, size: int, /) -> bytes:
        self.budget -= size
        if size < 0 or self.budget < 0:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        if self._size is not None:
            size = min(size, max(self._size - self._position, 0))
        if size == 0:  # without a move: a pipe would be read to a place that is not ours
            return b""
        self._file.seek(self._start + self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data


def members(
    file: Reader, where: str, refused: Refused, start: int, size: int | None
) -> Iterator[Member]:
    """The plain files of the tar in `size` bytes of `file` from `start`, in their order.

    `size` None: to the end of a pipe. Everything else but folders is told to `refused`, and so
    is an archive that is damaged or cut off: what stands before is yielded. `file` may be moved
    between two members, forwards if it is a pipe. Raises NotAnArchive if the very start is
    no header.
    """
    window = _Window(file, start, size)
    try:
        archive = tarfile.TarFile(
            fileobj=cast(IO[bytes], window), encoding="utf-8", errors="surrogateescape"
        )
    # `tarfile` fails on damaged headers with nearly every kind of exception there is.
    except Exception as error:
        raise NotAnArchive(f"{where} is no tar archive: {_reason(error)}") from None
    while True:
        window.budget = MAX_HEADER_BYTES
        at = archive.offset
        try:
            info = archive.next()
        except Exception as error:
            refused(where, f"{_reason(error)} near byte {at:,}; nothing after it is read")
            return
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        if info is None:
            _look_at_the_end(window, archive.offset, where, refused)
            return
        if info.size < 0 or archive.offset <= info.offset or _is_stuffed(archive):
            refused(where, f"an absurd header at byte {info.offset:,}; nothing after it is read")
            return
        name = "/".join(part for part in info.name.split("/") if part not in ("", "."))
        path = f"{where}/{name}"
        objection = _objection(info)
        if info.isdir():
            continue
        if objection is not None:
            refused(path, objection)
        elif size is not None and info.offset_data + info.size > size:
            refused(path, "the archive ends in the middle of it")
            if is_archive(name):  # what stands before the cut can be read
                yield Member(name, path, start + info.offset_data, size - info.offset_data)
            return
        else:
            yield Member(name, path, start + info.offset_data, info.size)


def is_picture(name: str) -> bool:
    """Whether a name is that of a picture, and neither it nor a folder above it is hidden."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES and not any(
        part.startswith(".") or part == "__MACOSX" for part in name.split("/")
    )


def is_archive(name: str) -> bool:
    return name.lower().endswith(".tar")


@contextlib.contextmanager
def opened(path: Path, refused: Refused) -> Iterator[Archive]:
    """Open a tar. Raises UserError if it cannot be read, now or later, or is none."""
    try:
        with path.open("rb") as file:
            yield Archive(file, path.name, os.fstat(file.fileno()).st_size, refused)
    except NotAnArchive as error:
        raise UserError(f"{error} ({path})") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """What is in a compressed file, found out by its first bytes; any other file as it is."""
    buffered: Any = _Peeking(file)
    first = buffered.peek(6)[:6]
    if first.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
    if first.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(buffered))
    if first.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.LZMAFile(buffered))
    return cast(IO[bytes], buffered)


def small_files(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files of a tar, compressed or not, by name. Raises UserError if it is none."""
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            archive = Archive(Pipe(decompressed(file)), path.name, None, lambda *_: None)
            for member in archive.members():
                if wanted(member.name):
                    if member.size > SMALL_FILE_BYTES:
                        raise UserError(f"{member.path} is absurdly large: {member.size:,} bytes")
                    data = archive.read(member)
                    if data is None:
                        raise UserError(f"{path} is cut off; get it anew")
                    found[member.name] = data
    except NotAnArchive as error:
        raise UserError(f"{error} ({path})") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return found


def layout_of(names: Iterator[str]) -> str | None:
    """Which layout the names of the members make: "tars", "samples", "folders", or None.

    The names up to the second picture tell: files of a sample follow each other.
    """
    key = None
    label_key = None
    for name in names:
        if is_archive(name):
            return "tars"
        extension = sample_of(name)[1].rpartition(".")[2].lower()
        if extension in ("cls", "json"):
            label_key = sample_of(name)[0]
        elif is_picture(name):
            if key is not None:
                return "folders"
            key = sample_of(name)[0]
        if key is not None and key == label_key:
            return "samples"
    return None if key is None else "folders"


def sample_of(name: str) -> tuple[str, str]:
    """WebDataset's rule: "a/b.c.jpg" belongs to sample "a/b" and is its "c.jpg"."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension


def layout_of_stream(archive: Archive) -> str:
    """`layout_of` for a pipe at its start, which is set back there. Raises UserError if too much
    would have to be remembered to do so.
    """
    pipe = archive.file
    assert isinstance(pipe, Pipe)
    look = Archive(pipe, archive.where, None, lambda name, reason: None)
    with pipe.remembering(REMEMBERED_BYTES):
        layout = layout_of(member.name for member in look.members())
        if not pipe.can_return:
            raise UserError("the stream's layout is not clear from its start: name it with --kind")
        pipe.seek(0)
    return layout or "folders"


def pictures_in(
    archive: Archive, layout: str, keep: Callable[[Member], Kept | None]
) -> Iterator[Found[Kept]]:
    """The pictures of an archive in one of the layouts; "flat" has no classes.

    `keep` is called for each picture when its place is reached; what it returns None for
    is left out.
    """
    read = {
        "tars": from_tars,
        "folders": from_folders,
        "samples": from_samples,
        "flat": from_flat,
    }
    return read[layout](archive, keep)


def from_flat(archive: Archive, keep: Callable[[Member], Kept | None]) -> Iterator[Found[Kept]]:
    """All pictures of a tar, whose classes are known otherwise, by their whole names."""
    for member in archive.members():
        if is_archive(member.name) or member.name.lower().endswith(COMPRESSED):
            archive.refused(member.path, "an archive among pictures")
        elif is_picture(member.name) and (kept := keep(member)) is not None:
            yield Found(None, "", member.name, kept)


def from_tars(archive: Archive, keep: Callable[[Member], Kept | None]) -> Iterator[Found[Kept]]:
    """A tar of tars: each is a class, called by its name without ".tar"."""
    for outer in archive.members():
        if not is_archive(outer.name):
            if is_picture(outer.name):
                archive.refused(outer.path, "a picture outside of the archives of the classes")
            continue
        class_id = PurePosixPath(outer.name).stem
        try:
            for inner in members(
                archive.file, outer.path, archive.refused, outer.start, outer.size
            ):
                if is_archive(inner.name):
                    archive.refused(inner.path, "an archive too deep inside others")
                elif is_picture(inner.name) and (kept := keep(inner)) is not None:
                    yield Found(None, class_id, inner.name, kept)
        except NotAnArchive as error:
            archive.refused(outer.path, str(error))


def from_folders(archive: Archive, keep: Callable[[Member], Kept | None]) -> Iterator[Found[Kept]]:
    """Class folders in a tar, below a folder "train", "val" or "test" or not.

    Without such a folder, the one that the picture lies in is its class.
    """
    for member in archive.members():
        if is_archive(member.name) or member.name.lower().endswith(COMPRESSED):
            archive.refused(member.path, "an archive among pictures")
        elif is_picture(member.name):
            split, class_id, name = _place_in_folders(member.name)
            if class_id is None:
                archive.refused(member.path, "no folder above it to say its class")
            elif (kept := keep(member)) is not None:
                yield Found(split, class_id, name, kept)


def from_samples(archive: Archive, keep: Callable[[Member], Kept | None]) -> Iterator[Found[Kept]]:
    """WebDataset: a picture and its label, <key>.cls or "label" in <key>.json, side by side."""
    key: str | None = None
    picture: Member | None = None
    kept: Kept | None = None
    label: str | int | None = None

    def sample() -> Iterator[Found[Kept]]:
        if picture is not None and kept is not None:
            if label is None:
                archive.refused(picture.path, "no label beside it (.cls, or .json with a label)")
            else:
                yield Found(None, label, PurePosixPath(picture.name).name, kept)

    for member in archive.members():
        own_key, extension = sample_of(member.name)
        if own_key != key:
            yield from sample()
            key, picture, kept, label = own_key, None, None, None
        if is_archive(member.name):
            archive.refused(member.path, "an archive among pictures")
        elif is_picture(member.name):
            if picture is not None:
                archive.refused(member.path, "a second picture in one sample")
                continue
            picture, kept = member, keep(member)
        elif extension.lower() == "cls" or (extension.lower() == "json" and label is None):
            label = _read_label(archive, member, extension.lower())
    yield from sample()


def _read_label(archive: Archive, member: Member, extension: str) -> str | int | None:
    if member.size > MAX_LABEL_BYTES:
        archive.refused(member.path, f"a label of {member.size:,} bytes")
        return None
    data = archive.read(member)
    if data is None:
        return None
    try:
        if extension == "cls":
            return as_label(data.decode())
        fields = json.loads(data)
        return as_label(fields.get("label", fields.get("cls")))
    except (ValueError, RecursionError, AttributeError):
        archive.refused(member.path, "no label can be read from it")
        return None


def as_label(value: object) -> str | int | None:
    """A class as sources write it: numbers stay numbers, also those in text."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() else text or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _place_in_folders(name: str) -> tuple[str | None, str | None, str]:
    """("val", "cat", "1.jpg") for "pets/validation/cat/1.jpg", (None, "cat", ...) for "cat/..."."""
    *folders, last = name.split("/")
    for depth, folder in enumerate(folders[:-1]):
        if folder in SPLIT_OF:
            below = "/".join([*folders[depth + 2 :], last])
            return SPLIT_OF[folder], folders[depth + 1], below
    return None, folders[-1] if folders else None, last


def _objection(info: tarfile.TarInfo) -> str | None:
    """Why nobody should touch a member, None if there is no reason."""
    if info.issym() or info.islnk():
        return "a link, not a picture"
    if info.isdev():
        return "a device or a pipe, not a picture"
    if info.issparse():
        return "a file with holes"
    if not info.isreg():
        return f"not a file (type {info.type!r})"
    if info.name.startswith("/") or ".." in info.name.split("/") or "\0" in info.name:
        return "its name leads out of the archive"
    if info.size > MAX_PICTURE_BYTES and not is_archive(info.name):
        return f"{info.size:,} bytes, more than {MAX_PICTURE_BYTES:,}"
    return None


def _is_stuffed(archive: tarfile.TarFile) -> bool:
    """Whether attributes said to hold for all members pile up."""
    attributes = archive.pax_headers
    return sum(len(key) + len(value) for key, value in attributes.items()) > MAX_HEADER_BYTES


def _look_at_the_end(window: _Window, offset: int, where: str, refused: Refused) -> None:
    """Say so if an archive does not end as archives do: `tarfile` is silent about it."""
    window.budget = tarfile.BLOCKSIZE + BYTES_AFTER_THE_END
    window.seek(offset)
    block = window.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        refused(where, "no mark of an archive's end; it may have been cut off")
    elif any(block):
        refused(where, f"a damaged header at byte {offset:,}; nothing after it is read")
    elif window.read(BYTES_AFTER_THE_END).strip(b"\0"):
        refused(where, "more follows behind the archive's end and is not read")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Peeking:
    """A file that can show its first bytes before they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._first = file, b""

    def peek(self, size: int) -> bytes:
        while len(self._first) < size and (data := self._file.read(size - len(self._first))):
            self._first += data
        return self._first

    def read(self, size: int = -1) -> bytes:
        if not self._first:
            return self._file.read(size)
        first = self._first if size < 0 else self._first[:size]
        self._first = self._first[len(first) :]
        return first
