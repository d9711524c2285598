"""How fast several devices train, predicted from one device's speed and a link, and checked.

`measure` finds out what the prediction needs on this machine: the step of a device whose
neighbours work, too, and each kind of exchange between as many processes; then it trains with
every plan and puts what it took beside what `scaling.py` says. `foresee` predicts for devices and
links that are not here. Processes are started by torchrun, as a training's are.

Not here: the prediction (`scaling.py`), what runs in the processes (`scaling_ranks.py`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from alexnet.errors import UserError
from alexnet.networks import find_network
from alexnet.parallel import Plan
from alexnet.scaling import Link, Links, Prediction, Speed, devices_of, plans, predict_step
from alexnet.workers import available_cores

# Bytes that a rank receives in the exchanges that are timed: a minibatch's activations and a
# column's gradients lie between them.
LINK_SIZES = (65_536, 1_048_576, 16_777_216, 67_108_864)
LINK_ROUNDS = 7

Say = Callable[[str], None]


def foresee(
    network: str,
    devices: Sequence[int],
    batch_size: int,
    speed: Speed,
    link: Link,
    *,
    strict: bool = True,
    activation_bytes: int = 2,
    overlap: float = 1.0,
) -> list[Prediction]:
    """Every plan on each number of devices. `strict`: the batch is that of all devices together;
    else each brings `batch_size` images.

    Raises UserError for a network that is not there or a batch that cannot be shared.
    """
    described = find_network(network)
    return [
        predict_step(
            described,
            plan,
            batch_size if strict else batch_size * count,
            speed,
            Links.alike(link),
            activation_bytes=activation_bytes,
            overlap=overlap,
        )
        for count in devices
        for plan in plans(described, count)
    ]


def measure(
    network: str,
    devices: Sequence[int],
    batch_size: int,
    *,
    precision: str = "fp32",
    steps: int = 5,
    num_classes: int = 1000,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Predict and measure each plan on this machine's processors, one thread to a device.

    Raises UserError for a network or batch that cannot be shared, or a process that fails.
    """
    described = find_network(network)
    common = {"network": network, "num_classes": num_classes, "precision": precision}
    common |= {"steps": steps, "threads": 1}
    found: dict[str, Any] = {
        **common,
        "batch_size": batch_size,
        "cores": available_cores(),
        "alone": {},
        "links": {},
        "plans": [],
    }
    for count in devices:
        share = max(2, batch_size // count)
        sizes = [share // 2, share]
        say(f"{count} devices: a step of {sizes[0]} and {sizes[1]} images on each, by itself")
        ranks = run_ranks(count, {**common, "task": "alone", "batch_sizes": sizes})
        speed = fit_speed(ranks)
        links = Links.alike(Link(0.0, float("inf")))
        if count > 1:
            say(f"{count} devices: exchanges of {LINK_SIZES[0]:,} to {LINK_SIZES[-1]:,} bytes")
            task = {**common, "task": "link", "sizes": LINK_SIZES, "rounds": LINK_ROUNDS}
            links = fit_links(run_ranks(count, task), count)
            found["links"][str(count)] = asdict(links)
        found["alone"][str(count)] = asdict(speed)
        for plan in plans(described, count):
            say(f"{count} devices: {plan}")
            found["plans"].append(_check(plan, batch_size, common, speed, links))
    return found


def _check(
    plan: Plan, batch_size: int, common: Mapping[str, Any], speed: Speed, links: Links
) -> dict[str, Any]:
    """One plan's prediction beside what it takes."""
    bytes_each = 2 if common["precision"] == "bf16" else 4
    predicted = predict_step(
        common["network"],
        plan,
        batch_size,
        speed,
        links,
        num_classes=common["num_classes"],
        activation_bytes=bytes_each,
    )
    way = str(plan) if devices_of(plan) > 1 else None
    task = {**common, "task": "step", "batch_size": batch_size, "parallel": way}
    ranks = run_ranks(devices_of(plan), task)
    slowest = [max(seconds) for seconds in zip(*(rank["seconds"] for rank in ranks), strict=True)]
    rates = sorted(batch_size / seconds for seconds in slowest)
    return {
        **predicted.as_json(),
        "measured_images_per_second": batch_size / median(slowest),
        "measured_spread": [rates[0], rates[-1]],
        "measured_sent_bytes": max(rank["sent_bytes"] for rank in ranks),
    }


def fit_speed(ranks: Sequence[Mapping[str, float]]) -> Speed:
    """Seconds per step and per image of the slowest process, from steps of two sizes."""
    small, large = sorted(int(size) for size in ranks[0])
    took = {size: max(rank[str(size)] for rank in ranks) for size in (small, large)}
    per_image = (took[large] - took[small]) / (large - small)
    if per_image <= 0:  # too noisy to tell the two apart: no part of it is fixed
        return Speed(0.0, took[large] / large)
    return Speed(max(0.0, took[small] - small * per_image), per_image)


def fit_links(ranks: Sequence[Mapping[str, Mapping[str, float]]], devices: int) -> Links:
    """Latency and bandwidth of each kind of exchange, of the slowest process.

    A `size` is that of the whole tensor: of a gather and its way back a rank receives all but its
    own part, of a sum twice as much.
    """
    links = {}
    for kind in ("gather", "return_sum", "sum"):
        times = 2 if kind == "sum" else 1
        sizes = sorted(int(size) for size in ranks[0][kind])
        received = [times * size * (devices - 1) / devices for size in sizes]
        seconds = [max(rank[kind][str(size)] for rank in ranks) for size in sizes]
        links[kind] = fit_link(received, seconds, times * (devices - 1))
    return Links(**links)


def fit_link(received: Sequence[float], seconds: Sequence[float], messages: int) -> Link:
    """The line through what exchanges of several sizes took, each weighed by its own seconds."""
    weights = 1 / np.asarray(seconds)
    columns = np.stack([np.full(len(received), float(messages)), np.asarray(received)], 1)
    solved = np.linalg.lstsq(columns * weights[:, None], np.ones(len(received)), rcond=None)[0]
    latency, per_byte = float(solved[0]), float(solved[1])
    if per_byte <= 0:
        per_byte = seconds[-1] / received[-1]
    return Link(max(0.0, latency), 1 / per_byte)


def run_ranks(count: int, task: Mapping[str, Any]) -> list[Any]:
    """Start so many processes on a task of `scaling_ranks`, and return what each found.

    Raises UserError with the processes' last line where one fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", "alexnet.scaling_ranks", json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task["threads"])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("alexnet: ")]
        lines = said or done.stderr.strip().splitlines() or ["no word"]
        raise UserError(f"{count} processes failed: {lines[0].removeprefix('alexnet: ')}")
    answer: list[Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
