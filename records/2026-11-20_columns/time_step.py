"""Time per training step, on one process or several, one thread each.

    python time_step.py all ROUNDS BATCH STEPS         every net in turn, ROUNDS times: JSON lines
    [torchrun ...] time_step.py NETWORK WAY BATCH STEPS

A step is forward, backward and update of a minibatch of random pictures that lie ready; the first
is not timed. Ranks start each step together, and the slowest counts. Under `unshare -rn sh -c "ip
link set lo up; ..."` the loopback is theirs alone, and shows the bytes that really went over it.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import torch

from alexnet.opening import open_dataset
from alexnet.parallel import joined, parse
from alexnet.recipes import find_recipe
from alexnet.config import diff
from alexnet.step import start, take_share, train_step

# The paper's comparison is between the first two.
CASES = [
    ("one-gpu", "one", 1),
    ("paper", "columns=2", 2),
    ("paper", "one", 1),
    ("no-columns", "one", 1),
    ("no-columns", "data=2", 2),
]


def loopback_bytes():
    """What has gone through this network namespace's loopback: headers and others' bytes too."""
    for line in open("/proc/net/dev"):
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def measure(name, way, batch, steps):
    size = int(os.environ.get("WORLD_SIZE", "1"))
    recipe = diff(
        find_recipe("paper-2012"),
        network={"name": name},
        optimizer={"batch_size": batch},
        system={"threads": 1, "device": "cpu"},
    )
    dataset = open_dataset("shapes", image_px=256, num_train=32, num_val=16, num_classes=16)
    with joined(parse(None if way == "one" else way, size), seconds=300) as ranks:
        training = start(recipe, dataset, ranks)
        training.model.train()
        take_share(training, ranks.replicas.sizes(batch))
        own = ranks.replicas.own(batch)
        images = 60 * torch.randn(own.stop - own.start, 3, 224, 224)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(16, (len(images),))
        seconds, cpu_seconds, on_wire = [], [], []
        for _ in range(steps + 1):
            ranks.everyone.wait("start of a step")
            wire = loopback_bytes()
            before = dict(ranks.journal.sent)
            began, began_cpu = time.perf_counter(), time.process_time()
            train_step(training, images, labels)
            slowest = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
            seconds.append(ranks.everyone.max(slowest, "time").item())
            busiest = torch.tensor([time.process_time() - began_cpu], dtype=torch.float64)
            cpu_seconds.append(ranks.everyone.max(busiest, "time").item())
            on_wire.append(loopback_bytes() - wire)
        sent = {k: v - before.get(k, 0) for k, v in ranks.journal.sent.items()}
        for name_ in ("start of a step", "time"):
            sent.pop(name_, None)
        every = ranks.everyone.objects(sum(sent.values()), "bytes")
        if ranks.speaks:
            row = {"network": name, "way": way, "ranks": size, "batch": batch}
            row |= {"seconds": seconds[1:], "bytes_per_step": sum(every)}
            row |= {"cpu_seconds": cpu_seconds[1:]}  # of the busiest rank: others' work is not in it
            row |= {"loopback_bytes_per_step": statistics.median(on_wire[1:])}
            print(json.dumps(row), flush=True)


def all_in_turn(rounds, batch, steps):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rows = []
    for _ in range(rounds):
        for name, way, size in CASES:
            command = [sys.executable]
            if size > 1:
                command += ["-m", "torch.distributed.run", "--standalone"]
                command += ["--nproc-per-node", str(size)]
            command += [__file__, name, way, str(batch), str(steps)]
            done = subprocess.run(
                command, check=True, env=environment, capture_output=True, text=True
            )
            rows.append(json.loads(done.stdout))
            print(json.dumps(rows[-1]), flush=True)
    for kind in ("seconds", "cpu_seconds"):
        for name, way, _ in CASES:
            times = [t for r in rows if (r["network"], r["way"]) == (name, way) for t in r[kind]]
            spread = f"{min(times):.2f} to {max(times):.2f}"
            line = f"{kind:12} {name:12} {way:10} {statistics.median(times):.2f} s ({spread})"
            print(line, file=sys.stderr)


if sys.argv[1] == "all":
    all_in_turn(*map(int, sys.argv[2:5]))
else:
    measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
