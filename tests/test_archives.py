"""Hostile, damaged and cut archives: what is refused is said by name, nothing crashes."""

import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layouts
from alexnet import archives
from alexnet.archives import Archive, NotAnArchive, Pipe, layout_of, members, opened, sample_of
from alexnet.errors import UserError
from alexnet.listing import MAX_PICTURE_BYTES, Place, read_bytes
from alexnet.sources import find_source, stream_source

PICTURES = {f"{c}/{n}.jpg": layouts.picture_bytes(n + 7 * (c == "b")) for c in "ab" for n in (1, 2)}


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str, data: bytes) -> bytes:
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def good() -> bytes:
    return b"".join(member(name, data) for name, data in PICTURES.items())


END = bytes(1024)


def listed(data: bytes) -> tuple[list[str], dict[str, str]]:
    """Names of the members of a tar, and what was refused; the same from a file and a pipe."""
    results = []
    for file, size in ((io.BytesIO(data), len(data)), (Pipe(io.BytesIO(data)), None)):
        refused: dict[str, str] = {}
        found = [
            (m.name, m.start)
            for m in members(
                file, "x.tar", lambda n, r, refused=refused: refused.update({n: r}), 0, size
            )  # type: ignore[arg-type, misc]
        ]
        results.append((found, refused))
    (from_file, refused), (from_pipe, _) = results
    whole = [(name, start) for name, start in from_pipe if (name, start) in from_file]
    assert whole == from_file
    return [name for name, _ in from_file], refused


HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "absolute": (member("/etc/x.jpg", b"x"), "x.tar/etc/x.jpg", "leads out of the archive"),
    "parent": (member("a/../../x.jpg", b"x"), "x.tar/a/../../x.jpg", "leads out of the archive"),
    "link": (
        header("a/l.jpg", 0, tarfile.SYMTYPE, linkname="/etc/passwd"),
        "x.tar/a/l.jpg",
        "link",
    ),
    "hard link": (
        header("a/h.jpg", 0, tarfile.LNKTYPE, linkname="a/1.jpg"),
        "x.tar/a/h.jpg",
        "link",
    ),
    "device": (header("a/d.jpg", 0, tarfile.CHRTYPE), "x.tar/a/d.jpg", "device"),
    "fifo": (header("a/f.jpg", 0, tarfile.FIFOTYPE), "x.tar/a/f.jpg", "pipe"),
    "unknown": (header("a/u.jpg", 0, b"Z"), "x.tar/a/u.jpg", "not a file (type b'Z')"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_refused_by_name_and_the_others_are_taken(name: str) -> None:
    data, path, reason = HOSTILE[name]
    names, refused = listed(good() + data + member("b/9.jpg", b"9") + END)
    assert names == [*PICTURES, "b/9.jpg"]
    assert list(refused) == [path]
    assert reason in refused[path]


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    body = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + len(str(len(record)))
        length = len(record) + len(str(length))
        body += str(length).encode() + record
    return member("pax", body)[:156] + kind + member("pax", body)[157:]


def with_checksum(block: bytes) -> bytes:
    blank = block[:148] + b" " * 8 + block[156:512]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:512] + block[512:]


ABSURD: dict[str, tuple[bytes, str]] = {
    "size beyond the end": (header("b/9.jpg", 10**9), "more than"),
    "size a little beyond the end": (header("b/9.jpg", 10_000_000), "ends in the middle of it"),
    "negative size": (header("b/9.jpg", -512), "near byte|absurd|damaged"),
    "long name of a gigabyte": (header("././@LongLink", 2**30, tarfile.GNUTYPE_LONGNAME), "header"),
    "pax header of a gigabyte": (header("pax", 2**30, tarfile.XHDTYPE), "header"),
    "endless long names": (
        (header("././@LongLink", 1, tarfile.GNUTYPE_LONGNAME) + bytes(512)) * 1000,
        "header",
    ),
    "pax size": (
        with_checksum(pax({"size": "-99999"})) + header("b/9.jpg", 3) + bytes(512),
        "near byte|absurd|ends in the middle",
    ),
    "global pax": (with_checksum(pax({"size": "9" * 4000}, tarfile.XGLTYPE)), "."),
    "sparse": (header("b/9.jpg", 512, tarfile.GNUTYPE_SPARSE) + bytes(512), "."),
    "noise": (bytes(range(256)) * 2, "damaged header at byte"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_header_is_refused_and_what_stands_before_is_taken(name: str) -> None:
    data, reason = ABSURD[name]
    names, refused = listed(good() + data + END)
    assert names[:4] == list(PICTURES)
    assert refused
    assert all(path.startswith("x.tar") for path in refused)
    assert any(re.search(reason, text) for text in refused.values()), refused


def test_an_enormous_picture_is_refused_by_name() -> None:
    class Zeros(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) or bytes(size or 0)

    size = MAX_PICTURE_BYTES + 1
    refused: dict[str, str] = {}
    file = Zeros(header("b/9.jpg", size))
    found = members(file, "x.tar", lambda n, r: refused.update({n: r}), 0, 2 * size)
    assert list(found) == []
    assert "536,870,913 bytes, more than 536,870,912" in refused["x.tar/b/9.jpg"]


def test_a_cut_anywhere_is_reported_and_what_stands_before_is_read_exactly(tmp_path: Path) -> None:
    whole = good() + END
    end_of = {}
    at = 0
    for name, data in PICTURES.items():
        at += 512 + len(data)
        end_of[name] = at
        at += -len(data) % 512
    for cut in [*range(512, len(whole) - 1024, 117), len(whole) - 1024, len(whole) - 600]:
        path = layouts.write(tmp_path / "cut.tar", whole[:cut])
        refused: list[tuple[str, str]] = []
        with opened(path, lambda *what, refused=refused: refused.append(what)) as archive:  # type: ignore[misc]
            found = list(archive.members())
        assert [m.name for m in found] == [name for name in PICTURES if end_of[name] <= cut]
        for m in found:
            assert read_bytes(Place("span", str(path), m.start, m.size)) == PICTURES[m.name]
        assert refused, f"cut at {cut}, unnoticed"


def test_an_archive_behind_another_is_reported() -> None:
    names, refused = listed(good() + END + good() + END)
    assert names == list(PICTURES)
    assert refused == {"x.tar": "more follows behind the archive's end and is not read"}


def test_an_archive_that_is_none_is_named(tmp_path: Path) -> None:
    for data in (b"", b"x", b"PK\3\4" * 500, bytes(range(256)) * 4):
        path = layouts.write(tmp_path / "none.tar", data)
        with pytest.raises(UserError, match=r"none\.tar is no tar archive"):
            find_source(path)


def test_a_broken_archive_among_those_of_the_classes_is_refused_by_name(tmp_path: Path) -> None:
    tars = {
        "n00000001.tar": layouts.tar_bytes({"1.jpg": b"1", "2.jpg": b"2"}),
        "n00000002.tar": b"no tar at all" * 100,
        "n00000003.tar": layouts.tar_bytes({"1.jpg": b"1", "2.jpg": b"2", "deep.tar": b"x"}),
        "loose.jpg": b"picture",
        "readme.txt": b"text",
    }
    source = layouts.write(tmp_path / "fall.tar", layouts.tar_bytes(tars))
    listing = find_source(source)
    assert listing.class_ids == ("n00000001", "n00000003")
    refused = dict(listing.refused())
    assert set(refused) == {
        "fall.tar/n00000002.tar",
        "fall.tar/n00000003.tar/deep.tar",
        "fall.tar/loose.jpg",
    }


def test_a_nested_archive_cannot_make_a_pipe_lose_what_follows(tmp_path: Path) -> None:
    hostile = header("a.jpg", 10**7, b"Z") + END
    tars = {
        "n00000001.tar": hostile,
        "n00000002.tar": layouts.tar_bytes({"1.jpg": b"1", "2.jpg": b"2"}),
        "n00000003.tar": layouts.tar_bytes({"1.jpg": b"1", "2.jpg": b"2"}),
    }
    source = layouts.write(tmp_path / "fall.tar", layouts.tar_bytes(tars))
    expected = sorted(p.name for p in find_source(source).pictures())
    with source.open("rb") as file:
        assert sorted(picture.name for picture, _ in stream_source(file)) == expected
    assert len(expected) == 4


def test_a_broken_archive_with_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    files = {f"{c}.tar": layouts.tar_bytes({"1.jpg": b"1", "2.jpg": b"2"}) for c in "ab"}
    source = tmp_path / "odd.tar"
    with tarfile.open(source, "w", errors="surrogateescape") as archive:
        for name, data in {**files, os.fsdecode(b"\xff.tar"): b"none" * 200}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    ((name, reason),) = find_source(source).refused()
    assert name == os.fsdecode(b"odd.tar/\xff.tar")
    assert "no tar archive" in reason


def test_hidden_files_and_those_of_macos_are_passed_over(tmp_path: Path) -> None:
    files = {**PICTURES, "a/._1.jpg": b"x", "__MACOSX/a/1.jpg": b"x", "a/notes.txt": b"x"}
    listing = find_source(layouts.write(tmp_path / "x.tar", layouts.tar_bytes(files)))
    assert (len(listing), list(listing.refused())) == (4, [])


def test_names_need_be_neither_short_nor_utf8(tmp_path: Path) -> None:
    long = "a/" + "x" * 300 + ".jpg"
    odd = os.fsdecode(b"b/\xff\xfe.jpg")
    files = {**PICTURES, long: layouts.picture_bytes(3), odd: layouts.picture_bytes(4)}
    source = tmp_path / "x.tar"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(source, "w", format=form, errors="surrogateescape") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        found = {p.name: read_bytes(p.place) for p in find_source(source).pictures()}
        assert found == files


def test_samples_without_label_or_with_two_pictures_are_refused_by_name(tmp_path: Path) -> None:
    jpeg = layouts.picture_bytes(1)
    files = {
        "1.jpg": jpeg, "1.cls": b"0", "2.cls": b"1", "2.jpg": jpeg, "3.jpg": jpeg, "3.cls": b"0",
        "4.jpg": jpeg, "4.cls": b"1", "5.jpg": jpeg, "6.jpg": jpeg, "6.png": jpeg, "6.cls": b"0",
        "7.jpg": jpeg, "7.json": b"[" * 5000, "8.jpg": jpeg, "8.json": b'{"label": true}',
        "9.jpg": jpeg, "9.cls": b"9" * 70_000,
    }  # fmt: skip
    listing = find_source(layouts.write(tmp_path / "x.tar", layouts.tar_bytes(files)))
    assert {p.name for p in listing.pictures()} == {
        "0/1.jpg", "1/2.jpg", "0/3.jpg", "1/4.jpg", "0/6.jpg"
    }  # fmt: skip
    refused = dict(listing.refused())
    assert set(refused) == {
        "x.tar/5.jpg", "x.tar/6.png", "x.tar/7.json", "x.tar/7.jpg", "x.tar/8.jpg",
        "x.tar/9.cls", "x.tar/9.jpg",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["n1.tar", "n2.tar"], "tars"),
        (["a.jpg", "a.cls", "b.jpg"], "samples"),
        (["a.cls", "a.jpg"], "samples"),
        (["x/a.jpg", "x/b.jpg"], "folders"),
        (["x/a.jpg"], "folders"),
        (["readme.txt"], None),
        ([], None),
    ],
)
def test_the_first_names_tell_the_layout(names: list[str], layout: str | None) -> None:
    assert layout_of(iter(names)) == layout


def test_a_sample_is_called_by_its_name_up_to_the_first_dot() -> None:
    assert sample_of("a.b/c.d.jpg") == ("a.b/c", "d.jpg")
    assert sample_of("c") == ("c", "")


@given(
    data=st.binary(max_size=4000),
    moves=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 700)), max_size=20),
)
def test_a_pipe_reads_what_a_file_reads(data: bytes, moves: list[tuple[int, int]]) -> None:
    pipe, file = Pipe(io.BytesIO(data)), io.BytesIO(data)
    at = 0
    for step, size in moves:
        at = max(at + step - 150, at - 150, 0)
        pipe.seek(at)
        file.seek(at)
        assert pipe.read(size) == file.read(size)
        at += size if size < 300 else 0
        at = max(at, 0)
        if at + 900 < pipe._fetched:  # a pipe can be set back a little only
            at = pipe._fetched


def damaged(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed)


WHOLE: dict[str, Callable[[], bytes]] = {
    "folders": lambda: good() + END,
    "tars": lambda: layouts.tar_bytes(
        {f"{c}.tar": layouts.tar_bytes({f"{c}{n}.jpg": b"x" * 70 for n in range(2)}) for c in "ab"}
    ),
    "samples": lambda: layouts.tar_bytes(
        {f"{n}.{e}": b"%d" % (n % 2) for n in range(4) for e in ("jpg", "cls")}
    ),
}


@pytest.mark.parametrize("layout", WHOLE)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_damage_brings_refusals_only(layout: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = WHOLE[layout]()
    data = damaged(data, changes)[: cut % len(data) + 1]
    for file, size in ((io.BytesIO(data), len(data)), (Pipe(io.BytesIO(data)), None)):
        archive = Archive(file, "x.tar", size, lambda name, reason: None)
        try:
            found = list(archives.pictures_in(archive, layout, archive.read))
        except NotAnArchive:
            continue
        assert all(isinstance(picture.kept, bytes) for picture in found)
    layouts.tried(lambda: list(stream_source(io.BytesIO(data))))
