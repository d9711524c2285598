"""Opening whatever a user names as DATA: a built-in data set, a packed one, or any source.

Not here: reading packed data sets (dataset.py), packing (prepare.py), doing without (straight.py),
the built-in ones (builtin.py).
"""

from functools import partial
from pathlib import Path

from alexnet import builtin
from alexnet.dataset import PackedDataset, is_packed, open_packed
from alexnet.errors import UserError, suggest
from alexnet.packing import Progress
from alexnet.prepare import Form, contents_of, open_cached
from alexnet.sources import find_source, name_of_source
from alexnet.straight import open_straight


def open_dataset(
    spec: str,
    *,
    image_px: int,
    seed: int = 0,
    num_train: int | None = None,
    num_val: int | None = None,
    num_classes: int | None = None,
    val_fraction: float = 0.1,
    prepare: bool = True,
    sample: int = 2000,
    progress: Progress | None = None,
) -> PackedDataset:
    """Open 'shapes', 'cifar10', 'imagenette', a packed data set or a source of pictures.

    What is not packed yet is packed into the cache first (ALEXNET_CACHE, by default
    ~/.cache/alexnet), under its name, size and fingerprint: a folder that has changed since, or
    other settings, are packed anew. `num_train`, `num_val` and `num_classes` are for 'shapes'
    alone. Only 'cifar10' and 'imagenette' use the network, the first time.

    Unless `prepare`, pictures stay where they are and are decoded each time they are used; the
    statistics are those of `sample` training pictures (0: of all). See `open_straight`.
    """
    form = Form(image_px)
    sizes = {"num_train": num_train, "num_val": num_val, "num_classes": num_classes}
    given = {key: value for key, value in sizes.items() if value is not None}
    if not prepare and spec in ("shapes", "cifar10"):
        raise UserError(f"{spec} has no files of pictures: leave out --no-prepare")
    if spec == "shapes":
        return builtin.open_shapes(image_px, seed, given, progress)
    if given:
        raise UserError(f"{', '.join(given)}: for the built-in shapes only, not for {spec}")
    if spec == "cifar10":
        return builtin.open_cifar10(image_px, progress)
    straight = partial(open_straight, image_px=image_px, sample=sample, progress=progress)
    if spec == "imagenette":
        if not prepare:
            return straight(find_source(builtin.imagenette_folder(image_px)), name=spec)
        return builtin.open_imagenette(image_px, progress)
    path = Path(spec).expanduser()
    if is_packed(path):
        return _open_with_size(path, image_px)
    if not path.exists():
        raise UserError(f"no data set or folder {spec!r}{suggest(spec, builtin.NAMES)}")
    if (path / "recipe.json").is_file():
        raise UserError(f"{path} is a run, not pictures; to go on with it: --resume --run {path}")
    listing, name = find_source(path, val_fraction=val_fraction, seed=seed), name_of_source(path)
    if not prepare:
        return straight(listing, name=name)
    contents = contents_of(listing, form)
    return open_cached(name, image_px, contents.source, lambda: contents, progress)


def _open_with_size(path: Path, image_px: int) -> PackedDataset:
    dataset = open_packed(path)
    if dataset.image_px != image_px:
        raise UserError(
            f"{path} is packed at {dataset.image_px} px, but {image_px} px are asked for: "
            f"prepare it again with --image-px {image_px}, or take its pictures as they are with "
            f"--set data.image_px={dataset.image_px}"
        )
    return dataset
