"""Checkpoints from which a training goes on exactly: atomic, checked, the newest few and the best.

    RUN/checkpoints/step-00000250.pt        torch.save of plain values, loaded with weights_only
    RUN/checkpoints/step-00000250.sha256    its checksum, written first: a .pt without is unfinished
    RUN/checkpoints/best-00000200.pt        the step with the least validation error, and checksum

A damaged newest checkpoint is passed over for the one before, and said so. Not here: when to save,
and the thread that writes (`saving.py`).
"""

import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from alexnet.errors import UserError
from alexnet.files import atomic_file, sha256_of, write_text

T = TypeVar("T")

NAME = re.compile(r"(step|best)-(\d{8})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int, best: bool = False) -> Path:
    """Write the state of `step`, then remove all but it and the newest `keep` - 1 before it.

    The `best` one is kept beside them until there is a better one. Raises UserError when it cannot
    be written; then nothing that was there before is touched.
    """
    if not folder.is_dir():  # not made anew: a disk that was unmounted is not to be written around
        raise UserError(f"the folder {folder} is gone, and with it the checkpoints that it held")
    path = folder / f"step-{step:08d}.pt"
    with atomic_file(path) as temporary:
        with open(temporary, "wb") as file:
            hashed = _Hashed(file)
            torch.save(state, cast(IO[bytes], hashed))
            if hashed.error is not None:
                raise hashed.error
        _write_checksum(path, hashed.sha256.hexdigest())
    if best:
        _keep_as_best(path)
    for old in _superfluous(folder, step, keep):
        _remove(old)
    return path


class _Hashed:
    """A file that is written to and hashed in one go, so that what the disk made of it is found."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None  # kept here, since torch.save hides it behind its own

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._unless_failed(lambda: self.file.write(data), len(data))

    def flush(self) -> None:
        self._unless_failed(self.file.flush, None)

    def _unless_failed(self, act: Callable[[], T], otherwise: T) -> T:
        try:
            return otherwise if self.error is not None else act()
        except OSError as error:
            self.error = error
            return otherwise


def _write_checksum(path: Path, sha256: str) -> None:
    """The new checksum, and below it that of a file of this name that is about to be replaced.

    Killed between the two renamings, a step that is done again would be damaged otherwise.
    """
    checksum = _checksum_path(path)
    before = []
    if path.exists() and checksum.exists():
        before = checksum.read_text(errors="replace").split()[:1]
    write_text(checksum, "\n".join([sha256, *before]) + "\n")


def _keep_as_best(path: Path) -> None:
    """A second name for the file, which outlives the first; a copy where there are no links."""
    best = path.with_name(path.name.replace("step-", "best-"))
    _write_checksum(best, _checksum_path(path).read_text().split()[0])
    with atomic_file(best) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
    for old in available(path.parent, "best"):
        if old != best:
            _remove(old)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _checksum_path(path).unlink(missing_ok=True)


def _superfluous(folder: Path, step: int, keep: int) -> list[Path]:
    """All but the newest `keep` up to `step`. Later ones were passed over: that work is redone."""
    later = [path for path in available(folder) if step_of(path) > step]
    return later + available(folder)[len(later) + keep :]


def step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[2])


def available(folder: Path, kind: str = "step") -> list[Path]:
    """Checkpoints of a folder, newest first: those of each "step", or the "best"."""
    return sorted(path for path in folder.glob(f"{kind}-*.pt") if NAME.fullmatch(path.name))[::-1]


def has_any(folder: Path) -> bool:
    return bool(available(folder) or available(folder, "best"))


def load_newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """The newest whole checkpoint, the best one last; each damaged one is named through `warn`.

    Raises UserError when there is none.
    """
    paths = available(folder) + available(folder, "best")
    for path in paths:
        try:
            return load(path)
        except UserError as error:
            warn(f"{error}; using the one before")
    if paths:
        raise UserError(f"every checkpoint in {folder} is damaged; start a new run")
    raise UserError(f"{folder} holds no checkpoint to go on from; start without --resume")


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint. Raises UserError when it is damaged, or holds more than plain values."""
    checksum = _checksum_path(path)
    try:
        whole = sha256_of(path).encode() in checksum.read_bytes().split()
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    if not whole:
        raise UserError(f"{path} is damaged: it does not match its checksum")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no checkpoint: {str(error).splitlines()[0]}") from None
    return state


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
