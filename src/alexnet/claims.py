"""The paper's claims, one by one: what the paper says, what the source logged, what decides.

Comparisons say which measure of which arm is held against which, and what the paper and the 2012
source's log (`layer-params-*.cfg`) have for it. The sentences are the paper's, told in short;
docs/fidelity.md names each claim beside its sentence.

Not here: which runs a claim needs (`plans.py`), what their lines mean (`judging.py`), and in which
order they are made (`campaign.py`).
"""

from dataclasses import dataclass
from typing import Any, Literal

from alexnet.errors import UserError, suggest
from alexnet.plans import (
    Plan,
    averages,
    networks,
    nonlinearities,
    norms,
    retrieval,
    schedules,
    settings,
    table_1,
    table_2,
    transfer,
)
from alexnet.scales import PRETRAIN, Scale
from alexnet.stall_claim import STALL_SEEDS, stalls

CPU_SCALES = ("toy", "shapes", "cifar10", "imagenette", "folder", "imagenet")
PICTURES = ("toy", "imagenette", "folder", "imagenet")


@dataclass(frozen=True)
class Comparison:
    """`arm` against `against` in a measure, arm less against, in points.

    `claims`: the arm is "worse" or "better", "no worse" by half a point, or "" (nothing is
    claimed; people ask). paper, source: what they report, in points of the same sign.
    """

    arm: str
    against: str = "control"
    measure: str = "val/1"
    claims: Literal["worse", "better", "no worse", ""] = "worse"
    paper: float | None = None
    source: float | None = None


@dataclass(frozen=True)
class Claim:
    """One claim. `paper` and `source` are their figures in words; `order`: the dearest first."""

    number: int
    name: str
    section: str
    says: str
    paper: str
    source: str
    scales: tuple[str, ...]
    plan: Plan
    comparisons: tuple[Comparison, ...] = ()
    seeds: int = 5
    remark: str = ""  # where what runs here is not quite what the paper or the source did


def _worse(arm: str, paper: float | None, source: float | None = None, **more: Any) -> Comparison:
    return Comparison(arm, paper=paper, source=source, **more)


CLAIMS = (
    Claim(
        1,
        "relu",
        "3.1",
        "With ReLU a four-layer net reaches 25 % training error on CIFAR-10 six times faster "
        "than with tanh",
        "6 times fewer epochs",
        "-",
        CPU_SCALES,
        nonlinearities,
    ),
    Claim(
        2,
        "norm",
        "3.3",
        "Response normalisation lowers the error",
        "1.4 / 1.2 points; CIFAR-10 13 % to 11 %",
        "run 148: 1.37 / 1.15; run 167, none over conv2: -0.17 / -0.09",
        CPU_SCALES,
        norms,
        (
            _worse("no-lrn", 1.4, 1.37),
            Comparison("no-conv2-norm", claims="no worse", source=-0.17),
            Comparison("batch-norm", claims=""),
            _worse("11pct-no-lrn", 2.0, against="11pct"),
        ),
        remark="Run 167 changed the schedule, too.",
    ),
    Claim(
        3,
        "overlap",
        "3.4",
        "Overlapping pooling lowers the error, and overfits slightly less",
        "0.4 / 0.3 points",
        "run 147: 0.39 / 0.30",
        CPU_SCALES,
        networks("no-overlap"),
        (_worse("no-overlap", 0.4, 0.39), _worse("no-overlap", None, measure="gap")),
    ),
    Claim(
        4,
        "columns",
        "3.2",
        "Two columns on two GPUs have a lower error than the net of one GPU with half of the "
        "kernels in each convolution",
        "1.7 / 1.2 points",
        "run 145-half: 1.70 / 1.23",
        CPU_SCALES,
        networks("one-gpu", "no-columns"),
        (_worse("one-gpu", 1.7, 1.70), Comparison("no-columns", claims="")),
    ),
    Claim(
        5,
        "colour",
        "4.1",
        "Shifting colours along their principal components lowers the top-1 error",
        "over 1 point",
        "-",
        CPU_SCALES,
        settings(no_colour={"augment": {"colour": "none"}}),
        (_worse("no-colour", 1.0),),
    ),
    Claim(
        6,
        "overfitting",
        "4.1",
        "Without crops and mirror images, and without dropout, the net overfits; dropout takes "
        "about twice the iterations",
        "substantial overfitting; twice the iterations",
        "-",
        CPU_SCALES,
        settings(
            no_crops={"augment": {"random_crop": False, "flip": False}},
            no_dropout={"network": {"dropout": "none"}},
        ),
        (
            _worse("no-crops", None, measure="gap"),
            _worse("no-crops", None),
            _worse("no-dropout", None, measure="gap"),
            _worse("no-dropout", None),
        ),
    ),
    Claim(
        7,
        "views",
        "4.1",
        "Averaging ten views lowers the error of the centre crop",
        "39.0 / 18.3 to 37.5 / 17.0",
        "39.02 / 18.30 to 37.47 / 17.00",
        CPU_SCALES,
        networks(),
    ),
    Claim(
        8,
        "averaging",
        "6",
        "Averaging five networks, and seven with two of six convolutions, lowers the error",
        "40.7 / 18.2 to 38.1 / 16.4 and 36.7 / 15.4",
        "one of them 40.66 / 18.21; no average logged",
        CPU_SCALES,
        averages,
        seeds=1,
    ),
    Claim(
        9,
        "transfer",
        "6",
        "A sixth convolution, pre-trained on more classes and fine-tuned, lowers the error",
        "40.7 / 18.2 to 39.0 / 16.6",
        "run 146-2012-2011: 38.99 / 16.62",
        CPU_SCALES,
        transfer,
        (
            Comparison("fine-tuned", claims="better", paper=-1.7, source=-1.67),
            Comparison("fine-tuned", against="sixth-conv", claims="better"),
            Comparison("sixth-conv", claims=""),
        ),
        remark=(
            "Imagenette is pre-trained on CIFAR-10 unless --pretrain names other pictures: five "
            "times as many, of ten classes, not of more."
        ),
    ),
    Claim(
        10,
        "depth",
        "7",
        "Removing any convolutional layer costs; any middle one about 2 points of top-1",
        "about 2 points",
        "-",
        CPU_SCALES,
        networks("no-conv2", "no-conv3", "no-conv4", "no-conv5", "no-fc7"),
        (
            _worse("no-conv2", None),
            _worse("no-conv3", 2.0),
            _worse("no-conv4", 2.0),
            _worse("no-conv5", None),
            Comparison("no-fc7", claims=""),
        ),
    ),
    Claim(
        11,
        "decay",
        "5",
        "Weight decay is not only a regulariser: it lowers the training error",
        "lower training error",
        "-",
        CPU_SCALES,
        settings(no_decay={"optimizer": {"weight_decay": 0.0, "bias_weight_decay": 0.0}}),
        (_worse("no-decay", None, measure="train"), _worse("no-decay", None)),
    ),
    Claim(
        12,
        "schedule",
        "5",
        "The rate is divided by ten when the validation error stops improving",
        "the heuristic that was followed",
        "by hand 40.66; exp from 0.02 (run 155) 40.74; dexp (run 169) 40.60, (run 170) 40.53",
        CPU_SCALES,
        schedules,
        (
            _worse("constant", None, against="by-error"),
            Comparison("by-hand", against="by-error", claims="no worse"),
            Comparison("dexp", against="by-error", claims="no worse"),
            Comparison("exp-from-double", against="dexp", claims="no worse", source=0.15),
        ),
        remark="The source's 0.15 is run 155 less run 169, which ended at 1/500 of its first rate.",
    ),
    Claim(
        13,
        "kernels",
        "6.1",
        "The kernels of one column are largely colour-agnostic, those of the other "
        "colour-specific, in every run",
        "every run",
        "-",
        CPU_SCALES,
        networks("no-columns"),
    ),
    Claim(
        14,
        "neighbours",
        "6.1",
        "The nearest pictures in the last hidden layer are near in meaning, not in pixels",
        "five examples with six neighbours each",
        "-",
        CPU_SCALES,
        retrieval,
    ),
    Claim(
        15,
        "baselines",
        "6",
        "The network has a lower error than SIFT with Fisher vectors, and that than sparse coding",
        "37.5 / 17.0, 45.7 / 25.7, 47.1 / 28.2",
        "37.47 / 17.00",
        CPU_SCALES,
        table_1,
        (
            _worse("sift-fisher", 8.2, measure="val/10"),
            _worse("sparse-coding", 9.6, measure="val/10"),
            _worse("sparse-coding", 1.4, against="sift-fisher"),
        ),
        seeds=3,
    ),
    Claim(
        16,
        "table2",
        "6",
        "Table 2: 1, 5 and 7 networks, with and without pre-training; 10,184 classes of Fall 2009",
        "40.7 / 18.2, 38.1 / 16.4, 39.0 / 16.6, 36.7 / 15.4; Fall 2009 67.4 / 40.9",
        "40.66 / 18.21, -, 38.99 / 16.62, -; nearest on 2009 (run 131-2009) 69.42 / 43.73",
        CPU_SCALES,
        table_2,
        (Comparison("fine-tuned", claims="better", paper=-1.7, source=-1.67),),
        seeds=2,
    ),
    Claim(
        17,
        "stall",
        "5",
        "Ours: does the printed recipe train from every seed, and what decides it?",
        "not discussed",
        "-",
        CPU_SCALES,
        stalls,
        seeds=STALL_SEEDS,
    ),
)

# Most verdicts for the time first: what a night on two cores begins with.
BY_VALUE = (
    *("columns", "views", "kernels", "neighbours", "norm", "baselines", "averaging", "stall"),
    *("overfitting", "relu", "colour", "decay", "depth", "overlap", "schedule", "transfer"),
    "table2",
)


PRETRAINED = ("transfer", "table2")  # claims that need other pictures


def find_claim(text: str) -> Claim:
    """By name or number. Raises UserError, naming the nearest, for an unknown one."""
    for claim in CLAIMS:
        if text in (claim.name, str(claim.number)):
            return claim
    names = [claim.name for claim in CLAIMS]
    raise UserError(f"no claim {text!r}{suggest(text, names)}")


def check_scale(claim: Claim, scale: Scale) -> None:
    """Raises UserError where a claim cannot be tested at a scale."""
    if claim.name in PRETRAINED and scale.name not in PRETRAIN and not scale.pretrain:
        raise UserError(
            f"claim {claim.name} at scale {scale.name} needs other pictures to pre-train on: "
            "--pretrain DATA"
        )
