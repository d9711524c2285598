"""Training straight from a source of pictures, with nothing prepared, for the impatient.

`open_straight` looks at each picture once, at its beginning and its end only, and decodes a sample
for the statistics. What it finds goes into the cache as a data set that has places instead of
pictures: they are decoded, scaled and cut each time they are asked for, to the pixels that
`prepare` would pack.

    <split>/places.bin   int64 (N, 5): kind, number of the file, first byte, bytes, time of change
    <split>/files.txt    the files, a line each, in the order of their numbers

A picture that ends as it should and cannot be decoded all the same is found when its turn comes.
Its number stays in the order of the epochs; it takes part in no minibatch, before a resumption as
after it, and in no evaluation. Not here: reading such pictures (pictures.py), packing (prepare.py).
"""

import io
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet.dataset import FILES_FILE, PLACES_FILE, PackedDataset, is_packed, open_packed
from alexnet.errors import UserError
from alexnet.files import cache_folder, locked, new_folder, sha256_of, write_json
from alexnet.images import MAX_PIXELS, UnreadableImage
from alexnet.listing import Listed, Listing, Place, picture_of
from alexnet.packing import FORMAT, FORMAT_VERSION, Labels, Progress, name_line
from alexnet.pictures import PLACE_KINDS
from alexnet.prepare import (
    PIXELS_VERSION,
    Form,
    block_images,
    check_classes,
    check_left_out,
    crashed,
    decode,
    fingerprint,
    jobs_of,
    sensible_processes,
)
from alexnet.randomness import permutation
from alexnet.statistics import Moments, statistics_of
from alexnet.workers import available_cores, in_order

# Raised whenever the same pictures would be found good or bad otherwise.
LOOK_VERSION = 1

# Enough for the header of nearly every picture; of the others all is read.
HEAD_BYTES = 2**15

PICTURES_PER_LOOK = 256
LOOKS_PER_PROCESS = 20_000

_JPEG_BEGINS, _JPEG_ENDS = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_BEGINS, _PNG_ENDS = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"

_Bad = dict[str, str]  # names of pictures that are left out, and why


def open_straight(
    listing: Listing,
    *,
    name: str,
    image_px: int,
    sample: int = 2000,
    processes: int | None = None,
    progress: Progress | None = None,
) -> PackedDataset:
    """Open a source as a data set whose pictures are decoded each time they are read.

    The statistics are those of `sample` training pictures, drawn once and for all (0: of all
    that there are). What has been found out is kept in the cache under the fingerprint of the
    source. Raises UserError for a source that cannot be read picture by picture.
    """
    if listing.kind == "parquet":
        raise UserError(
            "tables in parquet can only be read forwards: leave out --no-prepare, or pack them "
            "with alexnet prepare"
        )
    form = Form(image_px)
    key = [FORMAT_VERSION, PIXELS_VERSION, LOOK_VERSION, listing.fingerprint(), sample]
    target = cache_folder() / "straight" / f"{name}-{image_px}px-{fingerprint(key)[:16]}"
    with locked(target.with_name(f".{target.name}.lock")):
        if not is_packed(target):
            train = listing.counts()["train"]
            looked = _Looking(len(listing), min(sample or train, train), progress)
            bad = looked.look(listing, processes)
            moments = looked.take_sample(listing, form, bad, processes)
            with new_folder(target) as folder:
                _write(folder, listing, name, form, bad, moments)
    return open_packed(target)


class _Looking:
    """The work of the first time, with one count of progress over both of its parts."""

    def __init__(self, pictures: int, sample: int, progress: Progress | None) -> None:
        self._pictures, self._sample = pictures, sample
        self._progress = progress
        self._done = 0

    def _went_on(self, count: int) -> None:
        self._done = min(self._done + count, self._pictures + self._sample)
        if self._progress is not None:
            self._progress(self._done, self._pictures + self._sample)

    def look(self, listing: Listing, processes: int | None) -> _Bad:
        """The pictures that are not whole, as far as their ends tell."""
        count = processes or min(available_cores(), len(listing) // LOOKS_PER_PROCESS + 1)
        jobs = jobs_of(listing.pictures(), PICTURES_PER_LOOK)
        bad: _Bad = {}
        for looked_at, found in in_order(look_at, jobs, processes=count, crashed=_crashed):
            bad |= found
            _check_enough(bad, len(listing))
            self._went_on(looked_at)
        return bad

    def take_sample(
        self, listing: Listing, form: Form, bad: _Bad, processes: int | None
    ) -> Moments:
        """Decode the sample; what of it cannot be decoded joins `bad`."""
        moments = Moments.zero(form.image_px)
        chosen = _sampled(listing, self._sample, bad)
        for block in in_order(
            partial(decode, form),
            jobs_of(chosen, block_images(form.image_px)),
            processes=processes or sensible_processes(self._sample),
            crashed=partial(crashed, form),
        ):
            moments += block.moments
            bad |= {entry["path"]: entry["reason"] for entry in block.left_out}
            _check_enough(bad, len(listing))
            self._went_on(block.taken)
        return moments


def look_at(pictures: Sequence[Listed]) -> tuple[int, _Bad]:
    """How many pictures were looked at, and those that are not whole, with the reason.

    A JPEG or PNG that begins and ends as such is taken to be whole; all others are decoded.
    """
    bad = {}
    for picture in pictures:
        if not _ends_well(picture.place):
            try:
                picture_of(picture)
            except UnreadableImage as error:
                bad[picture.name] = str(error)
    return len(pictures), bad


def _crashed(picture: Listed) -> tuple[int, _Bad]:
    return 1, {picture.name: "ends the process that decodes it"}


def _ends_well(place: Place) -> bool:
    if place.kind == "cifar":
        return False  # decoding is no more than reading
    try:
        with open(place.file, "rb") as file:
            file.seek(place.start)
            head = file.read(min(HEAD_BYTES, place.size))
            file.seek(max(place.start + place.size - len(_PNG_ENDS), place.start))
            tail = file.read(min(len(_PNG_ENDS), place.size))
        whole = (head.startswith(_JPEG_BEGINS) and tail.endswith(_JPEG_ENDS)) or (
            head.startswith(_PNG_BEGINS) and tail == _PNG_ENDS
        )
        if not whole:
            return False
        with Image.open(io.BytesIO(head), formats=("JPEG", "PNG")) as image:
            return image.width * image.height <= MAX_PIXELS
    # Whatever it is that is wrong, decoding gives the reason.
    except Exception:
        return False


def _sampled(listing: Listing, sample: int, bad: Mapping[str, str]) -> Iterator[Listed]:
    """`sample` of the good training pictures, or all if they are fewer, in their order."""

    def good() -> Iterator[Listed]:
        train = islice(listing.pictures(), listing.counts()["train"])
        return (picture for picture in train if picture.name not in bad)

    count = sum(1 for _ in good())
    chosen = np.zeros(count, bool)
    chosen[permutation(0, "statistics", 0, count)[:sample]] = True
    return (picture for picture, wanted in zip(good(), chosen, strict=True) if wanted)


def _check_enough(bad: _Bad, total: int) -> None:
    if bad:
        name = next(iter(bad))
        check_left_out(len(bad), {"path": name, "reason": bad[name]}, total)


def _write(
    folder: Path, listing: Listing, name: str, form: Form, bad: _Bad, moments: Moments
) -> None:
    good = (picture for picture in listing.pictures() if picture.name not in bad)
    described, counts = {}, {}
    for split, pictures in groupby(good, key=lambda picture: picture.split):
        labels, num_files = _write_split(folder / split, pictures)
        counts[split] = np.bincount(labels, minlength=len(listing.class_ids))
        described[split] = {
            "images": len(labels),
            "files": num_files,
            "per_class": counts[split].tolist(),
            "sha256": {path.name: sha256_of(path) for path in sorted((folder / split).iterdir())},
        }
    check_classes(counts, listing.class_counts(), listing.class_ids)
    if not moments.images:
        raise UserError("no picture of the sample can be read; take a larger --set data.sample")
    with open(folder / "statistics.npz", "wb") as file:
        np.savez(file, allow_pickle=False, **vars(statistics_of(moments)))
    refused = [{"path": path, "reason": reason} for path, reason in listing.refused()]
    contents = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": name,
        "image_px": form.image_px,
        "store": "places",
        "class_names": listing.class_names,
        "class_ids": listing.class_ids,
        "settings": {**listing.settings, **form.settings()},
        "statistics_images": moments.images,
        "sha256": {"statistics.npz": sha256_of(folder / "statistics.npz")},
        "splits": described,
        "left_out": [*refused, *({"path": path, "reason": bad[path]} for path in sorted(bad))],
    }
    write_json(folder / "dataset.json", contents)


def _write_split(folder: Path, pictures: Iterable[Listed]) -> tuple[Labels, int]:
    """Write what one split has, picture by picture; its labels, and how many files it lies in."""
    folder.mkdir()
    labels = array("q")
    shared: dict[str, int] = {}  # numbers of archives, in which many pictures lie
    num_files = 0
    with (
        open(folder / PLACES_FILE, "wb") as places,
        open(folder / FILES_FILE, "wb") as files,
        open(folder / "sources.txt", "wb") as sources,
    ):
        for picture in pictures:
            place = picture.place
            number = shared.get(place.file, num_files)
            if number == num_files:
                files.write(name_line(place.file))
                num_files += 1
                if place.kind != "file":
                    shared[place.file] = number
            kind = PLACE_KINDS.index(place.kind)
            places.write(array("q", (kind, number, place.start, place.size, place.mtime_ns)))
            sources.write(name_line(picture.name))
            labels.append(picture.label)
    found = np.array(labels, np.int64)
    np.save(folder / "labels.npy", found)
    return found, num_files
