"""Checkpoints of cuda-convnet and of the 2012 source: pickles, read without running anything.

A checkpoint is {"model_state": {"layers": ...}, "op": ...}; `layers` is a list (cuda-convnet) or a
dictionary by name (2012). A layer has `inputs`, `weights`, one matrix for each input, and `biases`.
A matrix is (maps x kernel x kernel, kernels): each column is one kernel, map by map, row by row;
of a fully connected layer (inputs, units). In the net of two columns a layer is two: conv3a and
conv3b each have a matrix for each column that they read.

Only arrays, numbers, texts and containers are made; the options object becomes an empty stand-in,
and anything else that a file asks for refuses it. Not here: what is written (`convert.py`).
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import UserError

MAX_BYTES = 4 * 2**30

# Modules of the release whose objects stand in a checkpoint beside the weights.
OF_THE_RELEASE = ("options", "ordereddict", "util", "data", "gpumodel", "convnet", "layer")


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of the file: `inputs` are names; weights one float32 matrix per input."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    weights: tuple[NDArray[np.float32], ...]
    biases: NDArray[np.float32]


class StandIn:
    """What an object of the release becomes: nothing is kept of it."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _empty_array(*_: Any) -> Any:
    """In place of NumPy's `_reconstruct`, whose state then brings shape, type and data."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _new_object(kind: Any, *_: Any) -> Any:
    if kind is not StandIn:
        raise pickle.UnpicklingError(f"an object of {kind}")
    return StandIn()


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded,
    ("copy_reg", "_reconstructor"): _new_object,
    ("copyreg", "_reconstructor"): _new_object,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
}
for _home in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ALLOWED[_home, "_reconstruct"] = _empty_array
    ALLOWED[_home, "scalar"] = np._core.multiarray.scalar  # type: ignore[attr-defined]


class Reader(pickle.Unpickler):
    """An unpickler that makes arrays and containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.partition(".")[0] in OF_THE_RELEASE:
            return StandIn
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


def read_pickle(path: Path) -> Any:
    """A pickle of Python 2 or 3, or a zip of one. Raises UserError for anything else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is larger than any checkpoint")
        return Reader(io.BytesIO(_bytes_of(path)), encoding="latin1").load()
    # A damaged or hostile pickle fails with nearly every kind of exception there is.
    except (Exception, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is no checkpoint that can be read: {reason}") from None


def _bytes_of(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = archive.infolist()[0]
        if entry.file_size > MAX_BYTES:
            raise ValueError("it is larger than any checkpoint")
        return archive.read(entry)


def newest(path: Path) -> Path:
    """A checkpoint file; of a folder, the one of the last epoch and batch, as 91.1300."""
    if not path.is_dir():
        return path
    numbered = [file for file in path.iterdir() if file.name.replace(".", "", 1).isdigit()]
    if not numbered:
        raise UserError(f"{path} holds no checkpoints of cuda-convnet, such as 91.1300")
    return max(numbered, key=lambda file: [int(part) for part in file.name.split(".")])


def read_parts(path: Path) -> list[Part]:
    """The layers with weights, those before others first. Raises UserError."""
    content = read_pickle(path)
    try:
        layers = content["model_state"]["layers"]
        named = layers if isinstance(layers, dict) else {dic["name"]: dic for dic in layers}
        names = list(named)
        inputs = {
            name: tuple(
                source if isinstance(source, str) else names[source]
                for source in dic.get("inputs", ())
            )
            for name, dic in named.items()
        }
        ordered: list[str] = []
        while len(ordered) < len(named):
            ready = [n for n in names if n not in ordered and set(inputs[n]) <= set(ordered)]
            if not ready:
                raise ValueError("its layers read each other in a ring")
            ordered += ready
        return [_part(name, named[name], inputs) for name in ordered if _has_weights(named[name])]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} holds no layers of cuda-convnet: {error!r}") from None


def _has_weights(dic: dict[str, Any]) -> bool:
    return "weights" in dic and "biases" in dic


def _part(name: str, dic: dict[str, Any], inputs: dict[str, tuple[str, ...]]) -> Part:
    given = dic["weights"]  # early convolutions have the matrix itself, not a list of one
    matrices = [given] if isinstance(given, np.ndarray) else given
    weights = tuple(np.asarray(matrix, np.float32) for matrix in matrices)
    biases = np.asarray(dic["biases"], np.float32)
    if not all(np.isfinite(array).all() for array in (*weights, biases)):
        raise UserError(f"layer {name!r} holds weights that are not finite")
    return Part(name, str(dic.get("type", "")), inputs[name], weights, biases)


def column_of(name: str) -> str:
    """ "a" or "b" by the last letter of a layer's name, as in the source's files; else ""."""
    return name[-1] if name[-1:] in ("a", "b") else ""


def whole(parts: list[Part]) -> Part:
    """The halves of a layer, or a layer alone, with one matrix: inputs and kernels a, then b."""
    ordered = sorted(parts, key=lambda part: column_of(part.name))
    joined = []
    for part in ordered:
        by_input = sorted(
            zip(part.inputs, part.weights, strict=True), key=lambda pair: column_of(pair[0])
        )
        joined.append(np.concatenate([weight for _, weight in by_input], 0))
    weights = np.concatenate(joined, 1)
    biases = np.concatenate([part.biases.reshape(-1) for part in ordered])
    return Part(ordered[0].name, ordered[0].kind, ordered[0].inputs, (weights,), biases)


def by_depth(parts: list[Part], columns: int) -> list[Part]:
    """One part for each layer of the net: two that are halves of one are put together."""
    if columns == 1:
        return [whole([part]) for part in parts]
    stems: dict[str, list[Part]] = {}
    for part in parts:
        stem = part.name[:-1] if column_of(part.name) else part.name
        stems.setdefault(stem, []).append(part)
    return [whole(halves) for halves in stems.values()]
