"""A trained network as an ONNX graph, a node for each step of its description (Section 3.5).

Input `pixels`: float32 (batch, 3, px, px), red first, 0..255, the centre crop of a picture; the
mean image is subtracted in the graph, so that nothing can be prepared wrongly. Output `logits`.
Nodes carry the names of layers. A response norm is one LRN node: ONNX divides alpha by the
window, and columns stand in the batch dimension while it runs. The spatial norm and unshared
convolutions are composed of standard operators.

Not here: the numeric check against the network (`export.py`).
"""

import importlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.augment import crop_mean
from alexnet.errors import UserError
from alexnet.layers import overhang
from alexnet.networks import (
    Conv,
    Dropout,
    Full,
    Layer,
    Pool,
    ResponseNorm,
    SpatialNorm,
    Step,
    groups,
    pooled,
)
from alexnet.trained import TrainedAlexNet

OPSET = 17
IR_VERSION = 8  # of that opset's time: older runtimes refuse newer ones


def onnx() -> Any:
    """The package, or a line that says how to get it."""
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise UserError("ONNX files need onnx: pip install 'alexnet[onnx]'") from None


def to_onnx(model: TrainedAlexNet) -> Any:
    """An onnx.ModelProto, checked by onnx itself. The batch size is free."""
    graph = _Graph(model)
    graph.build()
    return graph.proto()


class _Graph:
    """Nodes and weights while a network is written; `self.shape`: one picture's, (C, H, W)."""

    def __init__(self, model: TrainedAlexNet) -> None:
        self.model, self.network = model, model.network
        self.helper = importlib.import_module("onnx.helper") if onnx() else None
        self.numpy = importlib.import_module("onnx.numpy_helper")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.x = "pixels"
        self.shape: tuple[int, ...] = (3, *2 * (self.network.input_px,))

    def proto(self) -> Any:
        helper, card = self.helper, self.model.card
        assert helper is not None
        number = onnx().TensorProto.FLOAT
        px, classes = self.network.input_px, self.model.num_classes
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            f"alexnet-{self.network.name}",
            [helper.make_tensor_value_info("pixels", number, ["batch", 3, px, px])],
            [helper.make_tensor_value_info("logits", number, ["batch", classes])],
            self.constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(
            graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="alexnet"
        )
        facts = {
            "network": self.network.name,
            "class_names": json.dumps(card.class_names),
            "pixels": "RGB, 0..255, centre crop; the mean image is subtracted in the graph",
            "image_px": str(card.preprocessing.image_px),
            "dataset": card.dataset,
        }
        helper.set_model_props(proto, facts)
        onnx().checker.check_model(proto)
        return proto

    def node(self, kind: str, name: str, *constants: str, **attributes: Any) -> None:
        assert self.helper is not None
        made = self.helper.make_node(kind, [self.x, *constants], [name], name=name, **attributes)
        self.nodes.append(made)
        self.x = name

    def constant(self, name: str, value: Any) -> str:
        array = np.ascontiguousarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.constants.append(self.numpy.from_array(array, name))
        return name

    def parameter(self, name: str) -> NDArray[np.float32]:
        value = self.model.get_parameter(name).detach().cpu().float().contiguous().numpy()
        return np.asarray(value)

    def build(self) -> None:
        mean = crop_mean(self.model.card.preprocessing)  # (3, px, px)
        self.node("Sub", "centred", self.constant("mean_image", mean[None].numpy()))
        if self.network.input_std != (1.0, 1.0, 1.0):
            std = np.array(self.network.input_std, np.float32)[None, :, None, None]
            self.node("Div", "scaled", self.constant("input_std", std))
        for layer in self.network.layers:
            self.linear(layer)
            for number, step in enumerate(layer.then):
                self.step(step, f"{layer.name}.{number}.{_kind(step)}")

    def linear(self, layer: Layer) -> None:
        name = layer.name
        if isinstance(layer, Conv) and not layer.shared:
            self.unshared(layer)
            return
        weight = self.constant(f"{name}.weight", self.parameter(f"{name}.weight"))
        bias = self.constant(f"{name}.bias", self.parameter(f"{name}.bias"))
        if isinstance(layer, Full):
            if len(self.shape) > 1:
                self.node("Flatten", f"{name}.flat", axis=1)
            self.node("Gemm", name, weight, bias, transB=1)
        else:
            extra = 0
            if layer.rounded_up:
                extra = overhang(self.shape[1], layer.kernel, layer.stride, layer.padding)
            pads = 2 * [layer.padding] + 2 * [layer.padding + extra]
            self.node(
                *("Conv", name, weight, bias),
                kernel_shape=2 * [layer.kernel],
                strides=2 * [layer.stride],
                pads=pads,
                group=groups(self.network, layer),
            )
        self.shape = self.model.shapes[name].output

    def unshared(self, layer: Conv) -> None:
        """Every place has a matrix of its own: (P, O, F) times the F numbers under each window."""
        name, (maps, *_), kernel = layer.name, self.shape, layer.kernel
        out, px, _ = self.model.shapes[name].output
        fan_in, places = maps * kernel**2, px**2
        # A convolution with one 1 in each kernel reads what lies under the window, map by map.
        cut = np.zeros((fan_in, 1, kernel, kernel), np.float32)
        for row in range(fan_in):
            cut[row, 0, (row % kernel**2) // kernel, row % kernel] = 1
        self.node(
            *("Conv", f"{name}.windows", self.constant(f"{name}.cut", cut)),
            kernel_shape=2 * [kernel],
            pads=4 * [layer.padding],
            group=maps,
        )
        self.reshape(f"{name}.flat", (-1, fan_in, places))
        self.node("Transpose", f"{name}.by_place", perm=[2, 1, 0])  # (P, F, B)
        weight = self.constant(f"{name}.weight", self.parameter(f"{name}.weight"))
        windows, self.x = self.x, weight
        self.node("MatMul", f"{name}.products", windows)  # (P, O, B)
        self.node("Transpose", f"{name}.by_picture", perm=[2, 1, 0])  # (B, O, P)
        bias = self.parameter(f"{name}.bias").T[None]  # (1, O, P)
        self.node("Add", f"{name}.sum", self.constant(f"{name}.bias", bias))
        self.reshape(name, (-1, out, px, px))
        self.shape = (out, px, px)

    def reshape(self, name: str, shape: tuple[int, ...]) -> None:
        self.node("Reshape", name, self.constant(f"{name}.shape", np.array(shape, np.int64)))

    def step(self, step: Step, name: str) -> None:
        match step:
            case "relu":
                self.node("Relu", name)
            case "tanh":
                self.node("Tanh", name)
            case ResponseNorm():
                self.response_norm(step, name)
            case SpatialNorm():
                self.spatial_norm(step, name)
            case Pool():
                self.pool(step, name)
            case Dropout():
                if not step.inverted:
                    self.node("Mul", name, self.constant(f"{name}.keep", 1.0 - step.rate))

    def response_norm(self, norm: ResponseNorm, name: str) -> None:
        if norm.size % 2 == 0:
            raise UserError(f"{name}: ONNX's LRN has another window where the size is even")
        columns = self.network.columns if norm.per_column else 1
        maps, *px = self.shape
        if columns > 1:
            self.reshape(f"{name}.columns", (-1, maps // columns, *px))
        self.node(
            *("LRN", name if columns == 1 else f"{name}.apart"),
            size=norm.size,
            alpha=norm.alpha * norm.size,
            beta=norm.beta,
            bias=norm.k,
        )
        if columns > 1:
            self.reshape(name, (-1, maps, *px))

    def spatial_norm(self, norm: SpatialNorm, name: str) -> None:
        x, below = self.x, norm.size // 2
        above = norm.size - 1 - below
        self.node("Mul", f"{name}.squares", x)
        self.node(
            *("AveragePool", f"{name}.mean"),
            kernel_shape=2 * [norm.size],
            strides=[1, 1],
            pads=[below, below, above, above],
            count_include_pad=1,
        )
        self.node("Mul", f"{name}.sum", self.constant(f"{name}.alpha", norm.alpha * norm.size**2))
        self.node("Add", f"{name}.base", self.constant(f"{name}.k", norm.k))
        self.node("Pow", f"{name}.power", self.constant(f"{name}.beta", norm.beta))
        power, self.x = self.x, x
        self.node("Div", name, power)

    def pool(self, pool: Pool, name: str) -> None:
        """The last window, which may stand over, is clipped: padding counts for nothing."""
        maps, in_px, _ = self.shape
        out_px = pooled(in_px, pool, self.network)
        extra = max(0, (out_px - 1) * pool.stride + pool.size - in_px)
        self.node(
            *("MaxPool" if pool.kind == "max" else "AveragePool", name),
            kernel_shape=2 * [pool.size],
            strides=2 * [pool.stride],
            pads=[0, 0, extra, extra],
        )
        self.shape = (maps, out_px, out_px)


def _kind(step: Step) -> str:
    if isinstance(step, str):
        return step
    names = {ResponseNorm: "norm", SpatialNorm: "spatial_norm", Pool: "pool", Dropout: "dropout"}
    return names[type(step)]
