"""torchvision's ImageFolder and PyTorch's DataLoader, on 256 x 256 or 500 x 375 JPEGs.

Of the larger ones the shorter side becomes 256 first, as the same crops require. The transforms
give uint8: normalising to float, as most do, takes longer.
"""

from pathlib import Path

from protocol import Settings, main
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def open_loader(settings: Settings) -> tuple[DataLoader, Path]:
    large = settings.form == "500x375"
    store = settings.folder / ("jpeg-500x375" if large else "jpeg-256")
    dataset = ImageFolder(store, settings.transform(resize_px=256 if large else 0))
    loader = DataLoader(
        dataset,
        settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        persistent_workers=True,
    )
    return loader, store


if __name__ == "__main__":
    main(open_loader, ("torch", "torchvision", "pillow"))
