"""Saving beside the training: the step pays for a copy of the state, a thread writes it.

One checkpoint is being written at a time; at most the newest and the best yet may wait, so memory
is bounded: as a rule one copy of the state, on the host. What could not be written waits too, and
is tried again with the next. Not here: the files (`checkpoint.py`), and when to save (`train.py`).
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from alexnet import checkpoint
from alexnet.errors import UserError


class Snapshot:
    """A copy of a state in host memory; another state of the same shape can take its place.

    On CUDA the step pays for a copy within the device's memory, which keeps its order among the
    updates; it goes to the host, into pinned memory, on a stream of its own.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def take(self, state: dict[str, Any]) -> "Snapshot":
        """Copy every tensor; what the state is changed to from now on does not matter."""
        self._state = self._copy(state, self._state)
        return self

    def state(self) -> dict[str, Any]:
        """The copy, once it is complete."""
        for stream in self._streams.values():
            stream.synchronize()
        return self._state

    @property
    def step(self) -> int:
        step: int = self._state["step"]
        return step

    def _copy(self, value: Any, into: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), into)
        if isinstance(value, dict):
            old = into if isinstance(into, dict) else {}
            return {name: self._copy(part, old.get(name)) for name, part in value.items()}
        return [self._copy(part, None) for part in value] if isinstance(value, list) else value

    def _copy_tensor(self, value: Tensor, into: Any) -> Tensor:
        # Fresh memory costs more than the copy: the system hands it out page by page.
        if not (
            isinstance(into, Tensor)
            and (into.shape, into.stride(), into.dtype)
            == (value.shape, value.stride(), value.dtype)
        ):
            into = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        if not value.is_cuda:
            return cast(Tensor, into.copy_(value))
        value, device = value.clone(), value.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side = self._streams[device]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            into.copy_(value, non_blocking=True)
        value.record_stream(side)
        return cast(Tensor, into)


class Saver:
    """Writes checkpoints of states into a folder, in the order of their steps.

    Used as `with Saver(...) as saver:`; the end of the block waits for what is being written.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._lock = threading.Lock()
        self._waiting: dict[bool, Snapshot] = {}  # by whether it is the best yet
        self._spare: list[Snapshot] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, Exception):  # whoever presses Ctrl-C twice waits not
            self._join()

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Copy the state, which has a "step", and return; it is written meanwhile.

        One that still waits gives way to it.
        """
        with self._lock:
            unused = self._waiting.pop(best, None) or (self._spare.pop() if self._spare else None)
        snapshot = (unused or Snapshot()).take(state)
        with self._lock:
            self._waiting[best] = snapshot
        self._start()

    def error(self) -> UserError | None:
        """Why the last write failed, told once; what was to be written waits for the next `save`.

        What is no fault of the user's or the disk's is raised.
        """
        with self._lock:
            error, self._error = self._error, None
        if error is None or isinstance(error, UserError):
            return error
        raise error

    def finish(self) -> None:
        """Write all that waits, and return when it is on the disk. Raises UserError if it fails."""
        self._join()
        self.error()
        if self._waiting:
            self._start()
            self._join()
        error = self.error()
        if error is not None:
            raise error

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                # A daemon: a disk that hangs does not keep the process from leaving.
                self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
                self._thread.start()

    def _join(self) -> None:
        thread = self._thread
        # A signal that comes just before a wait without end would not be noticed until its end.
        while thread is not None and thread.is_alive():
            thread.join(0.2)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            best, snapshot = job
            try:
                state, step = snapshot.state(), snapshot.step
                checkpoint.save(self.folder, step, state, keep=self.keep, best=best)
            except BaseException as error:
                with self._lock:
                    self._waiting.setdefault(best, snapshot)
                    self._error, self._thread = error, None
                return
            with self._lock:
                self._spare.append(snapshot)

    def _next(self) -> tuple[bool, Snapshot] | None:
        with self._lock:
            if not self._waiting:
                self._thread = None
                return None
            best = min(self._waiting, key=lambda kind: (self._waiting[kind].step, not kind))
            return best, self._waiting.pop(best)


class SilentSaver(Saver):
    """Writes nothing: for ranks whose state another one saves."""

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        pass
