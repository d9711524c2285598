"""Labels for the pictures that a user names, a batch at a time, as text, JSON or CSV (Figure 4).

Not here: finding and reading the pictures (`gather.py`), what is asked of the network
(`trained.py`).
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from alexnet.augment import check_views
from alexnet.errors import UserError
from alexnet.gather import read_pictures
from alexnet.trained import Guess, TrainedAlexNet

BAR_WIDTH = 24
PARTS_OF_A_CELL = "▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Labelled:
    """A picture's guesses, most probable first; or the reason why it cannot be read."""

    path: str
    guesses: tuple[Guess, ...]
    reason: str | None = None


def label_pictures(
    model: TrainedAlexNet,
    paths: Iterable[str],
    *,
    views: int = 1,
    top: int = 5,
    batch_size: int = 128,
    precision: str = "fp32",
    progress: Callable[[int], None] | None = None,
) -> Iterator[Labelled]:
    """One result per path, in order. `batch_size` counts crops; `progress` hears of each batch."""
    check_views(views)
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    size_px, per_batch = model.card.preprocessing.image_px, max(1, batch_size // views)
    done = 0
    for block in read_pictures(paths, size_px, batch_size=per_batch):
        found = iter(
            model.predictions(
                block.pixels, views=views, top=top, batch_size=batch_size, precision=precision
            )
        )
        for path, reason in zip(block.paths, block.reasons, strict=True):
            yield Labelled(path, () if reason is not None else next(found).top, reason)
        done += len(block.paths)
        if progress is not None:
            progress(done)


def as_text(labelled: Labelled) -> str:
    """A few lines: the path, then a bar, the percentage and the name of each class."""
    if labelled.reason is not None:
        return f"{labelled.path}\n  cannot be read: {labelled.reason}\n"
    lines = [
        f"  {_bar(guess.probability)} {guess.probability:6.1%}  {guess.name}\n"
        for guess in labelled.guesses
    ]
    return f"{labelled.path}\n{''.join(lines)}"


def _bar(share: float) -> str:
    eighths = round(share * BAR_WIDTH * 8)
    part = PARTS_OF_A_CELL[eighths % 8 - 1] if eighths % 8 else ""
    return f"{PARTS_OF_A_CELL[-1] * (eighths // 8)}{part}".ljust(BAR_WIDTH)


def as_record(labelled: Labelled, top: int) -> dict[str, Any]:
    """{path, top5: [{class, probability}]}, or {path, error}; the key tells how many were asked."""
    if labelled.reason is not None:
        return {"path": labelled.path, "error": labelled.reason}
    guesses = [{"class": g.name, "probability": g.probability} for g in labelled.guesses]
    return {"path": labelled.path, f"top{top}": guesses}


def json_lines(results: Iterable[Labelled], top: int) -> Iterator[str]:
    """A JSON array, an element a line, as the results come. Names that are no UTF-8 are escaped."""
    separator = "[\n"
    for labelled in results:
        yield f"{separator}{json.dumps(as_record(labelled, top))}"
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def csv_lines(results: Iterable[Labelled], top: int) -> Iterator[str]:
    """A header, then a row a picture: path, class_1, probability_1, ..., error."""
    columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "probability")]
    yield _csv_row(["path", *columns, "error"])
    for labelled in results:
        cells = [cell for g in labelled.guesses for cell in (g.name, f"{g.probability:.9g}")]
        padding = [""] * (2 * top - len(cells))
        yield _csv_row([labelled.path, *cells, *padding, labelled.reason or ""])


def _csv_row(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
