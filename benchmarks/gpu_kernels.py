"""Test and time the fused norms and pools on one GPU, in about ten minutes: correctness first.

    python benchmarks/gpu_kernels.py --out gpu_kernels.json

1. The tests marked `gpu`: every kind of chain against float64 loops, on fresh random inputs.
2. The full stages, forward and backward, against the plain functions in float64 on the GPU.
3. Times by CUDA events at batches of 128 and 1,024, in bf16 and fp32, beside a copy of the same
   maps and beside stock operators, eager and compiled. `copy_share` is (bytes that must be moved /
   time) over the rate of that copy.

Nothing is timed unless all that is tested holds. Not needed to build or to pass the tests; written
for an H200 with torch 2.11.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alexnet import fused
from alexnet.bench_norm import DTYPES, RIVALS, STAGES, _inputs
from alexnet.files import write_json
from alexnet.fused import Chain
from alexnet.log import environment

REPOSITORY = Path(__file__).resolve().parents[1]
WARM_UP, REPEATS = 10, 100
TOLERANCE = {"fp32": 1e-5, "bf16": 2.0**-7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device")
    tests = ["tests/test_triton_kernels.py", "-m", "gpu", "-q"]
    if subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=REPOSITORY).returncode:
        sys.exit("the kernels are wrong on this GPU: nothing is timed")
    if not fused.has_kernels("cuda", "fused"):
        sys.exit("there are no kernels here")
    checked = [check(name, precision) for name in STAGES for precision in DTYPES]
    rows = []
    for batch in arguments.batches:
        for name in STAGES:
            for precision in DTYPES:
                rows += measure(name, precision, batch)
                for row in rows[-len(RIVALS) :]:
                    print(json.dumps(row), flush=True)
    found = {"checked": checked, "rows": rows, "environment": environment(torch.device("cuda"))}
    write_json(arguments.out, found)


def check(name: str, precision: str) -> dict[str, Any]:
    """Largest error of y and dx of a stage, over the largest value; exits where it is too large.

    Whole chains are compared one at a time from the same inputs. A window whose two largest units
    differ by less than rounding may send its gradient to the other one; their share is reported,
    and must be below one in ten thousand (fp32) or one in a hundred (bf16).
    """
    x, _, _ = _inputs(STAGES[name], precision, 4, "cuda")
    found: dict[str, Any] = {"stage": name, "precision": precision, "seed": torch.seed()}
    x = (20 * torch.randn_like(x)).detach().requires_grad_()
    for number, chain in enumerate(
        p for p in fused.split(STAGES[name].steps) if isinstance(p, Chain)
    ):
        exact = x.detach().double().requires_grad_()
        y, wanted = fused.apply(chain, x, 2, "fused"), chain.plain(exact, 2)
        dy = torch.randn_like(y)
        (dx,) = torch.autograd.grad(y, x, dy)
        (wanted_dx,) = torch.autograd.grad(wanted, exact, dy.double())
        errors = ((y - wanted).abs().max() / wanted.abs().max()).item()
        off = (dx - wanted_dx).abs() > TOLERANCE[precision] * wanted_dx.abs().max()
        share = off.double().mean().item()
        found[f"chain {number}"] = {"y": errors, "dx_off_share": share}
        if not errors < TOLERANCE[precision] or not share < (1e-4 if precision == "fp32" else 1e-2):
            sys.exit(f"wrong on this GPU: {found}")
        x = y.detach().requires_grad_()
    return found


def measure(name: str, precision: str, batch: int) -> list[dict[str, Any]]:
    x, dy, moved = _inputs(STAGES[name], precision, batch, "cuda")
    target = torch.empty_like(x)
    copy = seconds(lambda: target.copy_(x))
    rate = 2 * x.nbytes / copy["median"]
    rows = []
    for rival, make in RIVALS.items():
        run = make(STAGES[name])
        torch.compiler.reset()
        y = run(x)
        forward = seconds(lambda run=run: run(x))
        backward = seconds(lambda y=y: torch.autograd.grad(y, x, dy, retain_graph=True))
        both = forward["median"] + backward["median"]
        rows.append(
            {
                "stage": name,
                "precision": precision,
                "batch": batch,
                "rival": rival,
                "forward": forward,
                "backward": backward,
                "tb_per_s": moved / both / 1e12,
                "copy_tb_per_s": rate / 1e12,
                "copy_share": moved / both / rate,
            }
        )
    return rows


def seconds(work: Callable[[], Any]) -> dict[str, float]:
    """Median, least and most of REPEATS, by events on the device."""
    for _ in range(WARM_UP):
        work()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) / 1e3 for start, end in pairs]
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


if __name__ == "__main__":
    main()
