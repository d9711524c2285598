"""Checkpoints are whole or passed over: what was damaged is never loaded as good."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fabricate
from alexnet import checkpoint
from alexnet.errors import UserError


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(40, 30, generator=generator)
    return {"step": step, "model": {"fc8.weight": weight}, "reason": "start", "rates": [1.5, 2.0]}


def large(step: int) -> dict[str, Any]:
    return {**state(step), "padding": torch.zeros(500_000)}


def save(folder: Path, *steps: int, keep: int = 2, best: int = -1) -> Path:
    for step in steps:
        path = checkpoint.save(folder, step, state(step), keep=keep, best=step == best)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def assert_is(loaded: dict[str, Any], step: int) -> None:
    assert loaded["step"] == step
    assert torch.equal(loaded["model"]["fc8.weight"], state(step)["model"]["fc8.weight"])


def newest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    warnings: list[str] = []
    return checkpoint.load_newest(folder, warnings.append), warnings


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    loaded = checkpoint.load(save(tmp_path, 7))
    assert_is(loaded, 7)
    assert loaded["rates"] == [1.5, 2.0]


def test_the_newest_few_are_kept_and_nothing_else_stays(tmp_path: Path) -> None:
    save(tmp_path, 0, 5, 10, 100)
    assert names(tmp_path) == [
        "step-00000010.pt",
        "step-00000010.sha256",
        "step-00000100.pt",
        "step-00000100.sha256",
    ]
    assert [path.name for path in checkpoint.available(tmp_path)] == [
        "step-00000100.pt",
        "step-00000010.pt",
    ]


def test_memory_order_comes_back_too(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    path = checkpoint.save(tmp_path, 1, {"weight": weight}, keep=1)
    assert checkpoint.load(path)["weight"].stride() == weight.stride()


@given(
    damage=st.sampled_from(["cut", "flip", "checksum cut", "checksum flip", "longer"]),
    position=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_damaged_checkpoint_is_never_loaded_as_good(
    tmp_path_factory: pytest.TempPathFactory, damage: str, position: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, 1)
    path = save(folder, 2)
    target = path.with_suffix(".sha256") if damage.startswith("checksum") else path
    if damage.endswith("cut"):
        target.write_bytes(target.read_bytes()[: int(position * target.stat().st_size)])
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        fabricate.flip_bit(target, position, bit)
    try:
        loaded, warnings = newest(folder)
    except UserError as error:
        raise AssertionError("the one before is whole") from error
    # White space at the end of the checksum does not matter: then nothing is damaged.
    if warnings:
        assert_is(loaded, 1)
        assert len(warnings) == 1
        assert "step-00000002.pt is damaged" in warnings[0]
        assert "using the one before" in warnings[0]
    else:
        assert damage.startswith("checksum")
        assert_is(loaded, 2)


@pytest.mark.parametrize("remains", ["step-00000002.pt", "step-00000002.sha256"])
def test_half_of_a_checkpoint_is_none(tmp_path: Path, remains: str) -> None:
    save(tmp_path, 1, 2)
    for name in ("step-00000002.pt", "step-00000002.sha256"):
        if name != remains:
            (tmp_path / name).unlink()
    loaded, _ = newest(tmp_path)
    assert_is(loaded, 1)


def test_when_all_are_damaged_the_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in checkpoint.available(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged; start a new run"):
        newest(tmp_path)


def test_without_any_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint to go on from"):
        newest(tmp_path / "checkpoints")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_new_checkpoint_outlives_a_later_one_that_was_passed_over(
    tmp_path: Path, keep: int
) -> None:
    save(tmp_path, 10, 20)
    fabricate.flip_bit(tmp_path / "step-00000020.pt", 0.5)
    loaded, _ = newest(tmp_path)
    assert_is(loaded, 10)
    save(tmp_path, 15, keep=keep)
    loaded, warnings = newest(tmp_path)
    assert_is(loaded, 15)
    assert not warnings


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-best.pt").write_text("mine")
    save(tmp_path, 1, 2, 3, keep=1)
    assert names(tmp_path) == ["step-00000003.pt", "step-00000003.sha256", "step-best.pt"]


@pytest.mark.parametrize("name", ["step-00000003.pt", "step-00000003.sha256", "best-00000003.pt"])
def test_a_full_disk_leaves_the_checkpoints_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save(tmp_path, 1, 2, best=1)
    before = fabricate.snapshot(tmp_path)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fabricate.fill_up(monkeypatch, lambda path: name in path.name)
    if name.startswith("best"):
        monkeypatch.setattr(os, "link", full)
        monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="no space left"):
        checkpoint.save(tmp_path, 3, large(3), keep=2, best=True)
    monkeypatch.undo()
    after = fabricate.snapshot(tmp_path)
    assert before.items() <= after.items()
    assert not list(tmp_path.glob(".*"))
    loaded, warnings = newest(tmp_path)
    assert_is(loaded, 3 if name.startswith("best") else 2)
    assert not warnings


def test_the_best_one_outlives_the_newest_few_and_gives_way_to_a_better(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, best=2)
    assert names(tmp_path)[:2] == ["best-00000002.pt", "best-00000002.sha256"]
    assert [path.name for path in checkpoint.available(tmp_path)] == [
        "step-00000004.pt",
        "step-00000003.pt",
    ]
    assert_is(checkpoint.load(tmp_path / "best-00000002.pt"), 2)
    save(tmp_path, 5, best=5)
    assert names(tmp_path)[:2] == ["best-00000005.pt", "best-00000005.sha256"]
    assert (tmp_path / "best-00000005.pt").samefile(tmp_path / "step-00000005.pt")


def test_where_files_have_one_name_only_the_best_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    save(tmp_path, 2, best=2)
    assert_is(checkpoint.load(tmp_path / "best-00000002.pt"), 2)


def test_when_the_newest_are_damaged_the_best_is_used(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, best=1)
    for path in checkpoint.available(tmp_path):
        path.write_bytes(b"")
    loaded, warnings = newest(tmp_path)
    assert_is(loaded, 1)
    assert len(warnings) == 2


def test_a_step_that_is_saved_again_is_whole_whenever_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the renaming of the checksum and that of the state nothing may be damaged."""
    save(tmp_path, 1, keep=1)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if str(target).endswith(".pt"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 1, large(1), keep=1)
    assert_is(newest(tmp_path)[0], 1)
    checkpoint.save(tmp_path, 1, large(1), keep=1)
    assert_is(newest(tmp_path)[0], 1)
    assert "padding" in newest(tmp_path)[0]


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is gone"):
        save(tmp_path / "checkpoints", 1)
    assert not (tmp_path / "checkpoints").exists()


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = checkpoint.save(tmp_path, 1, {"step": Trap()}, keep=1)
    with pytest.raises(UserError, match=r"step-00000001\.pt is no checkpoint"):
        checkpoint.load(path)
    assert not (tmp_path / "sprung").exists()
