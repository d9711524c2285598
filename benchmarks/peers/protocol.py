"""How the loaders of others are measured: each in a process of its own, for seconds on demand.

    python benchmarks/peers/imagefolder.py FOLDER --workers 2 --batch-size 128 --crop-px 224

`alexnet bench loader` starts one process per peer, which first makes its own store from FOLDER's
`jpeg-256` where it has none yet, then says on a line of JSON that it is ready. For each line with a
number of seconds on its input it answers with the pictures it has delivered in them. So the peers
take turns within one run, each with its workers alive and its files in the page cache.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torchvision.transforms import v2

# What lies ready when the time begins was made before it: two batches per worker, and some.
BATCHES_SKIPPED = 8
WARM_UP_BATCHES = 24

# Pixels take ten times the space of JPEGs; the stores of peers that keep them hold no more.
MAX_PIXEL_PICTURES = 4000


@dataclass(frozen=True)
class Settings:
    folder: Path
    form: str
    workers: int
    batch_size: int
    crop_px: int

    def transform(self, *, resize_px: int = 0) -> v2.Compose:
        """Pillow's picture or a uint8 tensor to the uint8 crop (3, s, s), at random mirrored."""
        steps: list[Any] = [v2.Resize(resize_px)] if resize_px else []
        steps += [v2.RandomCrop(self.crop_px), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        return v2.Compose(steps)

    def crop(self, pixels: np.ndarray) -> torch.Tensor:
        """The same of an array (S, S, 3), as a tensor (s, s, 3)."""
        spare = pixels.shape[0] - self.crop_px + 1
        top, left = torch.randint(spare, (2,)).tolist()
        window = pixels[top : top + self.crop_px, left : left + self.crop_px]
        mirrored = window[:, ::-1] if torch.rand(()) < 0.5 else window
        return torch.from_numpy(np.ascontiguousarray(mirrored))


def files(settings: Settings) -> list[tuple[Path, int]]:
    """The JPEGs of FOLDER/jpeg-256 with their labels."""
    classes = sorted(path for path in (settings.folder / "jpeg-256").iterdir())
    found = [(path, label) for label, name in enumerate(classes) for path in sorted(name.iterdir())]
    if settings.form != "pixels":
        return found
    return found[:: -(-len(found) // MAX_PIXEL_PICTURES)]


def made(store: Path, make: Callable[[Path], None]) -> Path:
    """The store of a peer, made where it is not there yet; half of one is made anew."""
    done = store.with_name(store.name + ".done")
    if not done.exists():
        store.mkdir(parents=True, exist_ok=True)
        make(store)
        done.touch()
    return store


def bytes_on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main(
    open_loader: Callable[[Settings], tuple[Iterable[Any], Path]],
    packages: tuple[str, ...],
) -> None:
    """Serve a loader, given with the place of its store: an iterable of batches for each epoch.

    A batch is a sequence whose first item holds the pictures.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", default="jpeg")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--crop-px", type=int, default=224)
    settings = Settings(**vars(parser.parse_args()))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print is no answer
    loader, store = open_loader(settings)
    batches = _for_ever(loader)
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    versions = {name: version(name) for name in packages}
    _say(answers, {"bytes_on_disk": bytes_on_disk(store), "versions": versions})
    for line in sys.stdin:
        _say(answers, _measure(batches, float(line)))


def _measure(batches: Iterator[Any], seconds: float) -> dict[str, float]:
    for _ in range(BATCHES_SKIPPED):
        next(batches)
    began, crops = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        crops += len(next(batches)[0])
    return {"crops": crops, "seconds": time.perf_counter() - began}


def _for_ever(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _say(answers: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=answers, flush=True)
