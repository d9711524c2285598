"""Whatever a user gets wrong is one clear line and exit code 2, and nothing already saved is lost.

The pictures, the names and the files of the issue's list, each through the real command.
"""

import contextlib
import errno
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fabricate
from alexnet import checkpoint, log, train
from alexnet.dataset import open_packed
from alexnet.files import read_json
from fabricate import FOLDER, SHAPES, alexnet, refusal


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    with fabricate.shared_cache(tmp_path_factory):
        finished = alexnet(*SHAPES, "--run", path, "--max-steps", "2")
    assert finished.code == 0, finished
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fabricate.pictures(tmp_path / "pictures")


# --- Pictures -----------------------------------------------------------------------------------


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    said = refusal(*FOLDER, tmp_path / "nothing", "--run", tmp_path / "run")
    assert f"no data set or folder '{tmp_path / 'nothing'}'" in said
    assert "did you mean 'imagenette'" in refusal("train", "imagenete", "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"")
    said = refusal(*FOLDER, tmp_path / "cat.jpg", "--run", tmp_path / "run")
    assert "is a file; give the folder that holds the pictures" in said


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = refusal(*FOLDER, tmp_path / "empty", "--run", tmp_path / "run")
    assert "has no folders in it" in said
    for name in ("cat", "dog"):
        (tmp_path / "empty" / name).mkdir()
        (tmp_path / "empty" / name / "notes.txt").write_text("no picture")
    said = refusal(*FOLDER, tmp_path / "empty", "--run", tmp_path / "run")
    assert "no pictures in" in said


def test_a_class_folder_that_is_empty(source: Path, tmp_path: Path) -> None:
    (source / "yellow").mkdir()
    said = refusal(*FOLDER, source, "--run", tmp_path / "run")
    assert f"class folder {source / 'yellow'} holds no pictures" in said


def test_one_class_only(tmp_path: Path) -> None:
    source = fabricate.pictures(tmp_path / "pictures", classes=("cat",))
    said = refusal(*FOLDER, source, "--run", tmp_path / "run")
    assert "one class only (cat); two are the least" in said


def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_training_goes_on_without_the_pictures_that_cannot_be_read(
    source: Path, tmp_path: Path
) -> None:
    whole = png()
    bad = {
        "blue/empty.png": b"",
        "green/truncated.png": whole[: len(whole) // 2],
        "grey/noise.jpg": bytes(range(256)) * 8,
        "red/page.gif": b"<html>not found</html>",
    }
    for name, content in bad.items():
        (source / name).write_bytes(content)
    Image.new("RGB", (1, 1), "red").save(source / "red" / "one_pixel.png")
    Image.new("L", (20_000, 3), 9).save(source / "grey" / "long.png")
    Image.new("1", (20_000, 20_000)).save(source / "grey" / "bomb.png")
    bad["grey/bomb.png"] = b""
    run = tmp_path / "run"
    finished = alexnet(*FOLDER, source, "--run", run)
    assert finished.code == 0, finished
    environment = read_json(run / "environment.json")
    packed = open_packed(Path(environment["data_path"]))
    assert {entry["path"] for entry in packed.left_out} == set(bad)
    assert environment["dataset"]["left_out"] == len(bad)
    for name in bad:
        assert f"left out: {name}: " in finished.out
    sources = {name for split in packed.splits.values() for name in split.sources}
    assert {"red/one_pixel.png", "grey/long.png"} <= sources
    assert len(sources) == 48 + 2


def test_names_that_are_not_utf_8_do_no_harm(source: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (source / "red" / name).write_bytes(png())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    (source / "red" / f"broken-{name}").write_bytes(b"")
    run = tmp_path / "run"
    command = [part for part in FOLDER if part != "--no-report"]
    assert alexnet(*command, source, "--run", run).code == 0
    packed = open_packed(Path(read_json(run / "environment.json")["data_path"]))
    assert f"red/{name}" in {*packed.splits["train"].sources, *packed.splits["val"].sources}
    assert [entry["path"] for entry in packed.left_out] == [f"red/broken-{name}"]


def test_more_bad_pictures_than_lines_are_counted(tmp_path: Path) -> None:
    source = fabricate.pictures(tmp_path / "pictures", per_class=15)
    for index in range(12):
        (source / "red" / f"broken{index:02d}.png").write_bytes(b"")
    finished = alexnet(*FOLDER, source, "--run", tmp_path / "run")
    assert finished.code == 0, finished
    assert finished.out.count("left out: red/broken") == 10
    assert "left out: 12 in all; see " in finished.out


# --- Names and values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "shaeps"), "no recipe 'shaeps'; did you mean 'shapes'?"),
        (("--recipe", "zzz"), "no recipe 'zzz'; known: paper-2012, "),
        (("--set", "network.name=smal"), "no network 'smal'; did you mean 'small'?"),
        (("--set", "optimizer.lrr=1"), "no setting 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        (("--set", "schedule.kind=linaer"), "no schedule 'linaer'; did you mean 'linear'?"),
        (("--set", "schedule.table=x"), "no table 'x'; known: "),
        (("--set", "network.name=paper"), "takes crops of 224 pixels: --set augment.crop_px=224"),
        (("--set", "augment.crop_px=48"), "takes crops of 56 pixels: --set augment.crop_px=56"),
        (("--set", "augment.crop_px=65"), "a crop is at most as large as the pictures"),
        (("--set", "optimizer.lr=fast"), "optimizer.lr is a number; not 'fast'"),
        (("--set", "optimizer.layer_weight_decay=konv:1"), "weight decay is set for 'konv'"),
        (("--set", "evaluate.views=5"), 'evaluate.views is "1", "10" or "1,10"; not \'5\''),
        (("--lr", "0"), "optimizer.lr is 0.0; it must be more than 0"),
        (("--epochs", "0"), "schedule.epochs is 0.0; it must be more than 0"),
        (("--epochs", "nan"), "schedule.epochs is nan"),
        (("--batch-size", "0"), "optimizer.batch_size is 0; it must be at least 1"),
        (("--seed", "-1"), "system.seed is -1"),
        (("--device", "gpu"), "device 'gpu' cannot be used"),
        (("--set", "data.num_train=0"), "num_train"),
        (("--set", "data.num_classes=1"), "classes"),
        (("--set", "data.num_classes=100000"), "classes"),
    ],
)
def test_an_unknown_name_or_a_wrong_value(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    line = refusal(*SHAPES, "--run", tmp_path / "run", *arguments)
    assert said in line
    assert not (tmp_path / "run").exists()


def test_nothing_is_prepared_for_a_training_that_cannot_be(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    refusal(*FOLDER, source, "--set", "network.name=smal", "--run", tmp_path / "run")
    refusal(*FOLDER, source, "--device", "gpu", "--run", tmp_path / "run")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--views", "3"), "3 views: choose 1"),
        (("--split", "tset"), "no split 'tset'"),
        (("--weights", "1", "2"), "2 weights for 1 runs"),
        (("--batch-size", "0"), "batch size is 0"),
        (("--data", "nowhere"), "no data set or folder 'nowhere'"),
        (("--device", "gpu"), "device 'gpu' cannot be used"),
    ],
)
def test_evaluations_that_cannot_be(run: Path, arguments: tuple[str, ...], said: str) -> None:
    before = fabricate.snapshot(run)
    assert said in refusal("evaluate", run, *arguments)
    assert fabricate.snapshot(run) == before


# --- Folders ------------------------------------------------------------------------------------


def test_a_run_folder_that_exists_is_left_alone(run: Path) -> None:
    before = fabricate.snapshot(run)
    assert f"{run} exists already: choose another --run" in refusal(*SHAPES, "--run", run)
    assert fabricate.snapshot(run) == before


def test_a_file_in_the_place_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "exists already" in refusal(*SHAPES, "--run", tmp_path / "file")
    assert "cannot write" in refusal(*SHAPES, "--run", tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    with read_only(folder):
        said = refusal(*SHAPES, "--max-steps", "1", "--run", folder / "run")
    assert f"cannot write {folder / 'run'}" in said


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """For root, whom permissions do not stop, a mount that is read-only."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    with mounted(folder, "ro"):
        yield


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not mount a disk to fill or lock: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_folder_that_is_no_run(tmp_path: Path, command: str) -> None:
    assert "nothing" in refusal(command, tmp_path / "nothing")
    (tmp_path / "pictures").mkdir()
    said = refusal(command, tmp_path / "pictures")
    assert str(tmp_path / "pictures") in said
    assert os.listdir(tmp_path / "pictures") == []


# --- Damaged files ------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "gone"])
def test_damaged_weights_are_not_evaluated(run: Path, damage: str) -> None:
    path = run / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "flipped":
        fabricate.flip_bit(path, 0.7, 6)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        path.unlink()
    assert "model.safetensors" in refusal("evaluate", run, "--views", "1")


@pytest.mark.parametrize("name", ["recipe.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_damaged_descriptions_are_named(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    for path in run.glob("predictions_*"):
        path.unlink()
    assert name in refusal("evaluate", run, "--views", "1")


def test_a_report_is_written_of_what_is_whole(run: Path) -> None:
    (run / "summary.json").write_text("{")
    fabricate.flip_bit(run / "model.safetensors", 0.7)
    (run / "predictions_val_1.npz").write_bytes(b"PK")
    finished = alexnet("report", run)
    assert (finished.code, finished.err) == (0, ""), finished
    assert (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("dataset.json", "cut"),
        ("train/images.npy", "cut"),
        ("train/labels.npy", "empty"),
        ("val/images.npy", "gone"),
        ("statistics.npz", "cut"),
    ],
)
def test_damaged_packed_files_are_named(
    source: Path, tmp_path: Path, name: str, damage: str
) -> None:
    packed = tmp_path / "packed"
    assert alexnet("prepare", source, packed, "--image-px", "64").code == 0
    path = packed / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-10])
    said = refusal(*FOLDER, packed, "--run", tmp_path / "run")
    assert str(path) in said
    assert "prepare it again" in said
    assert not (tmp_path / "run").exists()


def test_a_packed_data_set_of_another_size(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert alexnet("prepare", source, packed, "--image-px", "48").code == 0
    said = refusal(*FOLDER, packed, "--run", tmp_path / "run")
    assert "is packed at 48 px, but 64 px are asked for" in said


# --- A full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["step-00000003.pt", "step-00000003.sha256", "model.safetensors", "summary.json"]
)
def test_what_is_saved_outlives_a_full_disk_and_training_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert alexnet(*SHAPES, "--run", run, "--max-steps", "2").code == 0
    before = fabricate.snapshot(run / "checkpoints")
    resume = ("train", "--resume", "--run", run, "--no-report", "--max-steps", "3")
    with monkeypatch.context() as patch:
        fabricate.fill_up(patch, lambda path: name in path.name)
        said = refusal(*resume)
    assert f"no space left on the disk for {run}" in said
    assert name in said
    assert not list(run.rglob("*.tmp"))
    if name.startswith("step"):
        assert before.items() <= fabricate.snapshot(run / "checkpoints").items()
    assert alexnet(*resume).code == 0
    assert alexnet(*SHAPES, "--run", whole, "--max-steps", "3").code == 0
    assert fabricate.losses(run) == fabricate.losses(whole)
    expected = (whole / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == expected


class FullFile:
    """A log for which there is no space, but for so many bytes."""

    def __init__(self, file: io.FileIO, space: int) -> None:
        self.file, self.space = file, space

    def write(self, data: bytes) -> int:
        written = self.file.write(data[: self.space])
        self.space -= written
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    def close(self) -> None:
        self.file.close()


def limit_log(monkeypatch: pytest.MonkeyPatch, space: int) -> list[FullFile]:
    init, made = log.RunLog.__init__, []

    def with_little_space(self: log.RunLog, *arguments: Any, **settings: Any) -> None:
        init(self, *arguments, **settings)
        made.append(FullFile(self.file, space))
        self.file = made[-1]  # type: ignore[assignment]

    monkeypatch.setattr(log.RunLog, "__init__", with_little_space)
    return made


def test_a_log_that_cannot_be_written_to_the_end_is_a_failure_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_log(monkeypatch, 300)
    said = refusal("train", "--resume", "--run", run, "--max-steps", "3", "--no-report")
    assert f"no space left on the disk for {run / 'log.jsonl'}" in said
    assert (run / "model.safetensors").exists()


def test_a_log_without_space_is_written_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    (made, real, steps) = (limit_log(monkeypatch, 500), train.train_step, [])

    def step(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            made[0].space = 10**9
        return real(*arguments)

    monkeypatch.setattr(train, "train_step", step)
    finished = alexnet(*SHAPES, "--run", run, "--max-steps", "5")
    assert finished.code == 0, finished
    assert finished.out.count("its lines are kept until they can be") == 1
    monkeypatch.undo()
    assert alexnet(*SHAPES, "--run", whole, "--max-steps", "5").code == 0
    assert fabricate.losses(run) == fabricate.losses(whole)


def test_a_checkpoint_that_cannot_be_written_on_the_way_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room again before the end: nothing but checkpoints in between is missing."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    often = ("--set", "system.checkpoint_minutes=0.00001", "--max-steps", "5")
    full = [f"step-0000000{step}" for step in (1, 2, 3)]
    with monkeypatch.context() as patch:
        fabricate.fill_up(patch, lambda path: any(name in path.name for name in full))
        finished = alexnet(*SHAPES, "--run", run, *often)
    assert finished.code == 0, finished
    assert finished.err == ""
    told = [line for line in finished.out.splitlines() if line.startswith("not saved: ")]
    assert told
    assert "no space left on the disk" in told[0]
    assert "training goes on and tries again" in told[0]
    assert len(told) == len(fabricate.events(run, "unsaved"))
    assert not list(run.rglob("*.tmp"))
    assert alexnet(*SHAPES, "--run", whole, *often).code == 0
    assert fabricate.losses(run) == fabricate.losses(whole)
    weights = (whole / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == weights


def test_a_stop_that_cannot_be_saved_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", train.train_step

    def step(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", step)
        fabricate.fill_up(patch, lambda path: "step-00000001" in path.name)
        said = refusal(*SHAPES, "--run", run, "--max-steps", "5")
    assert "no space left on the disk" in said
    assert [path.name for path in checkpoint.available(run / "checkpoints")] == ["step-00000000.pt"]


@pytest.mark.parametrize("lost", ["writes", "flush"])
def test_tensorboard_is_given_up_when_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    init = log.RunLog.__init__

    def then_full(self: log.RunLog, *arguments: Any, **settings: Any) -> None:
        init(self, *arguments, **settings)
        monkeypatch.setattr(RecordWriter, "write" if lost == "writes" else "flush", full)

    monkeypatch.setattr(log.RunLog, "__init__", then_full)
    finished = alexnet(*SHAPES, "--run", tmp_path / "run", "--max-steps", "20")
    assert (finished.code, finished.err) == (0, ""), finished
    if lost == "writes":
        assert finished.out.count("TensorBoard's files cannot be written") == 1
    assert len(fabricate.losses(tmp_path / "run")) == 20


# --- Pictures that are lost on the way ------------------------------------------------------------


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    assert alexnet("prepare", source, tmp_path / "packed", "--image-px", "64").code == 0
    return tmp_path / "packed"


LONGER = (*FOLDER, "--max-steps", "8")


def at_step(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = train.train_step, 0

    def step(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == number:
            act()
        return real(*arguments)

    monkeypatch.setattr(train, "train_step", step)


def test_pictures_that_are_removed_are_missed_at_the_end_only(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole, aside = tmp_path / "run", tmp_path / "whole", tmp_path / "aside"
    assert alexnet(*LONGER, packed, "--run", whole).code == 0
    shutil.copytree(packed, aside)
    with monkeypatch.context() as patch:
        at_step(5, lambda: shutil.rmtree(packed), patch)  # after the first evaluation
        said = refusal(*LONGER, packed, "--run", run)
    assert str(packed) in said
    weights = (whole / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == weights
    aside.rename(packed)
    assert alexnet("train", "--resume", "--run", run, "--no-report").code == 0
    assert (run / "model.safetensors").read_bytes() == weights
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_that_are_cut_short_stop_a_training_that_saves_first(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    run, whole, file = tmp_path / "run", tmp_path / "whole", packed / split / "images.npy"
    assert alexnet(*LONGER, packed, "--run", whole).code == 0
    content = file.read_bytes()
    with monkeypatch.context() as patch:
        at_step(2, lambda: os.truncate(file, 1000), patch)
        said = refusal(*LONGER, packed, "--run", run)
    assert f"{file} was cut short while it was in use" in said
    assert "stopped and saved at step" in said
    assert f"alexnet train --resume --run {run}" in said
    (stop,) = fabricate.events(run, "stop")
    assert max(fabricate.losses(run)) == stop["step"]
    file.write_bytes(content)
    assert alexnet("train", "--resume", "--run", run, "--no-report").code == 0
    assert fabricate.losses(run) == fabricate.losses(whole)
    weights = (whole / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == weights


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "size=24m"):
        run = disk / "run"
        often = ("--set", "system.checkpoint_minutes=0.00001", "--set", "system.keep_checkpoints=9")
        said = refusal(*SHAPES, "--run", run, "--max-steps", "60", *often)
        assert "o space left on" in said
        warnings: list[str] = []
        state = checkpoint.load_newest(run / "checkpoints", warnings.append)
        assert not warnings
        assert state["step"] > 0
        assert not list(run.rglob("*.tmp"))
        resume = ("train", "--resume", "--run", run, "--no-report")
        for path in checkpoint.available(run / "checkpoints")[1:]:
            path.unlink()
        steps = str(state["step"] + 2)
        fewer = ("--max-steps", steps, "--set", "system.keep_checkpoints=1")
        finished = alexnet(*resume, *fewer)
        assert finished.code == 0, finished
        assert list(fabricate.losses(run)) == list(range(1, int(steps) + 1))
