"""What `alexnet check` says about a whole source: duplicates, order, and how it is told."""

import json
import os
import sqlite3
import tarfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from alexnet import audit as audit_module
from alexnet.audit import Audit, Finding, check, findings_by_kind
from alexnet.contact import COLUMNS, contact_sheet, sheet_of
from alexnet.errors import UserError
from alexnet.examine import Seen
from alexnet.images import UnreadableImage, read_image
from alexnet.likeness import BANDS, alike, fingerprint, near_pairs
from alexnet.listing import Listed, Listing, Picture, Place
from alexnet.oddities import ODDITIES, known
from alexnet.shapes import shapes
from zoo import encoded, photograph, zoo


class Source:
    """A source in the making: files in a folder, and the listing of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures: list[Picture] = []

    def add(self, name: str, data: bytes, split: str = "train", class_id: str = "n1") -> None:
        path = self._folder / split / class_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        place = Place("file", str(path), size=len(data))
        self._pictures.append(Picture(split, class_id, f"{split}/{class_id}/{name}", place))

    def listing(self) -> Listing:
        listing = Listing()
        listing.add(self._pictures)
        listing.finish()
        return listing


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


def told(audit: Audit) -> list[tuple[str, str, str]]:
    return [(finding.name, finding.kind, finding.detail) for finding in audit]


def of_kind(source: Source, *kinds: str) -> list[tuple[str, str, str]]:
    return [entry for entry in told(check(source.listing(), workers=1)) if entry[1] in kinds]


JPEG = encoded(photograph(), "JPEG")
HALF = encoded(photograph().resize((150, 130)), "JPEG")
Q60 = encoded(photograph(), "JPEG", quality=60)


def test_ordinary_pictures_give_no_findings(source: Source) -> None:
    for seed in range(8):
        source.add(f"{seed}.jpg", encoded(photograph(seed=seed), "JPEG"))
    audit = check(source.listing(), workers=1)
    assert told(audit) == []
    assert audit.counts() == {}
    assert audit.num_images == 8


def test_equal_bytes_are_duplicates_of_the_first_in_order(source: Source) -> None:
    for name in ("c.jpg", "a.jpg", "b.jpg"):
        source.add(name, JPEG)
    audit = check(source.listing(), workers=1)
    assert told(audit) == [
        ("train/n1/b.jpg", "duplicate", "same as train/n1/a.jpg"),
        ("train/n1/c.jpg", "duplicate", "same as train/n1/a.jpg"),
    ]
    assert list(audit.groups()) == [(0, 1, 2)]


def test_a_duplicate_in_two_splits_and_two_classes_is_said_to_be(source: Source) -> None:
    source.add("a.jpg", JPEG)
    source.add("b.jpg", JPEG, "val")
    source.add("c.jpg", JPEG, "train", "n2")
    assert of_kind(source, "duplicate") == [
        ("train/n2/c.jpg", "duplicate", "same as train/n1/a.jpg; labelled n1 and n2"),
        ("val/n1/b.jpg", "duplicate", "same as train/n1/a.jpg; in train and val"),
    ]


@pytest.mark.parametrize("again", [HALF, Q60, encoded(photograph(), "PNG")])
def test_a_picture_scaled_or_compressed_again_is_a_near_duplicate(
    source: Source, again: bytes
) -> None:
    source.add("a.jpg", JPEG)
    source.add("b.img", again, "val")
    assert of_kind(source, "duplicate", "near-duplicate") == [
        ("val/n1/b.img", "near-duplicate", "same as train/n1/a.jpg; in train and val")
    ]


def test_a_group_joins_equal_and_similar_pictures(source: Source) -> None:
    for number, data in enumerate([JPEG, HALF, encoded(photograph(seed=1), "JPEG"), JPEG, Q60]):
        source.add(f"{number}.jpg", data)
    audit = check(source.listing(), workers=1)
    assert list(audit.groups()) == [(0, 1, 3, 4)]
    assert audit.counts() == {"small": 1, "duplicate": 1, "near-duplicate": 2}


def test_a_crop_and_a_mirror_image_are_other_pictures(source: Source) -> None:
    picture = photograph()
    source.add("a.jpg", JPEG)
    source.add("crop.jpg", encoded(picture.crop((30, 26, 300, 260)), "JPEG"))
    source.add("mirror.jpg", encoded(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG"))
    assert of_kind(source, "duplicate", "near-duplicate") == []


def similar_pairs(pictures: Sequence[Image.Image]) -> list[tuple[int, int]]:
    marks = [fingerprint(picture) for picture in pictures]
    rows = [row for row, mark in enumerate(marks) if mark[0]]
    prints = np.array([np.frombuffer(marks[row][0], np.uint8) for row in rows])
    pairs = {(rows[a], rows[b]) for i, j in near_pairs(prints) for a, b in zip(i, j, strict=True)}
    return [(i, j) for i, j in pairs if alike(marks[i][1], marks[j][1])]


def test_different_generated_pictures_are_not_called_the_same() -> None:
    pixels, _ = shapes(0, np.arange(400), image_px=64)
    assert similar_pairs([Image.fromarray(image) for image in pixels]) == []


def test_different_photographs_are_not_called_the_same(data_file: Callable[[str], Path]) -> None:
    def photographs() -> Iterator[bytes]:
        with tarfile.open(data_file("imagenette.tar")) as archive:
            found = 0
            for member in archive:
                if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg")):
                    yield archive.extractfile(member).read()  # type: ignore[union-attr]
                    found += 1
                if found == 150:
                    return

    originals = [read_image(data) for data in photographs()]
    if not originals:
        pytest.skip("imagenette.tar holds no JPEG files of its own")
    assert similar_pairs(originals) == []
    copies = [read_image(encoded(picture.reduce(2), "JPEG", quality=60)) for picture in originals]
    found = similar_pairs([*originals, *copies])
    wrong = [(i, j) for i, j in found if j != i + len(originals)]
    assert wrong == []
    assert len(found) >= 0.95 * len(originals)


@given(rows=st.integers(0, 40), seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.02, 0.05]))
def test_near_pairs_are_those_of_a_loop_over_all_pairs(rows: int, seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.random((1, 128)) < 0.5
    bits = bits ^ (generator.random((rows, 128)) < share)
    prints = np.packbits(bits, axis=1).reshape(rows, 16)
    max_bits = BANDS - 1
    found = {pair for i, j in near_pairs(prints, max_bits) for pair in zip(i, j, strict=True)}
    expected = {
        (i, j)
        for i in range(rows)
        for j in range(i + 1, rows)
        if (bits[i] != bits[j]).sum() <= max_bits
    }
    assert found == expected


def test_a_picture_without_contrast_is_near_to_none() -> None:
    assert fingerprint(Image.new("RGB", (64, 64), (9, 99, 199))) == (b"", b"")


@pytest.fixture(scope="module")
def zoo_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    source = Source(tmp_path_factory.mktemp("zoo"))
    for number, animal in enumerate(zoo()):
        if "bomb" not in animal.name:
            split, class_id = ("train", "val")[number % 2], f"n{number % 3}"
            source.add(animal.name, animal.data, split, class_id)
    return source


@pytest.fixture(scope="module")
def zoo_audit(zoo_source: Source) -> Audit:
    return check(zoo_source.listing(), workers=1)


def test_any_number_of_workers_finds_the_same_in_the_same_order(
    zoo_source: Source, zoo_audit: Audit
) -> None:
    assert list(check(zoo_source.listing(), workers=2)) == list(zoo_audit)


def test_findings_come_in_the_order_of_the_pictures(zoo_audit: Audit) -> None:
    positions = [finding.position for finding in zoo_audit]
    assert positions == sorted(positions)
    assert len(set(positions)) > 80


def test_json_lines_hold_every_finding_and_the_summary_counts_them(
    zoo_audit: Audit, tmp_path: Path
) -> None:
    zoo_audit.write_json_lines(tmp_path / "findings.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    assert lines == [finding.to_json() for finding in zoo_audit]
    assert set(lines[0]) == {"name", "split", "class_id", "kind", "detail", "action"}
    counts = zoo_audit.to_json()["counts"]
    assert counts == {k: sum(line["kind"] == k for line in lines) for k in zoo_audit.counts()}
    left_out = {line["name"] for line in lines if line["action"].startswith("left out")}
    assert zoo_audit.num_left_out() == len(left_out)


def test_the_table_has_each_kind_and_at_most_the_examples_asked_for(zoo_audit: Audit) -> None:
    console = Console(width=400, file=BytesTextIO(), color_system=None)
    console.print(findings_by_kind(zoo_audit, examples=2))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for kind, count in zoo_audit.counts().items():
        assert f" {kind} " in text
        assert count <= 2 or f"... and {count - 2} more" in text
    assert text.count(".jpg") < 100


class BytesTextIO:
    """Text in memory, whatever its encoding."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def write(self, text: str) -> int:
        self._parts.append(text)
        return len(text)

    def flush(self) -> None:
        pass

    def getvalue(self) -> str:
        return "".join(self._parts)


def test_progress_counts_up_to_all_pictures(source: Source) -> None:
    for number in range(70):
        source.add(f"{number}.txt.jpg", b"x" * number)
    calls: list[tuple[int, int]] = []
    check(source.listing(), workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(32, 70), (64, 70), (70, 70)]


def test_what_the_listing_refused_is_a_finding(source: Source) -> None:
    source.add("a.jpg", JPEG)
    listing = source.listing()
    listing.refuse("../../etc/passwd", "leads out of the archive")
    (finding,) = check(listing, workers=1)
    assert finding.kind == "refused"
    assert finding.name == "../../etc/passwd"
    assert finding.action == "left out: leads out of the archive"


def test_a_file_that_is_gone_is_left_out_with_the_reason(source: Source, tmp_path: Path) -> None:
    source.add("a.jpg", JPEG)
    listing = source.listing()
    (tmp_path / "source/train/n1/a.jpg").unlink()
    (finding,) = check(listing, workers=1)
    assert finding.action == "left out: No such file or directory"


def look_or_die(items: Sequence[tuple[int, Listed]], image_px: int) -> list[Seen]:
    if any("killer" in listed.name for _, listed in items):
        os._exit(1)
    return audit_module._look_at_all(items, image_px)


def test_a_picture_that_ends_its_process_is_named_and_the_others_are_looked_at(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_look_at_all", look_or_die)
    for number in range(3):
        source.add(f"{number}.jpg", b"")
    source.add("1-killer.jpg", JPEG)
    audit = check(source.listing(), workers=2)
    assert [(finding.name, finding.kind) for finding in audit] == [
        ("train/n1/0.jpg", "empty"),
        ("train/n1/1-killer.jpg", "crash"),
        ("train/n1/1.jpg", "empty"),
        ("train/n1/2.jpg", "empty"),
    ]
    (finding,) = audit.findings("crash")
    assert finding.action == "left out: ends the process that decodes it"


def test_names_of_any_bytes_survive(source: Source, tmp_path: Path) -> None:
    name = b"caf\xe9 \n\x1b[31m.jpg".decode(errors="surrogateescape")
    source.add(name, b"")
    audit = check(source.listing(), workers=1)
    assert next(iter(audit)).name == f"train/n1/{name}"
    audit.write_json_lines(tmp_path / "findings.jsonl")
    line = (tmp_path / "findings.jsonl").read_bytes()
    assert json.loads(line)["name"] == f"train/n1/{name}"
    console = Console(width=200, file=BytesTextIO(), color_system=None)
    console.print(findings_by_kind(audit))
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_database_keeps_the_findings_and_is_replaced_by_the_next_check(
    source: Source, tmp_path: Path
) -> None:
    source.add("a.jpg", b"")
    for _ in range(2):
        check(source.listing(), workers=1, database=tmp_path / "findings.db")
    rows = sqlite3.connect(tmp_path / "findings.db").execute("SELECT kind FROM findings").fetchall()
    assert rows == [("empty",)]


def test_a_file_of_somebody_else_is_not_overwritten(source: Source, tmp_path: Path) -> None:
    source.add("a.jpg", JPEG)
    (tmp_path / "mine.db").write_bytes(b"precious")
    for path in (tmp_path / "mine.db", tmp_path):
        with pytest.raises(UserError, match="was not written by check"):
            check(source.listing(), database=path)
    assert (tmp_path / "mine.db").read_bytes() == b"precious"


def test_known_oddities_are_recognised_when_they_show() -> None:
    png = known("train/n02105855/n02105855_2933.JPEG", ["wrong-name", "alpha"])
    assert png is not None
    assert "PNG" in png.what
    assert known("n02105855_2933.JPEG", ["grey"]) is None
    assert known("n02105855_2934.JPEG", ["wrong-name"]) is None
    assert sum("CMYK" in oddity.what for oddity in ODDITIES.values()) == 22


def test_a_known_oddity_is_a_finding(source: Source) -> None:
    source.add("n02105855_2933.JPEG", encoded(photograph(), "PNG"), class_id="n02105855")
    kinds = [finding.kind for finding in check(source.listing(), workers=1)]
    assert kinds == ["wrong-name", "known"]


def test_the_contact_sheet_shows_each_kind_and_grey_tiles_for_the_unreadable(
    zoo_source: Source, zoo_audit: Audit
) -> None:
    sheet = sheet_of(zoo_audit, zoo_source.listing(), per_kind=2)
    assert sheet.mode == "RGB"
    one_row = sheet_of_one(zoo_audit, "rotated").height
    assert sheet.height > 0.7 * one_row * len(zoo_audit.counts())
    unreadable = np.asarray(sheet_of_one(zoo_audit, "truncated"))
    assert (unreadable.max(axis=2).astype(int) - unreadable.min(axis=2) < 32).all()


def sheet_of_one(audit: Audit, kind: str) -> Image.Image:
    def open_picture(finding: Finding) -> Image.Image:
        if finding.action.startswith("left out"):
            raise UnreadableImage(finding.detail)
        return photograph()

    return contact_sheet(audit.findings(kind, COLUMNS), open_picture)


def test_a_contact_sheet_of_nothing_says_so() -> None:
    sheet = contact_sheet([], lambda _: photograph())
    assert len(np.unique(np.asarray(sheet))) > 2


def test_a_side_of_no_pixels_is_a_mistake_said_in_one_line(source: Source) -> None:
    source.add("a.jpg", JPEG)
    with pytest.raises(UserError, match="image_px is 0"):
        check(source.listing(), image_px=0)


def test_pillow_prints_nothing_in_the_meantime(
    source: Source, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(40))
    source.add("a.jpg", encoded(photograph(), "JPEG", exif=exif))
    buffer = BytesIO()
    photograph().save(buffer, "TIFF", compression="tiff_lzw")
    lzw = buffer.getvalue()
    source.add("b.tif", lzw[:100_000] + bytes(5_000) + lzw[105_000:])
    kinds = [finding.kind for finding in check(source.listing(), workers=2)]
    assert kinds == ["warning", "broken"]
    assert len(recwarn) == 0
    assert capfd.readouterr().err == ""
