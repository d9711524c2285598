"""Everything to measure on one GPU, in ten minutes: correctness first, then the goals G1 to G8.

    python benchmarks/gpu.py --out records/DATE_gpu          (--quick: a minute)

Writes gpu.json after each part, so that what is done is kept when the machine goes back. Each
figure stands beside its goal and the floor. It has not run yet: no GPU was at hand.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet import build
from alexnet.augment import Preprocessing
from alexnet.bench_step import (
    STEP_PEERS,
    bench,
    forward_flop,
    peak_flops,
    random_batch,
    random_dataset,
    training_flop,
)
from alexnet.config import diff
from alexnet.evaluate import evaluator
from alexnet.predictions import mean_over_views
from alexnet.recipes import find_recipe
from alexnet.step import network_input, start, train_step
from alexnet.turns import machine

TRAIN_IMAGES, EPOCHS = 1_281_167, 90

# goal in images per second
GOALS = {
    "G1 bf16, batch 128": 50_000,
    "G2 bf16, batch 1024": 75_000,
    "G8 fp32, batch 128": 8_000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steady-seconds", type=float, default=300.0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device")
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine()}
    parts: dict[str, Callable[[], Any]] = {
        "tests": gpu_tests,
        "gradients": gradients_against_float64,
        "bandwidth": copy_bandwidth,
        "products": lambda: {name: peak_flops("cuda", name) for name in ("fp32", "bf16")},
        "steps": lambda: rates(quick=args.quick),
        "peers": lambda: bench(
            "step",
            device="cuda",
            rounds=2 if args.quick else 5,
            repeats=10 if args.quick else 40,
            peers=[name for name in STEP_PEERS if "keras" not in name],
            say=print,
        ),
        "ten views": ten_views,
        "steady": lambda: steady(20.0 if args.quick else args.steady_seconds),
    }
    for name, part in parts.items():
        began = time.perf_counter()
        try:
            found[name] = part()
        except Exception as error:
            found[name] = {"failed": repr(error)}
        print(f"{name}: {time.perf_counter() - began:.0f} s: {found[name]}", flush=True)
        (args.out / "gpu.json").write_text(json.dumps(found, indent=1))
        if name == "gradients" and not found[name].get("right", False):
            sys.exit("gradients are wrong on this GPU: nothing else is measured")


def gpu_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return {"passed": done.returncode == 0, "said": done.stdout[-500:]}


def gradients_against_float64() -> dict[str, Any]:
    """Relative errors of loss gradients, fresh random pictures, against float64 on the CPU."""
    seed = int(time.time())
    generator = torch.Generator().manual_seed(seed)
    images = 60 * torch.randn(4, 3, 224, 224, generator=generator)
    labels = torch.randint(1000, (4,), generator=generator)
    worst: dict[str, float] = {}
    for name in ("paper", "source"):
        model = build(name, 1000, torch.Generator().manual_seed(seed)).eval()
        exact = _gradients(model.double(), images.double(), labels)
        device = torch.device("cuda")
        model = model.float().to(device).to(memory_format=torch.channels_last)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        found = _gradients(model, images.to(device), labels.to(device))
        worst[f"{name} fp32"] = _distance(found, exact)
        with torch.autocast("cuda", torch.bfloat16):
            found = _gradients(model, images.to(device), labels.to(device))
        worst[f"{name} bf16"] = _distance(found, exact)
    right = all(error < (1e-3 if "fp32" in name else 0.1) for name, error in worst.items())
    return {"seed": seed, "errors": worst, "right": right}


def _gradients(model: torch.nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    out = model(images)
    loss = F.cross_entropy(out if out.dtype == torch.float64 else out.float(), labels)
    return [grad.double().cpu() for grad in torch.autograd.grad(loss, list(model.parameters()))]


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


def copy_bandwidth() -> dict[str, float]:
    """Bytes per second: on the device (read and written), and from pinned host memory."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    pinned = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    landed = torch.empty_like(pinned, device="cuda")
    device = _seconds(lambda: target.copy_(source), 20)
    host = _seconds(lambda: landed.copy_(pinned, non_blocking=True), 10)
    return {"device": 2 * source.nbytes / device, "host to device": pinned.nbytes / host}


def _seconds(work: Callable[[], Any], count: int) -> float:
    work()
    times = []
    for _ in range(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def rates(*, quick: bool) -> dict[str, Any]:
    """Images per second of whole steps from uint8 on the device, augmentation included."""
    warm, timed = (10, 30) if quick else (50, 200)
    found: dict[str, Any] = {}
    for name, goal in GOALS.items():
        precision, batch_size = name.split()[1].strip(","), int(name.split()[-1])
        for graph in ("auto", "off"):
            step = _step(precision, batch_size, graph)
            for _ in range(warm):
                step()
            seconds = _seconds(step, timed)
            rate = batch_size / seconds
            found[f"{name}, graph {graph}"] = {
                "images_per_second": rate,
                "goal": goal,
                "teraflops": rate * training_flop("paper") / 1e12,
                "minutes_of_90_epochs": TRAIN_IMAGES * EPOCHS / rate / 60,
                "peak_bytes": torch.cuda.max_memory_allocated(),
            }
            print(name, graph, found[f"{name}, graph {graph}"], flush=True)
    return found


def _step(precision: str, batch_size: int, graph: str) -> Callable[[], Tensor]:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 0
    recipe = diff(
        find_recipe("paper-2012"),
        optimizer={"batch_size": batch_size},
        system={"precision": precision, "device": "cuda", "graph": graph},
    )
    training = start(recipe, random_dataset())
    training.model.train()
    batch = random_batch(batch_size, recipe.augment.crop_px).to(training.device)
    return lambda: train_step(training, *network_input(training, batch))


def ten_views() -> dict[str, float]:
    """Seconds for 50,000 pictures, by 2,000 of them from host memory. Goal: 4 s; floor 0.92 s."""
    dataset = random_dataset()
    split = dataset.splits["train"]
    repeated = 2000 // len(split)
    model = build("paper").eval()
    device = torch.device("cuda")
    known = Preprocessing(torch.from_numpy(dataset.statistics.mean_image), 224)
    logits_of = evaluator(model, device, "bf16")

    def work() -> None:
        for _ in range(repeated):
            mean_over_views(logits_of, split, known, views=10, batch_size=5 * 320, device=device)

    work()
    began = time.perf_counter()
    work()
    seconds = (time.perf_counter() - began) / (repeated * len(split)) * 50_000
    return {"seconds": seconds, "goal": 4.0, "floor": 50_000 * 10 * forward_flop("paper") / 790e12}


def steady(seconds: float) -> dict[str, float]:
    """The rate of many steps on end with uint8 copied from pinned memory each time (G3)."""
    step_of = _host_step("bf16", 128)
    for _ in range(50):
        step_of()
    torch.cuda.synchronize()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(100):
            step_of()
        torch.cuda.synchronize()
        steps += 100
    rate = 128 * steps / (time.perf_counter() - began)
    minutes = TRAIN_IMAGES * EPOCHS / rate / 60
    return {"images_per_second": rate, "minutes_of_90_epochs": minutes, "seconds": seconds}


def _host_step(precision: str, batch_size: int) -> Callable[[], Tensor]:
    recipe = diff(
        find_recipe("paper-2012"),
        optimizer={"batch_size": batch_size},
        system={"precision": precision, "device": "cuda"},
    )
    training = start(recipe, random_dataset())
    training.model.train()
    batch = random_batch(batch_size, recipe.augment.crop_px)
    crops = batch.crops.pin_memory()
    side = torch.cuda.Stream()
    landed = [batch.to(training.device) for _ in range(2)]
    turn = 0

    def step() -> Tensor:
        nonlocal turn
        now, later = landed[turn % 2], landed[(turn + 1) % 2]
        turn += 1
        torch.cuda.current_stream().wait_stream(side)
        loss = train_step(training, *network_input(training, now))
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            later.crops.copy_(crops, non_blocking=True)
        return loss

    return step


if __name__ == "__main__":
    main()
