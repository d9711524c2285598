"""An elastic training whose ranks are killed 20 times, against an undisturbed one.

    python records/2026-11-20_survival/elastic.py --kills 20 --out elastic.json

`torchrun --max-restarts` starts all ranks again after each kill, with the command line that began
the run: nobody types --resume. A rank is killed with SIGKILL at a random moment after its session
has logged a step; which one is drawn.
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
from pathlib import Path

TRAINING = (
    *("train", "--no-report", "--batch-size", "16", "--epochs", "100", "--device", "cpu"),
    *("--set", "data.num_train=96", "--set", "data.num_val=24", "--set", "data.num_classes=4"),
    *("--set", "system.log_steps=1", "--set", "system.threads=1"),
    *("--set", "system.loader_threads=1", "--set", "evaluate.views=1"),
    *("--set", "schedule.kind=plateau", "--set", "schedule.patience=2"),
    *("--set", "schedule.patience_steps=1", "--set", "system.checkpoint_minutes=0.002"),
)


def ranks_of(launcher: int) -> dict[int, int]:
    """{rank: process number} of the launcher's processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher:
                environment = (path / "environ").read_bytes().split(b"\0")
                rank = [part[5:] for part in environment if part.startswith(b"RANK=")]
                if rank:
                    found[int(rank[0])] = int(path.name)
        except (OSError, ValueError):
            continue
    return found


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


def train(run: Path, options: argparse.Namespace, kills: int) -> list[dict[str, object]]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(options.ranks), "--max-restarts", str(kills + 2)),
        *("-m", "--", "alexnet", *TRAINING, "--max-steps", str(options.steps), "--run", str(run)),
    ]
    draw, done = random.Random(0), []
    with open(run.with_suffix(".out"), "w") as out:
        launcher = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        sessions = 0
        while launcher.poll() is None:
            told = [event["event"] for event in events(run)]
            now = told.count("start") + told.count("resume") + (0 if told else -1)
            at_work = "step" in told[-3:] and now > 0
            session = len(sessions_of(run))
            if len(done) < kills and at_work and session > sessions:
                time.sleep(draw.uniform(0, 1.5))
                ranks = ranks_of(launcher.pid)
                if len(ranks) == options.ranks:
                    rank = draw.choice(sorted(ranks))
                    os.kill(ranks[rank], signal.SIGKILL)
                    sessions = session
                    steps = [event["step"] for event in events(run) if event["event"] == "step"]
                    done.append({"rank": rank, "after_step": max(steps, default=0)})
                    print(json.dumps(done[-1]), flush=True)
            time.sleep(0.05)
    if launcher.returncode:
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
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="elastic-"))
    os.environ.setdefault("ALEXNET_CACHE", str(home / "cache"))
    os.environ["OMP_NUM_THREADS"] = "1"
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
