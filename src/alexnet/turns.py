"""Rivals that take turns: each in a process of its own, all in one run on one machine.

A child prepares, says so in a line of JSON, and then does one piece of work for each line on its
input, answering with what that took: `serve` is the child's side, `measure` the parent's. So every
rival meets the same moods of the machine, and none the caches or the memory of another.

Not here: what is measured (`bench_step.py`; of loaders: `bench.py`).
"""

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from alexnet.log import commit, cpu_name
from alexnet.workers import available_cores

SECONDS_TO_END = 10
SECONDS_BETWEEN_TURNS = 0.5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rival:
    """A command that serves turns; a `slow` one has single pieces of work, in two rounds alone."""

    command: tuple[str, ...]
    slow: bool = False
    environment: tuple[tuple[str, str], ...] = ()


def serve(prepare: Callable[[], tuple[Callable[[], float], Mapping[str, Any]]]) -> None:
    """Be a child: `prepare` gives the work, which returns a loss or so, and what to say of it.

    The first piece of work is done before the child says that it is ready; its time, with that of
    preparing, is "first_seconds".
    """
    began = time.perf_counter()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print is no answer
    work, said = prepare()
    first = work()
    ready = {"first_seconds": time.perf_counter() - began, "first": first, **said}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        seconds, values = [], []
        for _ in range(int(line)):
            began = time.perf_counter()
            values.append(work())
            seconds.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"seconds": seconds, "values": values, "peak_bytes": peak}
        print(json.dumps(answer), file=answers, flush=True)


def measure(
    rivals: Mapping[str, Rival], *, rounds: int, repeats: int, images: int, say: Say
) -> dict[str, Any]:
    """Let the rivals take turns of `repeats` pieces of work of so many images.

    Returns {"rows": {name: images per second and more}, "missing": {name: why}}.
    """
    rows: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        children: dict[str, subprocess.Popen[str]] = {}
        for name, rival in rivals.items():
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            say(f"starting {name}")
            child = stack.enter_context(running(rival.command, dict(rival.environment), errors))
            try:
                rows[name] = {**answer_of(child), "seconds": [], "values": []}
            except EOFError:
                missing[name] = last_line(errors)
                say(f"{name} cannot be measured: {missing[name]}")
            else:
                children[name] = child
        for number in range(rounds):
            for name, child in children.items():
                if name in missing or (rivals[name].slow and number >= 2):
                    continue
                time.sleep(SECONDS_BETWEEN_TURNS)
                try:
                    answer = _ask(child, 1 if rivals[name].slow else repeats)
                except (EOFError, BrokenPipeError):
                    missing[name] = "its process ended while it was measured"
                    del rows[name]
                    continue
                row = rows[name]
                row["seconds"] += answer["seconds"]
                row["values"] += answer["values"]
                row["peak_bytes"] = answer["peak_bytes"]
                rate = images / statistics.median(answer["seconds"])
                say(f"round {number + 1}/{rounds}: {name} {rate:,.1f} images/s")
    return {"rows": {name: _summed(row, images) for name, row in rows.items()}, "missing": missing}


def _summed(row: dict[str, Any], images: int) -> dict[str, Any]:
    seconds = row["seconds"]
    return {
        "images_per_second": images / statistics.median(seconds),
        "slowest": images / max(seconds),
        "fastest": images / min(seconds),
        **row,
    }


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], errors: IO[str]
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its input does, or is killed; `environment` is added to ours."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(timeout=SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()


def _ask(child: subprocess.Popen[str], repeats: int) -> dict[str, Any]:
    assert child.stdin is not None
    print(repeats, file=child.stdin, flush=True)
    return answer_of(child)


def answer_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of JSON; raises EOFError when the process has ended instead."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    return answer


def last_line(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def machine() -> dict[str, Any]:
    """What a figure depends on: the machine, the versions, the commit."""
    build = torch.__config__.show()
    onednn = [part for part in build.splitlines() if "MKL-DNN" in part or "oneDNN" in part]
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onednn": onednn[0].strip(" -") if onednn else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
        "commit": commit(),
    }


def script(folder: Path, name: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs a script of the repository with this Python."""
    return (sys.executable, str(folder / name), *arguments)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs a module of this package with this Python."""
    return (sys.executable, "-m", name, *arguments)


def table_rows(rows: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> list[list[Any]]:
    """Name and values of each row, fastest first."""
    order = sorted(rows, key=lambda name: -rows[name]["images_per_second"])
    return [[name, *(rows[name].get(key) for key in keys)] for name in order]
