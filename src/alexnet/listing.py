"""Every picture of a source: its split, its class, its name, and where its bytes are.

Sources write a listing (`sources.py`), packing and auditing read it. It lives in an SQLite file, so
that 15 million pictures take no more memory than fifteen, and its order is the order in which
pictures are packed: by split, then class, then name, so that the same pictures give the same
packed data set however they were stored. Sources that can only be read forwards (tables, pipes)
keep their own order.

Not here: how sources look on the disk (sources.py), decoding (images.py).
"""

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from alexnet import tables
from alexnet.errors import UserError
from alexnet.images import UnreadableImage, read_image

SPLITS = ("train", "val", "test")

# What a file may hold at most: the largest real pictures have some tens of megabytes.
MAX_PICTURE_BYTES = 512 * 2**20

# Errors that are of the disk, the network or this process, not of the picture.
PASSING_ERRORS = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}

INSERTED_AT_A_TIME = 10_000

_SCHEMA = """
CREATE TABLE pictures (
    split INTEGER, class INTEGER, name BLOB, kind TEXT, file BLOB, start INTEGER, size INTEGER,
    mtime INTEGER, row INTEGER PRIMARY KEY
);
CREATE TABLE ordered (
    position INTEGER PRIMARY KEY, row INTEGER
);
CREATE TABLE refused (name BLOB, reason TEXT);
"""


@dataclass(frozen=True)
class Place:
    """Where the bytes of a picture are.

    kind "file": a file of its own. "span": `size` bytes of `file` from byte `start`, as in a
    tar. "parquet": row `start` of the file, of about `size` bytes. "cifar": pixels, not encoded,
    in `size` bytes from byte `start` of the file or, if it is a compressed tar, of its content.
    """

    kind: str
    file: str
    start: int = 0
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True)
class Picture:
    """One picture: `name` is where it stands in its source, with forward slashes."""

    split: str
    class_id: str
    name: str
    place: Place


@dataclass(frozen=True)
class Listed:
    """A picture in its place in the order, with the label that its class has got."""

    split: str
    label: int
    name: str
    place: Place


@dataclass(frozen=True)
class Carried(Listed):
    """A picture that comes with its bytes, since they can be read once only."""

    data: bytes


class Listing:
    """The pictures of one source, in the order in which they are packed.

    Filled by `add` and closed by `finish`, which gives every class its label and every picture
    its position. `path` None keeps it in a temporary file that disappears with the object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._database = sqlite3.connect(path or "", isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)
        self._labels: dict[str, int] = {}  # of class ids, in the order of their arrival
        self.class_ids: tuple[str, ...] = ()
        self.class_names: tuple[str, ...] = ()
        self.settings: dict[str, Any] = {}
        self.kind = ""  # of source, as sources.KINDS names it
        self.remarks: list[str] = []  # what people should know about it, a line each

    def add(self, pictures: Iterable[Picture]) -> int:
        """Add pictures; returns how many."""
        rows = (
            (
                SPLITS.index(picture.split),
                self._labels.setdefault(picture.class_id, len(self._labels)),
                _encode(picture.name),
                picture.place.kind,
                _encode(picture.place.file),
                picture.place.start,
                picture.place.size,
                picture.place.mtime_ns,
            )
            for picture in pictures
        )
        insert = (
            "INSERT INTO pictures (split, class, name, kind, file, start, size, mtime)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        count = 0
        while batch := list(islice(rows, INSERTED_AT_A_TIME)):
            self._database.execute("BEGIN")
            self._database.executemany(insert, batch)
            self._database.execute("COMMIT")
            count += len(batch)
        return count

    def refuse(self, name: str, reason: str) -> None:
        """Note something that stands where a picture could be and is not taken, and why."""
        printable = reason.encode(errors="backslashreplace").decode()
        self._database.execute("INSERT INTO refused VALUES (?, ?)", (_encode(name), printable))

    def hold_out(self, val_fraction: float, seed: int) -> None:
        """Set pictures of the train split aside for validation, class by class.

        Those whose names hash lowest, one at least, never all: a pure function of (seed, names)
        in which no name's rank depends on the others. When pictures are added, no more of the
        old ones change sides than the fraction requires. Raises UserError for a class of one.
        """
        if not 0 < val_fraction < 1:
            raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
        self._database.execute("CREATE INDEX by_class ON pictures (class)")
        for number in self._labels.values():
            select = "SELECT name, row FROM pictures WHERE class = ? AND split = 0"
            found = self._database.execute(select, (number,)).fetchall()
            if len(found) == 1:
                raise UserError(
                    f"{_decode(found[0][0])} is the only picture of its class; "
                    "at least two are needed, one to train on and one to validate"
                )
            count = min(max(round(val_fraction * len(found)), 1), len(found) - 1)
            ranked = sorted((_hash(f"{seed}/".encode() + name), name, row) for name, row in found)
            chosen = [(row,) for _, _, row in ranked[:count]]
            self._database.execute("BEGIN")
            self._database.executemany("UPDATE pictures SET split = 1 WHERE row = ?", chosen)
            self._database.execute("COMMIT")
        self._database.execute("DROP INDEX by_class")
        self.settings |= {"val_fraction": val_fraction, "seed": seed}

    def rename_split(self, old: str, new: str) -> None:
        numbers = (SPLITS.index(new), SPLITS.index(old))
        self._database.execute("UPDATE pictures SET split = ? WHERE split = ?", numbers)

    def name_splits(self) -> None:
        """Put the split of each picture in front of its name, as in "val/n01440764/1.JPEG"."""
        for number, split in enumerate(SPLITS):
            self._database.execute(
                "UPDATE pictures SET name = CAST(? || name AS BLOB) WHERE split = ?",
                (f"{split}/".encode(), number),
            )

    def tell_apart(self) -> int:
        """Give pictures of a class that share their name numbers ("1.JPEG#2"); return how many.

        The first keeps its name. To be called before `hold_out`, which goes by names.
        """
        count = 0
        repeated = (
            "SELECT name, n, row FROM (SELECT name, row, row_number() OVER"
            " (PARTITION BY split, class, name ORDER BY row) AS n FROM pictures) WHERE n > 1"
        )
        while found := self._database.execute(repeated).fetchall():
            renamed = [(name + f"#{number}".encode(), row) for name, number, row in found]
            self._database.execute("BEGIN")
            self._database.executemany("UPDATE pictures SET name = ? WHERE row = ?", renamed)
            self._database.execute("COMMIT")
            count += len(found)
        return count

    def classes_by_split(self) -> dict[str, set[str]]:
        """The ids of the classes that have pictures in each split; known before `finish`."""
        ids = list(self._labels)
        found: dict[str, set[str]] = {}
        for split, number in self._database.execute("SELECT DISTINCT split, class FROM pictures"):
            found.setdefault(SPLITS[split], set()).add(ids[number])
        return found

    def finish(
        self,
        *,
        class_ids: Sequence[str] | None = None,
        class_names: dict[str, str] | None = None,
        by_class: bool = True,
    ) -> None:
        """Fix labels and order.

        Labels follow `class_ids`, by default the ids sorted, which for WordNet ids is the order
        that everybody uses for ILSVRC. `by_class` orders a split by class and name; otherwise
        pictures stay as they came. A class without a name in `class_names` is named by its id.
        """
        if class_ids is None:
            class_ids = sorted(self._labels)
        known = set(class_ids)
        missing = [class_id for class_id in self._labels if class_id not in known]
        if missing:
            raise UserError(f"class {missing[0]!r} is not among the {len(class_ids)} classes given")
        self.class_ids = tuple(class_ids)
        self.class_names = tuple((class_names or {}).get(i, i) for i in self.class_ids)
        database = self._database
        database.execute("CREATE TEMP TABLE labels (class INTEGER PRIMARY KEY, label INTEGER)")
        database.executemany(
            "INSERT INTO labels VALUES (?, ?)",
            [
                (self._labels[class_id], label)
                for label, class_id in enumerate(self.class_ids)
                if class_id in self._labels
            ],
        )
        database.execute("BEGIN")
        database.execute(
            "UPDATE pictures SET class = (SELECT label FROM labels l WHERE l.class=pictures.class)"
        )
        keys = "split, class, name, row" if by_class else "split, row"
        database.execute(
            "INSERT INTO ordered (position, row) "
            f"SELECT row_number() OVER (ORDER BY {keys}) - 1, row FROM pictures"
        )
        database.execute("COMMIT")

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM pictures").fetchone()[0])

    def counts(self) -> dict[str, int]:
        """How many pictures each split has; splits without any are not named."""
        query = "SELECT split, count(*) FROM pictures GROUP BY split ORDER BY split"
        return {SPLITS[split]: count for split, count in self._database.execute(query)}

    def class_counts(self) -> dict[str, list[int]]:
        """How many pictures each class has, by split, in the order of the labels."""
        counts = {split: [0] * len(self.class_ids) for split in self.counts()}
        query = "SELECT split, class, count(*) FROM pictures GROUP BY split, class"
        for split, label, count in self._database.execute(query):
            counts[SPLITS[split]][label] = count
        return counts

    def pictures(self, start: int = 0, stop: int | None = None) -> Iterator[Listed]:
        """The pictures at positions `start` .. `stop` - 1, in order."""
        query = (
            "SELECT split, class, name, kind, file, start, size, mtime FROM ordered"
            " JOIN pictures USING (row) WHERE position >= ? AND position < ? ORDER BY position"
        )
        stop = len(self) if stop is None else stop
        for split, label, name, kind, file, at, size, mtime in self._database.execute(
            query, (start, stop)
        ):
            place = Place(kind, _decode(file), at, size, mtime)
            yield Listed(SPLITS[split], label, _decode(name), place)

    def refused(self) -> Iterator[tuple[str, str]]:
        for name, reason in self._database.execute("SELECT name, reason FROM refused ORDER BY 1"):
            yield _decode(name), reason

    def total_bytes(self) -> int:
        return int(self._database.execute("SELECT sum(size) FROM pictures").fetchone()[0] or 0)

    def fingerprint(self) -> str:
        """Hexadecimal; changes when a picture, its time or size, its class or the order does."""
        digest = hashlib.sha256(json.dumps([self.class_ids, self.class_names]).encode())
        for listed in self.pictures():
            place = listed.place
            fields = [listed.split, listed.label, listed.name, place.start, place.size]
            digest.update(json.dumps([*fields, place.mtime_ns]).encode())
        return digest.hexdigest()


def picture_of(listed: Listed) -> Image.Image:
    """Decode a picture to RGB, upright; raises UnreadableImage like `read_image`."""
    return read_image(listed.data) if isinstance(listed, Carried) else read_picture(listed.place)


def read_picture(place: Place) -> Image.Image:
    """Decode the picture at `place` to RGB, upright; raises UnreadableImage like `read_image`."""
    if place.kind == "cifar":
        return Image.fromarray(tables.cifar_picture(place.file, place.start))
    return read_image(read_bytes(place))


def read_bytes(place: Place) -> bytes:
    """The encoded picture at `place`.

    Raises UnreadableImage, with the reason in one line, for whatever cannot be read.
    """
    if place.size > MAX_PICTURE_BYTES:
        raise UnreadableImage(f"{place.size:,} bytes, more than {MAX_PICTURE_BYTES:,}")
    try:
        if place.kind == "parquet":
            return tables.parquet_picture(place.file, place.start)
        with open(place.file, "rb") as file:
            if place.kind == "span":
                file.seek(place.start)
                data = file.read(place.size)
                if len(data) < place.size:
                    raise UnreadableImage("the archive ends in the middle of it")
                return data
            data = file.read(MAX_PICTURE_BYTES + 1)
            if len(data) > MAX_PICTURE_BYTES:
                raise UnreadableImage(f"more than {MAX_PICTURE_BYTES:,} bytes")
            return data
    except OSError as error:
        if error.errno in PASSING_ERRORS:
            raise UserError(
                f"cannot read {place.file}: {error.strerror}; once that is mended, "
                "the same command goes on where it was"
            ) from error
        raise UnreadableImage(error.strerror or str(error)) from error


def _encode(text: str) -> bytes:
    return os.fsencode(text)


def _decode(data: bytes) -> str:
    return os.fsdecode(data)


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
