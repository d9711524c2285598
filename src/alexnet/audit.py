"""`alexnet check`: every odd picture of a source, and what `prepare` does with it.

Findings go to an SQLite file as they come: memory does not grow with them. Duplicates are found by
the hash of their bytes, and, after scaling or compressing again, by `likeness.py`.

Not here: what is odd about one picture (examine.py), how a source is read (sources.py), contact
sheets (contact.py).
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexnet.errors import UserError
from alexnet.examine import KEPT, KINDS, Seen, left_out, look_at
from alexnet.files import atomic_file
from alexnet.likeness import BITS, alike, near_pairs
from alexnet.listing import Listed, Listing
from alexnet.workers import available_cores, in_order

if TYPE_CHECKING:
    from rich.console import RenderableType

Progress = Callable[[int, int], None]
"""Called as progress(pictures done, pictures in all)."""

PICTURES_PER_JOB = 32
PICTURES_PER_PROCESS = 200

_FILE_OF_OURS = 0x616C6578
_SCHEMA = f"""
PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA application_id={_FILE_OF_OURS};
CREATE TABLE findings (
    number INTEGER PRIMARY KEY, position INTEGER, kind TEXT, name BLOB, split TEXT,
    class_id TEXT, detail TEXT, action TEXT
);
CREATE TABLE seen (
    position INTEGER PRIMARY KEY, digest BLOB, fingerprint BLOB, thumbnail BLOB
);
CREATE TABLE groups (leader INTEGER, position INTEGER, kind TEXT);
"""


@dataclass(frozen=True)
class Finding:
    """One thing about one picture; `position` is that in the listing, -1 for what is not in it."""

    position: int
    kind: str
    name: str
    split: str
    class_id: str
    detail: str
    action: str

    @property
    def left_out(self) -> bool:
        return self.action.startswith("left out")

    def to_json(self) -> dict[str, str]:
        return {key: value for key, value in vars(self).items() if key != "position"}


class Audit:
    """The findings about a source; iterating gives them in the order of its pictures."""

    def __init__(self, database: sqlite3.Connection, num_images: int, image_px: int) -> None:
        self._database = database
        self.num_images = num_images
        self.image_px = image_px

    def __iter__(self) -> Iterator[Finding]:
        return self.findings()

    def findings(self, kind: str | None = None, limit: int = -1) -> Iterator[Finding]:
        """In order; of one kind, and at most `limit`, if so wished."""
        query = (
            "SELECT position, kind, name, split, class_id, detail, action FROM findings"
            " WHERE kind = coalesce(?, kind) ORDER BY position, number LIMIT ?"
        )
        for position, kind_, name, *rest in self._database.execute(query, (kind, limit)):
            yield Finding(position, kind_, os.fsdecode(name), *rest)

    def counts(self) -> dict[str, int]:
        """How many pictures show each kind of oddity, the gravest first; absent ones are not named.

        A picture can show several.
        """
        query = "SELECT kind, count(*) FROM findings GROUP BY kind"
        found = dict(self._database.execute(query))
        return {kind: found[kind] for kind in KINDS if kind in found}

    def num_left_out(self) -> int:
        """Pictures of the listing that `prepare` leaves out; what was refused is not counted."""
        query = (
            "SELECT count(DISTINCT position) FROM findings"
            " WHERE position >= 0 AND action LIKE 'left out%'"
        )
        return int(self._database.execute(query).fetchone()[0])

    def groups(self) -> Iterator[tuple[int, ...]]:
        """Positions of pictures that are the same, each group ascending."""
        rows = self._database.execute("SELECT leader, position FROM groups ORDER BY 1, 2")
        for leader, group in groupby(rows, key=lambda row: row[0]):
            yield (leader, *(position for _, position in group))

    def to_json(self) -> dict[str, object]:
        return {
            "num_images": self.num_images,
            "image_px": self.image_px,
            "left_out": self.num_left_out(),
            "counts": self.counts(),
            "duplicate_groups": sum(1 for _ in self.groups()),
        }

    def write_json_lines(self, path: Path) -> None:
        """One finding per line; names that are not UTF-8 keep their bytes as lone surrogates."""
        with atomic_file(path) as temporary, open(temporary, "w", encoding="ascii") as file:
            for finding in self:
                file.write(json.dumps(finding.to_json()) + "\n")


def check(
    listing: Listing,
    *,
    image_px: int = 256,
    workers: int | None = None,
    progress: Progress | None = None,
    database: Path | None = None,
) -> Audit:
    """Look at every picture of a source, as it would be packed at `image_px`.

    The findings are the same for any number of `workers` (processes; by default as many as there
    are cores, two at least). With one, work is done in this process, and a picture that ends its
    decoder ends the check. `database` keeps the findings in a file, in place of those of an
    earlier check; without it they live in a temporary file that disappears with the Audit. Raises
    UserError if `database` is there and something else.
    """
    if image_px < 1:
        raise UserError(f"image_px is {image_px}; it must be at least 1")
    total = len(listing)
    count = workers or max(2, min(available_cores(), total // PICTURES_PER_PROCESS))
    connection = _new_database(database)
    audit = Audit(connection, total, image_px)
    _refused(connection, listing)
    numbered = enumerate(listing.pictures())
    jobs = iter(lambda: list(islice(numbered, PICTURES_PER_JOB)), [])
    looked_at = in_order(
        partial(_look_at_all, image_px=image_px),
        jobs,
        processes=count,
        crashed=lambda item: [
            Seen(item[0], (("crash", KINDS["crash"], left_out(KINDS["crash"])),))
        ],
    )
    done = 0
    for batch in looked_at:
        _note(connection, listing, batch)
        done += len(batch)
        if progress is not None:
            progress(done, total)
    _note_duplicates(connection, listing)
    return audit


def findings_by_kind(audit: Audit, examples: int = 3) -> "RenderableType":
    """For people: each kind, how many there are, some of them, what `prepare` does with them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("pictures", justify="right", no_wrap=True)
    for heading in ("finding", "what it is", "what prepare does"):
        table.add_column(heading, overflow="fold")
    for kind, count in audit.counts().items():
        table.add_row(f"{count:,}", Text(kind, style="bold"), Text(KINDS[kind], style="dim"))
        for finding in audit.findings(kind, examples):
            said = finding.action == left_out(finding.detail)
            action = "left out" if said else finding.action
            cells = (_with_class(finding), finding.detail, action)
            table.add_row("", *(Text(_printable(cell)) for cell in cells))
        if count > examples:
            table.add_row("", Text(f"... and {count - examples:,} more", style="dim"))
    return table


def _with_class(finding: Finding) -> str:
    missing = [word for word in (finding.split, finding.class_id) if word not in finding.name]
    return f"{finding.name} ({', '.join(missing)})" if missing else finding.name


def _look_at_all(items: Sequence[tuple[int, Listed]], image_px: int) -> list[Seen]:
    return [look_at(position, listed, image_px) for position, listed in items]


def _new_database(path: Path | None) -> sqlite3.Connection:
    if path is not None and path.exists():
        if not _is_ours(path):
            raise UserError(f"{path} is there and was not written by check; name another file")
        path.unlink()
    try:
        database = sqlite3.connect(path or "", isolation_level=None)
        database.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        raise UserError(f"cannot write {path}: {error}") from None
    return database


def _is_ours(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(72)
    except OSError:  # a folder, or a file of somebody else's
        return False
    return head[:15] == b"SQLite format 3" and int.from_bytes(head[68:72]) == _FILE_OF_OURS


def _insert(database: sqlite3.Connection, findings: Iterable[Finding]) -> None:
    database.executemany(
        "INSERT INTO findings (position, kind, name, split, class_id, detail, action)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (f.position, f.kind, os.fsencode(f.name), f.split, f.class_id, f.detail, f.action)
            for f in findings
        ),
    )


def _refused(database: sqlite3.Connection, listing: Listing) -> None:
    _insert(
        database,
        (
            Finding(-1, "refused", name, "", "", reason, left_out(reason))
            for name, reason in listing.refused()
        ),
    )


def _note(database: sqlite3.Connection, listing: Listing, batch: Sequence[Seen]) -> None:
    database.execute("BEGIN")
    for seen in batch:
        if seen.found:
            listed = picture_at(listing, seen.position)
            _insert(database, (_finding(listing, seen.position, listed, *f) for f in seen.found))
    database.executemany(
        "INSERT INTO seen VALUES (?, ?, ?, ?)",
        (
            (seen.position, seen.digest, seen.fingerprint or None, seen.thumbnail or None)
            for seen in batch
            if seen.digest
        ),
    )
    database.execute("COMMIT")


def picture_at(listing: Listing, position: int) -> Listed:
    return next(listing.pictures(position, position + 1))


def _finding(
    listing: Listing, position: int, listed: Listed, kind: str, detail: str, action: str
) -> Finding:
    class_id = listing.class_ids[listed.label]
    return Finding(position, kind, listed.name, listed.split, class_id, detail, action)


def _note_duplicates(database: sqlite3.Connection, listing: Listing) -> None:
    """Each picture that was there before in the order gets a finding that names the first one."""
    database.execute("CREATE INDEX digests ON seen (digest)")
    exact = _exact_pairs(database)
    near = _near_pairs(database)
    nearest: dict[int, int] = {}
    for low, high in near:
        nearest[low] = min(high, nearest.get(low, high))
        nearest[high] = min(low, nearest.get(high, low))
    database.execute("BEGIN")
    for position, leader in sorted(_leaders([*exact.items(), *near]).items()):
        kind = "duplicate" if position in exact else "near-duplicate"
        first = exact[position] if position in exact else nearest[position]
        one, other = picture_at(listing, position), picture_at(listing, first)
        detail = f"same as {other.name}{_crossing(listing, one, other)}"
        _insert(database, [_finding(listing, position, one, kind, detail, KEPT)])
        database.execute("INSERT INTO groups VALUES (?, ?, ?)", (leader, position, kind))
    database.execute("COMMIT")


def _exact_pairs(database: sqlite3.Connection) -> dict[int, int]:
    """The position of each repetition -> that of the first with the same bytes."""
    query = (
        "SELECT position, first FROM seen JOIN"
        " (SELECT digest, min(position) AS first FROM seen GROUP BY digest HAVING count(*) > 1)"
        " USING (digest) WHERE position > first"
    )
    return dict(database.execute(query))


def _near_pairs(database: sqlite3.Connection) -> list[tuple[int, int]]:
    """Pairs of positions of pictures that look the same, of each set of equal bytes one."""
    where = (
        "FROM seen WHERE fingerprint IS NOT NULL"
        " AND position IN (SELECT min(position) FROM seen GROUP BY digest) ORDER BY position"
    )
    (count,) = database.execute(f"SELECT count(*) FROM (SELECT 1 {where})").fetchone()
    prints = np.empty((count, BITS // 8), np.uint8)
    positions = np.empty(count, np.int64)
    for row, (position, data) in enumerate(
        database.execute(f"SELECT position, fingerprint {where}")
    ):
        positions[row] = position
        prints[row] = np.frombuffer(data, np.uint8)
    pairs = set()
    for i, j in near_pairs(prints):
        for one, other in zip(positions[i].tolist(), positions[j].tolist(), strict=True):
            if (one, other) not in pairs and alike(
                _thumbnail(database, one), _thumbnail(database, other)
            ):
                pairs.add((one, other))
    return sorted(pairs)


def _thumbnail(database: sqlite3.Connection, position: int) -> bytes:
    query = "SELECT thumbnail FROM seen WHERE position = ?"
    return bytes(database.execute(query, (position,)).fetchone()[0])


def _leaders(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Positions that belong together, by pairs: each -> the lowest of its group, itself not."""
    parent: dict[int, int] = {}

    def root(position: int) -> int:
        while (above := parent.get(position, position)) != position:
            parent[position] = parent.get(above, above)
            position = above
        return position

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {position: root(position) for position in parent if root(position) != position}


def _crossing(listing: Listing, one: Listed, other: Listed) -> str:
    """Where two equal pictures contradict each other: in their splits, in their classes."""
    words = ""
    if one.split != other.split:
        words += f"; in {other.split} and {one.split}"
    if one.label != other.label:
        words += f"; labelled {listing.class_ids[other.label]} and {listing.class_ids[one.label]}"
    return words


def _printable(text: str) -> str:
    """What a terminal can show: no control characters, nor what is not Unicode."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
