"""Kill trainings with SIGKILL at random moments, resume them, and compare what comes out.

    python records/2026-11-20_survival/kill.py --runs 200 --out kills.csv

Every attempt is a process of its own that does the whole of `alexnet train`; it is a fork of this
one, which has imported PyTorch and done nothing with it, since otherwise three of four seconds
would pass before there is anything to kill (`--fresh` starts Python anew). Half of the kills come
at a moment drawn from the length of a whole run; the other half wait for a checkpoint that is being
written, and strike up to some milliseconds later. A run is killed until it comes to its end, twice
at most. `--ranks 2` trains on two ranks, started as a launcher would, by their environment;
one of them is killed, or both at once. The other has to notice, and ends by itself; one that still
waits for the dead to come is ended after some seconds, as a launcher does at once.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

TRAINING = (
    *("train", "--no-report", "--batch-size", "8", "--epochs", "100", "--device", "cpu"),
    *("--set", "data.num_train=48", "--set", "data.num_val=24", "--set", "data.num_classes=4"),
    *("--set", "system.log_steps=1", "--set", "system.threads=1"),
    *(
        "--set",
        "system.kernels=plain",
        "--set",
        "system.loader_threads=1",
        "--set",
        "evaluate.every_epochs=0.5",
    ),
    *("--set", "schedule.kind=plateau", "--set", "schedule.patience=2"),
    *("--set", "schedule.patience_steps=1", "--set", "evaluate.views=1"),
    *("--set", "system.checkpoint_minutes=0.00001", "--max-steps", "12"),
)

SECONDS_TO_NOTICE = 8.0
ENDED_BY_LAUNCHER = [0]
MOST_KILLS = 2  # of a run: then it is left alone


def arguments(run: Path) -> list[str]:
    """To begin the run, or to go on with it."""
    begun = (run / "environment.json").exists()
    return (
        ["train", "--resume", "--run", str(run), "--no-report"]
        if begun
        else [*TRAINING, "--run", str(run)]
    )


def forked(run: Path, ranks: int) -> list[int]:
    """Start an attempt; the numbers of its processes."""
    command, port = arguments(run), free_port()
    return [_forked(run, command, rank, ranks, port) for rank in range(ranks)]


def _forked(run: Path, command: list[str], rank: int, ranks: int, port: int) -> int:
    number = os.fork()
    if number:
        return number
    os.setsid()
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(port)}
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(run.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.argv = ["alexnet", *command]
    code = 70
    try:
        from alexnet.cli import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fresh(run: Path, ranks: int) -> list[int]:
    assert ranks == 1
    with open(run.with_suffix(".err"), "ab") as errors:
        command = [sys.executable, "-m", "alexnet", *arguments(run)]
        return [
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            ).pid
        ]


def ended(number: int, options: int = os.WNOHANG) -> int | None:
    """The exit code of a process (negative: the signal that it died of), None while it runs."""
    found, status = os.waitpid(number, options)
    return os.waitstatus_to_exitcode(status) if found else None


def half_written(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").glob(".*.tmp")]


def attempt(
    run: Path,
    start: Callable[[Path, int], list[int]],
    ranks: int,
    seconds: float,
    draw: random.Random,
    spare: bool,
) -> tuple[str, bool]:
    """One attempt: (how the moment to kill it was chosen, or "" if it came to its end, and whether
    a file was left half written).
    """
    kind = draw.choice(["moment", "write"])
    moment = draw.uniform(0, seconds)
    running, began, killed = start(run, ranks), time.monotonic(), False
    victims = running if draw.random() < 0.5 else [draw.choice(running)]
    while running:
        for number in list(running):
            if (code := ended(number)) is not None:
                running.remove(number)
                if code and not killed:
                    raise SystemExit(f"{run}: exit code {code}")
        passed = time.monotonic() - began
        is_time = passed > moment and not spare and not killed and len(running) == ranks
        if is_time and (kind == "moment" or half_written(run)):
            if kind == "write":
                time.sleep(draw.uniform(0, 0.004))
            for number in victims:
                os.killpg(number, signal.SIGKILL)
            killed, killed_at = True, time.monotonic()
        if killed and running and time.monotonic() - killed_at > SECONDS_TO_NOTICE:
            for number in running:
                os.killpg(number, signal.SIGKILL)
            ENDED_BY_LAUNCHER[0] += 1
            killed_at = time.monotonic()
        time.sleep(0.0005)
    return kind if killed else "", bool(half_written(run))


def fingerprint(run: Path) -> dict[str, str]:
    """Of all that a run has to say, but for its times."""
    timeless = []
    for line in (run / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] in ("step", "evaluation", "rate"):
            left_out = ("images_per_second", "wait_share")
            timeless.append({k: v for k, v in event.items() if k not in left_out})
    best = sorted(path.name for path in run.glob("checkpoints/best-*.pt"))
    texts = {"log": json.dumps(timeless, sort_keys=True), "best": ",".join(best)}
    found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    for name in ("model.safetensors", "predictions_val_1.npz"):
        found[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="kill-"))
    os.environ.setdefault("ALEXNET_CACHE", str(home / "cache"))
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    import alexnet.evaluate
    import alexnet.train  # noqa: F401

    start = fresh if options.fresh else forked
    times = []
    for number in range(3):
        whole, began = home / f"whole{number}", time.monotonic()
        attempt(whole, start, options.ranks, 0.0, random.Random(0), spare=True)
        times.append(time.monotonic() - began)
        assert fingerprint(whole) == fingerprint(home / "whole0")
    expected, seconds = fingerprint(home / "whole0"), statistics.median(times)
    print(f"uninterrupted: {seconds:.2f} s, {expected}", flush=True)
    rows = []
    for number in range(options.first, options.first + options.runs):
        draw, run = random.Random(number), home / f"run{number}"
        kills, writing, steps = {"moment": 0, "write": 0}, 0, []
        while True:
            spare = sum(kills.values()) == MOST_KILLS
            kind, half = attempt(run, start, options.ranks, seconds, draw, spare)
            if not kind and not sum(kills.values()):
                shutil.rmtree(run)  # it came to its end too soon: once more, with another moment
                continue
            if not kind:
                break
            kills[kind] += 1
            writing += half
            saved = [path.stem[5:] for path in run.glob("checkpoints/step-*.pt")]
            steps.append(int(max(saved, default="-1")))
        found = fingerprint(run)
        same = found == expected
        rows.append([number, *kills.values(), writing, " ".join(map(str, steps)), int(same)])
        if not same:
            differing = [name for name in expected if found[name] != expected[name]]
            print(f"run {number} differs in {differing}", flush=True)
        shutil.rmtree(run)
        with open(options.out, "w", newline="") as file:
            writer = csv.writer(file)
            head = ["run", "kills_at_a_moment", "kills_at_a_write", "files_half_written"]
            writer.writerow([*head, "newest_checkpoint_at_each_kill", "identical"])
            writer.writerows(rows)
    kills = sum(row[1] + row[2] for row in rows)
    print(f"{sum(row[-1] for row in rows)} of {len(rows)} identical, {kills} kills")
    print(f"{ENDED_BY_LAUNCHER[0]} survivors were still waiting for a rank to come, and were ended")
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
