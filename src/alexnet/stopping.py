"""Being asked to stop: by a person at the keyboard, a scheduler, or a machine that shuts down.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (what SLURM sends ahead of its time limit) ask a training to
save and leave. Not here: what is saved (`saving.py`), and when (`train.py`).
"""

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# EX_TEMPFAIL of sysexits.h: stopped as asked, all saved, the same run can go on. Not 128 + signal,
# with which a shell reports a process that died of the signal and saved nothing.
EXIT_STOPPED = 75

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)

# Ctrl-C reaches a process under torchrun twice, from the terminal and from torchrun: what comes so
# soon after the first is the same wish. Later, somebody does not want to wait any more.
SAME_WISH_SECONDS = 2.0


class Interrupted(Exception):
    """Training was asked to stop by a signal; everything is saved. `number` is the signal's.

    ranks, parallel: how many there are, and what for.
    """

    def __init__(self, number: int, run: Path, ranks: int = 1, parallel: str = "") -> None:
        super().__init__(f"stopped and saved; go on with: {resume_command(run, ranks, parallel)}")
        self.number = number


def resume_command(run: Path, ranks: int = 1, parallel: str = "") -> str:
    command = ["alexnet", "train", "--resume", "--run", str(run)]
    if ranks > 1:
        launcher = ["torchrun", "--nproc-per-node", str(ranks), "-m", "--"]
        command = [*launcher, *command, "--parallel", parallel]
    return shlex.join(command)


@contextmanager
def on_stop_signal(handle: Callable[[int], None]) -> Iterator[None]:
    """Hand the first signal over; a later SIGINT or SIGTERM does what it would have done without.

    A repeated SIGUSR1 never does: what sends it knows no impatience.
    """
    previous: dict[int, Any] = {}
    first: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            handle(number)
        elif number in (signal.SIGINT, signal.SIGTERM) and (
            time.monotonic() - first[0] > SAME_WISH_SECONDS
        ):
            signal.signal(number, previous[number])
            os.kill(os.getpid(), number)

    for kind in SIGNALS:
        previous[kind] = signal.signal(kind, note)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
