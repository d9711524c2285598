"""How fast norms and pools are, beside the same chains in stock operators (Sections 3.3 and 3.4).

`bench_norm` lets the rivals take turns on the same maps, in one process on one machine, and
measures one copy of the maps per turn as well: what is moved at least, and the speed of that copy,
give the share of the memory's rate that a rival reaches. Peak memory is that of a process of its
own, above what its inputs take.

Not here: the speed of a training step.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet import fused
from alexnet.errors import UserError, suggest
from alexnet.fused import Chain
from alexnet.log import environment
from alexnet.networks import NETWORKS, Conv, ResponseNorm, SpatialNorm, Step

SLOW_SECONDS = 0.5  # a rival that takes longer gets SLOW_ROUNDS turns
SLOW_ROUNDS = 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Say = Callable[[str], None]
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """What follows a convolution of a network, and the maps that it is given."""

    steps: tuple[Step, ...]
    maps: int
    side_px: int


def _stage(network: str, layer_name: str, side_px: int) -> Stage:
    layer = NETWORKS[network].layer(layer_name)
    assert isinstance(layer, Conv)
    return Stage(layer.then, layer.maps, side_px)


STAGES = {
    "paper-1": _stage("paper", "conv1", 55),
    "paper-2": _stage("paper", "conv2", 27),
    "source-1": _stage("source", "conv1", 55),
    "source-2": _stage("source", "conv2", 27),
}


# --- The rivals: each makes the function of one stage ---------------------------------------------


def _ours(kernels: fused.Kernels, stage: Stage) -> Run:
    def run(x: Tensor) -> Tensor:
        for part in fused.split(stage.steps):
            x = fused.apply(part, x, 2, kernels) if isinstance(part, Chain) else F.relu(x)
        return x

    return run


def _stock(norm: Callable[[Tensor, ResponseNorm], Tensor], stage: Stage) -> Run:
    """Stock operators, the norm over all maps as one column: nobody's cuts it in two."""

    def run(x: Tensor) -> Tensor:
        for step in stage.steps:
            if step == "relu":
                x = F.relu(x)
            elif isinstance(step, ResponseNorm):
                x = norm(x, step)
            elif isinstance(step, SpatialNorm):
                squares = F.avg_pool2d(x * x, step.size, 1, step.size // 2, divisor_override=1)
                x = x * (step.k + step.alpha * squares) ** -step.beta
            else:
                x = F.max_pool2d(x, 3, 2)
        return x

    return run


def _local_response_norm(x: Tensor, norm: ResponseNorm) -> Tensor:
    """PyTorch's: alpha over the size. It has no bf16 kernel on a CPU: autocast runs it in fp32."""
    settings = (norm.size, norm.alpha * norm.size, norm.beta, norm.k)
    if x.device.type == "cpu":
        return F.local_response_norm(x.float(), *settings).to(x.dtype)
    return F.local_response_norm(x, *settings)


def _window_sum(x: Tensor, norm: ResponseNorm) -> Tensor:
    """Shifted slices, which Inductor fuses into one loop."""
    squares = F.pad(x * x, (0, 0, 0, 0, norm.size // 2, norm.size // 2))
    maps = x.shape[1]
    total = sum((squares[:, i : i + maps] for i in range(1, norm.size)), squares[:, :maps])
    return x * (norm.k + norm.alpha * total) ** -norm.beta


def _compiled(make: Callable[[Stage], Run], stage: Stage) -> Run:
    return torch.compile(make(stage), dynamic=False)


RIVALS: dict[str, Callable[[Stage], Run]] = {
    "fused": partial(_ours, "fused"),
    "plain": partial(_ours, "plain"),
    "stock": partial(_stock, _local_response_norm),
    "stock-compiled": partial(_compiled, partial(_stock, _local_response_norm)),
    "window-sum-compiled": partial(_compiled, partial(_stock, _window_sum)),
}


# --- Measuring ------------------------------------------------------------------------------------


def bench_norm(
    *,
    stages: tuple[str, ...] = tuple(STAGES),
    rivals: tuple[str, ...] = tuple(RIVALS),
    precisions: tuple[str, ...] = tuple(DTYPES),
    batch_size: int = 128,
    rounds: int = 9,
    device: str = "cpu",
    memory: bool = True,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Seconds forward and backward of each rival on each stage, and what the memory allows.

    Returns {"rows": [one per stage, precision and rival], ...}; times are medians with the least
    and the most, `peak_bytes` (Linux) is None where its process failed. Raises UserError for an
    unknown name.
    """
    for names, known in ((stages, STAGES), (rivals, RIVALS), (precisions, DTYPES)):
        for name in names:
            if name not in known:
                raise UserError(f"no {name!r} to measure{suggest(name, known)}")
    rows = []
    for name in stages:
        for precision in precisions:
            found = _measure(STAGES[name], precision, rivals, batch_size, rounds, device)
            for rival, row in found.items():
                peak = _peak(name, rival, precision, batch_size) if memory else None
                rows.append({"stage": name, "precision": precision, "rival": rival, **row})
                rows[-1]["peak_bytes"] = peak
                say(
                    f"{name} {precision} {rival}: {1e3 * row['both']['median']:.1f} ms, "
                    f"{row['gb_per_s']:.1f} GB/s, {row['copy_share']:.0%} of a copy's rate"
                )
    return {
        "rows": rows,
        "batch_size": batch_size,
        "rounds": rounds,
        "environment": environment(torch.device(device)),
    }


def _measure(
    stage: Stage, precision: str, rivals: tuple[str, ...], batch: int, rounds: int, device: str
) -> dict[str, dict[str, Any]]:
    x, dy, moved = _inputs(stage, precision, batch, device)
    target = torch.empty_like(x)
    runs = {name: RIVALS[name](stage) for name in rivals}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    copies = []
    for run in runs.values():  # compile, and lay out the memory
        _turn(run, x, dy)
    for number in range(rounds):
        for name, run in runs.items():
            if number < SLOW_ROUNDS or sum(map(sum, seconds[name])) < SLOW_SECONDS * number:
                seconds[name].append(_turn(run, x, dy))
        copies.append(_timed(lambda: target.copy_(x))[0])
    rate = 2 * x.nbytes / statistics.median(copies)
    rows = {}
    for name, turns in seconds.items():
        forward, backward = (list(part) for part in zip(*turns, strict=True))
        both = [sum(turn) for turn in turns]
        row: dict[str, Any] = {"forward": _summary(forward), "backward": _summary(backward)}
        row["both"] = _summary(both)
        row["gb_per_s"] = moved / row["both"]["median"] / 1e9
        row["copy_share"] = row["gb_per_s"] * 1e9 / rate
        rows[name] = row | {"moved_bytes": moved, "copy_gb_per_s": rate / 1e9}
    return rows


def _inputs(stage: Stage, precision: str, batch: int, device: str) -> tuple[Tensor, Tensor, int]:
    """x, dy, and the bytes to read and write if each is touched once: x twice, dx, y, dy and a
    byte per window twice."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, stage.maps, stage.side_px, stage.side_px)
    x = 20 * torch.randn(shape, generator=generator)
    x = x.to(device, DTYPES[precision]).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.no_grad():
        y = F.max_pool2d(x, 3, 2)
    dy = torch.randn_like(y)
    return x, dy, 3 * x.nbytes + 2 * y.nbytes + 2 * y.numel()


def _turn(run: Run, x: Tensor, dy: Tensor) -> tuple[float, float]:
    forward, y = _timed(lambda: run(x))
    backward, _ = _timed(lambda: torch.autograd.grad(y, x, dy))
    return forward, backward


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    _wait()
    began = time.perf_counter()
    result = work()
    _wait()
    return time.perf_counter() - began, result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summary(seconds: list[float]) -> dict[str, float]:
    median = statistics.median(seconds)
    return {"median": median, "least": min(seconds), "most": max(seconds), "turns": len(seconds)}


def _peak(stage: str, rival: str, precision: str, batch: int) -> int | None:
    """Bytes that a process needs at most for one turn, above its inputs; None: it failed."""
    command = [sys.executable, "-m", "alexnet.bench_norm", stage, rival, precision, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True)
    return int(json.loads(done.stdout)) if done.returncode == 0 else None


def _print_peak(stage: str, rival: str, precision: str, batch: str) -> None:
    run = RIVALS[rival](STAGES[stage])
    small = _inputs(STAGES[stage], precision, 1, "cpu")
    _turn(run, *small[:2])  # code is loaded, and compiled
    x, dy, _ = _inputs(STAGES[stage], precision, int(batch), "cpu")
    before = resident_bytes()
    _turn(run, x, dy)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before))


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    _print_peak(*sys.argv[1:])
