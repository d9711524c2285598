"""How long until the first step, with and without preparing; and what a sample's statistics miss.

    python records/2026-11-20_straight/first_step.py PICTURES
    python records/2026-11-20_straight/first_step.py PICTURES --sample

The first starts `alexnet train PICTURES` with an empty cache and looks into the run's log until the
first step is there. The second compares the statistics of samples with those of all pictures.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from alexnet.opening import open_dataset
from alexnet.randomness import permutation
from alexnet.statistics import Moments, statistics_of


def seconds_to_first_step(pictures: str, cache: str, run: str, *flags: str) -> float:
    began = time.monotonic()
    command = [sys.executable, "-m", "alexnet", "train", pictures, "--run", run, *flags]
    command += ["--set", "system.log_steps=1", "--precision", "bf16"]
    environment = {**os.environ, "ALEXNET_CACHE": cache}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        log = Path(run) / "log.jsonl"
        while process.poll() is None:
            if log.exists() and '"event": "step"' in log.read_text():
                process.kill()
                return time.monotonic() - began
            time.sleep(0.05)
    raise RuntimeError(f"it ended with {process.returncode}")


def first_steps(pictures: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (("--no-prepare", ("--no-prepare",)), ("prepared", ())):
            for time_of in ("first", "second"):
                run = f"{folder}/{name}-{time_of}"
                seconds = seconds_to_first_step(pictures, f"{folder}/cache", run, *flags)
                print(json.dumps({"data": name, "time": time_of, "seconds": round(seconds, 1)}))


def samples(pictures: str) -> None:
    images = open_dataset(pictures, image_px=256).splits["train"].images
    whole = statistics_of(Moments.of(np.asarray(images)))
    for count in (500, 1000, 2000, 5000):
        found = []
        for draw in range(5):
            chosen = np.sort(permutation(draw, "statistics", 0, len(images))[:count])
            part = statistics_of(Moments.of(images[chosen]))
            along = np.abs((part.eigenvectors * whole.eigenvectors).sum(axis=0))
            found.append(
                (
                    np.sqrt(((part.mean_image - whole.mean_image) ** 2).mean()),
                    np.abs(part.rgb_mean - whole.rgb_mean).max(),
                    np.abs(part.eigenvalues / whole.eigenvalues - 1).max(),
                    np.degrees(np.arccos(along.clip(max=1))).max(),
                )
            )
        keys = ("mean_image_rms", "rgb_mean", "eigenvalues", "degrees")
        worst = dict(zip(keys, np.max(found, axis=0).round(4).tolist(), strict=True))
        print(json.dumps({"sample": count, "of": len(images), **worst}), flush=True)


if __name__ == "__main__":
    (samples if "--sample" in sys.argv else first_steps)(sys.argv[1])
