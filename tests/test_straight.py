"""Training with nothing prepared is the training of `prepare`'s pictures, bad ones and all."""

import os
import re
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

import fabricate
import layouts
from alexnet import train
from alexnet.config import Recipe
from alexnet.dataset import PackedDataset, Split, open_packed, verify_packed
from alexnet.errors import UserError
from alexnet.evaluate import evaluate_runs
from alexnet.files import read_json
from alexnet.loader import batches, epoch_order, num_batches
from alexnet.opening import open_dataset
from alexnet.pictures import UnreadablePicture
from alexnet.predictions import Predictions
from alexnet.stopping import EXIT_STOPPED
from alexnet.weights import load
from fabricate import FOLDER, alexnet, losses, refusal

PX = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes of twelve pictures: 44 to train on, 4 to validate."""
    return fabricate.pictures(tmp_path / "pets")


def opened(
    source: Path, prepare: bool = False, image_px: int = PX, **settings: Any
) -> PackedDataset:
    return open_dataset(str(source), image_px=image_px, prepare=prepare, **settings)


def assert_same_data(straight: PackedDataset, packed: PackedDataset) -> None:
    assert (straight.class_ids, straight.class_names) == (packed.class_ids, packed.class_names)
    assert straight.splits.keys() == packed.splits.keys()
    for name, split in packed.splits.items():
        assert_array_equal(np.asarray(straight.splits[name].images), np.asarray(split.images))
        assert_array_equal(straight.splits[name].labels, split.labels)
        assert tuple(straight.splits[name].sources) == tuple(split.sources)
    assert straight.left_out == packed.left_out


def assert_same_statistics(straight: PackedDataset, packed: PackedDataset) -> None:
    for name, array in vars(packed.statistics).items():
        assert_array_equal(getattr(straight.statistics, name), array)


# --- What is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        *(layouts.ilsvrc, layouts.kaggle, layouts.webdataset, layouts.table),
        *(layouts.tar_of_folders, lambda folder, target: folder),
    ],
)
def test_a_source_gives_the_pixels_and_statistics_that_prepare_packs(
    tmp_path: Path, layout: Callable[[Path, Path], Path]
) -> None:
    source = layout(layouts.split_folder(tmp_path / "folder"), tmp_path / "source")
    straight, packed = opened(source), opened(source, prepare=True)
    assert_same_data(straight, packed)
    assert_same_statistics(straight, packed)
    assert straight.statistics_images == packed.statistics_images == 15
    verify_packed(straight.path)


def test_cifar10_in_its_archive_is_read_straight(tmp_path: Path) -> None:
    source = layouts.cifar10_archive(tmp_path / "source")
    assert_same_data(opened(source), opened(source, prepare=True))


def test_a_second_opening_looks_at_no_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(folder)
    monkeypatch.setattr("alexnet.straight.look_at", None)
    assert opened(folder).path == first.path
    assert not list(first.path.parent.glob(".*"))


def test_statistics_of_a_sample_are_those_of_its_pictures_and_say_of_how_many(
    folder: Path,
) -> None:
    split, of_seven = opened(folder).splits["train"], opened(folder, sample=7)
    images = np.asarray(split.images).astype(np.float64)
    mean = of_seven.statistics.mean_image
    assert of_seven.statistics_images == 7
    assert opened(folder, sample=0).statistics_images == len(split)
    # The pictures are noise: as a mixture of them the mean tells whose it is.
    shares, *_ = np.linalg.lstsq(images.reshape(len(split), -1).T, mean.ravel(), rcond=None)
    taken = np.flatnonzero(shares > 0.5 / 7)
    assert len(taken) == 7
    np.testing.assert_allclose(images[taken].mean(axis=0), mean, atol=1e-4)
    assert opened(folder, sample=7).path == of_seven.path != opened(folder, sample=8).path


def test_progress_ends_with_every_picture_and_the_sample(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    for sample, decoded in ((7, 7), (2000, 44)):
        calls.clear()
        opened(folder, sample=sample, progress=lambda done, total: calls.append((done, total)))
        assert calls[-1] == (48 + decoded, 48 + decoded)
        assert calls == sorted(calls)


@pytest.mark.parametrize("spec", ["shapes", "cifar10"])
def test_what_is_not_in_files_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match=f"{spec} has no files of pictures: leave out --no-prepare"):
        open_dataset(spec, image_px=32, prepare=False)


def test_parquet_is_refused_since_it_is_read_forwards(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = layouts.parquet(layouts.split_folder(tmp_path / "folder"), tmp_path / "source")
    with pytest.raises(UserError, match="parquet can only be read forwards: leave out --no-prep"):
        opened(source)


# --- Bad pictures -------------------------------------------------------------------------------


def jpeg_bytes(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 in its header, with a beginning and an end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(data, zlib.crc32(kind))
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)

BAD = {
    "empty": b"",
    "text": b"no picture at all",
    "cut jpeg": jpeg_bytes(NOISE)[:-400],
    "cut jpeg filled with zeros": jpeg_bytes(NOISE)[:-400] + bytes(400),
    "header alone": jpeg_bytes(NOISE)[:100],
    "bomb": bomb(),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_pictures_are_left_out_from_the_start_as_prepare_does(folder: Path, bad: str) -> None:
    for path in (folder / "red" / "03.png", folder / "blue" / "05.png"):
        path.write_bytes(BAD[bad])
    straight = opened(folder)
    assert len(straight.left_out) == 2
    assert_same_data(straight, opened(folder, prepare=True))


def test_more_bad_pictures_than_good_ones_are_refused(folder: Path) -> None:
    for path in list(folder.rglob("*.png"))[:25]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="more than half of the 48 pictures cannot be read; the fi"):
        opened(folder)


def test_a_class_without_readable_pictures_is_refused(folder: Path) -> None:
    for path in (folder / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no picture of class 'red' for train can be read"):
        opened(folder)
    assert not [path for path in (folder.parent / "cache").rglob("*") if path.is_file()]


# --- Pictures that are found bad when their turn comes --------------------------------------------


def spoil(folder: Path, split: str, row: int = 3, image_px: int = PX) -> str:
    """Spoil the pixels of a picture when all has been looked at already; return its name.

    Its beginning, its end, its size and its time stay as they were.
    """
    name = opened(folder, image_px=image_px).splits[split].sources[row]
    path = folder / name
    data, status = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return name


Entry = tuple[int, int, int, bool, tuple[float, ...], bytes]


def fed(split: Split, recipe: Recipe, steps: int, **how: int) -> Iterator[list[Entry]]:
    """Label, crop, flip, colours and pixels of each picture of each step, of all ranks."""
    ranks = how.pop("ranks", 1)
    feeds = [
        batches(split, recipe, step=0, stop=steps, rank=rank, ranks=ranks, **how)
        for rank in range(ranks)
    ]
    for parts in zip(*feeds, strict=True):
        entries: list[Entry] = []
        for batch in parts:
            columns = (batch.labels, batch.top, batch.left, batch.flip)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            colours = map(tuple, batch.colour.tolist())
            pixels = (crop.numpy().tobytes() for crop in batch.crops)
            entries += [(*row, c, p) for row, c, p in zip(rows, colours, pixels, strict=True)]
        yield entries


@pytest.mark.parametrize("how", [{"threads": 1}, {"threads": 3}, {"threads": 2, "ranks": 3}])
def test_it_is_missing_from_its_minibatches_and_nothing_else_changes(
    folder: Path, how: dict[str, int]
) -> None:
    split = opened(folder).splits["train"]
    whole = Split("train", np.asarray(split.images), split.labels, split.sources)
    spoil(folder, "train", row=3)
    recipe = fabricate.recipe(
        data={"image_px": PX}, augment={"crop_px": 8}, optimizer={"batch_size": 5}
    )
    per_epoch = num_batches(recipe, len(whole))
    expected = list(fed(whole, recipe, 2 * per_epoch))
    for epoch in range(2):
        place = int(np.flatnonzero(epoch_order(recipe, len(whole), epoch) == 3)[0])
        del expected[epoch * per_epoch + place // 5][place % 5]
    assert list(fed(opened(folder).splits["train"], recipe, 2 * per_epoch, **how)) == expected


def test_it_is_named_from_then_on_and_not_evaluated(folder: Path) -> None:
    before = opened(folder).splits
    bad = {split: spoil(folder, split) for split in ("train", "val")}
    data = opened(folder)
    assert data.left_out == []
    for name, split in data.splits.items():
        with pytest.raises(UnreadablePicture, match=f"^{re.escape(bad[name])} cannot be read"):
            np.asarray(split.images)
        kept = [source for source in split.sources if source != bad[name]]
        assert list(split.readable().sources) == kept
        assert len(np.asarray(split.readable().images)) == len(kept) == len(before[name]) - 1
    again = open_packed(data.path)
    assert [entry["path"] for entry in again.left_out] == [bad["train"], bad["val"]]
    counts = {name: len(split) for name, split in again.splits.items()}
    assert counts == {"train": len(before["train"]), "val": len(before["val"]) - 1}


def test_a_minibatch_of_bad_pictures_alone_ends_the_training(folder: Path) -> None:
    for row in range(4):
        spoil(folder, "train", row)
    split = opened(folder).splits["train"]
    few = Split("train", split.images[:4], split.labels[:4], split.sources)
    recipe = fabricate.recipe(data={"image_px": PX}, augment={"crop_px": 8})
    with pytest.raises(UserError, match="none of the 4 pictures of a minibatch can be read"):
        next(batches(few, recipe, step=0, stop=1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "cannot be read any more"),
        (lambda path: os.utime(path, ns=(1, 1)), "has changed since its run began"),
        (lambda path: path.write_bytes(b""), "has changed since its run began"),
    ],
)
def test_a_picture_that_has_changed_is_named_and_not_left_out(
    folder: Path, change: Callable[[Path], object], said: str
) -> None:
    data = opened(folder)
    name = data.splits["train"].sources[3]
    change(folder / name)
    with pytest.raises(UserError, match=f"^{re.escape(name)} {said}") as refused:
        data.splits["train"].images[3]
    assert not isinstance(refused.value, UnreadablePicture)
    assert open_packed(data.path).left_out == []


# --- Training -----------------------------------------------------------------------------------

STRAIGHT = (*FOLDER, "--no-prepare", "--max-steps", "6", "--set", "system.log_steps=1")


def trained(source: Path, run: Path, *flags: str) -> fabricate.Finished:
    finished = alexnet("train", source, *STRAIGHT[1:], "--run", run, *flags)
    assert finished.code == 0, finished
    return finished


def test_a_training_straight_from_a_folder_is_that_of_the_packed_set(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "red" / "05.png").write_bytes(b"no picture")
    straight, packed = tmp_path / "straight", tmp_path / "packed"
    said = trained(folder, straight).out
    assert "left out: red/05.png: not a picture in a known format" in said
    trained(folder, packed, "--set", "data.prepare=true")
    assert losses(straight) == losses(packed)
    assert len(losses(straight)) == 6
    for name in ("model.safetensors", "predictions_val_1.npz", "predictions_val_10.npz"):
        if name.endswith(".npz"):
            one, other = (Predictions.load(run / name) for run in (straight, packed))
            assert_array_equal(one.probabilities, other.probabilities)
        else:
            assert (straight / name).read_bytes() == (packed / name).read_bytes()


def test_a_run_says_of_how_many_pictures_its_statistics_are(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = trained(folder, run, "--set", "data.sample=7").out
    assert "mean and colours are those of 7 of 44 training pictures" in " ".join(said.split())
    assert read_json(run / "environment.json")["dataset"]["statistics_images"] == 7
    assert load(run).card.statistics_images == 7
    assert alexnet("report", run).code == 0
    assert "mean and colours of 7 training pictures" in (run / "report.html").read_text()


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = train.train_step, 0

    def step(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(train, "train_step", step)


@pytest.mark.parametrize("emptied", [False, True])
def test_a_resumed_training_is_the_same_with_pictures_found_bad_before_or_after(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emptied: bool
) -> None:
    bad = {split: spoil(folder, split, image_px=64) for split in ("train", "val")}
    whole, run = tmp_path / "whole", tmp_path / "run"
    said = trained(folder, whole).out
    assert said.count(f"left out: {bad['train']}: ") == 1
    assert [event["path"] for event in fabricate.events(whole, "left_out")] == [bad["train"]]
    place = Path(read_json(whole / "environment.json")["data_path"])
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        stopped = alexnet("train", folder, *STRAIGHT[1:], "--run", run)
    assert stopped.code == EXIT_STOPPED, stopped
    if emptied:
        for noted in place.rglob("unreadable.jsonl"):
            noted.unlink()
    resumed = alexnet("train", "--resume", "--run", run, "--no-report")
    assert resumed.code == 0, resumed
    assert losses(run) == losses(whole)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for views in (1, 10):
        one, other = (Predictions.load(r / f"predictions_val_{views}.npz") for r in (run, whole))
        assert_array_equal(one.probabilities, other.probabilities)
        assert len(one.labels) == 3


def test_a_training_goes_on_when_the_cache_was_emptied(folder: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    trained(folder, run, "--max-steps", "2")
    shutil.rmtree(read_json(run / "environment.json")["data_path"])
    resumed = alexnet("train", "--resume", "--run", run, "--no-report", "--max-steps", "6")
    assert resumed.code == 0, resumed
    trained(folder, whole)
    assert losses(run) == losses(whole)


def test_a_run_is_evaluated_and_reported_without_its_bad_pictures(
    folder: Path, tmp_path: Path
) -> None:
    bad = {split: spoil(folder, split, image_px=64) for split in ("train", "val")}
    run = tmp_path / "run"
    trained(folder, run)
    assert read_json(run / "environment.json")["dataset"]["left_out"] == 0
    saved = Predictions.load(run / "predictions_val_10.npz")
    (score,) = evaluate_runs([run], views=10).runs
    assert score.errors.images == len(saved.labels) == 3
    (run / "predictions_val_10.npz").unlink()
    evaluate_runs([run], views=10)
    assert_array_equal(
        Predictions.load(run / "predictions_val_10.npz").probabilities, saved.probabilities
    )
    (of_train,) = evaluate_runs([run], split="train", views=1).runs
    assert of_train.errors.images == 43
    assert alexnet("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "2 pictures could not be read and took no part" in page
    assert "are not of the pictures" not in page
    assert "The search cannot be made" not in page
    assert bad["val"] not in page


def test_a_picture_that_goes_during_training_stops_it_with_one_line(
    folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained(folder, run, "--max-steps", "1")
    for path in folder.glob("*/0*.png"):
        os.utime(path, ns=(1, 1))
    said = refusal("train", "--resume", "--run", run, "--no-report", "--max-steps", "6")
    assert "has changed since its run began" in said
