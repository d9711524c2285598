"""Other people's weights as a model.safetensors: Caffe, torchvision, ONNX, cuda-convnet (T17).

    net.caffemodel      BVLC AlexNet or CaffeNet, which the file itself tells
    net.pth             torchvision's alexnet, read with weights_only
    net.onnx            the ONNX model zoo's bvlcalexnet, which is Caffe's
    91.1300             a checkpoint of cuda-convnet or of the 2012 source, or a folder of them

The mean image comes with --mean, the names of the classes with --classes. Each conversion ends in a
check: the same pictures through the file by its own rules, and through the network made of it.

Not here: the formats (`caffe.py`, `convnet.py`), the way out (`export.py`).
"""

import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import caffe, convnet
from alexnet.augment import Preprocessing
from alexnet.errors import UserError
from alexnet.export import relative_difference, run_onnx, sample_pixels
from alexnet.files import sha256_of
from alexnet.imagenet import read_classes
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
    find_network,
)
from alexnet.onnx_graph import onnx
from alexnet.trained import TrainedAlexNet
from alexnet.weights import ModelCard, save_model

TOLERANCE = 1e-4
CHECKED = 2
MEAN_PX = 256
TORCHVISION_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)


@dataclass(frozen=True)
class Converted:
    """What was read and written, and how far the network is from the file, of the largest logit."""

    path: Path
    form: str
    network: str
    num_classes: int
    difference: float

    def told(self) -> str:
        return (
            f"{self.path}: {self.form}, network {self.network}, {self.num_classes:,} classes; on "
            f"{CHECKED} pictures it differs from the file by at most {self.difference:.1e} of the "
            "largest output"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """A file that was read: weights under our names, and how to check a network made of them.

    `difference(model)`: from what the file itself gives, as a share of the largest output. `mean`
    and `class_names`, where the file's kind has them.
    """

    form: str
    network: Network
    state: dict[str, Tensor]
    difference: Callable[[TrainedAlexNet], float]
    mean: tuple[float, float, float] | None = None
    class_names: tuple[str, ...] = ()


def convert(
    source: Path,
    target: Path,
    *,
    mean: str | None = None,
    classes: Path | None = None,
    network: str | None = None,
) -> Converted:
    """Write `target`, a model.safetensors, from somebody else's weights, after the check.

    mean: Caffe's .binaryproto or .npy, batches.meta, or "123,117,104" (red, green, blue).
    classes: a file with a class a line, in the order of the labels. network: for cuda-convnet,
    whose checkpoints do not tell.
    """
    if not source.exists():
        raise UserError(f"{source} is not there")
    found = _read(source, network)
    mean_image, names_of_mean = _mean(mean, found)
    model = TrainedAlexNet(found.network, _num_classes(found))
    _load(model, found.state)
    model.eval()
    difference = float(found.difference(model))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{source} was not converted: the network differs from the file by {difference:.1e} "
            f"of the largest output, and {TOLERANCE:.0e} is allowed"
        )
    ids, names = _classes(classes, found, names_of_mean, model.num_classes)
    px = found.network.input_px
    if mean_image.shape[0] < px:
        raise UserError(f"the mean image is {mean_image.shape[0]} px wide; crops have {px} px")
    file = convnet.newest(source)
    model.card = ModelCard(
        network=found.network.name,
        dropout="described",
        class_names=names,
        class_ids=ids,
        dataset=f"{found.form}, {file.name}",
        preprocessing=Preprocessing(
            torch.from_numpy(mean_image), px, "crop", found.network.input_std
        ),
        eigenvalues=torch.zeros(3, dtype=torch.float64),
        eigenvectors=torch.eye(3, dtype=torch.float64),
        views=(1, 10),
        origin={"converted_from": file.name, "sha256": sha256_of(file), "form": found.form},
    )
    save_model(target, model, model.card)
    return Converted(target, found.form, found.network.name, model.num_classes, difference)


def _read(source: Path, network: str | None) -> Found:
    suffix = source.suffix.lower()
    if source.is_dir() or suffix.lstrip(".").isdigit():
        return _from_convnet(convnet.newest(source), network)
    readers = {".caffemodel": _from_caffe, ".pth": _from_torchvision, ".onnx": _from_onnx}
    if suffix == ".safetensors":
        raise UserError(f"{source} is a .safetensors already; it needs no conversion if it is ours")
    if suffix not in readers:
        raise UserError(
            f"{source}: weights are read from .caffemodel, .pth (torchvision), .onnx, or a "
            "checkpoint of cuda-convnet such as 91.1300"
        )
    if network is not None:
        raise UserError("--network is for checkpoints of cuda-convnet; other files tell themselves")
    return readers[suffix](source)


# Caffe


def _from_caffe(source: Path, candidates: tuple[Network, ...] = caffe.CANDIDATES) -> Found:
    layers = caffe.read_caffemodel(source)
    network = caffe.network_of(layers, candidates)
    state: dict[str, Tensor] = {}
    for index, (part, layer) in enumerate(zip(layers, network.layers, strict=True)):
        weight = part.weight if index else caffe.rgb_first(part.weight)
        state[f"{layer.name}.weight"] = torch.from_numpy(np.array(weight))
        state[f"{layer.name}.bias"] = torch.from_numpy(np.array(part.bias))

    def difference(model: TrainedAlexNet) -> float:
        pictures = sample_pixels(model, CHECKED) - 118.0
        expected = caffe.run(layers, pictures.flip(1).double().numpy())
        return relative_difference(_logits(model, pictures), expected)

    return Found("Caffe", network, state, difference)


@torch.no_grad()
def _logits(model: TrainedAlexNet, pictures: Tensor) -> NDArray[np.float32]:
    return model(pictures).numpy()  # type: ignore[no-any-return]


# torchvision


def _from_torchvision(source: Path) -> Found:
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{source} is no state dict that can be read safely: {reason}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{source} is no state dict: it holds {type(state).__name__}")
    state = {name.removeprefix("module."): tensor.float() for name, tensor in state.items()}
    if "classifier.6.weight" not in state:
        raise UserError(f"{source} is not torchvision's alexnet: it has no classifier.6.weight")
    models = importlib.import_module("torchvision.models")
    theirs = models.alexnet(num_classes=len(state["classifier.6.weight"]))
    try:
        theirs.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is not torchvision's alexnet: {reason}") from None

    def difference(model: TrainedAlexNet) -> float:
        pictures = (sample_pixels(model, CHECKED) - 118.0) / 58.0
        with torch.no_grad():
            return relative_difference(_logits(model, pictures), theirs.eval()(pictures).numpy())

    names: tuple[str, ...] = ()
    if len(state["classifier.6.weight"]) == 1000:
        names = tuple(models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
    return Found("torchvision", NETWORKS["torchvision"], state, difference, TORCHVISION_MEAN, names)


# ONNX


def _from_onnx(source: Path, candidates: tuple[Network, ...] = caffe.CANDIDATES) -> Found:
    """The model zoo's bvlcalexnet: Caffe's layers in order, blue first, with a softmax behind."""
    try:
        proto = onnx().load(str(source), load_external_data=False)
        layers, softmax = _onnx_layers(proto)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is no ONNX file that can be read: {reason}") from None
    network = caffe.network_of(layers, candidates)
    state: dict[str, Tensor] = {}
    for index, (part, layer) in enumerate(zip(layers, network.layers, strict=True)):
        weight = part.weight if index else caffe.rgb_first(part.weight)
        state[f"{layer.name}.weight"] = torch.from_numpy(np.array(weight))
        state[f"{layer.name}.bias"] = torch.from_numpy(np.array(part.bias))
    data = source.read_bytes()

    def difference(model: TrainedAlexNet) -> float:
        px = proto.graph.input[0].type.tensor_type.shape.dim[-1].dim_value or network.input_px
        pictures = sample_pixels(model, 1) - 118.0
        if px != network.input_px:  # the zoo's file says 224, and was trained on 227
            return relative_difference(
                _logits(model, pictures), caffe.run(layers, pictures.flip(1).double().numpy())
            )
        expected = run_onnx(data, np.ascontiguousarray(pictures.flip(1).numpy()))
        found = torch.from_numpy(_logits(model, pictures))
        return relative_difference((found.softmax(1) if softmax else found).numpy(), expected)

    return Found("ONNX, of Caffe", network, state, difference)


def _onnx_layers(proto: Any) -> tuple[list[caffe.CaffeLayer], bool]:
    helper = importlib.import_module("onnx.helper")
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    weights = {tensor.name: to_array(tensor) for tensor in proto.graph.initializer}
    layers: list[caffe.CaffeLayer] = []
    softmax = False
    for node in proto.graph.node:
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type in ("Conv", "Gemm"):
            layers.append(_onnx_weights(node, settings, weights))
        elif node.op_type in ("Relu", "LRN", "MaxPool", "Dropout"):
            if not layers:
                raise UserError(f"a {node.op_type} stands before the first convolution")
            last = layers[-1]
            then = (*last.layer.then, _onnx_step(node.op_type, settings))
            layers[-1] = replace(last, layer=replace(last.layer, then=then))
        elif node.op_type == "Softmax":
            softmax = True
        elif node.op_type not in ("Reshape", "Flatten", "Identity", "Constant"):
            raise UserError(f"a node of kind {node.op_type}, which Caffe's AlexNet has not")
    return layers, softmax


def _onnx_weights(node: Any, settings: dict[str, Any], weights: dict[str, Any]) -> caffe.CaffeLayer:
    weight = np.asarray(weights[node.input[1]], np.float32)
    bias = np.asarray(weights[node.input[2]], np.float32).reshape(-1)
    name = node.name or node.output[0]
    if node.op_type == "Gemm":
        matrix = weight if settings.get("transB", 0) else weight.T
        return caffe.CaffeLayer(name, Full(name, len(matrix), ()), 1, matrix, bias)
    pads, strides = settings.get("pads", [0] * 4), settings.get("strides", [1, 1])
    group = settings.get("group", 1)
    if len({*pads}) != 1 or len({*strides}) != 1 or weight.shape[2] != weight.shape[3]:
        raise UserError(f"convolution {name!r} is not square")
    layer = Conv(name, len(weight), weight.shape[2], (), strides[0], pads[0], joined=group == 1)
    return caffe.CaffeLayer(name, layer, group, weight, bias)


def _onnx_step(kind: str, settings: dict[str, Any]) -> Step:
    if kind == "Relu":
        return "relu"
    if kind == "Dropout":
        return Dropout(settings.get("ratio", 0.5), inverted=True)
    if kind == "LRN":
        size = settings["size"]
        alpha, beta = settings.get("alpha", 1e-4), settings.get("beta", 0.75)
        return ResponseNorm(size, alpha / size, beta, settings.get("bias", 1.0), False)
    pads = {*settings.get("pads", [0] * 4)[:2]}
    if pads != {0}:
        raise UserError("a pool with padding, which Caffe's AlexNet has not")
    return Pool("max", settings["kernel_shape"][0], settings.get("strides", [1])[0])


# cuda-convnet


def _from_convnet(file: Path, name: str | None) -> Found:
    if name is None:
        raise UserError(
            f"{file} does not say which network it is: --network source, or one of the cifar10-..."
        )
    network = find_network(name)
    parts = convnet.by_depth(convnet.read_parts(file), network.columns)
    if len(parts) != len(network.layers):
        raise UserError(
            f"{file} has {len(parts)} layers with weights, network {name} {len(network.layers)}"
        )
    state: dict[str, Tensor] = {}
    for part, layer in zip(parts, network.layers, strict=True):
        weight, bias = _from_matrix(part, layer)
        state[f"{layer.name}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
        state[f"{layer.name}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    return Found("cuda-convnet", network, state, lambda model: _layer_difference(model, parts))


def _from_matrix(part: convnet.Part, layer: Layer) -> tuple[Any, Any]:
    """Our weights of one matrix (maps x kernel^2, kernels), or of a stack of them: unshared."""
    matrix, bias = part.weights[0], part.biases
    if isinstance(layer, Full):
        return matrix.T, bias
    if layer.shared:
        return matrix.T.reshape(matrix.shape[1], -1, layer.kernel, layer.kernel), bias
    places = len(bias) // layer.maps
    stack = matrix.reshape(places, -1, layer.maps)  # (P, maps x kernel^2, kernels)
    return stack.transpose(0, 2, 1), bias.reshape(layer.maps, places).T


@torch.no_grad()
def _layer_difference(model: TrainedAlexNet, parts: list[convnet.Part]) -> float:
    """Each layer against its matrix, on the windows of random maps, in float64."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for part, layer in zip(parts, model.network.layers, strict=True):
        shape = model.shapes[layer.name].input
        x = torch.randn(1, *shape, generator=generator)
        module = model.get_submodule(layer.name)
        if isinstance(layer, Full):
            found = module(x.flatten(1))[0].numpy()
            expected = x.double().flatten().numpy() @ part.weights[0] + part.biases
        elif not layer.shared:
            continue
        else:
            groups = module.groups
            found = module(x)[0].flatten(1).numpy()  # (O, places)
            expected = _by_windows(x, layer, part, int(groups))  # type: ignore[arg-type]
        worst = max(worst, relative_difference(found, expected))
    return worst


def _by_windows(x: Tensor, layer: Conv, part: convnet.Part, groups: int) -> Any:
    unfold = torch.nn.functional.unfold
    made = []
    for maps, matrix, biases in zip(
        x.chunk(groups, 1),
        np.split(part.weights[0], groups, 1),
        np.split(part.biases, groups),
        strict=True,
    ):
        windows = unfold(maps, layer.kernel, padding=layer.padding, stride=layer.stride)[0]
        made.append((windows.double().numpy().T @ matrix + biases).T)
    return np.concatenate(made)


# The card


def _load(model: TrainedAlexNet, state: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights do not fit network {model.name}: {reason}") from None


def _num_classes(found: Found) -> int:
    biases = [tensor for name, tensor in found.state.items() if name.endswith(".bias")]
    return len(biases[-1])


def _mean(text: str | None, found: Found) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The mean image (S, S, 3), and the names of classes where they came with it."""
    if text is None and found.mean is None:
        raise UserError(
            "the mean image is not in these weights: --mean FILE (.binaryproto, .npy, "
            "batches.meta) or its colour, --mean 123,117,104 (red, green, blue)"
        )
    if text is None:
        assert found.mean is not None
        return _constant(found.mean), ()
    path = Path(text)
    if not path.exists():
        try:
            red, green, blue = (float(part) for part in text.split(","))
        except ValueError:
            raise UserError(
                f"--mean {text}: no such file, and no colour such as 123,117,104"
            ) from None
        return _constant((red, green, blue)), ()
    if path.name == "batches.meta":
        return _mean_of_meta(path)
    return caffe.read_mean(path), ()


def _constant(colour: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.tile(np.array(colour, np.float32), (MEAN_PX, MEAN_PX, 1))


def _mean_of_meta(path: Path) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    meta = convnet.read_pickle(path)
    try:
        mean = np.asarray(meta["data_mean"], np.float32).reshape(-1)
        px = round((mean.size / 3) ** 0.5)
        image = np.ascontiguousarray(mean.reshape(3, px, px).transpose(1, 2, 0))
        names = tuple(str(name) for name in meta.get("label_names", ()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no mean image: {error!r}") from None
    return image, names


def _classes(
    file: Path | None, found: Found, of_mean: tuple[str, ...], count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(ids, names), in the order of the labels."""
    if file is not None:
        given = read_classes(file)
        ids, names = tuple(given.ids), tuple(given.names[i] for i in given.ids)
        if len(ids) != count:
            raise UserError(f"{file} names {len(ids):,} classes, the network has {count:,}")
        return ids, names
    for known in (found.class_names, of_mean):
        if len(known) == count:
            return tuple(str(label) for label in range(count)), known
    numbered = tuple(str(label) for label in range(count))
    return numbered, tuple(f"class {label}" for label in numbered)
