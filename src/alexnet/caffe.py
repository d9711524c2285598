"""Caffe's files: a .caffemodel of BVLC AlexNet or CaffeNet, and a mean image .binaryproto (T17).

Both forms of layers are read, LayerParameter and the older V1LayerParameter. What the file says of
itself decides which network it is: kernels, strides, groups, the order of norm and pool, and the
norm's numbers, of which Caffe's alpha is divided by the window. `run` computes the file's layers
by Caffe's own rules in float64 NumPy, to check a conversion against.

Caffe reads pictures with blue first: `rgb_first` turns the kernels of conv1 and the mean image.
Not here: the bytes (`wire.py`), what becomes of the weights (`convert.py`).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import UserError
from alexnet.networks import (
    NETWORKS,
    Conv,
    Dropout,
    Full,
    Layer,
    Network,
    Pool,
    ResponseNorm,
    Step,
)
from alexnet.wire import Message

Array = NDArray[np.float64]
CANDIDATES = (NETWORKS["caffe"], NETWORKS["caffenet"])
MAX_BYTES = 2**31  # the format's own limit

# Fields of the two forms of a layer in caffe.proto.
NEW = {"name": 1, "type": 2, "blobs": 7, "conv": 106, "dropout": 108, "full": 117, "norm": 118}
NEW |= {"pool": 121}
OLD = {"name": 4, "type": 5, "blobs": 6, "conv": 10, "dropout": 12, "full": 17, "norm": 18}
OLD |= {"pool": 19}
OLD_TYPES = {1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 12: "ImageData"}
OLD_TYPES |= {14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 20: "Softmax"}
OLD_TYPES |= {21: "SoftmaxWithLoss", 22: "Split", 29: "MemoryData"}
WITHOUT_EFFECT = {"Accuracy", "Data", "ImageData", "Input", "MemoryData", "Softmax"}
WITHOUT_EFFECT |= {"SoftmaxWithLoss", "Split"}


@dataclass(frozen=True, eq=False)
class CaffeLayer:
    """A layer with weights as the file has it: float32 blobs, and our description of it."""

    name: str
    layer: Layer
    group: int
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def read_caffemodel(path: Path) -> list[CaffeLayer]:
    """The layers with weights, in order, each with the steps that follow it.

    Raises UserError for a file that is none, and for layers that no AlexNet has.
    """
    try:
        return _layers(Message(_read(path)))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no .caffemodel, or a damaged one: {error}") from None


def read_mean(path: Path) -> NDArray[np.float32]:
    """A mean image (H, W, 3), red first, from a .binaryproto or Caffe's .npy of (3, H, W)."""
    try:
        if path.suffix == ".npy":
            blob = np.load(path, allow_pickle=False)
        else:
            blob = _blob(Message(_read(path)))
        blob = blob.reshape(blob.shape[-3:])
        if blob.shape[0] != 3 or blob.shape[1] != blob.shape[2]:
            raise ValueError(f"it is {blob.shape}, not (3, S, S)")
        if not np.isfinite(blob).all():
            raise ValueError("it holds numbers that are not finite")
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{path} is no mean image of Caffe's: {error}") from None
    return np.ascontiguousarray(blob[::-1].transpose(1, 2, 0), np.float32)


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError("it is larger than the format allows")
    data = path.read_bytes()
    if not data:
        raise ValueError("it is empty")
    return data


def _layers(net: Message) -> list[CaffeLayer]:
    form, found = (NEW, net.messages(100)) if net.has(100) else (OLD, net.messages(2))
    if not found:
        raise ValueError("it has no layers")
    layers: list[CaffeLayer] = []
    for message in found:
        if form is OLD and message.has(1):
            raise UserError("the layers are of Caffe's first form; run upgrade_net_proto_binary")
        name = message.text(form["name"])
        kind = message.text(2) if form is NEW else OLD_TYPES.get(message.integer(5, 0), "?")
        if kind in ("Convolution", "InnerProduct"):
            layers.append(_with_weights(name, kind, message, form))
        elif kind not in WITHOUT_EFFECT:
            if not layers:
                raise UserError(f"layer {name!r} ({kind}) stands before the first convolution")
            step = _step(name, kind, message, form)
            last = layers[-1]
            layers[-1] = replace(last, layer=replace(last.layer, then=(*last.layer.then, step)))
    if not layers:
        raise ValueError("it has no layer with weights")
    return layers


def _with_weights(name: str, kind: str, message: Message, form: dict[str, int]) -> CaffeLayer:
    blobs = [_blob(blob) for blob in message.messages(form["blobs"])]
    if len(blobs) != 2:
        raise UserError(
            f"layer {name!r} holds {len(blobs)} blobs, not weights and biases: a .caffemodel with "
            "its weights is needed, not a .prototxt"
        )
    weight, bias = blobs[0], blobs[1].reshape(-1)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise UserError(f"layer {name!r} holds weights that are not finite")
    if kind == "InnerProduct":
        units = message.message(form["full"]).integer(1, 0)
        if units < 1 or weight.size % units:
            raise ValueError(f"layer {name!r} has {weight.size} weights for {units} units")
        return CaffeLayer(name, Full(name, units, ()), 1, weight.reshape(units, -1), bias)
    settings = message.message(form["conv"])
    kernel, stride, padding = (
        _side(settings, *pair) for pair in ((4, 11, 0), (6, 13, 1), (3, 9, 0))
    )
    maps, group = settings.integer(1, 0), settings.integer(5, 1)
    if maps < 1 or group < 1 or kernel < 1 or weight.size % (maps * kernel**2):
        raise ValueError(f"layer {name!r} has {weight.size} weights for {maps} maps")
    layer = Conv(name, maps, kernel, (), stride, padding, joined=group == 1)
    return CaffeLayer(name, layer, group, weight.reshape(maps, -1, kernel, kernel), bias)


def _side(settings: Message, number: int, height: int, default: int) -> int:
    """kernel_size, stride or pad: one number, or one each for height and width, which agree."""
    found = settings.integers(number) + settings.integers(height) + settings.integers(height + 1)
    if len(set(found)) > 1:
        raise ValueError("a kernel that is no square")
    return found[0] if found else default


def _step(name: str, kind: str, message: Message, form: dict[str, int]) -> Step:
    if kind == "ReLU":
        return "relu"
    if kind == "LRN":
        norm = message.message(form["norm"])
        if norm.integer(4, 0) != 0:
            raise UserError(f"layer {name!r} normalises within maps, which no AlexNet here does")
        size = norm.integer(1, 5)
        if size < 1:
            raise ValueError("a norm over no maps")
        alpha, beta, k = norm.number(2, 1.0) / size, norm.number(3, 0.75), norm.number(5, 1.0)
        return ResponseNorm(size, alpha, beta, k, per_column=False)
    if kind == "Pooling":
        pool = message.message(form["pool"])
        if pool.integer(1, 0) != 0 or pool.integer(4, 0) != 0:
            raise UserError(f"layer {name!r} is no plain max pool")
        return Pool("max", pool.integer(2, 1), pool.integer(3, 1))
    if kind == "Dropout":
        return Dropout(message.message(form["dropout"]).number(1, 0.5), inverted=True)
    raise UserError(f"layer {name!r} is of kind {kind}, which no AlexNet has")


def _blob(message: Message) -> NDArray[np.float32]:
    data = message.floats(5) if message.has(5) else message.floats(8, "<f8")
    shape = message.message(7).integers(1) if message.has(7) else []
    shape = shape or [message.integer(n, 1) for n in (1, 2, 3, 4)]
    if math.prod(shape) != data.size:
        raise ValueError(f"a blob of {shape} holds {data.size} numbers")
    return data.reshape(shape)


def network_of(layers: list[CaffeLayer], candidates: tuple[Network, ...] = CANDIDATES) -> Network:
    """The network that the layers are. Raises UserError, with the first difference, for none."""
    reasons = []
    for network in candidates:
        reason = _difference(layers, network)
        if reason is None:
            return network
        reasons.append(f"not {network.name}: {reason}")
    raise UserError("; ".join(reasons))


def _difference(layers: list[CaffeLayer], network: Network) -> str | None:
    if len(layers) != len(network.layers):
        return f"{len(layers)} layers with weights, not {len(network.layers)}"
    for found, wanted in zip(layers, network.layers, strict=True):
        if type(found.layer) is not type(wanted):
            return f"{found.name} is a {type(found.layer).__name__.lower()} layer"
        names = ("units",) if isinstance(wanted, Full) else ("maps", "kernel", "stride", "padding")
        for name in names:
            size, needed = getattr(found.layer, name), getattr(wanted, name)
            if size != needed and needed:  # 0 units: one for each class
                return f"{found.name} has {name} {size}, not {needed}"
        group = 1 if isinstance(wanted, Full) or wanted.joined else network.columns
        if found.group != group:
            return f"{found.name} has {found.group} groups, not {group}"
        here, there = _at_test(found.layer), _at_test(wanted)
        if len(here) != len(there) or not all(map(_same_step, here, there)):
            return f"after {found.name} come {_words(here)}, not {_words(there)}"
    return None


def _at_test(layer: Layer) -> tuple[Step, ...]:
    """The steps without dropout, which does nothing then, and which some files leave out."""
    return tuple(step for step in layer.then if not isinstance(step, Dropout))


def _same_step(found: Step, wanted: Step) -> bool:
    if isinstance(found, ResponseNorm) and isinstance(wanted, ResponseNorm):
        pairs = ((found.alpha, wanted.alpha), (found.beta, wanted.beta), (found.k, wanted.k))
        same = all(math.isclose(here, there, rel_tol=1e-5) for here, there in pairs)
        return same and (found.size, found.per_column) == (wanted.size, wanted.per_column)
    return found == wanted


def _words(steps: tuple[Step, ...]) -> str:
    return ", ".join(step if isinstance(step, str) else repr(step) for step in steps) or "no steps"


def rgb_first(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Kernels of conv1 that read blue, green, red -> red, green, blue: (O, 3, k, k) -> same."""
    return np.ascontiguousarray(weight[:, ::-1])


def run(layers: list[CaffeLayer], pictures: Array) -> Array:
    """Logits of pictures (B, 3, H, W), blue first and less the mean, by Caffe's rules, float64."""
    x = pictures
    for part in layers:
        weight, bias = part.weight.astype(np.float64), part.bias.astype(np.float64)
        if isinstance(part.layer, Full):
            x = x.reshape(len(x), -1) @ weight.T + bias
        else:
            x = _convolve(x, weight, bias, part.layer, part.group)
        for step in part.layer.then:
            x = _apply(step, x)
    return x


def _convolve(x: Array, weight: Array, bias: Array, layer: Conv, group: int) -> Array:
    pad = layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * (layer.kernel,), (2, 3))
    windows = windows[:, :, :: layer.stride, :: layer.stride]  # (B, C, H', W', k, k)
    parts = [
        np.einsum("bchwij,ocij->bohw", some, kernels, optimize=True)
        for some, kernels in zip(
            np.split(windows, group, 1), np.split(weight, group, 0), strict=True
        )
    ]
    return np.concatenate(parts, 1) + bias[:, None, None]


def _apply(step: Step, x: Array) -> Array:
    if step == "relu":
        return np.maximum(x, 0.0)
    if isinstance(step, ResponseNorm):
        squares, total = np.square(x), np.zeros_like(x)
        for offset in range(-(step.size // 2), step.size - step.size // 2):
            low, high = max(0, -offset), x.shape[1] - max(0, offset)
            total[:, low:high] += squares[:, low + offset : high + offset]
        return x * (step.k + step.alpha * total) ** -step.beta
    if isinstance(step, Pool):
        out = -(-(x.shape[2] - step.size) // step.stride) + 1
        extra = max(0, (out - 1) * step.stride + step.size - x.shape[2])
        padded = np.pad(x, ((0, 0), (0, 0), (0, extra), (0, extra)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * (step.size,), (2, 3))
        return windows[:, :, :: step.stride, :: step.stride].max((4, 5))  # type: ignore[no-any-return]
    return x  # dropout of Caffe's kind does nothing at test
