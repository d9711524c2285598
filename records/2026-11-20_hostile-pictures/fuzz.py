"""Fuzz the readers of pictures, archives and tables: clean refusals only, no crash, no hang.

    PYTHONPATH=tests python records/2026-11-20_hostile-pictures/fuzz.py --inputs 100000

Each input is a pure function of its number: a seed file, mutated. Pictures go through `decode` and
`resize_and_crop`; archives and tables through `find_source` and the reading of what it lists. What
is raised must be UnreadableImage or UserError, in one line; nothing may end the process. Writes
results.json beside this file; a failure is named by its number, with which it can be repeated:

    PYTHONPATH=tests python records/2026-11-20_hostile-pictures/fuzz.py --number 12345
"""

import argparse
import json
import platform
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import PIL

import zoo
from alexnet.errors import UserError
from alexnet.images import UnreadableImage, decode, resize_and_crop
from alexnet.listing import read_picture
from alexnet.sources import find_source
from alexnet.workers import in_order

RESULTS = Path(__file__).parent / "results.json"
PER_JOB = 100
SLOW_SECONDS = 10.0

# Of each hundred inputs; the rest are pictures.
ARCHIVES_OF_100 = 25

PICTURE_PX = 48


@dataclass
class Outcome:
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, object]] = field(default_factory=list)
    slowest_seconds: float = 0.0
    slowest: int = -1
    peak_bytes: int = 0


@cache
def seeds() -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """(pictures, archives): small ones of every format and mode; what is readable of the zoo."""
    small = zoo.photograph(PICTURE_PX, PICTURE_PX - 7)
    pictures = [
        (animal.name, animal.data)
        for animal in zoo.zoo()
        if not animal.left_out and len(animal.data) < 20_000
    ]
    variants = {
        "JPEG": [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"quality": 100}],
        "PNG": [{}],
        "GIF": [{}, {"save_all": True, "append_images": [small.rotate(90)]}],
        "BMP": [{}],
        "TIFF": [{}, *({"compression": f"tiff_{c}"} for c in ("lzw", "deflate", "jpeg"))],
        "WEBP": [{}, {"lossless": True}, {"save_all": True, "append_images": [small.rotate(90)]}],
        "PPM": [{}],
        "AVIF": [{}],
    }
    for kind, several in variants.items():
        for number, options in enumerate(several):
            name = f"{kind.lower()}-{number}"
            pictures.append((name, zoo.encoded(small, kind, **options)))
    for mode in ("1", "L", "LA", "P", "RGBA"):
        pictures.append((f"png-{mode}", zoo.encoded(small.convert(mode), "PNG")))
    for mode in ("1", "L", "P", "RGBA", "CMYK", "YCbCr", "I", "F"):
        pictures.append((f"tiff-{mode}", zoo.encoded(small.convert(mode), "TIFF")))
    pictures.append(("jpeg-CMYK", zoo.encoded(small.convert("CMYK"), "JPEG")))
    return pictures, [(archive.name, archive.data) for archive in zoo.bad_archives()]


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """One to eight changes, most of them near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(int(generator.choice([1, 1, 1, 2, 3, 5, 8]))):
        if not changed:
            break
        # The square of a uniform number lies near 0 more often.
        place = int(generator.random() ** (2 if generator.random() < 0.6 else 1) * len(changed))
        length = int(generator.integers(1, 1 + min(64, len(changed))))
        match int(generator.integers(0, 8)):
            case 0:
                changed[place] ^= 1 << int(generator.integers(0, 8))
            case 1:
                changed[place] = int(generator.integers(0, 256))
            case 2:
                value = generator.choice([0, 1, 0x7F, 0x80, 0xFF])
                changed[place : place + length] = bytes([value]) * length
            case 3:
                del changed[place:]
            case 4:
                del changed[place : place + length]
            case 5:
                source = int(generator.random() * len(changed))
                changed[place:place] = changed[source : source + length]
            case 6:
                changed[place : place + length] = generator.bytes(length)
            case 7:
                size = int(generator.choice([2, 4, 8]))
                edge = generator.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1])
                order = "little" if generator.random() < 0.5 else "big"
                number = int(edge) % (1 << 8 * size)
                changed[place : place + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(changed)


def made(number: int) -> tuple[str, bytes]:
    generator = np.random.default_rng([0x616C6578, number])
    pictures, archives = seeds()
    group = archives if number % 100 < ARCHIVES_OF_100 else pictures
    name, data = group[int(generator.integers(len(group)))]
    return name, mutated(data, generator)


def tried(number: int, folder: Path) -> str:
    """Read the input of this number: "picture: read", "archive: refused", ..."""
    name, data = made(number)
    if number % 100 >= ARCHIVES_OF_100:
        try:
            resize_and_crop(decode(data).image, 64)
            return "picture: read"
        except UnreadableImage as refused:
            check_line(refused)
            return f"picture: {refused.kind}"
    path = folder / f"source{Path(name).suffix}"
    path.write_bytes(data)
    try:
        listing = find_source(path)
    except UserError as mistake:
        check_line(mistake)
        return "archive: refused as a whole"
    unread = 0
    for picture in listing.pictures():
        try:
            read_picture(picture.place)
        except UnreadableImage as refused:
            check_line(refused)
            unread += 1
    partly = unread or any(True for _ in listing.refused())
    return "archive: read in part" if partly else "archive: read"


def check_line(refusal: Exception) -> None:
    if len(str(refusal).splitlines()) != 1:
        raise RuntimeError(f"not one line: {refusal}")


def run(numbers: Sequence[int]) -> Outcome:
    outcome = Outcome()
    seeds()  # which takes seconds, and is no input's fault
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            start = time.monotonic()
            try:
                outcome.counts[tried(number, Path(folder))] += 1
            except Exception:
                outcome.counts["FAILURE"] += 1
                outcome.failures.append({"number": number, "error": traceback.format_exc()[-1500:]})
            seconds = time.monotonic() - start
            if seconds > outcome.slowest_seconds:
                outcome.slowest_seconds, outcome.slowest = seconds, number
            if seconds > SLOW_SECONDS:
                outcome.failures.append({"number": number, "error": f"took {seconds:.1f} s"})
    outcome.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return outcome


def crashed(number: int) -> Outcome:
    failure = {"number": number, "error": "ended the process"}
    return Outcome(Counter({"FAILURE": 1}), [failure])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--number", type=int, help="repeat one input, here, and print its outcome")
    options = parser.parse_args()
    if options.number is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(tried(options.number, Path(folder)))
        return
    numbers = iter(range(options.inputs))
    jobs = iter(lambda: list(islice(numbers, PER_JOB)), [])
    total, start = Outcome(), time.monotonic()
    for outcome in in_order(run, jobs, processes=options.processes, crashed=crashed):
        total.counts += outcome.counts
        total.failures += outcome.failures
        total.peak_bytes = max(total.peak_bytes, outcome.peak_bytes)
        if outcome.slowest_seconds > total.slowest_seconds:
            total.slowest_seconds, total.slowest = outcome.slowest_seconds, outcome.slowest
    results = {
        "inputs": sum(total.counts.values()),
        "counts": dict(sorted(total.counts.items())),
        "failures": total.failures,
        "slowest": {"number": total.slowest, "seconds": round(total.slowest_seconds, 2)},
        "peak_bytes_of_a_process": total.peak_bytes,
        "seconds": round(time.monotonic() - start, 1),
        "processes": options.processes,
        "versions": {"python": platform.python_version(), "pillow": PIL.__version__},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1)[:3000])


if __name__ == "__main__":
    main()
