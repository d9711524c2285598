"""Writing a packed data set, block by block, so that it can be stopped anywhere and gone on with.

While a data set is being written it is called `DATA.partial`: `data` inside becomes DATA at the
end, in one step, and `journal` says how far it has come. Files only grow; every few seconds they
are flushed and their lengths noted, and whoever goes on cuts them back to the lengths noted
last. So the result is the same, byte for byte, however often the work was killed.

A share of the pictures (`--shard i/n`) is written by the same means and ends as
`DATA.shard-i-of-n`; `merge` puts the shares together.

Not here: which pictures, and how they are decoded (prepare.py); reading (dataset.py).
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from alexnet.errors import UserError
from alexnet.files import explain_os_error, read_json, sha256_of, write_bytes, write_json
from alexnet.statistics import Moments, Pixels, statistics_of

try:
    import fcntl
except ImportError:  # a system without file locks: two processes at once are not noticed there
    fcntl = None  # type: ignore[assignment]

FORMAT = "alexnet-packed"
FORMAT_VERSION = 2
SPLITS = ("train", "val", "test")
PIXELS_FILE, JPEGS_FILE = "images.npy", "images.jpegs"

STORES = ("pixels", "jpeg")

SECONDS_BETWEEN_NOTES = 3.0

# What JPEG of quality 90 takes, generously: photographs of 256 px have 17 KB, 0.26 a pixel.
JPEG_BYTES_PER_PIXEL = 0.4

Labels = npt.NDArray[np.int64]

Progress = Callable[[int, int], None]
"""Called as progress(done, in all)."""


@dataclass(frozen=True)
class Block:
    """Some consecutive pictures of one split.

    `rows` are pictures (N, S, S, 3) uint8, or the N files of a JPEG store. `left_out` names what
    could not be read. `moments` are those of the pictures in the train split and zero elsewhere:
    computed with the block, so that the processes that decode also share this work. `taken` is
    how many pictures of the source the block stands for.
    """

    split: str
    rows: Pixels | list[bytes]
    labels: Labels  # (N,)
    sources: tuple[str, ...]
    left_out: list[dict[str, str]]
    moments: Moments

    @property
    def taken(self) -> int:
        return len(self.labels) + len(self.left_out)


def make_block(
    split: str,
    images: Pixels,
    labels: Labels,
    sources: tuple[str, ...],
    left_out: list[dict[str, str]],
    rows: list[bytes] | None = None,
) -> Block:
    """A block of pictures (N, S, S, 3); `rows` if something else than their pixels is kept."""
    train = split == "train"
    moments = Moments.of(images) if train else Moments.zero(images.shape[1])
    return Block(split, images if rows is None else rows, labels, sources, left_out, moments)


@dataclass(frozen=True)
class Plan:
    """What is being written: whoever goes on with it must have the same plan.

    `source` is the fingerprint of pictures and order; `store` is "pixels" or "jpeg"; `shard` is
    (i, n) with i from 1, or None; `settings` go into dataset.json as they are.
    """

    name: str
    source: str
    image_px: int
    num_images: int
    store: str = "pixels"
    shard: tuple[int, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        shard = None if self.shard is None else list(self.shard)
        return {**vars(self), "shard": shard, "version": FORMAT_VERSION}


def packed_bytes(num_images: int, image_px: int, store: str = "pixels") -> int:
    """What a packed data set takes on the disk, a little rounded up for names and statistics."""
    picture = 3 * image_px**2 if store == "pixels" else int(JPEG_BYTES_PER_PIXEL * image_px**2)
    return num_images * (picture + 16 + 512) + 32 * image_px**2 + 2**16


def partial_folder(target: Path, shard: tuple[int, int] | None = None) -> Path:
    return target.with_name(f"{target.name}{_shard_suffix(shard)}.partial")


def shard_folder(target: Path, shard: tuple[int, int]) -> Path:
    return target.with_name(f"{target.name}{_shard_suffix(shard)}")


def _shard_suffix(shard: tuple[int, int] | None) -> str:
    return "" if shard is None else f".shard-{shard[0]}-of-{shard[1]}"


class Packing:
    """A packed data set in the making; see `packing`.

    `done` is how many pictures of the source have been dealt with, in their order.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._journal = folder / "journal"
        self.data = folder / "data"
        self._files: dict[str, IO[bytes]] = {}
        self._moments = Moments.zero(plan.image_px)
        self._sizes: dict[str, int] = {}
        self.done = 0
        self._whole = True  # no block is half added
        self._noted = time.monotonic()
        self._journal.mkdir(parents=True, exist_ok=True)
        if not self.data.exists():  # it has become the data set; what is noted is of that
            (self._journal / "state.npz").unlink(missing_ok=True)
        self.data.mkdir(exist_ok=True)
        self._go_on()

    def add(self, *blocks: Block) -> None:
        """Append blocks that together stand for the next pictures of the source."""
        self._whole = False
        for block in blocks:
            self._add(block)
        self._whole = True
        if time.monotonic() - self._noted > SECONDS_BETWEEN_NOTES:
            self.note()

    def names(self) -> Iterator[str]:
        """What has been dealt with: the names of all pictures packed or left out."""
        for split in self._splits():
            for line in self._read(f"data/{split}/sources.txt").split(b"\n")[:-1]:
                yield name_of(line)
        yield from (entry["path"] for entry in self.left_out())

    def note(self) -> None:
        """Flush everything and write down how far it has come; in the midst of a block, nothing."""
        if not self._whole:
            return
        for file in self._files.values():
            _flush(file)
        position = json.dumps({"done": self.done, "sizes": self._sizes})
        contents = {
            "position": np.frombuffer(position.encode(), np.uint8),
            "images": np.array(self._moments.images),
            "pixel_sum": self._moments.pixel_sum,
            "product_sum": self._moments.product_sum,
        }
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **contents)
        write_bytes(self._journal / "state.npz", buffer.getvalue())
        self._noted = time.monotonic()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def left_out(self) -> list[dict[str, str]]:
        text = self._read("journal/left_out.jsonl")
        return [json.loads(line) for line in text.splitlines()]

    def class_counts(self, num_classes: int) -> dict[str, npt.NDArray[np.int64]]:
        """Pictures kept of each class, by split."""
        return {
            split: np.bincount(self._labels(split), minlength=num_classes)
            for split in self._splits()
        }

    def finish_split(self, split: str, labels: Labels, num_classes: int) -> dict[str, Any]:
        """Close the files of one split and describe it as dataset.json does, but for checksums."""
        folder, px = self.data / split, self._plan.image_px
        _write_array(folder / "labels.npy", labels)
        if self._plan.store == "pixels":
            with open(folder / PIXELS_FILE, "r+b") as file:
                file.write(_pixels_header(len(labels), px))
                _flush(file)
        else:
            sizes = np.fromfile(self._journal / f"{split}.sizes", np.int64)
            _write_array(folder / "offsets.npy", np.append(0, sizes.cumsum()).astype(np.int64))
        return {
            "images": len(labels),
            "per_class": np.bincount(labels, minlength=num_classes).tolist(),
        }

    def finish(
        self,
        class_ids: tuple[str, ...],
        class_names: tuple[str, ...],
        *,
        relabel: npt.NDArray[np.int64] | None = None,
        refused: Iterable[dict[str, str]] = (),
        progress: Progress | None = None,
    ) -> None:
        """Write what is still missing of the data set into `data`.

        `relabel` (classes,) gives the label that each label so far becomes: of a stream, the
        classes are known at its end only. `progress` is called with the bytes whose checksum has
        been computed, and their number.
        """
        self.note()
        left_out = [*refused, *self.left_out()]
        self.close()
        splits = {}
        for split in set(SPLITS) - set(self._splits()):
            shutil.rmtree(self.data / split, ignore_errors=True)
        for split in self._splits():
            labels = self._labels(split)
            labels = labels if relabel is None else relabel[labels]
            splits[split] = self.finish_split(split, labels, len(class_ids))
        checksums = self._checksums(progress)
        for split, described in splits.items():
            described["sha256"] = checksums[split]
        statistics = self.data / "statistics.npz"
        with open(statistics, "wb") as file:
            np.savez(file, allow_pickle=False, **vars(statistics_of(self._moments)))
            _flush(file)
        contents = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": self._plan.name,
            "image_px": self._plan.image_px,
            "store": self._plan.store,
            "class_names": class_names,
            "class_ids": class_ids,
            "settings": self._plan.settings,
            "sha256": {"statistics.npz": sha256_of(statistics)},
            "splits": splits,
            "left_out": left_out,
        }
        write_json(self.data / "dataset.json", contents)

    def _checksums(self, progress: Progress | None) -> dict[str, dict[str, str]]:
        """Of each file of each split. Of a large data set this takes minutes."""
        files = [path for split in self._splits() for path in sorted((self.data / split).iterdir())]
        total, done = sum(path.stat().st_size for path in files), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        found: dict[str, dict[str, str]] = {}
        for path in files:
            found.setdefault(path.parent.name, {})[path.name] = sha256_of(path, advance)
        return found

    @staticmethod
    def done_in(folder: Path) -> int:
        with np.load(folder / "journal" / "state.npz", allow_pickle=False) as noted:
            return int(json.loads(noted["position"].tobytes())["done"])

    def append_share(self, share: Path) -> None:
        """Take over everything that the finished share in folder `share` holds."""
        other = Packing(share, self._plan)
        self._whole = False
        for name in sorted(other._sizes):
            self._append(name, b"")
            with open(share / name, "rb") as file:
                if name.endswith(PIXELS_FILE):
                    file.seek(len(_pixels_header(0, self._plan.image_px)))
                while chunk := file.read(2**24):
                    self._append(name, chunk)
        self._moments += other._moments
        self.done += other.done
        self._whole = True
        other.close()

    def _add(self, block: Block) -> None:
        folder = f"data/{block.split}"
        if isinstance(block.rows, list):
            self._append(f"{folder}/{JPEGS_FILE}", b"".join(block.rows))
            sizes = np.array([len(row) for row in block.rows], np.int64)
            self._append(f"journal/{block.split}.sizes", sizes.tobytes())
        else:
            self._append(f"{folder}/{PIXELS_FILE}", np.ascontiguousarray(block.rows).data)
        self._append(f"journal/{block.split}.labels", block.labels.astype("<i8").tobytes())
        self._append(f"{folder}/sources.txt", b"".join(map(name_line, block.sources)))
        lines = [json.dumps(entry) + "\n" for entry in block.left_out]
        self._append("journal/left_out.jsonl", "".join(lines).encode())
        self._moments += block.moments
        self.done += block.taken

    def _splits(self) -> list[str]:
        """Those that have pictures."""
        return [split for split in SPLITS if self._sizes.get(f"journal/{split}.labels")]

    def _labels(self, split: str) -> Labels:
        return np.frombuffer(self._read(f"journal/{split}.labels"), "<i8").astype(np.int64)

    def _read(self, name: str) -> bytes:
        if name in self._files:
            self._files[name].flush()
        return (self._journal.parent / name).read_bytes() if name in self._sizes else b""

    def _append(self, name: str, data: bytes | memoryview) -> None:
        """Append to a file of the partial folder, opened at its first use.

        Written as a stream, not through a memory map: on a full disk a write fails with an
        error that can be reported, where a store to a mapped page kills the process.
        """
        if name not in self._files:
            path = self._journal.parent / name
            path.parent.mkdir(exist_ok=True)
            self._files[name] = open(path, "ab")  # noqa: SIM115 (closed by close)
            if name.endswith(PIXELS_FILE) and name not in self._sizes:
                header = _pixels_header(0, self._plan.image_px)
                self._sizes[name] = self._files[name].write(header)
        self._files[name].write(data)
        self._sizes[name] = self._sizes.get(name, 0) + memoryview(data).nbytes

    def _go_on(self) -> None:
        """Cut all files back to where the last note found them; without a note, to nothing."""
        state = self._journal / "state.npz"
        folder = self._journal.parent
        if state.exists():
            self._read_state(state)
        for name in self._sizes:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing; remove {folder} and start again")
        growing = [*folder.glob("data/**/*"), *self._journal.glob("*.labels")]
        growing += [*self._journal.glob("*.sizes"), *self._journal.glob("*.jsonl")]
        for path in growing:
            size = self._sizes.get(path.relative_to(folder).as_posix())
            if path.is_dir():
                continue
            if size is None:
                path.unlink()
            elif path.stat().st_size < size:
                raise UserError(f"{path} is damaged (too short); remove {folder} and start again")
            else:
                os.truncate(path, size)

    def _read_state(self, state: Path) -> None:
        try:
            with np.load(state, allow_pickle=False) as noted:
                position = json.loads(noted["position"].tobytes())
                self.done, self._sizes = position["done"], position["sizes"]
                self._moments = Moments(
                    int(noted["images"]), noted["pixel_sum"], noted["product_sum"]
                )
        except (ValueError, LookupError, OSError, zipfile.BadZipFile) as error:
            folder = self._journal.parent
            raise UserError(f"{state} is damaged; remove {folder} and start again") from error


class BusyError(UserError):
    """Another process is writing the same data set."""


class NoDataSetError(UserError):
    """The pictures of a source do not make a data set."""


@contextlib.contextmanager
def packing(target: Path, plan: Plan) -> Iterator[Packing]:
    """Begin or go on with the packed data set `target`; it appears when the block succeeds.

    The block adds what `Packing.done` says is missing and calls `finish`, unless the plan is of a
    share. Whatever stops it, what was written stays, to be gone on with; only after a
    NoDataSetError, and where there is nothing yet, it is removed. Raises UserError when the
    target has something in it, the disk is too small, or the partial folder belongs to another
    plan, and BusyError while another process is at it.
    """
    target = target.resolve()  # "." has no name of its own
    if not target.name:
        raise UserError(f"{target} cannot become a data set; name a new folder")
    final = target if plan.shard is None else shard_folder(target, plan.shard)
    folder = partial_folder(target, plan.shard)
    needed = packed_bytes(plan.num_images, plan.image_px, plan.store) // (plan.shard or (1, 1))[1]
    try:
        _refuse_filled(final)
        with lock(folder / "journal" / "lock"):
            _refuse_filled(final)
            _check_plan(folder, plan)
            _check_space(folder, needed, plan.store)
            packed = Packing(folder, plan)
            try:
                yield packed
                if plan.shard is not None:
                    packed.note()
            except KeyboardInterrupt:
                packed.note()
                raise
            except UserError as error:
                if packed.done == 0 or isinstance(error, NoDataSetError):
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    with contextlib.suppress(UserError, OSError):  # the disk may be full
                        packed.note()
                raise
            finally:
                packed.close()
            if plan.shard is None:
                _put(folder / "data", target)
                shutil.rmtree(folder, ignore_errors=True)
            else:
                _put(folder, final)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {target} needs {needed:,} bytes in all; free some space and "
                f"give the same command again, which goes on where it was (or remove {folder})"
            ) from error
        raise explain_os_error(error, target) from error


def merge_shares(
    target: Path,
    plan: Plan,
    class_ids: tuple[str, ...],
    class_names: tuple[str, ...],
    refused: Iterable[dict[str, str]],
    check: Callable[[Packing], None],
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> None:
    """Put the finished shares of `plan` beside `target` together, and remove them.

    `check` looks at the whole before it is finished, and may raise NoDataSetError. `progress` is
    called with pictures, `checking` with the bytes of checksums.

    Raises UserError when one is missing or belongs to another plan.
    """
    target = target.resolve()
    pattern = re.compile(re.escape(target.name) + r"\.shard-(\d+)-of-(\d+)")
    names = [path.name for path in target.parent.iterdir() if path.is_dir()]
    counts = {int(match[2]) for name in names if (match := pattern.fullmatch(name))}
    if len(counts) != 1:
        raise UserError(f"no finished shares of one division lie beside {target}; make them first")
    shards = [(i, counts_of) for counts_of in counts for i in range(1, counts_of + 1)]
    folders = [shard_folder(target, shard) for shard in shards]
    for shard, folder in zip(shards, folders, strict=True):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: prepare it with --shard {shard[0]}/{shard[1]}")
        _check_plan(folder, replace(plan, shard=shard))
    # Not to be mixed up with a preparation of the whole that was begun and left.
    merged = replace(plan, source=f"{plan.source} in {len(shards)} shares")
    with packing(target, merged) as whole:
        ends = 0
        for folder in folders:
            ends += Packing.done_in(folder)
            if whole.done < ends:
                whole.append_share(folder)
                whole.note()
            if progress is not None:
                progress(whole.done, plan.num_images)
        check(whole)
        whole.finish(class_ids, class_names, refused=refused, progress=checking)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_filled(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; choose another place or remove it")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` alone. Raises BusyError where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                folder = path.parent.parent
                raise BusyError(f"another process is writing {folder}; wait for its end") from None
        yield


def _check_plan(folder: Path, plan: Plan) -> None:
    path = folder / "journal" / "plan.json"
    if not path.exists():
        write_json(path, plan.to_json())
        return
    found, ours = read_json(path), json.loads(json.dumps(plan.to_json()))
    differing = [key for key in ours if found.get(key) != ours[key]]
    if differing:
        other = f"another {differing[0]}"
        if "source" in differing:
            other = "other pictures, or they have changed since (in time or size: cp -p keeps both)"
        raise UserError(
            f"{folder} was begun with {other}; remove it to begin anew, or choose another place"
        )


def _check_space(folder: Path, needed: int, store: str) -> None:
    there = sum(path.stat().st_size for path in folder.glob("data/**/*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free + there < needed:
        shutil.rmtree(folder) if not there else None
        raise UserError(
            f"{folder.stem} needs {needed:,} bytes and its disk has {free + there:,} free; "
            "free some space or choose another place"
            + ("; --store jpeg needs about a tenth" if store == "pixels" else "")
        )


def _put(folder: Path, target: Path) -> None:
    if target.is_dir():
        target.rmdir()  # it is empty; not every system renames onto a folder
    folder.rename(target)


def _pixels_header(num_images: int, image_px: int) -> bytes:
    """The header of images.npy; NumPy pads it to a length that the count does not change."""
    buffer = io.BytesIO()
    shape = (num_images, image_px, image_px, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def name_of(line: bytes) -> str:
    """The name that a line of sources.txt, without its end, stands for."""
    parts = os.fsdecode(line).split("\\\\")
    return "\\".join(part.replace("\\n", "\n") for part in parts)


def name_line(name: str) -> bytes:
    """One line of sources.txt; names that are not UTF-8 keep their bytes."""
    return os.fsencode(name.replace("\\", "\\\\").replace("\n", "\\n")) + b"\n"


def _write_array(path: Path, array: npt.NDArray[np.int64]) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
        _flush(file)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
