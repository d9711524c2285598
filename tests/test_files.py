"""Nothing already saved is lost: atomic writing, and JSON that is checked when it is read."""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import files
from alexnet.errors import UserError, suggest
from alexnet.files import (
    atomic_file,
    locked,
    read_json,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates among them: so Python shows the bytes of file names that are not UTF-8.
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyboardInterrupt()], ids=type)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "file"
    write_bytes(target, b"old")

    def write() -> None:
        with atomic_file(target) as temporary:
            temporary.write_bytes(b"ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["write", "flush", "rename"])
def test_a_full_disk_is_one_line_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "file"
    write_bytes(target, b"old")
    where = {"write": (Path, "write_bytes"), "flush": (os, "fsync"), "rename": (os, "replace")}
    monkeypatch.setattr(*where[failing], full)
    with pytest.raises(UserError, match=r"no space left .* saved before is intact.*free some"):
        write_text(target, "new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write .*file/inside: "):
        write_json(tmp_path / "file" / "inside", {})


def test_a_flush_comes_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (calls.append("fsync"), fsync(number)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_bytes(tmp_path / "file", b"data")
    assert calls == ["fsync", "replace", "fsync"]  # of the file; of its folder


@given(value=json_values)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"a": 1} {'])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.json is damaged") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.json is not there"):
        read_json(tmp_path / "recipe.json")


def test_a_name_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_text(tmp_path / "page", name)
    assert (tmp_path / "page").read_text() == "caf\\udce9.png"
    write_json(tmp_path / "list", [name])
    assert read_json(tmp_path / "list") == [name]


def test_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5_000
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_near_miss_is_suggested_and_otherwise_all_are_listed() -> None:
    assert suggest("sorce", ["paper", "source"]) == "; did you mean 'source'?"
    assert suggest("xyz", ["paper", "source"]) == "; known: paper, source"


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"name": "café"})
    assert (tmp_path / "file").read_text() == '{\n "name": "café"\n}\n'
    assert json.loads((tmp_path / "file").read_bytes()) == {"name": "café"}


def test_one_at_a_time_is_in_a_block_and_nothing_stays_behind(tmp_path: Path) -> None:
    path, inside, seen = tmp_path / "new" / "lock", [0], []

    def work() -> None:
        for _ in range(200):
            with locked(path):
                inside[0] += 1
                seen.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 800
    assert not list(path.parent.iterdir())


def test_a_block_that_fails_lets_the_next_one_in(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ours"), locked(tmp_path / "lock"):
            raise RuntimeError("ours")
    assert not list(tmp_path.iterdir())


def test_a_lock_where_nothing_can_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"^cannot write .*file"),
        locked(tmp_path / "file" / "lock"),
    ):
        pass
