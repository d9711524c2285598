"""The packed format: what is written is read back, statistics are exact, damage is named."""

import json
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from alexnet import packing, statistics
from alexnet.dataset import open_packed, verify_packed
from alexnet.errors import UserError
from alexnet.packing import Block, Plan, make_block, packed_bytes
from alexnet.statistics import Moments, statistics_of

PX = 6
LABELS = {"train": [0, 1, 2, 0, 1, 2, 2], "val": [2, 1, 0, 0]}


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Random pictures whose colours are correlated and whose brightness falls from the top."""
    generator = np.random.default_rng(seed)
    light = generator.integers(0, 120, (count, PX, PX, 1)) + 60 - 10 * np.arange(PX)[:, None, None]
    return (light + generator.integers(0, (20, 50, 70), (count, PX, PX, 3))).astype(np.uint8)


def blocks(size: int = 3) -> Iterator[Block]:
    for seed, (split, labels) in enumerate(LABELS.items()):
        images = pictures(len(labels), seed)
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            sources = tuple(f"{split}/{n}.png" for n in range(len(labels))[part])
            yield make_block(split, images[part], np.array(labels[part]), sources, [])
    bad = {"path": "val/bad.png", "reason": "empty file"}
    yield make_block("val", np.empty((0, PX, PX, 3), np.uint8), np.empty(0, np.int64), (), [bad])


def write(target: Path, content: Iterator[Block] | None = None) -> Path:
    plan = Plan("toys", source="", image_px=PX, num_images=12, settings={"seed": 5})
    with packing.packing(target, plan) as packed:
        for block in blocks() if content is None else content:
            packed.add(block)
        packed.finish(("c", "d", "k"), ("a cat", "a dog", "ein Kätzchen"))
    return target


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write(tmp_path / "packed")


def test_what_is_written_is_read_back(packed: Path) -> None:
    opened = verify_packed(packed)
    assert (opened.name, opened.image_px, opened.class_ids) == ("toys", PX, ("c", "d", "k"))
    assert opened.class_names[2] == "ein Kätzchen"
    assert opened.left_out == [{"path": "val/bad.png", "reason": "empty file"}]
    assert list(opened.splits) == ["train", "val"]
    for seed, (name, split) in enumerate(opened.splits.items()):
        assert_array_equal(split.images, pictures(len(LABELS[name]), seed))
        assert_array_equal(split.labels, LABELS[name])
        assert split.sources[1] == f"{name}/1.png"
        assert len(split) == len(LABELS[name])
        assert isinstance(split.images, np.memmap)
        assert not split.images.flags.writeable
    described = json.loads((packed / "dataset.json").read_text())
    assert described["splits"]["train"]["per_class"] == [2, 2, 3]
    assert described["settings"] == {"seed": 5}


def test_the_arrays_are_the_bytes_that_numpy_writes(packed: Path) -> None:
    buffer = BytesIO()
    np.save(buffer, pictures(len(LABELS["train"])))
    assert (packed / "train" / "images.npy").read_bytes() == buffer.getvalue()


def test_the_folder_is_the_same_however_pictures_are_divided_into_blocks(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", blocks(1)), write(tmp_path / "other", blocks(5))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 8
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_statistics_equal_a_float64_computation_over_the_whole_training_set(packed: Path) -> None:
    images = pictures(len(LABELS["train"])).astype(np.float64)
    pixels = images.reshape(-1, 3)
    centred = pixels - pixels.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    found = open_packed(packed).statistics
    assert_allclose(found.mean_image, images.mean(axis=0), rtol=1e-7)
    assert found.mean_image.dtype == np.float32
    assert_allclose(found.rgb_mean, pixels.mean(axis=0), rtol=1e-13)
    assert_allclose(found.rgb_covariance, covariance, rtol=1e-12)
    assert_allclose(found.eigenvalues, sorted(np.linalg.eigvals(covariance))[::-1], rtol=1e-11)
    for value, component in zip(found.eigenvalues, found.eigenvectors.T, strict=True):
        assert_allclose(covariance @ component, value * component, atol=1e-9)
        assert_allclose(np.linalg.norm(component), 1)
        assert component[np.abs(component).argmax()] > 0


@given(cuts=st.lists(st.integers(0, 9), max_size=4))
def test_moments_do_not_depend_on_how_pictures_are_divided(cuts: list[int]) -> None:
    images = pictures(9)
    total = Moments.zero(PX)
    for part in np.split(images, sorted(cuts)):
        total += Moments.of(part)
    whole = Moments.of(images)
    assert total.images == whole.images == 9
    assert_array_equal(total.pixel_sum, whole.pixel_sum)
    assert_array_equal(total.product_sum, whole.product_sum)


def test_moments_of_more_pixels_than_are_summed_at_a_time_are_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "MOMENT_PIXELS", 2 * PX * PX)
    images = pictures(7)
    pixels = images.reshape(-1, 3).astype(np.int64)
    assert_array_equal(Moments.of(images).product_sum, pixels.T @ pixels)


def test_pictures_of_one_colour_have_no_variance_and_finite_statistics() -> None:
    found = statistics_of(Moments.of(np.full((4, PX, PX, 3), 77, np.uint8)))
    assert_array_equal(found.eigenvalues, 0)
    assert_array_equal(found.rgb_mean, 77)
    assert np.isfinite(found.eigenvectors).all()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def another_array(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


def without(key: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        described = json.loads(path.read_text())
        del described[key]
        path.write_text(json.dumps(described))

    return edit


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("train/images.npy", truncate),
    ("train/images.npy", lengthen),
    ("train/images.npy", empty),
    ("train/images.npy", remove),
    ("val/images.npy", another_array(np.zeros((4, PX, PX + 1, 3), np.uint8))),
    ("val/images.npy", another_array(np.zeros((4, PX, PX, 3), np.float32))),
    ("val/labels.npy", truncate),
    ("val/labels.npy", another_array(np.array([0, 0, 0, 0]))),
    ("val/labels.npy", another_array(np.array([2, 1, 0, -1]))),
    ("val/labels.npy", another_array(np.array([2, 1, 0, 3]))),
    ("val/labels.npy", another_array(np.array([2.0, 1.0, 0.0, 0.0]))),
    ("statistics.npz", truncate),
    ("statistics.npz", empty),
    ("statistics.npz", remove),
    ("statistics.npz", lambda path: np.savez(path, mean_image=np.zeros((PX, PX, 3)))),
    ("train/sources.txt", empty),
    ("train/sources.txt", remove),
    ("dataset.json", truncate),
    ("dataset.json", empty),
    ("dataset.json", without("image_px")),
    ("dataset.json", without("splits")),
    ("dataset.json", without("format")),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_a_damaged_file_is_named_in_one_line(
    packed: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(packed / file)
    with pytest.raises(UserError, match=r"is damaged .*; remove the data set and") as refused:
        open_packed(packed)
    assert str(packed / file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", ["train/images.npy", "val/images.npy", "statistics.npz"])
def test_verify_finds_one_changed_byte(packed: Path, file: str) -> None:
    content = bytearray((packed / file).read_bytes())
    content[len(content) // 2] ^= 1
    (packed / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        verify_packed(packed)


def test_a_newer_format_is_refused_by_its_version(packed: Path) -> None:
    described = json.loads((packed / "dataset.json").read_text())
    (packed / "dataset.json").write_text(json.dumps(described | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        open_packed(packed)


def test_what_is_not_a_packed_data_set_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        open_packed(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        open_packed(tmp_path)


def test_a_target_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for target in ("mine", "file"):
        with pytest.raises(UserError, match="exists and is not empty"):
            write(tmp_path / target)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


@pytest.mark.parametrize("target", ["packed", ".", "packed/.."])
def test_an_empty_target_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    (tmp_path / "here" / "packed").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    if target != "packed":
        (tmp_path / "here" / "packed").rmdir()
    write(Path(target))
    assert len(open_packed((tmp_path / "here" / target).resolve()).splits["train"]) == 7


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))

    def never() -> Iterator[Block]:
        raise AssertionError("decoding began")
        yield

    with pytest.raises(UserError, match="1,000 free"):
        write(tmp_path / "packed", never())
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_asked_for_suffice(packed: Path) -> None:
    written = sum(path.stat().st_size for path in packed.rglob("*") if path.is_file())
    assert written < packed_bytes(12, PX)


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as refused:
        write(tmp_path / "file" / "packed")
    assert "\n" not in str(refused.value)


def test_a_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", errors="surrogateescape")
    block = make_block("train", pictures(3), np.array([0, 1, 2]), (name, "b", "c"), [])
    assert open_packed(write(tmp_path / "packed", iter([block]))).splits["train"].sources[0] == name


@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
def test_any_name_survives(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        labels = np.zeros(len(names), np.int64)
        block = make_block("train", pictures(len(names)), labels, tuple(names), [])
        found = open_packed(write(Path(folder) / "packed", iter([block]))).splits["train"].sources
        assert list(found) == names
        assert found[-1] == names[-1]
        assert found[::2] == tuple(names[::2])
