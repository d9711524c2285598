"""A recipe: network, data, augmentation, optimiser, schedule, evaluation, system, on one page.

The defaults are the paper's (Sections 2, 4 and 5); every other recipe is a diff (`recipes.py`).
`override` makes one more diff from text such as "optimizer.lr=0.005".
"""

import json
import math
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from types import UnionType
from typing import Any, Literal

from alexnet.errors import UserError, suggest
from alexnet.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Section 3. `dropout`: as "described" in the network, or made "plain", "inverted", "none".

    `weights`: a weights file or run to start from, by layer names and shapes; "": fresh ones.
    """

    name: str = "paper"
    weights: str = ""
    dropout: Literal["described", "plain", "inverted", "none"] = "described"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Section 2. Pictures of image_px x image_px; the sizes are for the built-in shapes alone.

    Without `prepare`, pictures are decoded each time, and mean and colours are those of a `sample`
    of the training pictures (0: of all). `decoder` is that of a store of JPEGs: "cuda" is the
    GPU's, whose pixels differ a little.
    """

    dataset: str = ""
    image_px: int = 256
    order: Literal["shuffled", "fixed"] = "shuffled"
    val_fraction: float = 0.1
    num_train: int = 0
    num_val: int = 0
    num_classes: int = 0
    prepare: bool = True
    sample: int = 2000
    decoder: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Section 4.1. `crop_chunk` consecutive pictures share a crop and a flip (1: none do).

    `mean`: subtract the mean image's part under the "crop", or its "centre" whatever the crop.
    `colour`: shifts along the principal components in the "paper"'s or the "source"'s units.
    """

    crop_px: int = 224
    flip: bool = True
    random_crop: bool = True
    crop_chunk: int = 1
    mean: Literal["crop", "centre"] = "crop"
    colour: Literal["none", "paper", "source"] = "paper"
    colour_strength: float = 0.1


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Section 5. `layer_weight_decay` overrides by layer or prefix, as "conv:0.004,fc:0.03".

    `layer_lr` multiplies the rates of layers, as "conv:0.1,fc8:10"; `frozen` layers ("conv1,conv2")
    do not learn at all. With a batch larger than the paper's (large_batch.py), `rate_scaling`
    multiplies all rates, `warmup_epochs` lead up to them, and `lars_trust` above 0 turns on LARS.
    """

    lr: float = 0.01
    bias_lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005
    bias_weight_decay: float = 0.0005
    layer_weight_decay: str = ""
    layer_lr: str = ""
    frozen: str = ""
    batch_size: int = 128
    rate_scaling: Literal["none", "linear", "sqrt"] = "none"
    warmup_epochs: float = 0.0
    lars_trust: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Sections 4.1 and 6. `views` after training, as "1,10"; one view every so many epochs.

    Then so many training pictures are evaluated as well, if `train_pictures` is above 0, and the
    training ends once no more than the share `stop_train_error` of them is missed (Figure 1).
    """

    views: str = "1,10"
    every_epochs: float = 1.0
    batch_size: int = 256
    train_pictures: int = 0
    stop_train_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """What must not change the mathematics, and the seed.

    `kernels`: norms and pools fused where that is possible, always or never (`fused.py`).
    `graph`: the step recorded as a CUDA graph, where there is a GPU (`graph.py`).
    `threads` 0: PyTorch's choice. `loader_threads` 0: one per core, 16 at most.
    `collective_seconds`: how long ranks wait for one another before they say for whom, and end.
    `deterministic`: the same bits each time on a GPU, too, where that is slower.
    """

    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    deterministic: bool = False
    kernels: Literal["auto", "fused", "plain"] = "auto"
    graph: Literal["auto", "on", "off"] = "auto"
    threads: int = 0
    loader_threads: int = 0
    max_steps: int = 0
    log_steps: int = 10
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    scales_steps: int = 0
    stall_steps: int = 1000
    stall_margin: float = 0.01
    collective_seconds: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str = "paper-2012"
    base: str = ""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    system: SystemConfig = field(default_factory=SystemConfig)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def views(self) -> tuple[int, ...]:
        return tuple(int(text) for text in self.evaluate.views.split(","))

    @property
    def layer_weight_decay(self) -> dict[str, float]:
        """The overrides as {layer or prefix: value}."""
        return _by_layer(self.optimizer.layer_weight_decay)

    @property
    def layer_lr(self) -> dict[str, float]:
        """Factors of the rates as {layer or prefix: value}; 0 where a layer is frozen."""
        frozen = [layer.strip() for layer in self.optimizer.frozen.split(",")]
        return _by_layer(self.optimizer.layer_lr) | {layer: 0.0 for layer in frozen if layer}


def _by_layer(text: str) -> dict[str, float]:
    """ "conv:0.004,fc:0.03" as a dictionary."""
    pairs = [pair.partition(":") for pair in text.split(",")]
    return {layer.strip(): float(value) for layer, _, value in pairs if layer.strip()}


SECTIONS = ("network", "data", "augment", "optimizer", "schedule", "evaluate", "system")


def settings(recipe: Recipe) -> Iterator[str]:
    """Every name that `override` takes: "section.field"."""
    for section in SECTIONS:
        for setting in fields(getattr(recipe, section)):
            yield f"{section}.{setting.name}"


def diff(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    """The recipe with some fields of some sections replaced: diff(r, optimizer={"lr": 0.02})."""
    parts = {name: replace(getattr(recipe, name), **values) for name, values in sections.items()}
    return replace(recipe, **parts)


def override(recipe: Recipe, assignment: str) -> Recipe:
    """The recipe with one field replaced, as in "optimizer.lr=0.005".

    Raises UserError for an unknown name, naming the nearest, or a value of the wrong kind.
    """
    path, equals, text = assignment.partition("=")
    path = path.strip()
    if not equals:
        raise UserError(f"--set takes section.field=value, not {assignment!r}")
    if path not in set(settings(recipe)):
        raise UserError(f"no setting {path!r}{suggest(path, settings(recipe))}")
    section, _, name = path.partition(".")
    part = getattr(recipe, section)
    kind = typing.get_type_hints(type(part))[name]
    changed = replace(part, **{name: parse(text.strip(), kind, path)})
    return replace(recipe, **{section: changed})


def parse(text: str, kind: Any, path: str) -> Any:
    """Text as a value of a field's type: str, int, float, bool, or one of a Literal's strings."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise UserError(f"{path} is one of {', '.join(choices)}; not {text!r}")
        return text
    assert not isinstance(kind, UnionType), path
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{path} is true or false; not {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise UserError(f"{path} is {what}; not {text!r}") from None


def check(recipe: Recipe) -> Recipe:
    """Raises UserError for values that cannot be; returns the recipe."""
    at_least = {
        "data.image_px": 8,
        "augment.crop_px": 8,
        "augment.crop_chunk": 1,
        "optimizer.batch_size": 1,
        "evaluate.batch_size": 1,
        "system.log_steps": 1,
        "system.keep_checkpoints": 1,
        "system.stall_steps": 1,
    }
    positive = (
        "optimizer.lr",
        "evaluate.every_epochs",
        "system.checkpoint_minutes",
        "system.collective_seconds",
    )
    not_negative = (
        "data.sample",
        "optimizer.bias_lr",
        "optimizer.weight_decay",
        "optimizer.bias_weight_decay",
        "optimizer.warmup_epochs",
        "optimizer.lars_trust",
        "augment.colour_strength",
        "evaluate.train_pictures",
        "evaluate.stop_train_error",
        "system.max_steps",
        "system.threads",
        "system.loader_threads",
        "system.scales_steps",
        "system.stall_margin",
    )
    for path, low in at_least.items():
        _require(recipe, path, lambda value, low=low: value >= low, f"at least {low}")
    for path in positive:
        _require(recipe, path, lambda value: value > 0, "more than 0")
    _require(recipe, "optimizer.lr", math.isfinite, "a finite number")
    _require(recipe, "schedule.epochs", lambda value: 0 < value < 1e9, "more than 0, below 1e9")
    _require(recipe, "system.seed", lambda value: 0 <= value < 2**62, "0 or more, below 2**62")
    for path in not_negative:
        _require(recipe, path, lambda value: 0 <= value < float("inf"), "0 or more")
    _require(recipe, "optimizer.momentum", lambda value: 0 <= value < 1, "in 0..1, 1 excluded")
    _require(recipe, "data.val_fraction", lambda value: 0 < value < 1, "between 0 and 1")
    if recipe.data.dataset == "shapes":
        for path, low in {"data.num_train": 1, "data.num_val": 1, "data.num_classes": 2}.items():
            _require(recipe, path, lambda value, low=low: value >= low, f"at least {low}")
    if recipe.augment.crop_px > recipe.data.image_px:
        raise UserError(
            f"augment.crop_px is {recipe.augment.crop_px}: a crop is at most as large as the "
            f"pictures, data.image_px={recipe.data.image_px}"
        )
    try:
        bad = [views for views in recipe.views if views not in (1, 10)]
    except ValueError:
        bad = [0]
    if bad:
        raise UserError(f'evaluate.views is "1", "10" or "1,10"; not {recipe.evaluate.views!r}')
    for name in ("layer_weight_decay", "layer_lr"):
        text = getattr(recipe.optimizer, name)
        try:
            values = list(_by_layer(text).values())
        except ValueError:
            values = [-1.0]
        if any(not 0 <= value < float("inf") for value in values):
            raise UserError(f"optimizer.{name} is a list like conv:0.004,fc:0.03; not {text!r}")
    return recipe


def _require(recipe: Recipe, path: str, holds: Any, what: str) -> None:
    section, _, name = path.partition(".")
    value = getattr(getattr(recipe, section), name)
    if not holds(value):
        raise UserError(f"{path} is {value}; it must be {what}")


def from_dict(values: dict[str, Any]) -> Recipe:
    """The recipe that `as_dict` wrote. Raises UserError if it is of another version."""
    try:
        parts = {name: type(getattr(Recipe(), name))(**values[name]) for name in SECTIONS}
        for part in parts.values():
            _check_types(part)
        return Recipe(name=values["name"], base=values["base"], **parts)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"recipe.json was written by another version of alexnet ({error}); start a new run"
        ) from None


def _check_types(part: Any) -> None:
    for name, kind in typing.get_type_hints(type(part)).items():
        value = getattr(part, name)
        if typing.get_origin(kind) is Literal:
            fits = value in typing.get_args(kind)
        else:
            fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            raise TypeError(f"{name} is {value!r}")


def differences(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """{"section.field": (value here, value there)} where two recipes differ."""
    found = {}
    for path in settings(recipe):
        section, _, name = path.partition(".")
        here = getattr(getattr(recipe, section), name)
        there = getattr(getattr(other, section), name)
        if json.dumps(here) != json.dumps(there):
            found[path] = (here, there)
    return found
