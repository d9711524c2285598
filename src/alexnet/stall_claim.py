"""Claim 17: does the printed recipe train from every seed, and which single difference decides it?

The paper's net with other first weights, another order of norm and ReLU, other pixels, pictures and
classes, each with both conventions of dropout; at full size the `source` and `caffe` networks, too.
Not here: when a loss has left chance (`trials.py`), shares and intervals (`judging.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

from alexnet.config import diff
from alexnet.networks import find_network
from alexnet.plans import Lines, Trials
from alexnet.recipes import find_recipe
from alexnet.scales import Scale
from alexnet.trials import Trial, train_trial


class StallArm(NamedTuple):
    """What is crossed; the defaults are the paper's net on the scale's own pictures.

    `start`: first weights, of the paper, the source or Caffe in the paper's net, or the `source`
    and `caffe` networks whole. `pictures`: "shapes" has ten classes unless `classes` says 100.
    """

    start: str = "paper-start"
    norm: Literal["", "norm-first"] = ""
    pixels: Literal["", "unit-input"] = ""
    pictures: Literal["", "shapes"] = ""
    classes: Literal["", "100-classes"] = ""
    dropout: Literal["plain", "inverted"] = "plain"

    @property
    def name(self) -> str:
        return "-".join(filter(None, self))


def _both_dropouts(*arms: StallArm) -> list[StallArm]:
    return [arm._replace(dropout=dropout) for arm in arms for dropout in ("plain", "inverted")]


# From the paper's net one at a time, from the source's start too, and dropout crossed with all.
STALL_ARMS = _both_dropouts(
    StallArm(),
    StallArm("source-start"),
    StallArm("caffe-start"),
    StallArm(norm="norm-first"),
    StallArm("source-start", norm="norm-first"),
    StallArm(pixels="unit-input"),
    StallArm(pictures="shapes"),
    StallArm(pictures="shapes", classes="100-classes"),
    StallArm("source-start", pictures="shapes"),
    StallArm("source-start", pictures="shapes", classes="100-classes"),
)
WHOLE_NETWORKS = _both_dropouts(StallArm("source"), StallArm("caffe"))  # at full size
STALL_SHAPES = {"dataset": "shapes", "num_train": 6400, "num_val": 800, "num_classes": 10}
STALL_SEEDS = 20
STALL_STEPS = 200


def stalls(scale: Scale, seeds: Sequence[int], lines: Lines) -> Trials:
    """Whether the printed recipe gets away from ln(classes), and which single change decides it."""
    arms = STALL_ARMS + (WHOLE_NETWORKS if scale.is_full else [])
    return [stall_trial(scale, arm, seed) for seed in seeds for arm in arms]


def stall_trial(scale: Scale, arm: StallArm, seed: int) -> Trial:
    """The paper's training of the paper's net, or of one as narrow as the scale's."""
    base = scale.control()
    small = base.network.name
    if scale.is_full:
        small = "paper"
        base = diff(find_recipe("paper-2012"), data=asdict(base.data), system=asdict(base.system))
    parts = [small, arm.start, arm.norm, arm.pixels]
    if arm.start in ("source", "caffe"):
        del parts[0]
        base = diff(base, augment={"crop_px": find_network(arm.start).input_px})  # Caffe's are 227
    recipe = diff(
        base,
        network={"name": "/".join(filter(None, parts)), "dropout": arm.dropout},
        schedule={"kind": "constant", "epochs": 1000.0},
        evaluate={"views": "1", "every_epochs": 1000.0, "train_pictures": 0},
        system={"max_steps": scale.steps or STALL_STEPS},
    )
    if arm.pictures:
        recipe = diff(recipe, data=STALL_SHAPES)
    if arm.classes:
        recipe = diff(recipe, data={"num_classes": 100})
    return train_trial(scale.name, arm.name, seed, recipe)


PRINTED = (  # the recipe as the paper has it, on several pictures
    StallArm(),
    StallArm(pictures="shapes"),
    StallArm(pictures="shapes", classes="100-classes"),
)
STALL_WORDS: tuple[Mapping[str, str], ...] = (
    {"paper-start": "the paper's start", "source-start": "the source's", "caffe-start": "Caffe's"},
    {"": "norm after ReLU", "norm-first": "norm before"},
    {"": "pixels to 255", "unit-input": "of unit scale"},
    {"": "these pictures", "shapes": "shapes"},
    {"": "10 classes", "100-classes": "100"},
    {"plain": "plain dropout", "inverted": "inverted"},
)


def single_change(before: StallArm, after: StallArm) -> str | None:
    """ "plain dropout -> inverted" if `after` leaves the paper in just one more thing."""
    differ = [i for i in range(len(before)) if before[i] != after[i]]
    if len(differ) != 1 or before[differ[0]] != StallArm()[differ[0]]:
        return None
    words = STALL_WORDS[differ[0]]
    if after[differ[0]] not in words:  # another network as a whole
        return None
    return f"{words[before[differ[0]]]} -> {words[after[differ[0]]]}"
