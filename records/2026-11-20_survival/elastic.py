"""An elastic training whose ranks are killed 20 times, against an undisturbed one.

    python records/2026-11-20_survival/elastic.py --kills 20 --out elastic.json

`torchrun --max-restarts` starts all ranks again after each kill, with the command line that began
the run: nobody types --resume. A rank is killed with SIGKILL at a random moment after its session
has logged a step; which one is drawn. The agent is torchrun's own, called from Python: it forks the
ranks from a process that has imported PyTorch, since otherwise each of them would be busy with that
for some seconds after every kill. `--fresh` runs the command torchrun.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

TRAINING = (
    *("train", "--no-report", "--batch-size", "16", "--epochs", "100", "--device", "cpu"),
    *("--set", "data.num_train=96", "--set", "data.num_val=24", "--set", "data.num_classes=4"),
    *("--set", "system.log_steps=1", "--set", "system.threads=1"),
    *("--set", "system.loader_threads=1", "--set", "evaluate.views=1"),
    *("--set", "system.kernels=plain"),
    *("--set", "schedule.kind=plateau", "--set", "schedule.patience=2"),
    *("--set", "schedule.patience_steps=1", "--set", "system.checkpoint_minutes=0.002"),
)


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher started, in the order in which it did: that of the ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == launcher and state != "Z":
            found.append(int(path.name))
    return sorted(found)


def events(run: Path) -> list[dict[str, object]]:
    try:
        lines = (run / "log.jsonl").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def rank(arguments: list[str], out: str) -> None:
    """One rank: the command as a user types it."""
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    sys.argv = ["alexnet", *arguments]
    from alexnet.cli import main

    main()


def start_agent(arguments: list[str], run: Path, ranks: int, restarts: int) -> int:
    """Fork a process that is torchrun's agent; its number."""
    number = os.fork()
    if number:
        return number
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        *(1, 1, ranks),
        run_id="none",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="fork",
    )
    code = 1
    try:
        elastic_launch(config, rank)(arguments, str(run.with_suffix(".out")))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start_torchrun(arguments: list[str], run: Path, ranks: int, restarts: int) -> int:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(ranks), "--max-restarts", str(restarts)),
        *("-m", "--", "alexnet", *arguments),
    ]
    with open(run.with_suffix(".out"), "w") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT).pid


def train(run: Path, options: argparse.Namespace, kills: int) -> list[dict[str, object]]:
    arguments = [*TRAINING, "--max-steps", str(options.steps), "--run", str(run)]
    start = start_torchrun if options.fresh else start_agent
    launcher = start(arguments, run, options.ranks, kills + 2)
    draw, done, session = random.Random(0), [], 0
    while not (ended := os.waitpid(launcher, os.WNOHANG))[0]:
        now = len(sessions_of(run))
        at_work = [event["event"] for event in events(run)][-1:] == ["step"]
        if len(done) < kills and now > session and at_work:
            time.sleep(draw.uniform(0, 1.0))
            ranks = ranks_of(launcher)
            if len(ranks) == options.ranks:
                victim = draw.randrange(options.ranks)
                os.kill(ranks[victim], signal.SIGKILL)
                session = now
                steps = [event["step"] for event in events(run) if event["event"] == "step"]
                done.append({"rank": victim, "after_step": max(steps, default=0)})
                print(json.dumps(done[-1]), flush=True)
        time.sleep(0.05)
    if ended[1]:
        raise SystemExit(run.with_suffix(".out").read_text()[-4000:])
    return done


def sessions_of(run: Path) -> list[dict[str, object]]:
    try:
        return json.loads((run / "environment.json").read_text())["sessions"]
    except (OSError, ValueError, KeyError):
        return []


def outcome(run: Path) -> dict[str, object]:
    steps = [(e["step"], e["loss"]) for e in events(run) if e["event"] == "step"]
    evaluations = [(e["step"], e["top1_wrong"]) for e in events(run) if e["event"] == "evaluation"]
    return {
        "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "losses": hashlib.sha256(json.dumps(steps).encode()).hexdigest(),
        "steps": [step for step, _ in steps] == list(range(1, len(steps) + 1)) and len(steps),
        "evaluations": hashlib.sha256(json.dumps(evaluations).encode()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="elastic-"))
    os.environ.setdefault("ALEXNET_CACHE", str(home / "cache"))
    os.environ["OMP_NUM_THREADS"] = "1"
    if not options.fresh:
        import torch._dynamo
        import torch.distributed.launcher.api
        import torch.utils.tensorboard  # noqa: F401

        import alexnet.evaluate
        import alexnet.train  # noqa: F401
    train(home / "whole", options, 0)
    expected = outcome(home / "whole")
    print(json.dumps(expected), flush=True)
    began = time.monotonic()
    killed = train(home / "killed", options, options.kills)
    found = outcome(home / "killed")
    sessions = sessions_of(home / "killed")
    result = {
        "identical": found == expected,
        "kills": killed,
        "seconds": round(time.monotonic() - began),
        "undisturbed": expected,
        "killed": found,
        "sessions": [{key: s[key] for key in ("step", "restart")} for s in sessions],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"identical: {found == expected}; {len(killed)} kills, {len(sessions)} sessions")


if __name__ == "__main__":
    main()
