"""Make each mistake that a user can make, and write down what the command line answers.

    python bad_input.py > answers.md          (as root, for the full disk: a tmpfs of 7 MB)

Every case is one process. Pictures are made here; nothing outside a temporary folder is touched.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ("--recipe", "shapes", "--batch-size", "8", "--no-report", "--device", "cpu")


def picture(path: Path, px: tuple[int, int] = (64, 64), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(values).resize(px).save(path)


def folder(path: Path, classes: int = 3, each: int = 12) -> Path:
    for label in range(classes):
        for index in range(each):
            picture(path / f"class{label}" / f"{index}.png", seed=label * 1000 + index)
    return path


def alexnet(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alexnet", *map(str, arguments)]
    environment = {**os.environ, "ALEXNET_CACHE": str(cwd / "cache"), "COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def tell(case: str, done: subprocess.CompletedProcess[str], home: Path) -> None:
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    assert "Traceback" not in done.stderr, done.stderr
    answer = (lines[-1] if lines else "").replace(str(home) + "/", "").replace("|", "\\|")
    print(f"| {case} | {done.returncode} | {len(lines)} | {answer} |", flush=True)


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="bad-input-")).resolve()
    print("| mistake | exit code | lines | answer |\n|---|---:|---:|---|")

    def case(name: str, *arguments: str | Path) -> None:
        tell(name, alexnet(*arguments, cwd=home), home)

    good = folder(home / "good")
    case("a path that is not there", "train", "nowhere", *SMALL)
    (home / "empty").mkdir()
    case("a folder without pictures", "train", "empty", *SMALL)
    (folder(home / "hollow") / "class3").mkdir()
    case("a class folder that is empty", "train", "hollow", *SMALL)
    folder(home / "single", classes=1)
    case("one class only", "train", "single", *SMALL)
    case("an unknown recipe", "train", good, "--recipe", "souce-2012")
    case("an unknown network", "train", good, *SMALL, "--set", "network.name=papre")
    case("an unknown network to describe", "describe", "papre")
    case("an unknown setting", "train", good, *SMALL, "--set", "optimizer.lrr=1")
    case("a value of the wrong kind", "train", good, *SMALL, "--set", "optimizer.lr=fast")
    case("a network that takes other crops", "train", good, *SMALL, "--set", "network.name=paper")
    case("a run folder that is no run", "evaluate", "good")

    odd = folder(home / "odd", each=40)
    whole = (odd / "class0" / "0.png").read_bytes()
    (odd / "class0" / "broken.png").write_bytes(bytes(range(256)) * 8)
    (odd / "class0" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (odd / "class1" / "zero.jpg").write_bytes(b"")
    picture(odd / "class1" / "one.png", (1, 1))
    picture(odd / "class2" / "wide.png", (20_000, 64))
    done = alexnet("prepare", odd, "packed-odd", "--image-px", "64", cwd=home)
    tell("broken, truncated, zero-byte, 1x1 and 20,000 px pictures among 120 good ones", done, home)
    notes = [line.replace(str(home) + "/", "") for line in done.stdout.strip().splitlines()]

    run = ("train", good, *SMALL, "--max-steps", "6", "--set", "system.checkpoint_minutes=0.001")
    case("(a run that goes well)", *run, "--run", "run")
    case("a run folder that exists", *run, "--run", "run")
    newest = max((home / "run" / "checkpoints").glob("*.pt"))
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shutil.copytree(home / "run", home / "flipped")
    (home / "flipped" / "checkpoints" / newest.name).write_bytes(damaged)
    resume = ("train", "--resume", "--no-report")
    case("a damaged newest checkpoint (the one before is used)", *resume, "--run", "flipped")
    shutil.copytree(home / "run", home / "ruined")
    for path in (home / "ruined" / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    case("every checkpoint damaged", *resume, "--run", "ruined")
    shutil.copytree(home / "run", home / "other")
    recipe = (home / "other" / "recipe.json").read_text()
    other = recipe.replace('"name": "small"', '"name": "cifar10-13pct"').replace(
        '"crop_px": 56', '"crop_px": 24'
    )
    (home / "other" / "recipe.json").write_text(other)
    case("a checkpoint of another network", *resume, "--run", "other")
    alexnet("prepare", good, "packed", "--image-px", "64", cwd=home)
    images = home / "packed" / "train" / "images.npy"
    images.write_bytes(images.read_bytes()[:5000])
    case("a damaged packed file", "train", "packed", *SMALL)
    weights = home / "run" / "model.safetensors"
    saved = weights.read_bytes()
    weights.write_bytes(saved[: len(saved) // 2])
    case("a damaged weights file", "evaluate", "run", "--views", "1")
    weights.write_bytes(saved)

    full = home / "full"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", full]).returncode == 0:
        try:
            case("a full disk", *run, "--run", "full/run")
            kept = sorted(path.name for path in full.glob("run/checkpoints/*.pt"))
            names = ", ".join(f"`{name}`" for name in kept)
            print(f"\nKept on the full disk: {names or 'nothing'}.")
            again = alexnet(*resume, "--run", "full/run", cwd=home)
            print(f"Resumed there without more space: exit code {again.returncode}.")
        finally:
            subprocess.run(["umount", full], check=True)
    print("\n`prepare` on the folder with odd pictures:\n\n```")
    print("\n".join(notes) + "\n```")
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
