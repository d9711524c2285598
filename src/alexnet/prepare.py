"""From pictures to a packed data set (Section 2 of the paper: shorter side 256, central 256x256).

`prepare` packs any source into a folder that its user names, whole or in shares; `open_cached`
packs into the cache what is not there yet.

A picture that cannot be read is named, counted and left out, never replaced. Not here: what a
source is (sources.py), pipes (stream.py), decoding (images.py), the files (packing.py).
"""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet.dataset import PackedDataset, is_packed, open_packed
from alexnet.errors import UserError, suggest
from alexnet.files import cache_folder
from alexnet.images import RESAMPLING, UnreadableImage, resize_and_crop
from alexnet.listing import Listed, Listing, picture_of
from alexnet.packing import (
    FORMAT_VERSION,
    STORES,
    Block,
    BusyError,
    NoDataSetError,
    Packing,
    Plan,
    Progress,
    make_block,
    merge_shares,
    packed_bytes,
    packing,
)
from alexnet.pictures import decode_jpeg, encode_jpeg
from alexnet.statistics import Pixels
from alexnet.workers import available_cores, in_order

# Raised whenever the same pictures would be packed to other pixels, so that caches are renewed.
PIXELS_VERSION = 1

BLOCK_BYTES = 4 * 2**20

# Below this many pictures, starting processes takes longer than they save.
PICTURES_PER_PROCESS = 500

SECONDS_BETWEEN_LOOKS = 0.2

# From here on the other store is offered before the work begins.
WORTH_SAYING_BYTES = 10 * 10**9


@dataclass(frozen=True)
class Contents:
    """What a packed data set is to hold; `blocks(done)` goes on after `done` pictures.

    `source` is a fingerprint: equal for equal pictures in equal order. `refused` are things in
    the source that were not even taken for pictures, with the reason.
    """

    source: str
    num_images: int
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    blocks: Callable[[int], Iterator[Block]]
    expected: dict[str, list[int]] = field(default_factory=dict)  # of each class, by split
    refused: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """What becomes of each picture: its side, the filter that scales it, what is kept of it."""

    image_px: int = 256
    resampling: str = "bicubic"
    store: str = "pixels"
    quality: int = 90

    def __post_init__(self) -> None:
        if self.image_px < 1:
            raise UserError(f"image_px is {self.image_px}; it must be at least 1")
        if self.resampling not in RESAMPLING:
            raise UserError(
                f"no resampling {self.resampling!r}{suggest(self.resampling, RESAMPLING)}"
            )
        if self.store not in STORES:
            raise UserError(f"store is {self.store!r}; it is pixels or jpeg")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}; it must lie between 1 and 100")

    def settings(self) -> dict[str, Any]:
        quality = {"quality": self.quality} if self.store == "jpeg" else {}
        return {"resampling": self.resampling, **quality}


def prepare(
    listing: Listing,
    target: Path,
    *,
    name: str,
    form: Form | None = None,
    processes: int | None = None,
    shard: tuple[int, int] | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> PackedDataset | None:
    """Pack the pictures of a source into the new folder `target` and open it.

    `processes` decode (by default one per core). Interrupted, the same call goes on where it was.
    With `shard` (i, n), i from 1 to n, only that share is packed, and None is returned; `merge`
    puts the shares together. `progress` is called with pictures, `checking` with the bytes of
    checksums, at the end. Raises UserError for whatever stands in the way.
    """
    form = form or Form()
    contents = contents_of(listing, form, processes=processes, shard=shard)
    _pack(target, contents, form, name, shard, progress, checking)
    return None if shard is not None else open_packed(target)


def merge(
    listing: Listing,
    target: Path,
    *,
    name: str,
    form: Form | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> PackedDataset:
    """Put the finished shares of `prepare(..., shard=...)` beside `target` together."""
    form = form or Form()
    contents = contents_of(listing, form)
    merge_shares(
        target,
        _plan(contents, form, name, None),
        contents.class_ids,
        contents.class_names,
        contents.refused,
        lambda packed: _check_packed(packed, contents),
        progress,
        checking,
    )
    return open_packed(target)


def forecast(num_images: int, form: Form) -> str:
    """What the packed data set will take, and what the other store would."""
    pixels, jpegs = (packed_bytes(num_images, form.image_px, store) for store in STORES)
    said = f"{num_images:,} pictures: about "
    if form.store == "jpeg":
        return said + f"{jpegs / 1e9:,.1f} GB as JPEG"
    said += f"{pixels / 1e9:,.1f} GB"
    large = pixels > WORTH_SAYING_BYTES
    return said + (f" as pixels; --store jpeg: {jpegs / 1e9:,.1f} GB at most" if large else "")


def open_cached(
    name: str,
    image_px: int,
    key: Any,
    make_contents: Callable[[], Contents],
    progress: Progress | None,
) -> PackedDataset:
    """Open the packed data set of this fingerprint in the cache, after packing it if need be."""
    short = fingerprint([FORMAT_VERSION, PIXELS_VERSION, key])[:16]
    target = cache_folder() / "packed" / f"{name}-{image_px}px-{short}"
    while not is_packed(target):
        try:
            _pack(target, make_contents(), Form(image_px), name, None, progress)
        except BusyError:  # another process packs the same; it will be there soon
            time.sleep(SECONDS_BETWEEN_LOOKS)
        except UserError:
            if not is_packed(target):  # unless another process has been faster
                raise
    return open_packed(target)


def contents_of(
    listing: Listing,
    form: Form,
    *,
    processes: int | None = None,
    shard: tuple[int, int] | None = None,
) -> Contents:
    """The contents of a source, or of share i of n of it: pictures read, scaled and cut."""
    total = len(listing)
    share, shares = shard or (1, 1)
    start, stop = (share - 1) * total // shares, share * total // shares

    def blocks(done: int) -> Iterator[Block]:
        jobs = jobs_of(listing.pictures(start + done, stop), block_images(form.image_px))
        count = processes or sensible_processes(stop - start - done)
        decoded = in_order(
            partial(decode, form),
            jobs,
            processes=count,
            crashed=partial(crashed, form),
        )
        return _checked(decoded, total)

    return Contents(
        source=listing.fingerprint(),
        num_images=total,
        class_ids=listing.class_ids,
        class_names=listing.class_names,
        settings=listing.settings,
        blocks=blocks,
        expected=listing.class_counts(),
        refused=[{"path": name, "reason": reason} for name, reason in listing.refused()],
    )


def decode(form: Form, pictures: Sequence[Listed]) -> Block:
    """Read, scale and cut pictures of one split; name those that cannot be read."""
    kept: list[Listed] = []
    pixels: list[Pixels] = []
    left_out: list[dict[str, str]] = []
    with warnings.catch_warnings():
        # What Pillow thinks of a picture that it can read is for `check`, not for the terminal.
        warnings.filterwarnings("ignore", module="PIL")
        for picture in pictures:
            try:
                image = picture_of(picture)
                pixels.append(resize_and_crop(image, form.image_px, form.resampling))
                kept.append(picture)
            except UnreadableImage as error:
                left_out.append({"path": picture.name, "reason": str(error)})
    return _block(form, pictures[0].split, kept, pixels, left_out)


def crashed(form: Form, picture: Listed) -> Block:
    """What `decode` would have said of a picture that ended its process."""
    left_out = {"path": picture.name, "reason": "ends the process that decodes it"}
    return _block(form, picture.split, [], [], [left_out])


def fingerprint(key: Any) -> str:
    """Hexadecimal, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(key).encode(errors="surrogatepass")).hexdigest()


def block_ranges(count: int, image_px: int, done: int = 0) -> Iterator[range]:
    """The numbers from `done` to `count` - 1, a block at a time."""
    size = block_images(image_px)
    return (range(start, min(start + size, count)) for start in range(done, count, size))


def block_images(image_px: int) -> int:
    return math.ceil(BLOCK_BYTES / (3 * image_px**2))


def _plan(contents: Contents, form: Form, name: str, shard: tuple[int, int] | None) -> Plan:
    return Plan(
        name=name,
        source=contents.source,
        image_px=form.image_px,
        num_images=contents.num_images,
        store=form.store,
        shard=shard,
        settings={**contents.settings, **form.settings()},
    )


def _pack(
    target: Path,
    contents: Contents,
    form: Form,
    name: str,
    shard: tuple[int, int] | None,
    progress: Progress | None,
    checking: Progress | None = None,
) -> None:
    with packing(target, _plan(contents, form, name, shard)) as packed:
        total = contents.num_images // (shard or (1, 1))[1]
        for block in contents.blocks(packed.done):
            packed.add(block)
            if progress is not None:
                progress(packed.done, total)
        if shard is None:
            _check_packed(packed, contents)
            packed.finish(
                contents.class_ids,
                contents.class_names,
                refused=contents.refused,
                progress=checking,
            )


def _block(
    form: Form,
    split: str,
    kept: Sequence[Listed],
    pixels: list[Pixels],
    left_out: list[dict[str, str]],
) -> Block:
    px = form.image_px
    labels = np.array([picture.label for picture in kept], np.int64)
    sources = tuple(picture.name for picture in kept)
    rows = None
    if form.store == "jpeg":
        rows = [encode_jpeg(image, form.quality) for image in pixels]
        # The statistics are those of what training will see.
        pixels = [decode_jpeg(row) for row in rows]
    stacked = np.array(pixels, np.uint8).reshape(-1, px, px, 3)
    return make_block(split, stacked, labels, sources, left_out, rows)


def jobs_of(pictures: Iterator[Listed], size: int) -> Iterator[Sequence[Listed]]:
    """Cut into runs of at most `size` pictures of one split."""
    for _, part in groupby(pictures, key=lambda picture: picture.split):
        while job := list(islice(part, size)):
            yield job


def _checked(blocks: Iterable[Block], total: int) -> Iterator[Block]:
    """Pass blocks on; stop when so much was left out that the rest is no data set."""
    left_out = 0
    first: dict[str, str] = {}
    for block in blocks:
        if block.left_out:
            first = first or block.left_out[0]
            left_out += len(block.left_out)
            check_left_out(left_out, first, total)
        yield block


def check_left_out(left_out: int, first: Mapping[str, str], total: int) -> None:
    """Raises NoDataSetError, naming the first, when more than half of all are left out."""
    if 2 * left_out > total:
        raise NoDataSetError(
            f"more than half of the {total:,} pictures cannot be read; "
            f"the first: {first['path']}: {first['reason']}"
        )


def _check_packed(packed: Packing, contents: Contents) -> None:
    kept = packed.class_counts(len(contents.class_ids))
    check_classes(kept, contents.expected, contents.class_ids)


def check_classes(
    kept: Mapping[str, npt.NDArray[np.int64]],
    expected: Mapping[str, list[int]],
    class_ids: Sequence[str],
) -> None:
    """Raises NoDataSetError for a class that has lost all its pictures in a split."""
    none = np.zeros(len(class_ids), np.int64)
    for split, before in expected.items():
        for class_id, was, is_now in zip(class_ids, before, kept.get(split, none), strict=True):
            if was and not is_now:
                raise NoDataSetError(
                    f"no picture of class {class_id!r} for {split} can be read; "
                    "replace the pictures of this class or remove it"
                )


def sensible_processes(num_pictures: int) -> int:
    return max(min(available_cores(), num_pictures // PICTURES_PER_PROCESS), 1)
