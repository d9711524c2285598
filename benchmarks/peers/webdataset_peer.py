"""WebDataset: ten tar shards of JPEGs, or of raw pixels, read by WebLoader with shuffling."""

import random
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from protocol import Settings, files, made, main

SHARDS = 10


def write(settings: Settings, store: Path) -> None:
    pictures = files(settings)
    random.Random(0).shuffle(pictures)
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(store / f"s-{shard:06d}.tar")) as tar:
            for number, (path, label) in enumerate(pictures[shard::SHARDS]):
                if settings.form == "pixels":
                    content = {"bin": np.asarray(Image.open(path)).tobytes()}
                else:
                    content = {"jpg": path.read_bytes()}
                tar.write({"__key__": f"{shard:02d}{number:08d}", "cls": label, **content})


def open_loader(settings: Settings) -> tuple[webdataset.WebLoader, Path]:
    store = made(
        settings.folder / f"webdataset-{settings.form}", lambda path: write(settings, path)
    )
    shards = str(store / f"s-{{000000..{SHARDS - 1:06d}}}.tar")
    dataset = webdataset.WebDataset(shards, shardshuffle=SHARDS).shuffle(1000)
    if settings.form == "pixels":

        def crop(data: bytes):
            side = round((len(data) / 3) ** 0.5)
            return settings.crop(np.frombuffer(data, np.uint8).reshape(side, side, 3))

        dataset = dataset.decode().to_tuple("bin", "cls").map_tuple(crop, None)
    else:
        transform = settings.transform()
        dataset = dataset.decode("pil").to_tuple("jpg", "cls").map_tuple(transform, None)
    dataset = dataset.batched(settings.batch_size)
    loader = webdataset.WebLoader(
        dataset, num_workers=settings.workers, batch_size=None, persistent_workers=True
    )
    return loader, store


if __name__ == "__main__":
    main(open_loader, ("webdataset",))
