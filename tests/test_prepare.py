"""Finding, splitting and packing pictures; what cannot be used is said in one line."""

import os
import re
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import layouts
from alexnet import prepare as preparation
from alexnet.dataset import PackedDataset, open_packed, verify_packed
from alexnet.errors import UserError
from alexnet.images import read_image, resize_and_crop
from alexnet.listing import Listing
from alexnet.opening import open_dataset
from alexnet.prepare import Form
from alexnet.sources import find_source, name_of_source

PX = 8


def prepare(source: Path, target: Path, image_px: int = PX, **options: Any) -> PackedDataset:
    packed = prepared(source, target, form=Form(image_px), **options)
    assert packed is not None
    return packed


def prepared(source: Path, target: Path, **options: Any) -> PackedDataset | None:
    return preparation.prepare(*listed(source, target, options), **options)


def merged(source: Path, target: Path, **options: Any) -> PackedDataset:
    return preparation.merge(*listed(source, target, options), **options)


def listed(source: Path, target: Path, options: dict[str, Any]) -> tuple[Listing, Path]:
    """The listing of a source, with those of the options that are for it taken out."""
    names = ("kind", "classes", "val_fraction", "seed")
    chosen = {name: options.pop(name) for name in names if name in options}
    options.setdefault("name", name_of_source(source))
    return find_source(source, **chosen), target


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (14, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder_of(root: Path, per_class: dict[str, int]) -> Path:
    for folder, count in per_class.items():
        for number in range(count):
            picture(root / folder / f"{number:02d}.png", seed=len(folder) + number)
    return root


@pytest.fixture
def split_source(tmp_path: Path) -> Path:
    per_class = {"train/dog": 4, "train/cat": 3, "val/dog": 2, "val/cat": 2}
    return folder_of(tmp_path / "pets", per_class)


@pytest.fixture
def whole_source(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pets", {"dog": 20, "cat": 10, "eel": 2})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_refused(message: str, source: Path) -> None:
    """`prepare` raises one line that holds `message`, and leaves nothing beside the source."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        prepare(source, source.parent / "packed")
    assert "\n" not in str(refused.value)
    assert sorted(source.parent.iterdir()) == before


def test_a_folder_with_train_and_val_is_packed_as_it_is(split_source: Path, tmp_path: Path) -> None:
    data = prepare(split_source, tmp_path / "packed")
    assert (data.name, data.class_ids, data.class_names) == ("pets", ("cat", "dog"), ("cat", "dog"))
    assert_array_equal(data.splits["train"].labels, [0, 0, 0, 1, 1, 1, 1])
    assert tuple(data.splits["val"].sources) == tuple(
        f"val/{name}" for name in ("cat/00.png", "cat/01.png", "dog/00.png", "dog/01.png")
    )
    for split in data.splits.values():
        for source, image in zip(split.sources, split.images, strict=True):
            assert_array_equal(image, resize_and_crop(read_image(split_source / source), PX))
    verify_packed(tmp_path / "packed")


def test_statistics_are_those_of_the_training_pictures(split_source: Path, tmp_path: Path) -> None:
    data = prepare(split_source, tmp_path / "packed")
    images = np.asarray(data.splits["train"].images, np.float64)
    assert_allclose(data.statistics.mean_image, images.mean(axis=0), rtol=1e-6)
    covariance = np.cov(images.reshape(-1, 3), rowvar=False, bias=True)
    assert_allclose(data.statistics.rgb_covariance, covariance, rtol=1e-10)


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_a_validation_set_may_go_by_other_names(tmp_path: Path, name: str) -> None:
    per_class = {"train/a": 2, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1}
    listing = find_source(folder_of(tmp_path, per_class), val_fraction=0.5)
    assert listing.counts() == {"train": 4, "val": 2}


def test_train_val_and_test_stay_three_splits(split_source: Path, tmp_path: Path) -> None:
    folder_of(split_source, {"test/dog": 1, "test/cat": 1})
    data = prepare(split_source, tmp_path / "packed")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 7,
        "val": 4,
        "test": 2,
    }


def test_train_alone_is_split_like_a_folder_of_classes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pets", {"train/a": 4, "train/b": 4})
    listing = find_source(source, val_fraction=0.5)
    assert listing.counts() == {"train": 4, "val": 4}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"car": 2, "plane": 2, "train": 2})
    listing = find_source(source, val_fraction=0.5)
    assert listing.class_ids == ("car", "plane", "train")


def test_a_whole_folder_is_split_class_by_class(whole_source: Path, tmp_path: Path) -> None:
    data = prepare(whole_source, tmp_path / "packed", val_fraction=0.25)
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [8, 15, 1], "val": [2, 5, 1]}
    assert not set(data.splits["train"].sources) & set(data.splits["val"].sources)


def test_known_wordnet_ids_get_their_names(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", {"n01440764": 2, "n03888257": 2, "zebra": 2})
    data = prepare(source, tmp_path / "packed", val_fraction=0.5)
    assert data.class_ids == ("n01440764", "n03888257", "zebra")
    assert data.class_names == ("tench", "parachute", "zebra")


def test_what_is_no_picture_by_name_is_passed_over(whole_source: Path) -> None:
    for name in ("cat/notes.txt", "cat/._00.png", ".git/x.png", "__MACOSX/cat/x.png"):
        (whole_source / name).parent.mkdir(exist_ok=True, parents=True)
        (whole_source / name).write_text("")
    picture(whole_source / "cat" / "deeper" / "UPPER.JPEG")
    listing = find_source(whole_source, val_fraction=0.5)
    paths = {listed.name for listed in listing.pictures()}
    assert len(paths) == 33
    assert "cat/deeper/UPPER.JPEG" in paths


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "empty file"),
    "page.jpg": (lambda path: path.write_text("<html>"), "not a picture in a known format"),
    "cut.png": (lambda path: path.write_bytes(picture(path).read_bytes()[:200]), "truncated"),
    "bomb.ppm": (lambda path: path.write_bytes(b"P6 30000 30000 255\n"), "limit"),
    "gone.jpg": (lambda path: path.symlink_to("nowhere"), "No such file"),
}


def test_bad_pictures_among_good_ones_are_left_out_by_name(
    split_source: Path, tmp_path: Path
) -> None:
    for name, (make, _) in BAD_FILES.items():
        make(split_source / "train" / "dog" / name)
    odd = {"tiny.png": (1, 1), "long.png": (20_000, 1), "high.png": (1, 20_000)}
    for name, size in odd.items():
        picture(split_source / "train" / "cat" / name, size=size)
    data = prepare(split_source, tmp_path / "packed")
    left_out = {entry["path"]: entry["reason"] for entry in data.left_out}
    assert sorted(left_out) == sorted(f"train/dog/{name}" for name in BAD_FILES)
    for name, (_, reason) in BAD_FILES.items():
        assert reason in left_out[f"train/dog/{name}"]
    assert_array_equal(data.splits["train"].labels, [0] * 6 + [1] * 4)
    assert {f"train/cat/{name}" for name in odd} < set(data.splits["train"].sources)
    assert data.splits["train"].images.any(axis=(1, 2, 3)).all(), "a black picture"


def test_a_source_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    assert_refused("is not there", source)
    source.mkdir()
    assert_refused("has no folders in it", source)
    picture(source / "loose.png")
    assert_refused("put the pictures of each class in a folder", source)
    (source / "a").mkdir()
    (source / "b").mkdir()
    assert_refused("no pictures in", source)
    folder_of(source, {"a": 3})
    assert_refused("b holds no pictures", source)
    (source / "b").rmdir()
    assert_refused("holds one class only (a)", source)
    folder_of(source, {"b": 1})
    assert_refused("b/00.png is the only picture of its class", source)
    assert_refused("is a file", source / "loose.png")


def test_train_and_val_with_different_classes_are_refused(split_source: Path) -> None:
    folder_of(split_source, {"val/eel": 1})
    assert_refused("different classes: 'eel' is only in val", split_source)
    folder_of(split_source, {"train/ant": 1, "train/eel": 1})
    assert_refused("different classes: 'ant' is only in train", split_source)


def test_a_class_with_no_readable_picture_is_refused(split_source: Path) -> None:
    for path in (split_source / "val" / "dog").iterdir():
        path.write_bytes(b"")
    assert_refused("no picture of class 'dog' for val can be read", split_source)


def test_more_bad_pictures_than_good_ones_are_refused(split_source: Path) -> None:
    for path in split_source.glob("*/*/0[01].png"):
        path.write_bytes(b"")
    assert_refused("more than half of the 11 pictures cannot be read; the first:", split_source)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_val_fraction_outside_0_to_1_is_refused(whole_source: Path, fraction: float) -> None:
    with pytest.raises(UserError, match="val_fraction"):
        find_source(whole_source, val_fraction=fraction)


def test_a_size_of_no_pixels_is_refused(whole_source: Path, tmp_path: Path) -> None:
    for image_px in (0, -8):
        with pytest.raises(UserError, match="image_px"):
            prepare(whole_source, tmp_path / "packed", image_px=image_px)


def test_a_target_that_is_not_empty_is_refused(split_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists and is not empty"):
        prepare(split_source, split_source)


@pytest.mark.parametrize("processes", [1, 3])
def test_the_pack_depends_on_neither_processes_nor_blocks(
    whole_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    prepare(whole_source, tmp_path / "one")
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 3 * 3 * PX**2)
    prepare(whole_source, tmp_path / "other", processes=processes)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_progress_ends_with_every_picture_done(
    whole_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole_source / "cat" / "bad.png").write_bytes(b"")
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 5 * 3 * PX**2)
    seen: list[tuple[int, int]] = []
    prepare(whole_source, tmp_path / "packed", progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert len(seen) > 3
    assert seen[-1] == (33, 33)


def test_the_bytes_of_checksums_are_counted_at_the_end(whole_source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    data = prepare(
        whole_source,
        tmp_path / "packed",
        checking=lambda done, total: seen.append((done, total)),
    )
    files = [path for split in data.splits for path in (data.path / split).iterdir()]
    total = sum(path.stat().st_size for path in files)
    assert [total for _, total in seen] == [total] * len(files)
    assert seen[-1][0] == total
    assert seen == sorted(seen)


def test_an_interrupted_preparation_goes_on_where_it_was(
    whole_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 3 * 3 * PX**2)
    prepare(whole_source, tmp_path / "whole", name="pets")

    def interrupt(done: int, total: int) -> None:
        if done >= 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(whole_source, tmp_path / "packed", progress=interrupt)
    assert (tmp_path / "packed.partial").is_dir()
    assert not (tmp_path / "packed").exists()
    seen: list[int] = []
    prepare(whole_source, tmp_path / "packed", progress=lambda done, total: seen.append(done))
    assert seen[0] > 15
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")
    assert not (tmp_path / "packed.partial").exists()


def test_shares_merge_to_the_same_bytes(whole_source: Path, tmp_path: Path) -> None:
    (whole_source / "cat" / "bad.png").write_bytes(b"")
    prepare(whole_source, tmp_path / "whole")
    for share in (3, 1, 2):
        form = Form(PX)
        done = prepared(whole_source, tmp_path / "packed", form=form, shard=(share, 3), name="pets")
        assert done is None
    with pytest.raises(UserError, match="another name"):
        merged(whole_source, tmp_path / "packed", form=form, name="cats")
    whole = merged(whole_source, tmp_path / "packed", form=form)
    assert len(whole.splits["train"]) + len(whole.splits["val"]) == 32
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "pets", "whole"]


LAYOUTS = {
    "ilsvrc": layouts.ilsvrc,
    "kaggle": layouts.kaggle,
    "parquet": layouts.parquet,
    "webdataset": layouts.webdataset,
    "csv": layouts.table,
}


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_every_layout_of_the_same_pictures_gives_the_same_bytes(tmp_path: Path, store: str) -> None:
    folder = layouts.split_folder(tmp_path / "folder")
    form = Form(16, store=store)
    classes = layouts.classes_file(tmp_path)
    prepared(folder, tmp_path / "packed", form=form, name="toys", classes=classes)
    expected = contents(tmp_path / "packed")
    for layout, make in LAYOUTS.items():
        source = make(folder, tmp_path / layout)
        target = tmp_path / f"packed-{layout}"
        prepared(source, target, form=form, name="toys", classes=classes)
        assert contents(target) == expected, layout
    verify_packed(tmp_path / "packed")


def test_a_jpeg_store_has_the_statistics_of_what_it_gives_back(tmp_path: Path) -> None:
    folder = layouts.split_folder(tmp_path / "folder")
    form = Form(16, store="jpeg", quality=80)
    data = prepared(folder, tmp_path / "packed", form=form)
    assert data is not None
    images = np.asarray(data.splits["train"].images)
    assert_allclose(data.statistics.mean_image, images.mean(axis=0), rtol=1e-6)
    assert_allclose(
        data.statistics.rgb_covariance, np.cov(images.reshape(-1, 3).T, bias=True), rtol=1e-10
    )


def test_shares_are_not_mixed_with_a_preparation_of_the_whole(
    whole_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 3 * 3 * PX**2)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(whole_source, tmp_path / "packed", progress=interrupt)
    form = Form(PX)
    for share in (1, 2):
        prepared(whole_source, tmp_path / "packed", form=form, shard=(share, 2))
    with pytest.raises(UserError, match="begun with other pictures"):
        merged(whole_source, tmp_path / "packed", form=form)


def test_a_missing_share_is_named(whole_source: Path, tmp_path: Path) -> None:
    form = Form(PX)
    with pytest.raises(UserError, match="no finished shares"):
        merged(whole_source, tmp_path / "packed", form=form)
    prepared(whole_source, tmp_path / "packed", form=form, shard=(1, 2))
    with pytest.raises(UserError, match=r"shard-2-of-2 is missing: prepare it with --shard 2/2"):
        merged(whole_source, tmp_path / "packed", form=form)


def test_a_source_that_changed_is_not_gone_on_with(whole_source: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(whole_source, tmp_path / "packed", progress=interrupt)
    picture(whole_source / "cat" / "new.png")
    with pytest.raises(
        UserError, match=r"other pictures, or they have changed since \(.*cp -p.*\); remove"
    ):
        prepare(whole_source, tmp_path / "packed")
    assert (tmp_path / "packed.partial").is_dir()


def test_a_folder_is_packed_once_and_again_when_it_changes(
    whole_source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(**settings: float) -> Path:
        return open_dataset(str(whole_source), image_px=PX, **settings).path  # type: ignore[arg-type]

    first = folder()
    assert first.parent == cache / "packed"
    assert first.name.startswith(f"pets-{PX}px-")
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "picture_of", None)  # nothing is decoded a second time
        assert folder() == first
    others = {folder(seed=1), folder(val_fraction=0.5)}
    os.utime(whole_source / "cat" / "00.png", ns=(1, 1))
    others.add(folder())
    picture(whole_source / "cat" / "new.png")
    others.add(folder())
    assert len(others | {first}) == 5


def test_the_seed_does_not_matter_where_the_source_is_split(
    split_source: Path, cache: Path
) -> None:
    first = open_dataset(str(split_source), image_px=PX, seed=0)
    assert open_dataset(str(split_source), image_px=PX, seed=1).path == first.path


def test_a_packed_folder_is_opened_at_its_own_size_only(split_source: Path, tmp_path: Path) -> None:
    prepare(split_source, tmp_path / "packed")
    assert open_dataset(str(tmp_path / "packed"), image_px=PX).path == tmp_path / "packed"
    with pytest.raises(UserError, match="packed at 8 px, but 16 px"):
        open_dataset(str(tmp_path / "packed"), image_px=16)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'imagenette'"):
        open_dataset("imagenet", image_px=PX)


def test_settings_of_shapes_are_refused_elsewhere(split_source: Path) -> None:
    with pytest.raises(UserError, match="num_val: for the built-in shapes only"):
        open_dataset(str(split_source), image_px=PX, num_val=10)


def test_shapes_has_other_pictures_to_validate_on_than_to_train_on(cache: Path) -> None:
    def drawn(num_train: int) -> tuple[np.ndarray, np.ndarray]:
        data = open_dataset("shapes", image_px=16, num_train=num_train, num_val=20, num_classes=4)
        assert len(data.class_names) == 4
        assert data.name == "shapes"
        return np.asarray(data.splits["train"].images), np.asarray(data.splits["val"].images)

    train, val = drawn(40)
    assert (len(train), len(val)) == (40, 20)
    assert len({image.tobytes() for image in (*train, *val)}) == 60
    more, same_val = drawn(60)
    assert_array_equal(more[:40], train)
    assert_array_equal(same_val, val)


def test_shapes_of_no_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        open_dataset("shapes", image_px=16, num_train=0)


def offline(*arguments: object, **options: object) -> None:
    raise URLError("Temporary failure in name resolution")


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_a_download_without_network_is_an_error_of_one_line(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    monkeypatch.setattr(torchvision.datasets, "Imagenette", offline)
    with pytest.raises(UserError, match=r"cannot download .*name resolution.*network") as refused:
        open_dataset(name, image_px=PX)
    assert "\n" not in str(refused.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("image_px", [32, 8])
def test_cifar10_is_torchvisions_with_test_as_validation(
    cache: Path, monkeypatch: pytest.MonkeyPatch, image_px: int
) -> None:
    def cifar10(root: Path, *, train: bool, download: bool) -> SimpleNamespace:
        assert root == cache / "downloads"
        assert download
        count = 30 if train else 10
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(
            data=pixels, targets=[n % 2 for n in range(count)], classes=["a", "b"]
        )

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar10)
    data = open_dataset("cifar10", image_px=image_px)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "val": 10}
    assert data.class_names == ("a", "b")
    assert data.name == "cifar10"
    assert_array_equal(data.splits["val"].labels, [0, 1] * 5)
    if image_px == 32:
        expected = cifar10(cache / "downloads", train=True, download=True).data
        assert_array_equal(data.splits["train"].images, expected)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    assert open_dataset("cifar10", image_px=image_px).path == data.path


def test_imagenette_is_downloaded_once_in_the_size_that_suffices(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[str] = []

    def imagenette(root: Path, *, size: str, download: bool) -> None:
        sizes.append(size)
        per_class = {
            f"{split}/{wnid}": 2 for split in ("train", "val") for wnid in ("n03000684", "x")
        }
        folder_of(root / f"imagenette2-{size[:-2]}", per_class)
        (root / "imagenette2.tgz").write_text("an archive")

    monkeypatch.setattr(torchvision.datasets, "Imagenette", imagenette)
    data = open_dataset("imagenette", image_px=PX)
    assert data.class_names == ("chain saw", "x")
    assert len(data.splits["train"]) == 4
    assert open_dataset("imagenette", image_px=16).name == "imagenette"
    open_dataset("imagenette", image_px=170)
    assert sizes == ["160px", "320px"]
    assert not list(cache.rglob("*.tgz"))


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_two_who_want_the_same_download_get_it_once(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, downloads = [0], []

    def fetch(root: Path) -> None:
        inside[0] += 1
        assert inside[0] == 1, "one at a time"
        time.sleep(0.05)
        downloads.append(root)
        inside[0] -= 1

    def imagenette(root: Path, *, size: str, download: bool) -> None:
        fetch(root)
        folder_of(root / "imagenette2", {f"{s}/{c}": 2 for s in ("train", "val") for c in "ab"})

    def cifar10(root: Path, *, train: bool, download: bool) -> SimpleNamespace:
        fetch(root)
        pixels = np.zeros((4, 32, 32, 3), np.uint8)
        return SimpleNamespace(data=pixels, targets=[0, 1, 0, 1], classes=["a", "b"])

    monkeypatch.setattr(torchvision.datasets, "Imagenette", imagenette)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar10)
    with ThreadPoolExecutor(3) as pool:
        opened = list(pool.map(lambda _: open_dataset(name, image_px=PX), range(3)))
    assert len({data.path for data in opened}) == 1
    if name == "imagenette":
        assert len(downloads) == 1
    assert not list((cache / "downloads").glob(".*"))


def test_imagenettes_own_pictures_are_packed(
    data_file: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "imagenette"
    taken: dict[str, int] = {}
    with tarfile.open(data_file("imagenette.tar")) as archive:
        for member in archive:
            folder = os.path.dirname(member.name)
            if member.isfile() and taken.get(folder, 0) < 2:
                taken[folder] = taken.get(folder, 0) + 1
                archive.extract(member, source, filter="data")
    root = next(path.parent for path in source.rglob("train"))
    data = prepare(root, tmp_path / "packed", image_px=64)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 20, "val": 20}
    assert data.class_names[0] == "tench"
    assert data.left_out == []
    assert 90 < data.statistics.rgb_mean.mean() < 140
    assert open_packed(tmp_path / "packed").statistics.eigenvalues[0] > 3000
