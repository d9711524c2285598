"""Packing a tar that comes through a pipe, so that it is never on the disk.

    tar xOf everything.tar ILSVRC2012_img_train.tar | alexnet prepare - DATA

How many pictures there are, and of which classes, is known at the end only: pictures are packed
as they come, and labels are settled when the last one is there. Whoever goes on after an
interruption sends the stream again; what has been packed is passed over, and must be the same.
Not here: how such a tar is read (sources.py).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from alexnet.dataset import PackedDataset, open_packed
from alexnet.errors import UserError
from alexnet.imagenet import WORDNET_NAMES, read_classes
from alexnet.listing import SPLITS, Carried, Picture
from alexnet.packing import Block, Packing, Plan, Progress, packing
from alexnet.prepare import Form, block_images, crashed, decode
from alexnet.sources import stream_source
from alexnet.workers import available_cores, in_order

DEFAULT_VAL_FRACTION = 0.1

# Pictures of a pipe wait in memory: here, on their way to a process, and there.
JOB_BYTES = 2**24
BYTES_UNDER_WAY = 2**27


def prepare_stream(
    file: IO[bytes],
    target: Path,
    *,
    name: str = "stream",
    form: Form | None = None,
    kind: str | None = None,
    classes: Path | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    processes: int | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> PackedDataset:
    """Pack the pictures of a tar that can only be read forwards, in the order of the stream.

    Where the stream does not tell splits, each picture is held out for validation with the chance
    `val_fraction` (None: a tenth; 0: none), drawn from its name and `seed`, but for the first of
    its class. A stream that breaks off is an error; what has come is kept. Progress counts
    pictures, with 0 for their unknown number; `checking` the bytes of checksums. Raises UserError
    for whatever stands in the way.
    """
    form = form or Form()
    fraction = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
    if not 0 <= fraction < 1:
        raise UserError(f"val_fraction is {fraction}; of a stream it must lie in 0 ... 1")
    settings = {**form.settings(), "val_fraction": fraction, "seed": seed}
    plan = Plan(name, "a stream", form.image_px, 0, form.store, settings=settings)
    refused: list[dict[str, str]] = []
    labels: dict[str, int] = {}

    def refuse(path: str, reason: str) -> None:
        refused.append({"path": path, "reason": reason})

    pictures = stream_source(file, kind=kind, classes=classes, refused=refuse)
    with packing(target, plan) as packed:
        numbered = _numbered(pictures, labels, fraction, seed)
        _pass_over(numbered, packed)
        for blocks in in_order(
            partial(_decode_splits, form),
            _jobs(numbered, block_images(form.image_px)),
            processes=processes or available_cores(),
            crashed=lambda picture: [crashed(form, picture)],
            weight=_bytes_of,
            most=BYTES_UNDER_WAY,
        ):
            packed.add(*blocks)
            if progress is not None:
                progress(packed.done, 0)
        if cut := next((entry for entry in refused if entry["path"] == "stream"), None):
            raise UserError(
                f"the stream broke off after {packed.done:,} pictures ({cut['reason']}); "
                "send it again from its beginning: what has come is kept"
            )
        if len(labels) < 2:
            raise UserError(
                f"the stream holds {len(labels)} classes with pictures; two are the least"
            )
        given = None if classes is None else read_classes(classes)
        order = _sorted(labels) if given is None else [i for i in given.ids if i in labels]
        relabel = np.empty(len(labels), np.int64)
        relabel[[labels[class_id] for class_id in order]] = np.arange(len(order))
        names = WORDNET_NAMES if given is None else given.names
        named = tuple(names.get(class_id, class_id) for class_id in order)
        kept = packed.class_counts(len(labels)).get("train")
        if kept is None or not kept.all():
            missing = order[0] if kept is None else list(labels)[int(kept.argmin())]
            raise UserError(
                f"no picture of class {missing!r} that can be read is left to train on; mend the "
                f"stream and remove {packed.data.parent} to begin anew"
            )
        packed.finish(tuple(order), named, relabel=relabel, refused=refused, progress=checking)
    return open_packed(target)


def _numbered(
    pictures: Iterator[tuple[Picture, bytes]], labels: dict[str, int], fraction: float, seed: int
) -> Iterator[Carried]:
    """Pictures with their bytes; classes are numbered as they come, in `labels`."""
    for picture, data in pictures:
        is_first = picture.class_id not in labels  # of its class: that one is to train on
        label = labels.setdefault(picture.class_id, len(labels))
        split = picture.split
        undecided = not is_first and not picture.name.startswith(f"{split}/")
        if undecided and _draw(picture.name, seed) < fraction:
            split = "val"
        yield Carried(split, label, picture.name, picture.place, data)


def _sorted(class_ids: Iterable[str]) -> list[str]:
    """By number if all are numbers, as in WebDataset's .cls files."""
    class_ids = list(class_ids)
    numeric = all(class_id.isascii() and class_id.isdigit() for class_id in class_ids)
    return sorted(class_ids, key=int) if numeric else sorted(class_ids)


def _draw(name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7]) / 2**56


def _pass_over(pictures: Iterator[Carried], packed: Packing) -> None:
    """Skip what is packed already. Raises UserError when it is not what the stream begins with."""
    passed = _sum_of(picture.name for picture in islice(pictures, packed.done))
    if passed != _sum_of(packed.names()):
        raise UserError(
            f"{packed.data.parent} was begun with another stream; send the same one again, "
            "or remove it to begin anew"
        )


def _sum_of(names: Iterable[str]) -> int:
    """A checksum of names that does not depend on their order."""
    total = 0
    for name in names:
        total += int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest())
    return total % 2**256


def _jobs(pictures: Iterator[Carried], size: int) -> Iterator[Sequence[Carried]]:
    """Cut into runs of at most `size` pictures, and of not much more than JOB_BYTES."""
    job: list[Carried] = []
    for picture in pictures:
        job.append(picture)
        if len(job) == size or _bytes_of(job) >= JOB_BYTES:
            yield job
            job = []
    if job:
        yield job


def _bytes_of(job: Sequence[Carried]) -> int:
    return sum(len(picture.data) for picture in job)


def _decode_splits(form: Form, pictures: Sequence[Carried]) -> list[Block]:
    """A block for each split that has pictures here."""
    parts = {split: [picture for picture in pictures if picture.split == split] for split in SPLITS}
    return [decode(form, part) for part in parts.values() if part]
