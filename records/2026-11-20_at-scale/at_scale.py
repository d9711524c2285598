"""A thousand classes and a hundred thousand pictures: prepare, check, one epoch; memory and rates.

    python records/2026-11-20_at-scale/at_scale.py WORK [STEP ...]        (30 GB)

The source is made as ILSVRC is downloaded: one tar of a thousand tars, and a folder of validation
pictures. They are `shapes` of 1000 classes, drawn at 96 px, enlarged to the size of photographs,
260 to 500 px, and saved as JPEG: they have the size and form of ImageNet's, not the content.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet import shapes

CLASSES, EACH, VAL_EACH = 1000, 98, 2


def jpeg(pixels: np.ndarray, number: int) -> bytes:
    draw = np.random.default_rng(number)
    size = tuple(int(side) for side in draw.integers(260, 501, 2))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def pictures_of(numbers: range) -> list[tuple[int, int, bytes]]:
    images, labels = shapes.shapes(0, np.array(numbers), image_px=96, num_classes=CLASSES)
    rows = zip(numbers, labels, images, strict=True)
    return [(number, int(label), jpeg(image, number)) for number, label, image in rows]


def make_source(folder: Path) -> None:
    """Pictures are drawn until every class has enough; labels are drawn, too."""
    kept: dict[int, list[tuple[int, bytes]]] = {label: [] for label in range(CLASSES)}
    missing, start = CLASSES * (EACH + VAL_EACH), 0
    with ProcessPoolExecutor() as pool:
        while missing:
            jobs = [range(at, at + 250) for at in range(start, start + 20_000, 250)]
            start += 20_000
            for part in pool.map(pictures_of, jobs):
                for number, label, data in part:
                    if len(kept[label]) < EACH + VAL_EACH:
                        kept[label].append((number, data))
                        missing -= 1
    folder.mkdir(parents=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for label, found in kept.items():
            wnid = f"n{label:08d}"
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number, data in found[:EACH]:
                    add(tar, f"{wnid}_{number}.JPEG", data)
            add(outer, f"{wnid}.tar", inner.getvalue())
            for number, data in found[EACH:]:
                path = folder / "val" / wnid / f"{wnid}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def memory_mb(pid: int) -> float:
    """What a process and those that it started hold for themselves (PSS, anonymous and shared)."""
    total = 0
    for process in [pid, *children(pid)]:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1])
    return total / 1024


def children(pid: int) -> list[int]:
    """Processes that any thread of `pid` has started, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found + [grandchild for child in found for grandchild in children(child)]


def measured(*arguments: str) -> dict[str, float | str]:
    started, peak = time.monotonic(), 0.0
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=lambda: outputs.append(process.stdout.read()))
        outputs: list[str] = []
        reader.start()
        while process.poll() is None:
            peak = max(peak, memory_mb(process.pid))
            time.sleep(0.2)
        reader.join()
    assert process.returncode == 0, process.returncode
    seconds = time.monotonic() - started
    return {"seconds": seconds, "peak_mb": peak, "said": outputs[0].strip()[-2000:]}


EPOCH = """
import sys, time
from pathlib import Path
from alexnet.config import diff
from alexnet.dataset import open_packed
from alexnet.loader import batches, num_batches
from alexnet.recipes import find_recipe
recipe = diff(find_recipe("paper-2012"), data={"dataset": sys.argv[1]})
split = open_packed(Path(sys.argv[1])).splits["train"]
for epoch in range(2):
    steps, started, count = num_batches(recipe, len(split)), time.monotonic(), 0
    for batch in batches(split, recipe, step=epoch * steps, stop=(epoch + 1) * steps):
        count += len(batch.labels)
    print(f"epoch {epoch}: {count} crops, {count / (time.monotonic() - started):.0f} per second")
"""


def main(work: Path, *wanted: str) -> None:
    source, target = work / "ilsvrc", work / "packed"
    if not source.exists():
        make_source(source)
    files = [path for path in source.rglob("*") if path.is_file()]
    told = {"source_bytes": sum(path.stat().st_size for path in files), "cores": os.cpu_count()}
    print(json.dumps(told), flush=True)
    alexnet = (sys.executable, "-m", "alexnet")
    steps = {
        "check": (*alexnet, "check", str(source), "--json", "--lines", str(work / "odd.jsonl")),
        "prepare": (*alexnet, "prepare", str(source), str(target), "--json"),
        "prepare jpeg": (
            *(*alexnet, "prepare", str(source), str(work / "jpeg"), "--json"),
            *("--store", "jpeg"),
        ),
        "epoch": (sys.executable, "-c", EPOCH, str(target)),
        "epoch jpeg": (sys.executable, "-c", EPOCH, str(work / "jpeg")),
    }
    for name, arguments in steps.items():
        if wanted and name not in wanted:
            continue
        print(json.dumps({"step": name, **measured(*arguments)}), flush=True)
    for folder in filter(Path.exists, (target, work / "jpeg")):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(json.dumps({"folder": folder.name, "bytes": size}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
