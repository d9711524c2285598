"""How two networks differ, in words, and where each choice comes from: `alexnet describe --diff`.

A network is flattened into named facts (`facts`), two are compared fact by fact, and each fact
that differs becomes a clause. Its origin is looked up in `ORIGINS`, for the ancestor by lineage
that first had the value. No text is written for a particular pair of networks.

Not here: counts and memory (`describe.py`).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from alexnet.layers import overhang
from alexnet.networks import (
    NETWORKS,
    BatchNorm,
    Conv,
    Dropout,
    Full,
    Layer,
    Network,
    Pool,
    ResponseNorm,
    SpatialNorm,
    Step,
    trace,
)

Fact = tuple[str, str]  # (layer, or "" for the whole network; kind)

_NAMES = {
    "relu": "ReLU",
    "tanh": "tanh",
    ResponseNorm: "response norm",
    SpatialNorm: "spatial norm",
    BatchNorm: "batch norm",
    Pool: "pool",
    Dropout: "dropout",
}
_POOLS = {"max": "max pool", "avg": "average pool"}
_STEP_KINDS = ("nonlinearity", "response norm", "spatial norm", "batch norm", "pool", "dropout")

# Where a network's choice comes from, by network and kind of fact. A network that is not listed
# for a kind answers with its own `source`.
ORIGINS: dict[tuple[str, str], str] = {
    ("paper", "pictures"): "Section 3.5",
    ("paper", "scale"): "Section 2, raw pixels less the mean",
    ("paper", "columns"): "Section 3.2 and Figure 2",
    ("paper", "layers"): "Section 3.5",
    ("paper", "reads"): "Section 3.2",
    ("paper", "kernels"): "Section 3.5",
    ("paper", "units"): "Section 3.5",
    ("paper", "sharing"): "Section 3, a convolution",
    ("paper", "geometry"): "Section 3.5; what is added at the borders is the 2012 source's",
    ("paper", "nonlinearity"): "Section 3.1",
    ("paper", "order"): "Sections 3.3 and 3.5, norms after the ReLU and pools after the norms",
    ("paper", "response norm"): "Section 3.3, where alpha multiplies the sum",
    ("paper", "norm window"): "Section 3.2, a GPU has the maps of its own column; so does `source`",
    ("paper", "spatial norm"): "Section 3.3, which knows of no second norm",
    ("paper", "batch norm"): "2012, three years before batch norm",
    ("paper", "pool"): "Section 3.4",
    ("paper", "dropout"): "Section 4.2, a mask in training and outputs times 0.5 at test",
    ("paper", "initial weights"): "Section 5, N(0, 0.01) in each layer",
    ("paper", "initial biases"): "Section 5, 1 in conv2, conv4, conv5 and hidden layers, else 0",
    ("source", "order"): "layers-145.cfg, where not conv1 and conv5 but their pools have a neuron",
    ("source", "response norm"): (
        "layers-145.cfg, rnorm1 and rnorm2; the 2012 code divides the 0.0001 of its settings by "
        "the window's size, 5 (layer.py)"
    ),
    ("source", "spatial norm"): (
        "layers-145.cfg, cnorm2; its alpha is 0.001 divided by the window's 25 units (layer.py)"
    ),
    ("source", "initial weights"): "layers-145.cfg, initW of conv3, conv4 and conv5",
    ("one-gpu", "columns"): "Section 3.2, the net that two GPUs are compared with",
    ("one-gpu", "kernels"): (
        "Section 3.2 and its footnote, half of the kernels but the last convolution whole; "
        "layers-145-half"
    ),
    ("no-overlap", "pool"): "Section 3.4, z = 2 in place of z = 3",
    ("no-overlap", "geometry"): "layers-147.cfg, paddings that suit the pools without overlap",
    ("caffe", "pictures"): "train_val.prototxt, a crop that conv1 covers without a remainder",
    ("caffe", "geometry"): "train_val.prototxt, 227 pixels that need no zeros at the border",
    ("caffe", "response norm"): (
        "train_val.prototxt, alpha 0.0001, which Caffe divides by the window's size, and k = 1"
    ),
    ("caffe", "norm window"): "Caffe's norm, which does not know of the groups of convolutions",
    ("caffe", "dropout"): "Caffe's dropout, which scales what it keeps in training",
    ("caffe", "initial biases"): "BVLC's readme, by which the loss stayed flat with 1",
    ("torchvision", "scale"): "torchvision's weights, each colour by its standard deviation",
    ("torchvision", "dropout"): "torchvision/models/alexnet.py, before fc6 and fc7, not after",
    ("torchvision", "initial weights"): "PyTorch's defaults, which torchvision leaves",
    ("torchvision", "initial biases"): "PyTorch's defaults, which torchvision leaves",
    ("small", "initial weights"): "this project, scaled to the fan-in to train in minutes",
}


@dataclass(frozen=True)
class Difference:
    """One clause: what `kind` of thing differs in which layers (none: in the whole network).

    origin and other_origin say where the two choices come from; both are "" for what only
    follows from other differences.
    """

    kind: str
    layers: tuple[str, ...]
    text: str
    origin: str
    other_origin: str

    @property
    def sentence(self) -> str:
        return f"{', '.join(self.layers)}: {self.text}" if self.layers else self.text

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "layers": list(self.layers),
            "text": self.text,
            "origin": self.origin,
            "other_origin": self.other_origin,
        }


def differences(network: Network, other: Network) -> list[Difference]:
    """What `network` has otherwise than `other`, most general first.

    Layers that differ in the same way share one clause. Empty if the two agree in every fact.
    """
    here, there = facts(network), facts(other)
    shared = [fact for fact in here if fact in there and here[fact] != there[fact]]
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for layer, kind in sorted(shared, key=lambda fact: list(_WORDS).index(fact[1])):
        fact = (layer, kind)
        text = _WORDS[kind](Comparison(network, other, layer, here[fact], there[fact]))
        if not text:
            continue
        derived = kind in _DERIVED
        origin = "" if derived else origin_of(network, fact)
        other_origin = "" if derived else origin_of(other, fact)
        found.setdefault((kind, text, origin, other_origin), []).append(layer)
    return [
        Difference(kind, tuple(filter(None, layers)), text, origin, other_origin)
        for (kind, text, origin, other_origin), layers in found.items()
    ]


def origin_of(network: Network, fact: Fact) -> str:
    """Where a network's value of a fact comes from: itself, or the ancestor that it has it from."""
    value = facts(network).get(fact)
    ancestor = network
    while ancestor.lineage and facts(NETWORKS[ancestor.lineage]).get(fact) == value:
        ancestor = NETWORKS[ancestor.lineage]
    origin = ORIGINS.get((ancestor.name, fact[1]), ancestor.source)
    return origin if ancestor is network else f"as in `{ancestor.name}`, {origin}"


@functools.cache
def facts(network: Network) -> Mapping[Fact, Any]:
    """A network as {(layer, kind): value}: all that decides what it computes and starts from.

    A fact is left out where it has no meaning: with one column there is nothing to cross.
    """
    found: dict[Fact, Any] = {
        ("", "pictures"): network.input_px,
        ("", "scale"): network.input_std,
        ("", "columns"): network.columns,
        ("", "layers"): network.layer_names,
    }
    for layer, shape in zip(network.layers, trace(network), strict=True):
        own: dict[str, Any] = {step_kind(step): step for step in layer.then}
        own = {kind: own.get(kind) for kind in _STEP_KINDS}
        own["order"] = tuple(step_kind(step) for step in layer.then)
        own["initial weights"] = layer.std
        own["initial biases"] = None if layer.std is None else layer.bias
        if isinstance(layer, Full):
            own["units"] = layer.units
        else:
            extra_px = overhang(shape.input[1], layer.kernel, layer.stride, layer.padding)
            own["kernels"] = layer.maps
            own["sharing"] = layer.shared
            own["geometry"] = {
                "kernel": layer.kernel,
                "stride": layer.stride,
                "padding": layer.padding,
                "zeros": extra_px if layer.rounded_up else 0,
            }
            own["map size"] = shape.output[1]
            if network.columns > 1 and layer is not network.layers[0]:
                own["reads"] = "both columns" if layer.joined else "its own column"
        norm = own["response norm"]
        if norm and network.columns > 1:
            own["norm window"] = norm.per_column
        found |= {(layer.name, kind): value for kind, value in own.items()}
    return found


# --- Words ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One fact of two networks; the words of a difference are made from it."""

    network: Network
    other: Network
    layer: str  # "" for the whole network
    here: Any
    there: Any


def step_kind(step: Step) -> str:
    return "nonlinearity" if isinstance(step, str) else _NAMES[type(step)]


def step_name(step: Step) -> str:
    """E.g. "ReLU", "response norm", "max pool"."""
    if isinstance(step, Pool):
        return _POOLS[step.kind]
    return _NAMES[step if isinstance(step, str) else type(step)]


def step_words(step: Step) -> str:
    """A step with what sizes it: "max pool 3, stride 2", "response norm, 5 maps"."""
    match step:
        case ResponseNorm():
            return f"response norm, {step.size} maps"
        case SpatialNorm():
            return f"spatial norm, {step.size}x{step.size}"
        case Pool():
            return f"{step_name(step)} {step.size}, stride {step.stride}"
        case Dropout():
            return f"dropout {step.rate:g}{', inverted' if step.inverted else ''}"
    return step_name(step)


def _full_words(step: Step) -> str:
    """With sizes and constants: "response norm (5 maps, alpha 0.0001, beta 0.75, k 2)"."""
    match step:
        case ResponseNorm() | SpatialNorm():
            name, _, window = step_words(step).partition(", ")
            constants = f"alpha {step.alpha:g}, beta {step.beta:g}, k {step.k:g}"
            return f"{name} ({window}, {constants})"
        case Pool():
            return f"{step_name(step)} (size {step.size}, stride {step.stride})"
    return step_words(step)


def _sequence(steps: Iterable[Step]) -> str:
    names: list[str] = []
    for step in steps:
        linear = not names and isinstance(step, ResponseNorm | SpatialNorm | BatchNorm)
        names.append(step_name(step) + (" of the linear output" if linear else ""))
    return ", then ".join(names)


def _order(c: Comparison) -> str:
    """Only where steps that both layers have come in another order."""
    here, there = (
        [kind for kind in kinds if kind in c.here and kind in c.there]
        for kinds in (c.here, c.there)
    )
    if here == there:
        return ""
    ours, theirs = c.network.layer(c.layer).then, c.other.layer(c.layer).then
    words = f"{_sequence(ours)}; `{c.other.name}` has {_sequence(theirs)}"
    if _commuted(ours) == _commuted(theirs):
        words += " (it makes no difference: a maximum and a rising nonlinearity commute)"
    return words


def _commuted(steps: Iterable[Step]) -> list[str]:
    """The kinds of the steps, each max pool moved behind a nonlinearity that follows it."""
    kinds: list[str] = []
    for step in steps:
        kind = "max pool" if isinstance(step, Pool) and step.kind == "max" else step_kind(step)
        swaps = kind == "nonlinearity" and kinds[-1:] == ["max pool"]
        kinds.insert(len(kinds) - swaps, kind)
    return kinds


def _step(c: Comparison) -> str:
    """A step that only one of two layers has, or that they have with other constants."""
    if c.here is None or c.there is None:
        owner = c.other if c.here is None else c.network
        step: Step = c.there or c.here
        then = owner.layer(c.layer).then
        at = then.index(step)
        place = f"after the {step_name(then[at - 1])}" if at else "of the linear output"
        words = f"{_full_words(step)} {place}"
        if c.here is None:
            return f"no {step_name(step)}; `{owner.name}` has {words}"
        return f"{words}; `{c.other.name}` has none"
    if c.here in ("relu", "tanh"):
        return f"{step_name(c.here)} instead of {step_name(c.there)}"
    changed = [
        _FIELDS[field.name](getattr(c.here, field.name), getattr(c.there, field.name))
        for field in fields(c.here)
        if field.name in _FIELDS and getattr(c.here, field.name) != getattr(c.there, field.name)
    ]
    return ", ".join(changed)


_FIELDS: dict[str, Callable[[Any, Any], str]] = {
    "alpha": lambda a, b: f"alpha {a:g} for each square instead of {b:g}",
    "beta": lambda a, b: f"power {a:g} instead of {b:g}",
    "k": lambda a, b: f"k {a:g} instead of {b:g}",
    "kind": lambda a, b: f"{_POOLS[a]} instead of {_POOLS[b]}",
    "size": lambda a, b: f"window of {a} instead of {b}",
    "stride": lambda a, b: f"stride {a} instead of {b}",
    "rate": lambda a, b: f"rate {a:g} instead of {b:g}",
    "inverted": lambda a, b: (
        "inverted (what is kept is scaled up in training) instead of plain"
        if a
        else "plain (outputs are scaled down at test) instead of inverted"
    ),
}

_GEOMETRY: dict[str, Callable[[int, int], str]] = {
    "kernel": lambda a, b: f"kernels of {a}x{a} instead of {b}x{b}",
    "stride": lambda a, b: f"stride {a} instead of {b}",
    "padding": lambda a, b: f"padding {a} instead of {b}",
    "zeros": lambda a, b: f"{_zeros(a)} at the right and bottom instead of {_zeros(b)}",
}


def _zeros(px: int) -> str:
    return f"{px} px of zeros" if px else "no zeros"


def _geometry(c: Comparison) -> str:
    return ", ".join(
        words(c.here[name], c.there[name])
        for name, words in _GEOMETRY.items()
        if c.here[name] != c.there[name]
    )


def _columns(c: Comparison) -> str:
    words = {1: "one column: every kernel reads all maps", 2: "two columns"}
    split, whole = (c.network, c.other) if c.here > c.there else (c.other, c.network)
    apart = [
        layer.name
        for layer in split.layers[1:]
        if isinstance(layer, Conv) and not layer.joined and layer.name in whole.layer_names
    ]
    return (
        f"{words[c.here]}; `{c.other.name}` has {words[c.there]}"
        f" (in {', '.join(apart)} of `{split.name}` a kernel reads its own column's maps only)"
    )


def _layers(c: Comparison) -> str:
    ours = [c.network.layer(name) for name in c.here if name not in c.there]
    theirs = [c.other.layer(name) for name in c.there if name not in c.here]
    clauses = [
        f"only `{network.name}` has {_list_layers(layers)}"
        for network, layers in ((c.network, ours), (c.other, theirs))
        if layers
    ]
    return "; ".join(clauses) or "layers in another order"


def _list_layers(layers: list[Layer]) -> str:
    return ", ".join(f"{layer.name} ({_size(layer)})" for layer in layers)


def _size(layer: Layer) -> str:
    if isinstance(layer, Full):
        return _units(layer.units)
    what = "kernels" if layer.shared else "unshared filters"
    return f"{layer.maps} {what} of {layer.kernel}x{layer.kernel}"


def _units(count: int) -> str:
    return f"{count} units" if count else "one unit per class"


def _std(std: float | None) -> str:
    return "uniform within 1/sqrt(fan-in)" if std is None else f"standard deviation {std:g}"


def _initial_weights(c: Comparison) -> str:
    there = f"{c.there:g}" if None not in (c.here, c.there) else _std(c.there)
    return f"{_std(c.here)} instead of {there}"


def _bias(bias: float | None) -> str:
    return "drawn like the weights" if bias is None else f"{bias:g}"


def _scale(values: tuple[float, ...]) -> str:
    if set(values) == {1.0}:
        return "not at all"
    return f"by {', '.join(f'{value:.1f}' for value in values)} (R, G, B)"


# Kinds of facts in the order in which differences are told, and how each is said.
_WORDS: dict[str, Callable[[Comparison], str]] = {
    "pictures": lambda c: f"{c.here} pixels wide and high instead of {c.there}",
    "scale": lambda c: f"pixels divided {_scale(c.here)} instead of {_scale(c.there)}",
    "columns": _columns,
    "layers": _layers,
    "reads": lambda c: f"reads {c.here} instead of {c.there}",
    "kernels": lambda c: f"{c.here} kernels instead of {c.there}",
    "units": lambda c: f"{_units(c.here)} instead of {_units(c.there)}",
    "sharing": lambda c: (
        "kernels shared by all places instead of one at each"
        if c.here
        else "a kernel of its own at each place instead of shared ones"
    ),
    "geometry": _geometry,
    "map size": lambda c: f"maps of {c.here}x{c.here} instead of {c.there}x{c.there}",
    "nonlinearity": _step,
    "order": _order,
    "response norm": _step,
    "norm window": lambda c: (
        "the window stays inside a column instead of crossing to the other"
        if c.here
        else "the window crosses to the other column instead of staying inside its own"
    ),
    "spatial norm": _step,
    "batch norm": _step,
    "pool": _step,
    "dropout": _step,
    "initial weights": _initial_weights,
    "initial biases": lambda c: f"{_bias(c.here)} instead of {_bias(c.there)}",
}

# What follows from other differences and so has no origin of its own.
_DERIVED = {"map size"}
