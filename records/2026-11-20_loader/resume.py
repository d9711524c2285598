"""Stop at a random batch, go on with other threads and ranks: is the sequence the same?

    python records/2026-11-20_loader/resume.py [--cases 2000] [--seed 0]

Each case draws a data set (pixels in a memory map, or JPEGs), a recipe, how many steps there are
and where it is stopped, sometimes more than once; each stretch has its own number of threads and
of ranks. What is compared, picture by picture: index, top, left, flip, colour draws, and the bytes
of the crop. Prints one line of JSON; ends with an error at the first difference.
"""

import argparse
import json
import random
import tempfile
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.config import Recipe, diff
from alexnet.dataset import Split
from alexnet.loader import batches, num_batches
from alexnet.pictures import JpegPictures, encode_jpeg
from alexnet.recipes import find_recipe

IMAGE_PX, CROP_PX, MAX_PICTURES = 16, 12, 200


def splits(folder: Path) -> tuple[Split, Split]:
    """The same number of pictures twice, as pixels and as JPEGs; a label is a number."""
    pixels = np.random.default_rng(0).integers(
        0, 256, (MAX_PICTURES, IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8
    )
    np.save(folder / "images.npy", pixels)
    files = [encode_jpeg(picture) for picture in pixels]
    (folder / "images.jpegs").write_bytes(b"".join(files))
    offsets = np.cumsum([0, *map(len, files)], dtype=np.int64)
    labels, names = np.arange(MAX_PICTURES), ("",) * MAX_PICTURES
    mapped = np.load(folder / "images.npy", mmap_mode="r")
    jpegs = JpegPictures(folder / "images.jpegs", offsets, IMAGE_PX)
    return Split("train", mapped, labels, names), Split("train", jpegs, labels, names)


def first(split: Split, count: int) -> Split:
    return Split(split.name, split.images[:count], split.labels[:count], split.sources[:count])


def draw_recipe(chance: random.Random) -> Recipe:
    return diff(
        find_recipe("paper-2012"),
        data={"image_px": IMAGE_PX, "order": chance.choice(["shuffled", "fixed"])},
        augment={"crop_px": CROP_PX, "crop_chunk": chance.choice([1, 1, 8, 32])},
        optimizer={"batch_size": chance.randint(1, 64)},
        system={"seed": chance.randrange(2**62)},
    )


def stretch(split: Split, recipe: Recipe, start: int, stop: int, threads: int, ranks: int) -> list:
    """What each picture of each step gets, put together from all ranks."""
    of_ranks = []
    for rank in range(ranks):
        feed = batches(
            split, recipe, step=start, stop=stop, rank=rank, ranks=ranks, threads=threads
        )
        of_ranks.append([entries(batch) for batch in feed])
    return [list(chain.from_iterable(parts)) for parts in zip(*of_ranks, strict=True)]


def entries(batch: Any) -> list:
    columns = (batch.labels, batch.top, batch.left, batch.flip, batch.colour)
    rows = zip(*(column.tolist() for column in columns), batch.crops.numpy(), strict=True)
    return [(*row[:4], tuple(row[4]), row[5].tobytes()) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    pictures = stops = 0
    with tempfile.TemporaryDirectory() as folder:
        both = splits(Path(folder))
        for case in range(arguments.cases):
            recipe = draw_recipe(chance)
            split = first(chance.choice(both), chance.randint(1, MAX_PICTURES))
            stop = chance.randint(1, max(1, min(40, 3 * num_batches(recipe, len(split)))))
            cuts = sorted(chance.randint(0, stop) for _ in range(chance.randint(1, 3)))
            whole = stretch(split, recipe, 0, stop, threads=1, ranks=1)
            again = []
            for start, end in pairwise([0, *cuts, stop]):
                again += stretch(
                    split, recipe, start, end, chance.randint(1, 8), chance.randint(1, 8)
                )
            assert again == whole, f"case {case} of seed {arguments.seed} differs"
            pictures += sum(map(len, whole))
            stops += len(cuts)
    print(json.dumps({"cases": arguments.cases, "stops": stops, "pictures": pictures}))


if __name__ == "__main__":
    main()
