"""A tar through a pipe is packed like one on the disk, and gone on with after an interruption."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import layouts
from alexnet import prepare as preparation
from alexnet.dataset import PackedDataset, open_packed, verify_packed
from alexnet.errors import UserError
from alexnet.prepare import Form
from alexnet.sources import find_source
from alexnet.stream import prepare_stream

PX = 8


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return layouts.tar_of_folders(layouts.split_folder(tmp_path / "folder"), tmp_path / "tars")


@pytest.fixture
def synsets(tmp_path: Path) -> Path:
    return layouts.tar_of_synsets(layouts.class_folder(tmp_path / "pictures"), tmp_path / "others")


def stream(tar: Path, target: Path, **options: object) -> PackedDataset:
    data = io.BytesIO(tar.read_bytes())
    return prepare_stream(data, target, form=Form(PX), processes=1, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def by_name(data: PackedDataset) -> dict[str, tuple[str, bytes]]:
    return {
        name: (data.class_ids[label], image.tobytes())
        for split in data.splits.values()
        for name, label, image in zip(split.sources, split.labels, split.images, strict=True)
    }


def test_a_stream_gives_what_the_same_tar_gives_on_the_disk(tar: Path, tmp_path: Path) -> None:
    on_disk = preparation.prepare(find_source(tar), tmp_path / "disk", name="toys", form=Form(PX))
    assert on_disk is not None
    streamed = stream(tar, tmp_path / "stream")
    verify_packed(tmp_path / "stream")
    assert by_name(streamed) == by_name(on_disk)
    assert (streamed.class_ids, streamed.class_names) == (on_disk.class_ids, on_disk.class_names)
    for name, split in streamed.splits.items():
        assert len(split) == len(on_disk.splits[name])
    assert np.array_equal(
        streamed.statistics.rgb_covariance, on_disk.statistics.rgb_covariance
    )  # exact: of integers, in any order


def test_a_stream_without_splits_is_held_out_by_chance(synsets: Path, tmp_path: Path) -> None:
    half = stream(synsets, tmp_path / "half", val_fraction=0.5)
    again = stream(synsets, tmp_path / "again", val_fraction=0.5)
    other = stream(synsets, tmp_path / "other", val_fraction=0.5, seed=1)
    assert set(half.splits) == {"train", "val"}
    assert tuple(half.splits["val"].sources) == tuple(again.splits["val"].sources)
    assert tuple(half.splits["val"].sources) != tuple(other.splits["val"].sources)
    assert set(stream(synsets, tmp_path / "whole", val_fraction=0).splits) == {"train"}


def test_an_interrupted_stream_goes_on_where_it_was(
    synsets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 2 * 3 * PX**2)
    stream(synsets, tmp_path / "whole")

    def interrupt_at(count: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done >= count:
                raise KeyboardInterrupt

        return progress

    for count in (4, 9):
        with pytest.raises(KeyboardInterrupt):
            stream(synsets, tmp_path / "packed", progress=interrupt_at(count))
    seen: list[int] = []
    stream(synsets, tmp_path / "packed", progress=lambda done, total: seen.append(done))
    assert seen[0] > 9
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_another_stream_is_not_gone_on_with(
    synsets: Path, tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 2 * 3 * PX**2)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(synsets, tmp_path / "packed", progress=interrupt)
    before = contents(tmp_path / "packed.partial")
    with pytest.raises(UserError, match="begun with another stream"):
        stream(tar, tmp_path / "packed")
    assert contents(tmp_path / "packed.partial") == before
    stream(synsets, tmp_path / "packed")


def test_the_labels_of_a_stream_follow_the_classes_given(synsets: Path, tmp_path: Path) -> None:
    reverse = tmp_path / "classes.txt"
    reverse.write_text("".join(f"{wnid} the {wnid}\n" for wnid in reversed(layouts.CLASSES)))
    data = stream(synsets, tmp_path / "packed", classes=reverse)
    assert data.class_ids == tuple(reversed(layouts.CLASSES))
    assert data.class_names[0] == f"the {layouts.CLASSES[-1]}"
    split = data.splits["train"]
    for name, label in zip(split.sources, split.labels, strict=True):
        assert name.startswith(data.class_ids[label])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(
    synsets: Path, tmp_path: Path, fraction: float
) -> None:
    with pytest.raises(UserError, match="val_fraction"):
        stream(synsets, tmp_path / "packed", val_fraction=fraction)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_stream_that_breaks_off_is_no_data_set_and_can_be_sent_again(
    synsets: Path, tmp_path: Path, share: float
) -> None:
    stream(synsets, tmp_path / "whole")
    data = synsets.read_bytes()
    cut = io.BytesIO(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"broke off after .* send it again"):
        prepare_stream(cut, tmp_path / "packed", form=Form(PX), processes=1)
    with pytest.raises(UserError):
        prepare_stream(io.BytesIO(b""), tmp_path / "packed", form=Form(PX), processes=1)
    assert (tmp_path / "packed.partial").is_dir()
    stream(synsets, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_held_out_pictures_that_cannot_be_read_leave_no_empty_split(tmp_path: Path) -> None:
    folder = layouts.split_folder(tmp_path / "folder")
    for path in (folder / "val").glob("*/*"):
        path.write_bytes(b"no picture")
    data = stream(layouts.tar_of_folders(folder, tmp_path / "tars"), tmp_path / "packed")
    assert set(data.splits) == {"train"}


def test_a_stream_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        prepare_stream(io.BytesIO(b""), tmp_path / "packed", form=Form(PX), processes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_packed_from_the_command_line(tar: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "alexnet", "prepare", "-", str(tmp_path / "packed")]
    with open(tar, "rb") as file:
        finished = subprocess.run(
            [*command, "--image-px", str(PX), "--processes", "1"],
            stdin=file,
            capture_output=True,
            text=True,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr
    assert len(open_packed(tmp_path / "packed").class_names) == 3
