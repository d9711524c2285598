"""Every layout of the same pictures gives the same listing; what fits none is said in one line."""

import gzip
import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import layouts
from alexnet.errors import UserError
from alexnet.imagenet import read_classes
from alexnet.listing import Listing, read_bytes, read_picture
from alexnet.sources import KINDS, find_source, stream_source
from layouts import CLASSES

Content = list[tuple[str, int, str, bytes]]


def content(listing: Listing) -> Content:
    """(split, label, name, bytes) of each picture, in order."""
    return [(p.split, p.label, p.name, read_bytes(p.place)) for p in listing.pictures()]


def assert_refused(message: str, source: Path, **options: object) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        find_source(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return layouts.split_folder(tmp_path / "folder")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return layouts.class_folder(tmp_path / "whole")


SPLIT_LAYOUTS: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "ilsvrc": ("ilsvrc", layouts.ilsvrc),
    "ilsvrc, packed kit": ("ilsvrc", layouts.ilsvrc_with_packed_kit),
    "ilsvrc, Kaggle's labels": ("ilsvrc", layouts.ilsvrc_with_solution),
    "ilsvrc, folders": ("ilsvrc", layouts.ilsvrc_with_folders),
    "kaggle": ("kaggle", layouts.kaggle),
    "parquet": ("parquet", layouts.parquet),
    "webdataset": ("webdataset", layouts.webdataset),
    "csv": ("csv", layouts.table),
    "tar": ("folder", layouts.tar_of_folders),
}


@pytest.mark.parametrize("layout", SPLIT_LAYOUTS)
def test_a_layout_gives_the_listing_of_the_folder(
    layout: str, folder: Path, tmp_path: Path
) -> None:
    kind, make = SPLIT_LAYOUTS[layout]
    expected = find_source(folder)
    assert expected.counts() == {"train": 15, "val": 6}
    found = find_source(make(folder, tmp_path / "other"))
    assert found.kind == kind
    assert content(found) == content(expected)
    assert found.class_ids == expected.class_ids == CLASSES
    assert found.settings == expected.settings
    assert list(found.refused()) == []


@pytest.mark.parametrize("layout", SPLIT_LAYOUTS)
def test_a_kind_that_is_named_is_the_kind_that_is_told(
    layout: str, folder: Path, tmp_path: Path
) -> None:
    kind, make = SPLIT_LAYOUTS[layout]
    source = make(folder, tmp_path / "other")
    assert content(find_source(source, kind=kind)) == content(find_source(source))


@pytest.mark.parametrize("make", [layouts.synsets, layouts.tar_of_synsets, layouts.tar_of_folders])
def test_what_is_not_split_is_split_alike(
    make: Callable[[Path, Path], Path], whole: Path, tmp_path: Path
) -> None:
    for fraction, seed in ((0.5, 0), (0.2, 7)):
        options = {"val_fraction": fraction, "seed": seed}
        expected = find_source(whole, **options)  # type: ignore[arg-type]
        found = find_source(make(whole, tmp_path / "other"), **options)  # type: ignore[arg-type]
        assert content(found) == content(expected)
        assert found.settings == expected.settings == options


def test_all_of_imagenet_is_split_half_and_half(whole: Path, tmp_path: Path) -> None:
    listing = find_source(layouts.synsets(whole, tmp_path / "fall"))
    assert listing.class_counts() == {"train": [3, 3, 2], "val": [3, 2, 2]}


def test_ilsvrcs_training_tar_alone_is_split(folder: Path, tmp_path: Path) -> None:
    tar = layouts.ilsvrc(folder, tmp_path / "other") / "ILSVRC2012_img_train.tar"
    found = find_source(tar, val_fraction=0.3)
    assert (found.kind, found.counts()) == ("ilsvrc", {"train": 10, "val": 5})
    assert content(found) == content(find_source(folder / "train", val_fraction=0.3))


def test_names_of_classes_come_from_the_kit_or_the_list_beside(
    folder: Path, tmp_path: Path
) -> None:
    for make in (layouts.ilsvrc, layouts.ilsvrc_with_solution, layouts.kaggle):
        found = find_source(make(folder, tmp_path / make.__name__))
        assert found.class_names == tuple(layouts.WORDS.values())


def test_a_list_of_classes_fixes_names_and_the_order_of_labels(
    folder: Path, tmp_path: Path
) -> None:
    lines = "n03888257 chute\nn09999999 of no picture\nn01440764 tench\nn02102040 dog\n"
    classes = layouts.write(tmp_path / "classes.txt", lines.encode())
    found = find_source(folder, classes=classes)
    assert found.class_ids == ("n03888257", "n01440764", "n02102040")
    assert found.class_names == ("chute", "tench", "dog")
    assert any("1 of 4 classes have no pictures" in remark for remark in found.remarks)
    classes.write_text("n03888257\nn01440764\n")
    assert_refused("class 'n02102040' is not among the 2 classes of", folder, classes=classes)


@pytest.mark.parametrize("label", ["index", "json"])
def test_numbers_for_labels_need_a_list_to_have_ids(
    label: str, folder: Path, tmp_path: Path
) -> None:
    source = layouts.webdataset(folder, tmp_path / "other", label=label)
    assert find_source(source).class_ids == ("0", "1", "2")
    found = find_source(source, classes=layouts.classes_file(tmp_path))
    assert content(found) == content(find_source(folder))


def test_numbers_for_labels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg,{number % 12}\n" for number in range(24))
    for number in range(24):
        layouts.write(tmp_path / f"{number}.jpg", layouts.picture_bytes(number))
    source = layouts.write(tmp_path / "labels.csv", rows.encode())
    listing = find_source(source, val_fraction=0.5)
    assert listing.class_ids == tuple(str(number) for number in range(12))


def test_parquet_without_names_has_numbers(folder: Path, tmp_path: Path) -> None:
    source = layouts.parquet(folder, tmp_path / "other", names=False)
    assert find_source(source).class_ids == ("0", "1", "2")
    found = find_source(source, classes=layouts.classes_file(tmp_path))
    assert content(found) == content(find_source(folder))


def test_parquet_keeps_the_order_of_rows_and_says_so(folder: Path, tmp_path: Path) -> None:
    source = layouts.parquet(folder, tmp_path / "other")
    for split in ("train", "validation"):
        for file in (source / "data").glob(f"{split}-*"):
            file.rename(file.with_name(f"{split}-{9 - int(file.name.split('-')[1])}.parquet"))
    found = find_source(source)
    assert sorted(content(found)) == sorted(content(find_source(folder)))
    assert next(found.pictures()).name == "train/n02102040/n02102040_1.JPEG"
    assert any("order of the rows" in remark for remark in found.remarks)


def test_rows_without_a_label_are_refused_by_their_number(folder: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    source = layouts.parquet(folder, tmp_path / "other")
    train = pq.read_table(source / "data" / "train-00000-of-00002.parquet")
    unknown = train.set_column(1, "label", pa.array([-1] * len(train), pa.int64()))
    pq.write_table(unknown, source / "data" / "test-00000-of-00001.parquet")
    found = find_source(source)
    assert found.counts() == {"train": 15, "val": 6}
    assert list(found.refused()) == [("test-00000-of-00001.parquet", "7 rows without a label")]


def test_a_csv_needs_no_words_above_its_columns(folder: Path, tmp_path: Path) -> None:
    plain = layouts.table(folder, tmp_path / "plain", header=False)
    assert content(find_source(plain)) == content(find_source(folder))
    assert content(find_source(plain.parent)) == content(find_source(folder))


def test_a_csv_without_splits_is_split_like_its_folder(whole: Path) -> None:
    rows = [f"{path.relative_to(whole)},{path.parent.name}" for path in whole.glob("*/*")]
    source = layouts.write(whole.parent / "w" / "labels.csv", "\n".join(rows).encode())
    (source.parent / "x").mkdir()
    for class_folder in whole.iterdir():
        (source.parent / class_folder.name).symlink_to(class_folder)
    assert content(find_source(source)) == content(find_source(whole))


def test_rows_of_a_csv_that_name_nothing_are_refused_by_number(tmp_path: Path) -> None:
    for number in range(4):
        layouts.write(tmp_path / f"{number}.jpg", layouts.picture_bytes(number))
    os.mkfifo(tmp_path / "pipe.jpg")
    rows = "0.jpg,a\n1.jpg,a\nalone\n2.jpg,b\n3.jpg,b\n,b\n4.jpg,\npipe.jpg,a\ngone.jpg,b\n"
    listing = find_source(layouts.write(tmp_path / "labels.csv", rows.encode()), val_fraction=0.5)
    assert dict(listing.refused()) == {
        "labels.csv, row 3": "too few columns",
        "labels.csv, row 6": "no path or no label",
        "labels.csv, row 7": "no path or no label",
        "pipe.jpg": "not a file, but a folder, a pipe or a device",
    }
    sizes = {p.name: p.place.size for p in listing.pictures()}
    assert len(sizes) == 5
    assert sizes["b/gone.jpg"] == 0


@given(text=st.text(max_size=60))
def test_no_text_makes_a_csv_fail_with_more_than_a_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode())
    listing = layouts.tried(find_source, path)
    assert isinstance(listing, str) or len(listing.class_ids) > 1


@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_a_list_of_classes_has_as_many_ids_as_lines_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "classes.txt"
    path.write_bytes(data)
    classes = layouts.tried(read_classes, path)
    if isinstance(classes, str):
        assert str(path) in classes
        return
    text = data.decode("utf-8-sig", errors="surrogateescape")
    assert len(classes.ids) == sum(bool(line.strip()) for line in text.splitlines())
    assert [classes.id_of(number) for number in range(len(classes.ids))] == list(classes.ids)
    assert all(classes.id_of(class_id) == class_id for class_id in classes.ids)


def test_lists_of_classes_come_with_ids_tabs_or_names_alone(tmp_path: Path) -> None:
    text = "\ufeffn01440764 tench, Tinca tinca\nn00001740\tentity\nn02102040\n\ngolf ball\na\tb c\n"
    classes = read_classes(layouts.write(tmp_path / "classes.txt", text.encode()))
    assert classes.names == {
        "n01440764": "tench, Tinca tinca",
        "n00001740": "entity",
        "n02102040": "English springer",
        "golf ball": "golf ball",
        "a": "b c",
    }
    assert classes.id_of("tench, Tinca tinca") == "n01440764"
    classes = read_classes(layouts.write(tmp_path / "c.txt", b"n02012849 crane\nn03126707 crane\n"))
    with pytest.raises(UserError, match="'crane' is not among the 2 classes"):
        classes.id_of("crane")


STREAMS = {
    "tar of tars": layouts.tar_of_synsets,
    "class folders": layouts.tar_of_folders,
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("layout", STREAMS)
def test_a_stream_has_the_pictures_of_the_file(
    layout: str, compress: Callable[[bytes], bytes], whole: Path, tmp_path: Path
) -> None:
    tar = STREAMS[layout](whole, tmp_path / "other")
    expected = {(p.name, read_bytes(p.place)) for p in find_source(tar).pictures()}
    streamed = list(stream_source(OneWay(compress(tar.read_bytes()))))  # type: ignore[arg-type]
    assert {(picture.name, data) for picture, data in streamed} == expected
    assert {picture.class_id for picture, _ in streamed} == set(CLASSES)
    assert len(streamed) == 15


@pytest.mark.parametrize("label", ["cls", "index", "json"])
def test_a_stream_of_samples_has_their_classes(label: str, folder: Path, tmp_path: Path) -> None:
    source = layouts.webdataset(folder, tmp_path / "other", label=label)
    classes = layouts.classes_file(tmp_path)
    tar = source / "toys-train-000000.tar"
    streamed = list(stream_source(OneWay(tar.read_bytes()), classes=classes))  # type: ignore[arg-type]
    files = {path.name: path.read_bytes() for path in (folder / "train").glob("*/*")}
    assert [picture.class_id for picture, _ in streamed] == [CLASSES[0]] * 5
    for picture, data in streamed:
        class_id, name = picture.name.split("/")
        assert (class_id, data) == (picture.class_id, files[name])


def test_splits_in_a_stream_are_those_of_its_folders(folder: Path, tmp_path: Path) -> None:
    tar = layouts.tar_of_folders(folder, tmp_path / "other")
    streamed = stream_source(OneWay(tar.read_bytes()))  # type: ignore[arg-type]
    found = sorted((p.split, CLASSES.index(p.class_id), p.name, data) for p, data in streamed)
    assert found == sorted(content(find_source(folder)))


def test_a_stream_that_is_cut_off_gives_what_stands_before(whole: Path, tmp_path: Path) -> None:
    data = layouts.tar_of_synsets(whole, tmp_path / "other").read_bytes()
    files = set(layouts.files_below(whole).values())
    for cut in range(0, len(data), 3_001):
        refused: list[tuple[str, str]] = []
        stream = stream_source(
            OneWay(data[:cut]),  # type: ignore[arg-type]
            kind="synsets",
            refused=lambda *what, refused=refused: refused.append(what),  # type: ignore[misc]
        )
        if cut < 512:
            with pytest.raises(UserError, match="no tar archive"):
                list(stream)
        else:
            pictures = list(stream)
            assert {data for _, data in pictures} <= files
            assert refused or len(pictures) == 15, f"cut at {cut}, unnoticed"


class OneWay(io.RawIOBase):
    """What comes through a pipe: in pieces, forwards only."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 1000) if size > 0 else size)


def test_cifar10s_batches_are_pictures_with_test_as_validation(tmp_path: Path) -> None:
    for source in (
        layouts.cifar10(tmp_path / "folder"),
        layouts.cifar10_archive(tmp_path / "archive"),
    ):
        listing = find_source(source)
        assert listing.kind == "cifar10"
        assert listing.counts() == {"train": 20, "val": 4}
        assert listing.class_ids == ("bird", "cat", "dog")
        pictures = {p.name: p for p in listing.pictures()}
        random = np.random.default_rng(2)
        rows = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        for index, row in enumerate(rows):
            class_id = listing.class_ids[(index + 2) % 3]
            place = pictures[f"train/{class_id}/data_batch_3_s_{index:06d}.png"].place
            expected = row.reshape(3, 32, 32).transpose(1, 2, 0)
            assert_array_equal(np.asarray(read_picture(place)), expected)


def test_pictures_of_one_name_in_one_class_are_told_apart(tmp_path: Path) -> None:
    files = {f"{c}/{n}.jpg": layouts.picture_bytes(n) for c in "ab" for n in range(3)}
    source = tmp_path / "two.tar"
    with tarfile.open(source, "w") as archive:
        for name, data in [*files.items(), ("a/1.jpg", layouts.picture_bytes(9))]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    listing = find_source(source, val_fraction=0.3)
    found = {p.name: read_bytes(p.place) for p in listing.pictures()}
    assert found["a/1.jpg"] == files["a/1.jpg"]
    assert found["a/1.jpg#2"] == layouts.picture_bytes(9)
    assert len(found) == 7
    assert any("1 pictures have the name of another" in remark for remark in listing.remarks)


def test_validation_pictures_without_labels_need_the_kit(folder: Path, tmp_path: Path) -> None:
    source = layouts.ilsvrc_with_solution(folder, tmp_path / "other")
    (source / "LOC_val_solution.csv").unlink()
    assert_refused("put the development kit or Kaggle's LOC_val_solution.csv into", source)


def test_a_test_set_without_labels_is_left_out_by_its_number(folder: Path, tmp_path: Path) -> None:
    source = layouts.ilsvrc(folder, tmp_path / "other")
    files = {f"ILSVRC2012_test_{n:08d}.JPEG": layouts.picture_bytes(n) for n in range(3)}
    layouts.write(source / "ILSVRC2012_img_test.tar", layouts.tar_bytes(files))
    listing = find_source(source)
    assert listing.counts() == {"train": 15, "val": 6}
    assert dict(listing.refused()) == {"ILSVRC2012_img_test.tar": "3 pictures without labels"}


def test_the_test_set_of_2010_has_labels_in_its_kit(folder: Path, tmp_path: Path) -> None:
    source = layouts.ilsvrc(folder, tmp_path / "other")
    kit = source / "ILSVRC2012_devkit_t12" / "data"
    (kit / "ILSVRC2010_test_ground_truth.txt").write_text("2\n3\n1\n")
    files = {f"test/ILSVRC2010_test_{n:08d}.JPEG": layouts.picture_bytes(n) for n in (1, 2, 3, 4)}
    layouts.write(source / "ILSVRC2010_images_test.tar", layouts.tar_bytes(files))
    listing = find_source(source)
    assert listing.class_counts()["test"] == [1, 1, 1]
    names = {p.name for p in listing.pictures() if p.split == "test"}
    assert "test/n03888257/ILSVRC2010_test_00000001.JPEG" in names
    (refused,) = listing.refused()
    assert refused[1] == "its number has no label"


def test_a_kit_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    source = layouts.ilsvrc(folder, tmp_path / "other")
    meta = source / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    truth = meta.with_name("ILSVRC2012_validation_ground_truth.txt")
    truth.write_text("1\n2\n77\n")
    assert_refused("ground_truth.txt) is damaged: no class has the number 77", source)
    meta.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    assert_refused("meta.mat) is damaged or no list of synsets", source)


def test_a_source_of_two_kinds_asks_for_one(folder: Path, tmp_path: Path) -> None:
    layouts.parquet(folder, folder)
    assert_refused("can be read as parquet (train-00000-of-00002.parquet) or as folder", folder)
    assert (
        find_source(folder, kind="parquet").counts() == find_source(folder, kind="folder").counts()
    )
    assert_refused("no kind of source 'parket'; did you mean 'parquet'?", folder, kind="parket")


def test_archives_beside_class_folders_are_left_alone(folder: Path, whole: Path) -> None:
    expected = content(find_source(folder)), content(find_source(whole))
    for source in (folder, whole):
        layouts.write(source / "all.tar", layouts.tar_bytes(layouts.files_below(source)))
        layouts.write(source / "broken-train.tar", b"none")
        layouts.write(source / "notes.csv", b"a,b")
    assert (content(find_source(folder)), content(find_source(whole))) == expected


def test_one_file_of_many_is_split_by_itself(folder: Path, tmp_path: Path) -> None:
    (folder / "val").rename(tmp_path / "away")
    layouts.class_folder(folder / "val")
    source = layouts.parquet(folder, tmp_path / "other") / "data"
    listing = find_source(source / "validation-00000-of-00001.parquet", val_fraction=0.5)
    assert content(listing) == content(find_source(folder / "val", val_fraction=0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_folder_is_no_source_of_any_kind(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as refused:
        find_source(tmp_path, kind=kind)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_noise_is_no_source_of_any_kind(kind: str, tmp_path: Path) -> None:
    for suffix in (".tar", ".parquet", ".csv", ".tar.gz", ".jpg", ""):
        file = layouts.write(tmp_path / f"noise{suffix}", bytes(range(256)) * 8)
        with pytest.raises(UserError, match="noise") as refused:
            find_source(file, kind=kind)
        assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_in_place_say_what_to_do(tmp_path: Path) -> None:
    assert_refused("unpack it once", layouts.write(tmp_path / "x.tar.gz", b"\x1f\x8b"))
    assert_refused("is a file; give the folder", layouts.write(tmp_path / "x.zip", b"PK"))
    assert_refused("is not there", tmp_path / "gone")


def test_splits_with_different_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    source = layouts.webdataset(folder, tmp_path / "other")
    extra = {"x/1.jpg": layouts.picture_bytes(1), "x/1.cls": b"n09999999"}
    layouts.write(source / "toys-val-9.tar", layouts.tar_bytes(extra))
    assert_refused("train and val in", source)
    assert_refused("different classes: 'n09999999' is only in val", source)


def test_archives_of_which_only_some_name_a_split_are_refused(folder: Path, tmp_path: Path) -> None:
    source = layouts.webdataset(folder, tmp_path / "other")
    (source / "toys-val-000000.tar").rename(source / "toys-000000.tar")
    assert_refused("says no split in its name", source)


def test_a_pipe_among_pictures_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "train" / CLASSES[0] / "pipe.jpg")
    listing = find_source(folder)
    assert dict(listing.refused()) == {
        f"train/{CLASSES[0]}/pipe.jpg": "not a file, but a folder, a pipe or a device"
    }
    assert listing.counts() == {"train": 15, "val": 6}
