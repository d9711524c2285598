"""Caffe's files, written byte by byte from caffe.proto: an independent writer for the tests.

A layer is (name, type, settings, blobs); both forms of NetParameter can be written.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

OLD_TYPES = {"Convolution": 4, "Dropout": 6, "InnerProduct": 14, "LRN": 15, "Pooling": 17}
OLD_TYPES |= {"ReLU": 18, "Softmax": 20, "Data": 5}
SETTINGS = {"Convolution": (106, 10), "Dropout": (108, 12), "InnerProduct": (117, 17)}
SETTINGS |= {"LRN": (118, 18), "Pooling": (121, 19)}


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: Any) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(fields: dict[int, Any]) -> bytes:
    return b"".join(field(number, value) for number, value in fields.items())


def blob(array: np.ndarray, *, old: bool, packed: bool = True) -> bytes:
    data = array.astype("<f4").tobytes()
    if old:
        dims = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(field(number, size) for number, size in enumerate(dims, 1))
    else:
        shape = field(7, field(1, b"".join(map(varint, array.shape))))
    if packed:
        return shape + field(5, data)
    return shape + b"".join(varint(5 << 3 | 5) + data[i : i + 4] for i in range(0, len(data), 4))


def layer(
    name: str, kind: str, settings: dict[int, Any], blobs: Sequence[np.ndarray], *, old: bool
) -> bytes:
    head = {4: name, 5: OLD_TYPES[kind]} if old else {1: name, 2: kind}
    parts = message(head)
    for array in blobs:
        parts += field(6 if old else 7, blob(array, old=old))
    if kind in SETTINGS:
        parts += field(SETTINGS[kind][old], message(settings))
    return field(2 if old else 100, parts)


Layers = list[tuple[str, str, dict[int, Any], Sequence[np.ndarray]]]


def net(layers: Layers, *, old: bool = False) -> bytes:
    return field(1, "AlexNet") + b"".join(layer(*one, old=old) for one in layers)


def alexnet_layers(
    weights: dict[str, np.ndarray], *, pool_first: bool, norm: dict[int, Any] | None = None
) -> Layers:
    """bvlc_alexnet's layers, or CaffeNet's, where pools stand before norms: their prototxts."""
    maps = {f"conv{n}": len(weights[f"conv{n}.bias"]) for n in range(1, 6)}
    geometry = {
        "conv1": {4: 11, 6: 4},
        "conv2": {3: 2, 4: 5, 5: 2},
        "conv3": {3: 1, 4: 3},
        "conv4": {3: 1, 4: 3, 5: 2},
        "conv5": {3: 1, 4: 3, 5: 2},
    }
    norm = norm or {1: 5, 2: 0.0001, 3: 0.75}
    layers: Layers = [("data", "Data", {}, [])]
    for n in range(1, 6):
        name = f"conv{n}"
        blobs = [weights[f"{name}.weight"], weights[f"{name}.bias"]]
        layers += [(name, "Convolution", {1: maps[name], **geometry[name]}, blobs)]
        layers += [(f"relu{n}", "ReLU", {}, [])]
        pool = (f"pool{n}", "Pooling", {1: 0, 2: 3, 3: 2}, [])
        normalise = (f"norm{n}", "LRN", norm, [])
        if n in (1, 2):
            layers += [pool, normalise] if pool_first else [normalise, pool]
        elif n == 5:
            layers += [pool]
    for n in (6, 7, 8):
        name = f"fc{n}"
        blobs = [weights[f"{name}.weight"], weights[f"{name}.bias"]]
        layers += [(name, "InnerProduct", {1: len(blobs[1])}, blobs)]
        if n < 8:
            layers += [(f"relu{n}", "ReLU", {}, []), (f"drop{n}", "Dropout", {1: 0.5}, [])]
    return [*layers, ("prob", "Softmax", {}, [])]
