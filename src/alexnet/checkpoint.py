"""Checkpoints from which a training goes on exactly: atomic, checked, the newest few kept.

    RUN/checkpoints/step-00000250.pt        torch.save of plain values, loaded with weights_only
    RUN/checkpoints/step-00000250.sha256    its checksum, written first: a .pt without is unfinished

A damaged newest checkpoint is passed over for the one before, and said so.
"""

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alexnet.errors import UserError
from alexnet.files import sha256_of, write_bytes, write_text

NAME = re.compile(r"step-(\d{8})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write the state of `step`, then remove all but it and the newest `keep` - 1 before it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = folder / f"step-{step:08d}.pt"
    write_text(_checksum_path(path), hashlib.sha256(data).hexdigest() + "\n")
    write_bytes(path, data)
    for old in _superfluous(folder, step, keep):
        old.unlink(missing_ok=True)
        _checksum_path(old).unlink(missing_ok=True)
    return path


def _superfluous(folder: Path, step: int, keep: int) -> list[Path]:
    """All but the newest `keep` up to `step`. Later ones were passed over: that work is redone."""
    later = [path for path in available(folder) if _step_of(path) > step]
    return later + available(folder)[len(later) + keep :]


def _step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def available(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    return sorted(path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name))[::-1]


def load_newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """The newest whole checkpoint; each damaged one on the way is named through `warn`.

    Raises UserError when there is none.
    """
    paths = available(folder)
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
        whole = checksum.read_bytes().strip() == sha256_of(path).encode()
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
