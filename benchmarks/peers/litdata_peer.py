"""LitData: chunks of 64 MB of JPEGs, or of raw pixels, streamed from the disk with shuffling."""

from functools import partial
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from PIL import Image
from protocol import Settings, files, made, main


def as_jpeg(picture: tuple[str, int]) -> tuple[Image.Image, int]:
    return Image.open(picture[0]), picture[1]  # litdata keeps the bytes of a JPEG


def as_pixels(picture: tuple[str, int]) -> tuple[np.ndarray, int]:
    return np.asarray(Image.open(picture[0])), picture[1]


def write(settings: Settings, store: Path) -> None:
    litdata.optimize(
        as_pixels if settings.form == "pixels" else as_jpeg,
        [(str(path), label) for path, label in files(settings)],
        output_dir=str(store),
        chunk_bytes="64MB",
        num_workers=2,
        mode="overwrite",
    )


def cut(settings: Settings, transform: Any, item: tuple[Any, int]) -> tuple[torch.Tensor, int]:
    image, label = item
    return settings.crop(image) if settings.form == "pixels" else transform(image), label


def open_loader(settings: Settings) -> tuple[litdata.StreamingDataLoader, Path]:
    store = made(settings.folder / f"litdata-{settings.form}", lambda path: write(settings, path))
    dataset = litdata.StreamingDataset(
        str(store), shuffle=True, transform=partial(cut, settings, settings.transform())
    )
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        persistent_workers=True,
    )
    return loader, store


if __name__ == "__main__":
    main(open_loader, ("litdata",))
