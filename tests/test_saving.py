"""Saving beside the training: what is written is the state as it was, in order, or it is said."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fabricate
from alexnet import checkpoint
from alexnet.errors import UserError
from alexnet.saving import Saver, Snapshot


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "model": {"fc8.weight": torch.full((300, 1000), float(step))},
        "list": [step],
    }


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written until this is set."""
    go, save = threading.Event(), checkpoint.save

    def wait(*arguments: Any, **settings: Any) -> Path:
        assert go.wait(60)
        return save(*arguments, **settings)

    monkeypatch.setattr(checkpoint, "save", wait)
    return go


def steps(folder: Path, kind: str = "step") -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.available(folder, kind)]


def test_a_snapshot_is_a_copy_and_its_memory_serves_again() -> None:
    live = state(1)
    snapshot = Snapshot().take(live)
    copy = snapshot.state()
    live["model"]["fc8.weight"].zero_()
    live["list"].append(2)
    assert copy["model"]["fc8.weight"].unique().tolist() == [1.0]
    assert copy["list"] == [1]
    memory = copy["model"]["fc8.weight"].data_ptr()
    again = snapshot.take(state(3)).state()
    assert again["model"]["fc8.weight"].unique().tolist() == [3.0]
    assert again["model"]["fc8.weight"].data_ptr() == memory
    assert snapshot.step == 3


def test_a_snapshot_takes_a_state_of_another_shape_and_order_of_memory() -> None:
    snapshot = Snapshot().take({"step": 1, "w": torch.zeros(4, 3, 5, 5)})
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    copy = snapshot.take({"step": 2, "w": weight, "new": torch.ones(2)}).state()
    assert torch.equal(copy["w"], weight)
    assert copy["w"].stride() == weight.stride()


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, slow: threading.Event
) -> None:
    with Saver(tmp_path, keep=2) as saver:
        live = state(1)
        saver.save(live)
        assert saver.busy
        assert steps(tmp_path) == []
        live["model"]["fc8.weight"].fill_(-1)
        slow.set()
    assert not saver.busy
    assert checkpoint.load_newest(tmp_path, print)["model"]["fc8.weight"].unique().tolist() == [1]


def test_of_those_that_wait_the_newest_and_the_best_are_written(
    tmp_path: Path, slow: threading.Event
) -> None:
    with Saver(tmp_path, keep=9) as saver:
        saver.save(state(1))
        while saver._waiting:
            time.sleep(0.001)
        for step in range(2, 8):
            saver.save(state(step), best=step in (3, 5))
        slow.set()
        saver.finish()
    assert steps(tmp_path) == [7, 5, 1]
    assert steps(tmp_path, "best") == [5]


def test_an_error_is_told_once_and_what_was_not_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Saver(tmp_path, keep=9) as saver:
        saver.save(state(1))
        saver.finish()
        with monkeypatch.context() as patch:
            fabricate.fill_up(patch, lambda path: "step-00000002" in path.name)
            saver.save(state(2), best=True)
            saver._join()
            assert "no space left" in str(saver.error())
        assert saver.error() is None
        assert not saver.busy
        saver.save(state(3))
        saver.finish()
    assert steps(tmp_path) == [3, 2, 1]
    assert steps(tmp_path, "best") == [2]


def test_what_cannot_be_written_at_the_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabricate.fill_up(monkeypatch, lambda path: path.suffix != ".sha256")
    with Saver(tmp_path, keep=2) as saver:
        saver.save(state(1))
        with pytest.raises(UserError, match="no space left"):
            saver.finish()


def test_our_own_mistakes_are_not_taken_for_the_users(tmp_path: Path) -> None:
    with Saver(tmp_path, keep=2) as saver:
        saver.save({"step": 1, "not plain": threading.Lock()})
        with pytest.raises(TypeError):
            saver.finish()


@pytest.mark.gpu
def test_a_snapshot_of_cuda_memory_is_the_state_before_the_next_step() -> None:
    weight = torch.zeros(64, 1024, 1024, device="cuda")
    snapshot = Snapshot()
    for value in range(1, 20):
        weight.fill_(value)
        snapshot.take({"step": value, "w": weight})
        weight.fill_(-1)  # queued behind the copy, though the host has not seen it end
        assert snapshot.state()["w"].unique().tolist() == [value]
        assert snapshot.state()["w"].is_pinned()
