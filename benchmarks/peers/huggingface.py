"""Hugging Face datasets: Arrow files that hold the JPEGs, or raw pixels, and a DataLoader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from protocol import Settings, files, made, main
from torch.utils.data import DataLoader


def write(settings: Settings, store: Path) -> None:
    pixels = settings.form == "pixels"

    def rows() -> Iterator[dict[str, Any]]:
        for path, label in files(settings):
            image = (
                np.asarray(Image.open(path)).tobytes() if pixels else {"bytes": path.read_bytes()}
            )
            yield {"image": image, "label": label}

    features = datasets.Features(
        {
            "image": datasets.Value("binary") if pixels else datasets.Image(),
            "label": datasets.Value("int64"),
        }
    )
    built = datasets.Dataset.from_generator(
        rows, features=features, cache_dir=str(store / "building"), writer_batch_size=256
    )
    built.save_to_disk(str(store / "arrow"))


def open_loader(settings: Settings) -> tuple[DataLoader, Path]:
    store = made(
        settings.folder / f"huggingface-{settings.form}", lambda path: write(settings, path)
    )
    transform = settings.transform()

    def crop(data: bytes) -> torch.Tensor:
        side = round((len(data) / 3) ** 0.5)
        return settings.crop(np.frombuffer(data, np.uint8).reshape(side, side, 3))

    def transform_rows(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        cut = crop if settings.form == "pixels" else transform
        return {"image": [cut(image) for image in rows["image"]], "label": rows["label"]}

    def collate(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([row["image"] for row in rows])
        return images, torch.tensor([row["label"] for row in rows])

    dataset = datasets.load_from_disk(str(store / "arrow")).with_transform(transform_rows)
    loader = DataLoader(
        dataset,
        settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        persistent_workers=True,
        collate_fn=collate,
    )
    return loader, store / "arrow"


if __name__ == "__main__":
    main(open_loader, ("datasets", "pyarrow"))
