"""Rows of tables give exactly the bytes that went in; pickles run nothing."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import layouts
from alexnet import tables
from alexnet.errors import UserError
from alexnet.images import UnreadableImage
from alexnet.listing import Place, read_bytes, read_picture
from alexnet.sources import find_source
from alexnet.tables import Row, parquet_columns, parquet_picture, parquet_rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 100


def bytes_of(row: int) -> bytes:
    return bytes([row % 256]) * (row * 13 % 997 + 1)


def write_table(path: Path, image: Any, *, group: int = ROWS, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": image, **columns}), path, row_group_size=group)
    return path


@pytest.fixture(params=[ROWS, 30, 7])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    image = pa.array([{"bytes": bytes_of(row), "path": f"{row}.jpg"} for row in range(ROWS)])
    labels = pa.array([row % 3 for row in range(ROWS)])
    return str(write_table(tmp_path / "t.parquet", image, label=labels, group=request.param))


def test_rows_can_be_read_in_any_order(table: str) -> None:
    for order in (range(ROWS), reversed(range(ROWS)), np.random.default_rng(0).permutation(ROWS)):
        for row in order:
            assert parquet_picture(table, int(row)) == bytes_of(row)


def test_rows_are_read_a_few_at_a_time(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    leaf = tables._leaf
    monkeypatch.setattr(tables, "_leaf", lambda *a: (sizes.append(len(a[0])), leaf(*a))[1])
    monkeypatch.setattr(tables, "_local", threading.local())
    for row in range(ROWS):
        parquet_picture(table, row)
    assert sum(sizes) == ROWS
    assert max(sizes) <= tables.ROWS_AT_A_TIME


def test_threads_do_not_disturb_each_other(table: str) -> None:
    wrong: list[int] = []

    def read(start: int) -> None:
        wrong.extend(r for r in range(start, ROWS, 3) if parquet_picture(table, r) != bytes_of(r))

    threads = [threading.Thread(target=read, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_table_that_has_changed_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for content in (b"one", b"another"):
        write_table(path, pa.array([content] * 3), label=pa.array([0, 1, 0]))
        assert parquet_picture(str(path), 1) == content


def test_what_is_no_row_or_no_picture_is_unreadable(tmp_path: Path) -> None:
    image = pa.array(
        [None, {"bytes": None, "path": "x.jpg"}, {"bytes": b"here", "path": None}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    path = str(write_table(tmp_path / "t.parquet", image, label=pa.array([0, 1, None])))
    assert [row.label for row in parquet_rows(path)] == [0, 1, None]
    assert [row.path for row in parquet_rows(path)] == [None, "x.jpg", None]
    for row, reason in ((0, "no picture"), (1, "no picture"), (3, "no row 3")):
        with pytest.raises(UnreadableImage, match=reason):
            read_bytes(Place("parquet", path, row))
    assert read_bytes(Place("parquet", path, 2)) == b"here"
    with pytest.raises(UnreadableImage, match="No such file"):
        parquet_picture(str(tmp_path / "gone.parquet"), 0)


def test_columns_are_known_by_their_declaration_or_their_names(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", pa.array([b"x"]), label=pa.array(["cat"]))
    columns = parquet_columns(str(path))
    assert (columns.image, columns.path, columns.label) == ("image", None, "label")
    assert list(parquet_rows(str(path))) == [Row(0, "cat", None, columns_size(path))]
    pq.write_table(pa.table({"data": pa.array([b"x"]), "y": pa.array([1])}), path)
    with pytest.raises(UserError, match=r"no column image .*its columns: data, y"):
        parquet_columns(str(path))


def columns_size(path: Path) -> int:
    return int(pq.ParquetFile(path).metadata.row_group(0).total_byte_size)


def test_a_table_cut_off_or_damaged_is_named(table: str, tmp_path: Path) -> None:
    data = Path(table).read_bytes()
    for cut in (0, 4, len(data) // 2, len(data) - 1):
        path = layouts.write(tmp_path / "cut.parquet", data[:cut])
        with pytest.raises(UserError, match=r"cut\.parquet cannot be read as parquet"):
            find_source(path)


@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1))
def test_damage_in_a_table_brings_refusals_only(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    image = pa.array([{"bytes": bytes_of(row), "path": f"{row}.jpg"} for row in range(20)])
    write_table(path, image, label=pa.array([row % 2 for row in range(20)]), group=7)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    listing = layouts.tried(find_source, path)
    if not isinstance(listing, str):
        for picture in listing.pictures():
            layouts.tried(read_bytes, picture.place, refusal=UnreadableImage)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/never",)


def refused_batch(
    tmp_path: Path, content: object, message: str, name: str = "data_batch_2"
) -> None:
    source = layouts.cifar10(tmp_path)
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=3)
    (source / "cifar-10-batches-py" / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as refused:
        find_source(source)
    assert "\n" not in str(refused.value)


def test_a_pickle_that_asks_for_a_program_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("data_batch_2", "batches.meta"):
        message = f"{name} is refused: it asks for (posix|nt).system"
        refused_batch(tmp_path / name, {b"data": Evil()}, message, name)


def test_batches_of_another_kind_are_refused(tmp_path: Path) -> None:
    good = {b"labels": [0, 1], b"filenames": [b"a.png", b"b.png"]}
    pixels = np.zeros((2, 3072), np.uint8)
    cases: dict[str, tuple[object, str]] = {
        "no dictionary": ([1, 2], "no batch of CIFAR-10"),
        "no pixels": (good, "no batch of CIFAR-10"),
        "text": ({**good, b"data": "x"}, "no batch of CIFAR-10"),
        "other numbers": ({**good, b"data": np.zeros((2, 3072))}, "no pickle that can be read"),
        "columns": ({**good, b"data": np.asfortranarray(pixels + 1)}, "no pickle that can be"),
        "shape": ({**good, b"data": pixels.reshape(4, -1)}, "does not hold its 2 pictures"),
        "fewer": ({**good, b"data": pixels[:1]}, "does not hold its 2 pictures"),
        "names": ({**good, b"data": pixels, b"filenames": [b"a"]}, "has 1 names for 2 labels"),
        "label": ({**good, b"data": pixels, b"labels": [0, 3]}, "labels that batches.meta does"),
        "noise": (b"\x80\x04noise", "no pickle that can be read"),
        "empty": (b"", "no pickle that can be read"),
        "endless": (b"\x80\x04]" + b"]a" * 2**10 + b"r\xff\xff\xff\x7f.", "no "),
    }
    for name, (content, message) in cases.items():
        refused_batch(tmp_path / name, content, message)


@given(changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1))
def test_damage_in_a_pickle_brings_refusals_only(changes: list[tuple[int, int]]) -> None:
    data = bytearray(layouts.cifar_batches(1)["data_batch_1"])
    for place, value in changes:
        data[place if place < 300 else place - 600] = value
    batch = layouts.tried(tables.cifar_batch, bytes(data), "batch")
    if not isinstance(batch, str):
        start, labels, _ = batch
        assert 0 <= start <= len(data) - 3072 * len(labels)


def test_a_batch_that_ends_early_is_unreadable(tmp_path: Path) -> None:
    path = layouts.write(tmp_path / "batch", bytes(4000))
    assert read_picture(Place("cifar", str(path), 0, 3072)).size == (32, 32)
    for place in (Place("cifar", str(path), 1000, 3072), Place("cifar", str(path) + "x", 0, 3072)):
        with pytest.raises(UnreadableImage):
            read_picture(place)
