"""Finding, splitting and packing pictures; what cannot be used is said in one line."""

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from alexnet import prepare as preparation
from alexnet.dataset import open_packed, verify_packed
from alexnet.errors import UserError
from alexnet.images import read_image, resize_and_crop
from alexnet.prepare import find_pictures, open_dataset, prepare, split_names

PX = 8


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


def assert_refused(message: str, source: Path) -> None:
    """`prepare` raises one line that holds `message`, and leaves nothing beside the source."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        prepare(source, source.parent / "packed", image_px=PX)
    assert "\n" not in str(refused.value)
    assert sorted(source.parent.iterdir()) == before


def test_a_folder_with_train_and_val_is_packed_as_it_is(split_source: Path, tmp_path: Path) -> None:
    data = prepare(split_source, tmp_path / "packed", image_px=PX)
    assert (data.name, data.class_ids, data.class_names) == ("pets", ("cat", "dog"), ("cat", "dog"))
    assert_array_equal(data.splits["train"].labels, [0, 0, 0, 1, 1, 1, 1])
    assert data.splits["val"].sources == tuple(
        f"val/{name}" for name in ("cat/00.png", "cat/01.png", "dog/00.png", "dog/01.png")
    )
    for split in data.splits.values():
        for source, image in zip(split.sources, split.images, strict=True):
            assert_array_equal(image, resize_and_crop(read_image(split_source / source), PX))
    verify_packed(tmp_path / "packed")


def test_statistics_are_those_of_the_training_pictures(split_source: Path, tmp_path: Path) -> None:
    data = prepare(split_source, tmp_path / "packed", image_px=PX)
    images = np.asarray(data.splits["train"].images, np.float64)
    assert_allclose(data.statistics.mean_image, images.mean(axis=0), rtol=1e-6)
    covariance = np.cov(images.reshape(-1, 3), rowvar=False, bias=True)
    assert_allclose(data.statistics.rgb_covariance, covariance, rtol=1e-10)


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_a_validation_set_may_go_by_other_names(tmp_path: Path, name: str) -> None:
    per_class = {"train/a": 2, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1}
    listing = find_pictures(folder_of(tmp_path, per_class), val_fraction=0.5, seed=0)
    assert {split: len(part) for split, part in listing.splits.items()} == {"train": 4, "val": 2}


def test_train_val_and_test_stay_three_splits(split_source: Path, tmp_path: Path) -> None:
    folder_of(split_source, {"test/dog": 1, "test/cat": 1})
    data = prepare(split_source, tmp_path / "packed", image_px=PX)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 7,
        "val": 4,
        "test": 2,
    }


def test_train_alone_is_split_like_a_folder_of_classes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pets", {"train/a": 4, "train/b": 4})
    listing = find_pictures(source, val_fraction=0.5, seed=0)
    assert {split: len(part) for split, part in listing.splits.items()} == {"train": 4, "val": 4}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"car": 2, "plane": 2, "train": 2})
    listing = find_pictures(source, val_fraction=0.5, seed=0)
    assert listing.class_ids == ("car", "plane", "train")


def test_a_whole_folder_is_split_class_by_class(whole_source: Path, tmp_path: Path) -> None:
    data = prepare(whole_source, tmp_path / "packed", image_px=PX, val_fraction=0.25)
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [8, 15, 1], "val": [2, 5, 1]}
    assert not set(data.splits["train"].sources) & set(data.splits["val"].sources)


@given(
    count=st.integers(2, 60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_a_split_is_a_function_of_seed_and_names(
    count: int, fraction: float, seed: int, order: Random
) -> None:
    names = [f"cat/{number}.jpg" for number in range(count)]
    chosen = split_names(names, fraction, seed)
    order.shuffle(names)
    assert split_names(names, fraction, seed) == chosen <= set(names)
    assert 1 <= len(chosen) <= count - 1
    assert abs(len(chosen) - fraction * count) <= 1


@given(count=st.integers(10, 60), seed=st.integers(0, 5))
def test_one_more_picture_moves_at_most_one_other_across(count: int, seed: int) -> None:
    names = [f"cat/{number}.jpg" for number in range(count)]
    before = split_names(names, 0.2, seed)
    after = split_names([*names, "cat/new.jpg"], 0.2, seed)
    assert len((before ^ after) - {"cat/new.jpg"}) <= 1


def test_another_seed_splits_otherwise() -> None:
    names = [f"cat/{number}.jpg" for number in range(40)]
    assert split_names(names, 0.5, 0) != split_names(names, 0.5, 1)


def test_known_wordnet_ids_get_their_names(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", {"n01440764": 2, "n03888257": 2, "zebra": 2})
    data = prepare(source, tmp_path / "packed", image_px=PX, val_fraction=0.5)
    assert data.class_ids == ("n01440764", "n03888257", "zebra")
    assert data.class_names == ("tench", "parachute", "zebra")


def test_what_is_no_picture_by_name_is_passed_over(whole_source: Path) -> None:
    for name in ("cat/notes.txt", "cat/._00.png", ".git/x.png", "__MACOSX/cat/x.png"):
        (whole_source / name).parent.mkdir(exist_ok=True, parents=True)
        (whole_source / name).write_text("")
    picture(whole_source / "cat" / "deeper" / "UPPER.JPEG")
    listing = find_pictures(whole_source, val_fraction=0.5, seed=0)
    paths = {item.path for part in listing.splits.values() for item in part}
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
    data = prepare(split_source, tmp_path / "packed", image_px=PX)
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
        find_pictures(whole_source, val_fraction=fraction, seed=0)


def test_a_size_of_no_pixels_is_refused(whole_source: Path, tmp_path: Path) -> None:
    for image_px in (0, -8):
        with pytest.raises(UserError, match="image_px"):
            prepare(whole_source, tmp_path / "packed", image_px=image_px)


def test_a_target_that_is_not_empty_is_refused(split_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists and is not empty"):
        prepare(split_source, split_source, image_px=PX)


@pytest.mark.parametrize("cores", [1, 3])
def test_the_pack_depends_on_neither_threads_nor_blocks(
    whole_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    prepare(whole_source, tmp_path / "one", image_px=PX)
    monkeypatch.setattr(preparation, "_available_cores", lambda: cores)
    monkeypatch.setattr(preparation, "TINY_FILE_BYTES", 0)
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 3 * 3 * PX**2)
    prepare(whole_source, tmp_path / "other", image_px=PX)
    for file in ("dataset.json", "statistics.npz", "train/images.npy", "val/labels.npy"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_progress_ends_with_every_picture_done(
    whole_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole_source / "cat" / "bad.png").write_bytes(b"")
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 5 * 3 * PX**2)
    seen: list[tuple[int, int]] = []
    prepare(whole_source, tmp_path / "packed", image_px=PX, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert len(seen) > 3
    assert seen[-1] == (33, 33)


def test_an_interrupted_preparation_leaves_nothing(whole_source: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(whole_source, tmp_path / "packed", image_px=PX, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_a_folder_is_packed_once_and_again_when_it_changes(
    whole_source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(**settings: float) -> Path:
        return open_dataset(str(whole_source), image_px=PX, **settings).path  # type: ignore[arg-type]

    first = folder()
    assert first.parent == cache / "packed"
    assert first.name.startswith(f"pets-{PX}px-")
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "read_image", None)  # nothing is decoded a second time
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
    prepare(split_source, tmp_path / "packed", image_px=PX)
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
