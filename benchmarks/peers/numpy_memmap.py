"""What a user would write: a memory map, indexed by a batch, then one crop for the whole batch.

FOLDER is here the `images.npy` itself.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from protocol import Settings, main


class Batches:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Copy-on-write, for torch takes no memory that cannot be written.
        self._images = torch.from_numpy(np.load(settings.folder, mmap_mode="c"))

    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        px = self._settings.crop_px
        for indices in torch.randperm(len(self._images)).split(self._settings.batch_size):
            top, left = torch.randint(self._images.shape[1] - px + 1, (2,)).tolist()
            crops = self._images[indices][:, top : top + px, left : left + px]
            yield (crops.flip(2) if torch.rand(()) < 0.5 else crops.contiguous(),)


def open_loader(settings: Settings) -> tuple[Batches, Path]:
    return Batches(settings), settings.folder.parent


if __name__ == "__main__":
    main(open_loader, ("torch", "numpy"))
