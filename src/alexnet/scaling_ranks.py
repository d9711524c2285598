"""What `bench_scaling.py` measures in several processes; torchrun starts them, rank 0 prints.

    torchrun --nproc-per-node 2 -m alexnet.scaling_ranks '{"task": "step", "parallel": "columns=2"}'

Tasks: "step" trains on random pictures as the plan says; "alone" lets every process train a whole
network by itself, all at the same time, which is what one device's arithmetic takes beside its
neighbours'; "link" times the exchanges themselves.

Not here: what is made of the figures (`scaling.py`).
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from alexnet.collectives import Group
from alexnet.columns import PartAlexNet, cut
from alexnet.hybrid import Hybrid, cut_hybrid
from alexnet.model import build
from alexnet.optim import PaperSGD, parameter_groups
from alexnet.parallel import ALONE, Ranks, joined, parse, world_size
from alexnet.replicas import Replicas

SECONDS_LIMIT = 120.0
WARM_UP = 2


def main() -> None:
    """Do the task that the first argument describes as JSON."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(int(task.get("threads", 1)))
    plan = parse(task.get("parallel"), world_size())
    with joined(plan, seconds=SECONDS_LIMIT) as ranks:
        found = TASKS[task["task"]](ranks, task)
        everyone = ranks.everyone.objects(found, "figures")
        if ranks.speaks:
            print(json.dumps(everyone), flush=True)


def step(ranks: Ranks, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each step, and the bytes that this rank sent in one."""
    take = _step(ranks, task, int(task["batch_size"]))
    seconds = []
    for number in range(WARM_UP + int(task["steps"])):
        if number == WARM_UP:
            ranks.journal.sent.clear()
        ranks.everyone.wait("before a step")
        began = time.perf_counter()
        take()
        seconds.append(time.perf_counter() - began)
    sent = {k: v for k, v in ranks.journal.sent.items() if k != "before a step"}
    return {
        "seconds": seconds[WARM_UP:],
        "sent_bytes": sum(sent.values()) / int(task["steps"]),
    }


def alone(ranks: Ranks, task: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a step by batch size, of a whole network, all processes at once."""
    found = {}
    for batch_size in task["batch_sizes"]:
        take = _step(ALONE, task, batch_size)
        seconds = []
        for _ in range(WARM_UP + int(task["steps"])):
            ranks.everyone.wait("before a step")
            began = time.perf_counter()
            take()
            seconds.append(time.perf_counter() - began)
        found[str(batch_size)] = median(seconds[WARM_UP:])
    return found


def link(ranks: Ranks, task: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of an exchange by kind and bytes that a rank receives."""
    group = ranks.everyone
    found: dict[str, dict[str, float]] = {}
    for size in task["sizes"]:
        for kind, exchange in _exchanges(group, int(size)).items():
            seconds = []
            for _ in range(WARM_UP + int(task["rounds"])):
                group.wait("before an exchange")
                began = time.perf_counter()
                exchange()
                seconds.append(time.perf_counter() - began)
            found.setdefault(kind, {})[str(size)] = median(seconds[WARM_UP:])
    return found


def _exchanges(group: Group, size_bytes: int) -> dict[str, Callable[[], Tensor]]:
    whole = torch.zeros(size_bytes // 4)
    sizes = group.sizes(len(whole))
    own = torch.zeros(sizes[group.rank])
    return {
        "gather": partial(group.gather, own, 0, sizes, "gather"),
        "return_sum": partial(group.return_sum, whole, 0, sizes, "return"),
        "sum": partial(group.sum, whole, "sum"),
    }


TASKS = {"step": step, "alone": alone, "link": link}


def _step(ranks: Ranks, task: dict[str, Any], batch_size: int) -> Callable[[], None]:
    """A function that trains one step on `batch_size` random pictures over all ranks."""
    generator = torch.Generator().manual_seed(0)
    classes = int(task["num_classes"])
    whole = build(task["network"], classes, generator).to(memory_format=torch.channels_last)
    part: PartAlexNet
    parts: Replicas | Hybrid
    if ranks.plan.hybrid:
        part = hybrid = cut_hybrid(whole, ranks.everyone)
        parts = Hybrid(hybrid)
    else:
        part = cut(whole, ranks.columns, ranks.replicas)
        parts = Replicas(part, ranks.replicas)
    del whole
    part.dropout_generator = torch.Generator().manual_seed(1)
    part.train()
    optimizer = PaperSGD(parameter_groups(part))
    own = part.take_share(batch_size)
    px = part.network.input_px
    images = 50 * torch.randn(own.stop - own.start, 3, px, px, generator=generator)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(classes, (own.stop - own.start,), generator=generator)
    is_bf16 = task["precision"] == "bf16"
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=is_bf16)

    def take() -> None:
        optimizer.zero_grad(set_to_none=True)
        parts.gradients(images, labels, autocast)
        optimizer.step()

    return take


if __name__ == "__main__":
    main()
