"""What a training tells: log.jsonl and TensorBoard always, and a line or a live display.

Each line of log.jsonl is one JSON object with an "event"; floats are finite or null. The display
is a live panel on a terminal and plain lines elsewhere.
"""

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import alexnet
from alexnet.files import explain_os_error, write_text

PLAIN_LINE_SECONDS = 10.0


class RunLog:
    """Appends events to RUN/log.jsonl and numbers to RUN/tensorboard.

    What cannot be written is told once through `warn`, kept, and tried again with the next event;
    TensorBoard, which log.jsonl can replace, is given up.
    """

    def __init__(
        self, run: Path, *, step: int = 0, owes: bool = False, warn: Callable[[str], None]
    ) -> None:
        """Events of work that will be done again are dropped first.

        That is all after `step`; of this step, what was found "ahead" of the next, the evaluations
        at the end if it ended there, and every evaluation if the training `owes` it.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.warn = run / "log.jsonl", warn
        kept = [event for event in read_log(self.path) if not _is_redone(event, step, owes)]
        write_text(self.path, "".join(_line(event) for event in kept))
        self.file = self.path.open("ab", buffering=0)
        self.unwritten = b""
        self.warned = False
        folder = run / "tensorboard"
        try:
            self.board: SummaryWriter | None = SummaryWriter(str(folder), purge_step=step + 1)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        self.hook, threading.excepthook = threading.excepthook, self._hear

    def write(self, event: str, step: int, **values: Any) -> None:
        self.unwritten += _line({"event": event, "step": step, **values}).encode()
        error = self._write_on()
        if error is not None and not self.warned:
            self.warn(f"{explain_os_error(error, self.path)}; its lines are kept until they can be")
        self.warned = error is not None
        for name, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and event in ("step", "evaluation"):
                views = f"_{values['views']}" if event == "evaluation" else ""
                self._draw(f"{event}{views}/{name}", value, step)

    def _write_on(self) -> OSError | None:
        """Write what is left, from where the disk was full; the error that it ended with."""
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[self.file.write(self.unwritten) :]
        except OSError as error:
            return error
        return None

    def _draw(self, name: str, value: float, step: int) -> None:
        try:
            if self.board is not None:
                self.board.add_scalar(name, value, step)
        except OSError as error:
            self.board = None
            self.warn(f"TensorBoard's files cannot be written ({error}); log.jsonl has all of it")

    def _hear(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread dies with a traceback of what its next call raises once more."""
        is_its = type(failed.thread).__module__.startswith("tensorboard")
        if not (is_its and isinstance(failed.exc_value, OSError)):
            self.hook(failed)

    def close(self) -> None:
        """Raises UserError when there are lines that could not be written."""
        error = self._write_on()
        self.file.close()
        if self.board is not None:
            with contextlib.suppress(OSError):
                self.board.close()
        threading.excepthook = self.hook
        if error is not None:
            raise explain_os_error(error, self.path) from error


class SilentLog(RunLog):
    """Writes nothing: for ranks for which another one writes."""

    def __init__(self, run: Path, **_: Any) -> None:
        pass

    def write(self, event: str, step: int, **values: Any) -> None:
        pass

    def close(self) -> None:
        pass


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _is_redone(event: dict[str, Any], step: int, owes: bool) -> bool:
    at = event.get("step", 0)
    if at != step:
        return bool(at > step)
    is_owed = owes and event.get("event") == "evaluation"
    return is_owed or "final" in event or "ahead" in event


def _line(event: dict[str, Any]) -> str:
    return json.dumps(_finite(event), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with null for each number that JSON does not have, however deep."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Display:
    """Progress on the screen: `with Display(total_steps, title) as display: display.show(...)`."""

    def __init__(self, total_steps: int, title: str, *, console: Console) -> None:
        self.console, self.total_steps, self.title = console, total_steps, title
        self.live = console.is_terminal
        self.last_line = -math.inf
        self.began, self.first_step = time.monotonic(), 0
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not self.live,
        )

    def __enter__(self) -> "Display":
        self.progress.start()
        self.task = self.progress.add_task(self.title, total=self.total_steps, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def show(self, step: int, note: str) -> None:
        """Progress to `step`; elsewhere than on a terminal a plain line every ten seconds."""
        if self.live:
            self.progress.update(self.task, completed=step, note=note)
            return
        now = time.monotonic()
        if now - self.last_line >= PLAIN_LINE_SECONDS or step == self.total_steps:
            self.last_line = now
            done = step - self.first_step
            left = (now - self.began) / done * (self.total_steps - step) if done else 0.0
            self.say(f"step {step}/{self.total_steps}  {note}  {duration(left)} left")

    def start_at(self, step: int) -> None:
        self.began, self.first_step = time.monotonic(), step
        self.progress.update(self.task, completed=step)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as 45 s, 12 min 30 s or 5 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and hardware of this process, for environment.json."""
    import numpy
    import PIL
    import torchvision

    is_cuda = device.type == "cuda"
    return {
        "alexnet": alexnet.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": os.environ.get("ALEXNET_KERNELS") or "auto",
        "command": ["alexnet", *sys.argv[1:]],
        "folder": os.getcwd(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the source checkout, with "+" when it is changed; "" when there is none."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
