"""The writer: stopped anywhere and gone on with, the same bytes come out; nothing is lost."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet import packing
from alexnet.dataset import open_packed, verify_packed
from alexnet.errors import UserError
from alexnet.packing import Block, BusyError, NoDataSetError, Packing, Plan, make_block

PX = 4
COUNTS = {"train": 23, "val": 9}
TOTAL = sum(COUNTS.values())
CLASSES = ("a", "b", "c")
PLAN = Plan("toys", source="these", image_px=PX, num_images=TOTAL, settings={"seed": 1})


def blocks(done: int, size: int = 4) -> Iterator[Block]:
    """Pictures numbered through both splits, every seventh unreadable."""
    for split, first in (("train", 0), ("val", COUNTS["train"])):
        numbers = range(max(first, done), first + COUNTS[split])
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            good = [number for number in part if number % 7]
            drawn = [np.random.default_rng(n).integers(0, 256, (PX, PX, 3), np.uint8) for n in good]
            images = np.array(drawn, np.uint8).reshape(-1, PX, PX, 3)
            left_out = [{"path": f"{n}.png", "reason": "bad"} for n in part if n % 7 == 0]
            labels = np.array([number % 3 for number in good], np.int64)
            yield make_block(split, images, labels, tuple(f"{n}.png" for n in good), left_out)


def write(target: Path, stop: float = float("inf"), size: int = 4, plan: Plan = PLAN) -> None:
    """Write until `stop` pictures are done, then be interrupted."""
    with packing.packing(target, plan) as packed:
        for block in blocks(packed.done, size):
            if packed.done >= stop:
                raise KeyboardInterrupt
            packed.add(block)
        packed.finish(CLASSES, CLASSES)


def stopped_by(error: Exception, target: Path) -> None:
    with packing.packing(target, PLAN) as packed:
        packed.add(next(blocks(0)))
        raise error


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "whole")
    return contents(tmp_path / "whole")


@settings(max_examples=25, deadline=None)
@given(stops=st.lists(st.integers(0, TOTAL), max_size=4), size=st.integers(1, 9))
def test_interrupted_anywhere_the_same_bytes_come_out(stops: list[int], size: int) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder) / "whole")
        for stop in stops:
            with contextlib.suppress(KeyboardInterrupt, UserError):
                write(Path(folder) / "packed", stop, size)
        with contextlib.suppress(UserError):  # nothing stopped it before the end
            write(Path(folder) / "packed")
        assert contents(Path(folder) / "packed") == contents(Path(folder) / "whole")
        assert not (Path(folder) / "packed.partial").exists()


def test_what_was_written_after_the_last_note_is_written_again(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """As after a kill: files are longer than noted, and new ones are there."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "packed", 10)
    partial = tmp_path / "packed.partial"
    for name in ("data/train/images.npy", "data/train/sources.txt", "journal/left_out.jsonl"):
        with open(partial / name, "ab") as file:
            file.write(b"half a block")
    (partial / "data/val").mkdir()
    (partial / "data/val/images.npy").write_bytes(b"the first rows of another split")
    (partial / "data/train/labels.npy").write_bytes(b"")
    write(tmp_path / "packed")
    assert contents(tmp_path / "packed") == whole


def test_a_kill_before_the_first_note_begins_anew(tmp_path: Path, whole: dict[str, bytes]) -> None:
    partial = tmp_path / "packed.partial"
    (partial / "data/train").mkdir(parents=True)
    (partial / "data/train/images.npy").write_bytes(b"some rows")
    write(tmp_path / "packed")
    assert contents(tmp_path / "packed") == whole


def test_a_file_that_lost_bytes_is_not_filled_with_black(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "packed", 10)
    file = tmp_path / "packed.partial/data/train/images.npy"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(UserError, match="too short"):
        write(tmp_path / "packed")


@pytest.mark.parametrize("flushes_before", range(14))
def test_on_a_full_disk_nothing_is_lost_and_the_same_command_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    flushes_before: int,
) -> None:
    remaining = iter(range(flushes_before))
    flush = packing._flush

    def full(file: object) -> None:
        if next(remaining, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "SECONDS_BETWEEN_NOTES", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_flush", full)
        with pytest.raises(UserError, match=r"the disk is full: .* the same command again"):
            write(tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    write(tmp_path / "packed")
    assert contents(tmp_path / "packed") == whole


def test_a_source_that_gives_no_data_set_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no good"):
        stopped_by(NoDataSetError("no good"), tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_after_any_other_mistake_what_was_written_is_gone_on_with(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.raises(UserError, match="the server is gone"):
        stopped_by(UserError("the server is gone"), tmp_path / "packed")
    assert Packing.done_in(tmp_path / "packed.partial") == 4
    write(tmp_path / "packed")
    assert contents(tmp_path / "packed") == whole


@pytest.mark.parametrize("appends_before", range(9))
def test_an_interruption_in_the_midst_of_a_block_is_not_noted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    appends_before: int,
) -> None:
    remaining = iter(range(appends_before))
    append = Packing._append

    def interrupted(packed: Packing, name: str, data: bytes) -> None:
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        append(packed, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Packing, "_append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "packed")
    write(tmp_path / "packed")
    assert contents(tmp_path / "packed") == whole


def test_a_note_that_cannot_be_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "packed", 10)

    def full(path: Path, data: bytes) -> None:
        raise UserError("no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_bytes", full)
        with pytest.raises(UserError, match="no space"):
            write(tmp_path / "packed")
    assert Packing.done_in(tmp_path / "packed.partial") == 12
    write(tmp_path / "packed")
    assert contents(tmp_path / "packed") == whole


@pytest.mark.parametrize("name", ["data/train/sources.txt", "journal/train.labels"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "packed", 10)
    (tmp_path / "packed.partial" / name).unlink()
    with pytest.raises(UserError, match=r"is missing; remove .*packed\.partial"):
        write(tmp_path / "packed")


def test_a_damaged_note_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "packed", 10)
    (tmp_path / "packed.partial/journal/state.npz").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        write(tmp_path / "packed")


def test_a_journal_whose_data_set_was_put_in_place_begins_anew(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """As after a kill between the last renaming and tidying up, and a removed data set."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "packed", 10)
    shutil.rmtree(tmp_path / "packed.partial/data")
    write(tmp_path / "packed")
    assert contents(tmp_path / "packed") == whole


def test_two_at_once_do_not_mix(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with packing.packing(tmp_path / "packed", PLAN) as packed:
        with pytest.raises(BusyError, match="another process"):
            write(tmp_path / "packed")
        for block in blocks(0):
            packed.add(block)
        packed.finish(CLASSES, CLASSES)
    assert contents(tmp_path / "packed") == whole


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Plan("cats", "these", PX, TOTAL, settings={"seed": 1}), "another name"),
        (Plan("toys", "those", PX, TOTAL, settings={"seed": 1}), "other pictures"),
        (Plan("toys", "these", PX, TOTAL, settings={"seed": 2}), "another settings"),
        (Plan("toys", "these", PX, TOTAL, "jpeg", settings={"seed": 1}), "another store"),
    ],
)
def test_another_plan_is_not_mixed_in(tmp_path: Path, other: Plan, said: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "packed", 10)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"{said}.*remove it to begin anew"):
        write(tmp_path / "packed", plan=other)
    assert contents(tmp_path) == before


KILLED = """
import sys
from pathlib import Path
from alexnet import packing
packing.SECONDS_BETWEEN_NOTES = 0.0
sys.path.insert(0, sys.argv[2])
import test_packing
test_packing.write(Path(sys.argv[1]), size=1)
"""


def test_killed_at_random_moments_the_same_bytes_come_out(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    random = Random(0)
    kills = 0
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "packed"), str(Path(__file__).parent)]
    while not (tmp_path / "packed").exists():
        process = subprocess.Popen(arguments)
        while not (tmp_path / "packed.partial").exists() and process.poll() is None:
            time.sleep(0.002)
        if kills < 5:
            time.sleep(random.uniform(0, 0.08))
            process.send_signal(signal.SIGKILL)
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    assert contents(tmp_path / "packed") == whole
    verify_packed(tmp_path / "packed")


def test_labels_can_be_given_at_the_end(tmp_path: Path) -> None:
    """Of a stream the classes are known at its end only."""
    with packing.packing(tmp_path / "packed", PLAN) as packed:
        for block in blocks(0):
            packed.add(block)
        packed.finish(CLASSES, CLASSES, relabel=np.array([2, 0, 1]))
    labels = open_packed(tmp_path / "packed").splits["train"].labels
    assert labels[:6].tolist() == [0, 1, 2, 0, 1, 2]  # of the pictures 1 ... 6


def test_the_state_of_a_share_counts_its_pictures(tmp_path: Path) -> None:
    plan = Plan("toys", "these", PX, TOTAL, shard=(1, 2))
    with packing.packing(tmp_path / "packed", plan) as packed:
        packed.add(next(blocks(0)))
    assert Packing.done_in(tmp_path / "packed.shard-1-of-2") == 4
