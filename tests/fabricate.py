"""Small things to test with: folders of pictures, recipes of seconds, and the command line.

`alexnet` runs the real command in this process, `alexnet_process` in one of its own. `SHAPES` are
the flags of a training of the `small` network that takes about half a second.
"""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import checkpoint, cli
from alexnet.config import Recipe, diff
from alexnet.dataset import PackedDataset
from alexnet.opening import open_dataset
from alexnet.recipes import find_recipe

CLASSES = ("blue", "green", "grey", "red")

# 6 minibatches per epoch; 100 epochs, so that rates do not depend on where --max-steps stops.
SHAPES = (
    *("train", "--no-report", "--batch-size", "16", "--epochs", "100", "--device", "cpu"),
    *("--set", "data.num_train=96", "--set", "data.num_val=24", "--set", "data.num_classes=4"),
    *("--set", "system.log_steps=1", "--set", "system.threads=1"),
)

# The same for a folder of pictures.
FOLDER = (
    *("train", "--no-report", "--recipe", "shapes", "--batch-size", "16", "--device", "cpu"),
    *("--max-steps", "2", "--set", "system.threads=1"),
)


@contextlib.contextmanager
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures of whole modules: the cache that each test has by `private_cache`."""
    with mock.patch.dict(os.environ, ALEXNET_CACHE=str(tmp_path_factory.getbasetemp() / "cache")):
        yield


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def alexnet(*arguments: str | Path) -> Finished:
    """Run a command in this process. Exceptions that the user would see as a traceback pass."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    num_threads = torch.get_num_threads()
    with (
        mock.patch.object(sys, "argv", ["alexnet", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            torch.set_num_threads(num_threads)
    return Finished(code, out.getvalue(), err.getvalue())


def refusal(*arguments: str | Path) -> str:
    """The one line that a command leaves on standard error when it refuses to work."""
    return the_one_line(alexnet(*arguments))


def the_one_line(finished: Finished) -> str:
    assert finished.code == 2, finished
    assert finished.err.count("\n") == 1, finished.err
    assert finished.err.startswith("alexnet: "), finished.err
    return finished.err.removeprefix("alexnet: ").strip()


@contextlib.contextmanager
def alexnet_process(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own; it is killed if it outlives the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "alexnet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> Finished:
    out, err = process.communicate(timeout=300)
    return Finished(process.returncode, out, err)


def pictures(
    folder: Path, classes: Sequence[str] = CLASSES, per_class: int = 12, size_px: int = 40
) -> Path:
    """A folder of PNGs, one folder per class; each class has a colour of its own."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        colour = np.array([label & 1, label >> 1 & 1, 1 - label / len(classes)]) * 120
        for index in range(per_class):
            pixels = colour + random.integers(0, 100, (size_px, size_px, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:02d}.png")
    return folder


def recipe(base: str = "shapes", **sections: dict[str, Any]) -> Recipe:
    return diff(find_recipe(base), **sections)


def shapes(num_train: int = 96, num_val: int = 24, num_classes: int = 4) -> PackedDataset:
    """The data set of `SHAPES`."""
    return open_dataset(
        "shapes", image_px=64, num_train=num_train, num_val=num_val, num_classes=num_classes
    )


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind in a run's log, which must be JSON without NaN throughout."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [event for event in map(strict_json, lines) if event["event"] == kind]


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def losses(run: Path) -> dict[int, float]:
    """{step: loss}; a step that was logged twice is an error."""
    steps = events(run, "step")
    found = {event["step"]: event["loss"] for event in steps}
    assert len(found) == len(steps), [event["step"] for event in steps]
    return found


def checkpoint_state(run: Path, step: int) -> dict[str, Any]:
    return checkpoint.load(run / "checkpoints" / f"step-{step:08d}.pt")


def flip_bit(path: Path, position: float, bit: int = 0) -> None:
    """Change one bit of a file; `position` in 0..1 is where."""
    data = bytearray(path.read_bytes())
    data[min(int(position * len(data)), len(data) - 1)] ^= 1 << bit
    path.write_bytes(data)


def fill_up(monkeypatch: pytest.MonkeyPatch, is_hit: Callable[[Path], bool]) -> None:
    """From now on there is no space for some files: half of each is written, then no more."""
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if is_hit(path):
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, data)

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 1_000_000 and is_hit(Path(os.fsdecode(self.name))):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data) or 0

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(checkpoint, "open", Full, raising=False)


def snapshot(folder: Path) -> Mapping[Path, bytes]:
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
