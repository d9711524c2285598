"""How fast pictures are fed, beside the loaders of others, and how long training waits for them.

`bench_loader` gives every loader the same pictures and lets them take turns for some seconds each,
in one run on one machine; a rate is the median of the rounds. The peers are scripts of the
repository, `benchmarks/peers/`, each in a process of its own (see `protocol.py` there).

Not here: the loader itself (`loader.py`), the speed of a training step.
"""

import contextlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet.augment import flip_where
from alexnet.config import Recipe, diff
from alexnet.dataset import PackedDataset, Split, open_packed
from alexnet.errors import UserError, suggest
from alexnet.files import cache_folder, write_bytes
from alexnet.loader import Batch, batches
from alexnet.opening import open_dataset
from alexnet.pictures import JpegPictures, encode_jpeg
from alexnet.prepare import fingerprint
from alexnet.recipes import find_recipe
from alexnet.step import network_input, start, train_step
from alexnet.turns import answer_of, last_line, running
from alexnet.workers import available_cores

PEERS_FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"

# Script and form of the pictures. What has "pixels" in its name reads no JPEG.
PEERS = {
    "imagefolder": ("imagefolder.py", "jpeg"),
    "imagefolder-500x375": ("imagefolder.py", "500x375"),
    "webdataset": ("webdataset_peer.py", "jpeg"),
    "huggingface": ("huggingface.py", "jpeg"),
    "litdata": ("litdata_peer.py", "jpeg"),
    "webdataset-pixels": ("webdataset_peer.py", "pixels"),
    "huggingface-pixels": ("huggingface.py", "pixels"),
    "litdata-pixels": ("litdata_peer.py", "pixels"),
    "numpy-memmap": ("numpy_memmap.py", "pixels"),
}
OURS = ("alexnet-packed", "alexnet-packed-mirrored", "alexnet-jpeg")

# 22,000 pictures of 256 pixels are 4.3 GB.
NUM_PICTURES = 22_000
LARGE_PX = (500, 375)

# After its turn a peer's workers still fill their queues; and ours has batches lying ready.
SECONDS_BETWEEN_TURNS = 1.0
BATCHES_SKIPPED = 16

# Steps of training that are not counted: memory is still being laid out.
WARM_UP_STEPS = 3

# Peers look for updates and draw bars unless they are told not to.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

ENDLESS = 1 << 40

Say = Callable[[str], None]


def bench_loader(
    data: Path | None = None,
    *,
    seconds: float = 3.0,
    rounds: int = 5,
    batch_size: int = 128,
    num_pictures: int = NUM_PICTURES,
    peers: Sequence[str] | None = None,
    peers_folder: Path = PEERS_FOLDER,
    workers: int = 0,
    wait_seconds: float = 30.0,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure crops per second on the first pictures of DATA's train split, `shapes` without DATA.

    Each loader gets `rounds` turns of `seconds`, with `workers` threads or processes (0: one per
    core); `peers` names some of PEERS (None: all). A peer that cannot be measured stands under
    "missing" with the reason. "wait_share" is that of training the full-size network, measured for
    `wait_seconds` (0: not at all). Raises UserError for an unknown peer and unsuitable DATA.
    """
    chosen = list(PEERS) if peers is None else list(peers)
    for name in chosen:
        if name not in PEERS:
            raise UserError(f"no peer {name!r}{suggest(name, PEERS)}")
    workers = workers or available_cores()
    dataset = _dataset(data, num_pictures)
    split = _first(dataset.splits["train"], num_pictures)
    if len(split) < batch_size:
        raise UserError(f"{len(split)} pictures are fewer than one batch of {batch_size}")
    recipe = _recipe("paper-2012", dataset, batch_size)
    folder = cache_folder() / "bench" / f"{dataset.name}-{_fingerprint(dataset, split)}"
    say(f"{len(split):,} pictures of {dataset.name}; the forms of them are in {folder}")
    jpegs = _write_forms(split, folder, large="imagefolder-500x375" in chosen, say=say)
    rates: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        turns: dict[str, Callable[[float], float]] = {
            "alexnet-packed": _our_turn(stack, split, recipe, workers),
            "alexnet-packed-mirrored": _our_turn(stack, split, recipe, workers, mirrored=True),
            "alexnet-jpeg": _our_turn(stack, replace(split, images=jpegs), recipe, workers),
        }
        started, missing = _start_peers(
            stack, chosen, peers_folder, folder, dataset, recipe, workers, say
        )
        turns |= {name: peer.turn for name, peer in started.items()}
        for number in range(rounds):
            for name in [name for name in turns if name not in missing]:
                time.sleep(SECONDS_BETWEEN_TURNS)
                try:
                    rates.setdefault(name, []).append(turns[name](seconds))
                except (EOFError, BrokenPipeError):
                    missing[name] = "its process ended while it was measured"
                    del rates[name]
                else:
                    say(f"round {number + 1}/{rounds}: {name} {rates[name][-1]:,.0f} crops/s")
    waits = _wait_shares(dataset, batch_size, wait_seconds, say) if wait_seconds else {}
    sizes = {
        "alexnet-packed": len(split) * int(np.prod(split.images.shape[1:])),
        "alexnet-jpeg": (folder / "images.jpegs").stat().st_size,
        **{name: peer.bytes_on_disk for name, peer in started.items()},
    }
    return {
        "rates": {name: statistics.median(values) for name, values in rates.items()},
        "spread": {name: [min(values), max(values)] for name, values in rates.items()},
        "wait_share": waits.get("source-2012"),
        "wait_shares": waits,
        "bytes_on_disk": sizes,
        "missing": missing,
        "pictures": len(split),
        "data": dataset.name,
        "crop_px": recipe.augment.crop_px,
        "batch_size": batch_size,
        "workers": workers,
        "rounds": rounds,
        "seconds": seconds,
        "cpu": _cpu(),
        "versions": _versions(list(started.values())),
    }


def wait_share(dataset: PackedDataset, recipe: Recipe, *, seconds: float) -> float:
    """The share of its time that training spends waiting for its next batch.

    Of whole steps, from asking for a batch to updated weights, for `seconds` and at least five
    steps, after WARM_UP_STEPS that do not count.
    """
    training = start(recipe, dataset)
    training.model.train()
    waited = total = 0.0
    feed = batches(dataset.splits["train"], recipe, step=0, stop=ENDLESS, device=training.device)
    with contextlib.closing(feed):
        for step in count():
            began = time.perf_counter()
            batch = next(feed)
            got = time.perf_counter()
            train_step(training, *network_input(training, batch)).item()
            if step >= WARM_UP_STEPS:
                waited += got - began
                total += time.perf_counter() - began
            if step >= WARM_UP_STEPS + 5 and total >= seconds:
                return waited / total
    raise AssertionError("unreachable")


def _dataset(data: Path | None, num_pictures: int) -> PackedDataset:
    if data is not None:
        return open_packed(data)
    return open_dataset("shapes", image_px=256, num_train=num_pictures, num_val=100)


def _first(split: Split, num_pictures: int) -> Split:
    """The first pictures of a split of pixels. Raises UserError for one of JPEGs."""
    if not isinstance(split.images, np.ndarray):
        raise UserError("this data set keeps JPEGs; the benchmark needs one that keeps pixels")
    count = min(num_pictures, len(split))
    return Split(split.name, split.images[:count], split.labels[:count], split.sources)


def _recipe(name: str, dataset: PackedDataset, batch_size: int) -> Recipe:
    """A named recipe for pictures of this size: crops of 224 of 256 pixels, or in proportion."""
    return diff(
        find_recipe(name),
        data={"image_px": dataset.image_px},
        augment={"crop_px": dataset.image_px * 7 // 8},
        optimizer={"batch_size": batch_size},
    )


def _fingerprint(dataset: PackedDataset, split: Split) -> str:
    stat = (dataset.path / "dataset.json").stat()
    return fingerprint([str(dataset.path.resolve()), stat.st_mtime_ns, len(split)])[:16]


def _write_forms(split: Split, folder: Path, *, large: bool, say: Say) -> JpegPictures:
    """Write the pictures as JPEGs: in one file for us, as files by class for the others."""
    whole, offsets = folder / "images.jpegs", folder / "offsets.npy"
    if not offsets.exists():
        say("writing JPEGs of 256 pixels")
        with ThreadPoolExecutor(available_cores()) as pool:
            jpegs = list(pool.map(encode_jpeg, np.asarray(split.images)))
        _write_by_class(folder / "jpeg-256", split, jpegs)
        write_bytes(whole, b"".join(jpegs))
        with open(offsets, "wb") as file:
            np.save(file, np.cumsum([0, *map(len, jpegs)], dtype=np.int64))
    large_done = folder / "jpeg-500x375.done"
    if large and not large_done.exists():
        say("writing JPEGs of 500 x 375")
        with ThreadPoolExecutor(available_cores()) as pool:
            _write_by_class(
                folder / "jpeg-500x375", split, pool.map(_enlarged, np.asarray(split.images))
            )
        large_done.touch()
    return JpegPictures(whole, np.load(offsets), int(split.images.shape[1]))


def _enlarged(pixels: np.ndarray) -> bytes:
    return encode_jpeg(np.asarray(Image.fromarray(pixels).resize(LARGE_PX)))


def _write_by_class(folder: Path, split: Split, jpegs: Any) -> None:
    for label in np.unique(split.labels):
        (folder / f"{label:05d}").mkdir(parents=True, exist_ok=True)
    for number, (label, data) in enumerate(zip(split.labels, jpegs, strict=True)):
        (folder / f"{label:05d}" / f"{number:08d}.jpg").write_bytes(data)


def _our_turn(
    stack: contextlib.ExitStack, split: Split, recipe: Recipe, threads: int, mirrored: bool = False
) -> Callable[[float], float]:
    feed = batches(split, recipe, step=0, stop=ENDLESS, threads=threads)
    stack.callback(feed.close)
    return partial(_measure, feed, mirrored)


def _measure(feed: Iterator[Batch], mirrored: bool, seconds: float) -> float:
    """Crops per second; `mirrored` on the CPU too, which otherwise is the training device's."""
    for _ in range(BATCHES_SKIPPED):
        next(feed)
    began, crops = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        batch = next(feed)
        if mirrored:
            flip_where(batch.crops, batch.flip)
        crops += len(batch.crops)
    return crops / (time.perf_counter() - began)


@dataclass
class Peer:
    """A process of `benchmarks/peers/` that has said that it is ready."""

    process: subprocess.Popen[str]
    bytes_on_disk: int
    versions: dict[str, str] = field(default_factory=dict)

    def turn(self, seconds: float) -> float:
        answer = self.ask(seconds)
        return float(answer["crops"] / answer["seconds"])

    def ask(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        return answer_of(self.process)


def _start_peers(
    stack: contextlib.ExitStack,
    names: Sequence[str],
    scripts: Path,
    folder: Path,
    dataset: PackedDataset,
    recipe: Recipe,
    workers: int,
    say: Say,
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be measured, and why others cannot."""
    started: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in names:
        script, form = PEERS[name]
        if not (scripts / script).exists():
            missing[name] = f"{scripts / script} is not there: it comes with the repository"
            continue
        place = folder if name != "numpy-memmap" else dataset.path / "train" / "images.npy"
        command = [sys.executable, str(scripts / script), str(place), "--form", form]
        command += ["--workers", str(workers), "--batch-size", str(recipe.optimizer.batch_size)]
        command += ["--crop-px", str(recipe.augment.crop_px)]
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        process = stack.enter_context(running(command, OFFLINE, errors))
        say(f"starting {name}")
        try:
            ready = answer_of(process)
        except EOFError:
            missing[name] = last_line(errors)
            say(f"{name} cannot be measured: {missing[name]}")
        else:
            started[name] = Peer(process, ready["bytes_on_disk"], ready["versions"])
    return started, missing


def _wait_shares(
    dataset: PackedDataset, batch_size: int, seconds: float, say: Say
) -> dict[str, float]:
    """Of the full-size network in bf16 on these pictures, and of the small one on its own."""
    full = diff(_recipe("source-2012", dataset, batch_size), system={"precision": "bf16"})
    small = find_recipe("shapes")
    drawn = open_dataset("shapes", image_px=small.data.image_px)
    shares = {}
    for name, pictures, recipe in (
        ("source-2012", dataset, full),
        ("shapes", drawn, small),
    ):
        shares[name] = wait_share(pictures, recipe, seconds=seconds)
        say(f"training {name} waits {shares[name]:.2%} of its time")
    return shares


def _versions(peers: Sequence[Peer]) -> dict[str, str]:
    found = {name: version(name) for name in ("alexnet", "torch", "numpy", "pillow")}
    with contextlib.suppress(PackageNotFoundError):
        found["simplejpeg"] = version("simplejpeg")
    for peer in peers:
        found |= peer.versions
    return {"python": platform.python_version(), **found}


def _cpu() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {available_cores()} cores, {torch.get_num_threads()} threads of torch"
