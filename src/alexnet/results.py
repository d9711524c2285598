"""Our errors beside the paper's, as a table (Section 6).

Not here: how the errors were counted (`predictions.py`, `metrics.py`).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alexnet.metrics import TOP_K, ErrorCount, wilson_interval
from alexnet.predictions import Predictions, mean_log_probability, score


@dataclass(frozen=True)
class PaperResult:
    """A row of the tables of Section 6, or an error quoted in the text; errors as fractions.

    `networks` counts the members of an average by what the paper calls them; it is empty for
    methods that are no network. `views` is None where the paper does not say.
    """

    method: str
    networks: tuple[tuple[str, int], ...]
    views: int | None
    top1_error: float
    top5_error: float | None


@dataclass(frozen=True)
class PaperTable:
    """What the paper reports on one set of pictures, and how to know that set."""

    names: frozenset[str]  # of data sets, in lower case, letters and digits only
    splits: tuple[str, ...]
    num_classes: int
    images: int
    results: tuple[PaperResult, ...]


# In Section 6, "CNN" is the network of Section 3 and "CNN*" the one with a sixth conv layer, which
# the paper trained on the 15 million pictures of ImageNet Fall 2011 first.
PAPER_WORDS = {"paper": "CNN", "source": "CNN", "sixth-conv": "CNN*"}
PAPER_TABLES = (
    PaperTable(
        frozenset({"ilsvrc2010", "lsvrc2010", "imagenet2010"}),
        ("test",),
        num_classes=1000,
        images=150_000,
        results=(
            PaperResult("sparse coding", (), None, 0.471, 0.282),
            PaperResult("SIFT + FVs", (), None, 0.457, 0.257),
            PaperResult("CNN", (("CNN", 1),), 10, 0.375, 0.170),
            PaperResult("CNN, centre patch", (("CNN", 1),), 1, 0.390, 0.183),
        ),
    ),
    PaperTable(
        frozenset({"ilsvrc2012", "lsvrc2012", "imagenet2012", "imagenet1k", "imagenet"}),
        ("val",),
        num_classes=1000,
        images=50_000,
        results=(
            PaperResult("1 CNN", (("CNN", 1),), 10, 0.407, 0.182),
            PaperResult("5 CNNs", (("CNN", 5),), 10, 0.381, 0.164),
            PaperResult("1 CNN*", (("CNN*", 1),), 10, 0.390, 0.166),
            PaperResult("7 CNNs*", (("CNN", 5), ("CNN*", 2)), 10, 0.367, 0.154),
        ),
    ),
    PaperTable(
        frozenset({"cifar10"}),
        ("test", "val"),
        num_classes=10,
        images=10_000,
        results=(
            PaperResult("4 layers, no norm", (("cifar10-13pct", 1),), None, 0.13, None),
            PaperResult("4 layers, norm", (("cifar10-11pct", 1),), None, 0.11, None),
        ),
    ),
)
# A data set may have lost a few pictures: the raw ILSVRC-2010 test set of 2012 had 149,998.
SMALLEST_SHARE_OF_IMAGES = 0.999


@dataclass(frozen=True)
class Score:
    """The errors of one run, or of the average of several."""

    name: str
    networks: tuple[str, ...]
    recipe: str
    seed: int | None
    split: str
    views: int
    num_classes: int
    errors: ErrorCount
    mean_log_probability: float

    def as_dict(self) -> dict[str, Any]:
        """What `alexnet evaluate --json` prints for it; intervals are 95 %."""
        log_probability = self.mean_log_probability
        return {
            "name": self.name,
            "networks": list(self.networks),
            "recipe": self.recipe,
            "seed": self.seed,
            **self.errors.as_dict(),
            "top1_interval": list(wilson_interval(self.errors.top1_wrong, self.errors.images)),
            "top5_interval": list(wilson_interval(self.errors.top5_wrong, self.errors.images)),
            "mean_log_probability": log_probability if math.isfinite(log_probability) else None,
        }


def score_of(name: str, predictions: Predictions, networks: tuple[str, ...]) -> Score:
    return Score(
        name,
        networks,
        predictions.recipe,
        predictions.seed,
        predictions.split,
        predictions.views,
        predictions.probabilities.shape[1],
        score(predictions),
        mean_log_probability(predictions),
    )


@dataclass(frozen=True)
class TableRow:
    """Ours, the paper's, or both where they are of the same experiment."""

    ours: Score | None
    paper: PaperResult | None


def results_table(scores: Sequence[Score], dataset_name: str) -> list[TableRow]:
    """Our scores, each beside the paper's of the same pictures, networks and views.

    What the paper reports on these pictures besides follows in rows of its own. A data set is the
    paper's by its name, its split, its classes and its number of pictures.
    """
    published = _published(scores, dataset_name)
    rows = [TableRow(ours, _same_experiment(ours, published)) for ours in scores]
    beside = {id(row.paper) for row in rows}
    return rows + [TableRow(None, result) for result in published if id(result) not in beside]


def _published(scores: Sequence[Score], dataset_name: str) -> tuple[PaperResult, ...]:
    name = "".join(character for character in dataset_name.lower() if character.isalnum())
    for table in PAPER_TABLES:
        if name in table.names and all(
            score.split in table.splits
            and score.num_classes == table.num_classes
            and SMALLEST_SHARE_OF_IMAGES * table.images <= score.errors.images <= table.images
            for score in scores
        ):
            return table.results
    return ()


def _same_experiment(ours: Score, published: Iterable[PaperResult]) -> PaperResult | None:
    members = Counter(PAPER_WORDS.get(network, network) for network in ours.networks)
    for result in published:
        if members == dict(result.networks) and result.views in (None, ours.views):
            return result
    return None


def print_results(rows: Sequence[TableRow], title: str, console: Console | None = None) -> None:
    """Print errors in percent with 95 % intervals, the paper's beside ours where it has them."""
    with_paper = any(row.paper is not None for row in rows)
    few_classes = any(row.ours is not None and row.ours.num_classes <= TOP_K for row in rows)
    caption = "in brackets: 95 % interval, over images and not over seeds"
    if few_classes:
        caption += f"\n{TOP_K} guesses cover all classes: top-5 says nothing"
    table = Table(title=title, caption=caption)
    table.add_column("run", overflow="fold")
    for heading in ("views", "images", "top-1 error %", "top-5 error %"):
        table.add_column(heading, justify="right")
    if with_paper:
        table.add_column("paper")
        table.add_column("top-1 / top-5 %", justify="right")
    for row in rows:
        table.add_row(*_our_cells(row.ours), *(_paper_cells(row.paper) if with_paper else ()))
    (console or Console()).print(table)


def _our_cells(ours: Score | None) -> tuple[str, ...]:
    if ours is None:
        return ("", "", "", "", "")
    errors = ours.errors
    cells = [escape(ours.name), str(ours.views), f"{errors.images:,}"]
    for wrong in (errors.top1_wrong, errors.top5_wrong):
        low, high = wilson_interval(wrong, errors.images)
        cells.append(f"{100 * wrong / errors.images:.2f} ({100 * low:.1f}-{100 * high:.1f})")
    return tuple(cells)


def _paper_cells(paper: PaperResult | None) -> tuple[str, str]:
    if paper is None:
        return ("", "")
    top5 = "-" if paper.top5_error is None else f"{100 * paper.top5_error:.1f}"
    return (paper.method, f"{100 * paper.top1_error:.1f} / {top5}")
