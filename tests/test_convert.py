"""`alexnet convert`: Caffe's, torchvision's, ONNX's and cuda-convnet's weights, read safely."""

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import caffe_files
import oracles
from alexnet import caffe, convnet
from alexnet import convert as converting
from alexnet.caffe import read_caffemodel, read_mean
from alexnet.convert import convert
from alexnet.errors import UserError
from alexnet.files import sha256_of
from alexnet.model import build
from alexnet.networks import NETWORKS, Network, trace
from alexnet.trained import TrainedAlexNet
from alexnet.weights import load
from alexnet.wire import Message
from fabricate import alexnet, refusal
from test_export import thinned

CAFFE, CAFFENET = NETWORKS["caffe"], NETWORKS["caffenet"]


def small(network: Network) -> Network:
    """Few kernels and a picture of 67 pixels: maps of 15, 7, 3 and 1."""
    return replace(thinned(network), input_px=67)


def weights_of(network: Network, classes: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    weights = {}
    for shape, layer in zip(trace(network, classes), network.layers, strict=True):
        if hasattr(layer, "kernel"):
            groups = 1 if layer.joined else 2
            size = (layer.maps, shape.input[0] // groups, layer.kernel, layer.kernel)
        else:
            size = (shape.output[0], int(np.prod(shape.input)))
        fan_in = int(np.prod(size[1:]))
        scale = (2 / fan_in) ** 0.5 * (0.02 if layer.name == "conv1" else 1)
        weights[f"{layer.name}.weight"] = random.normal(0, scale, size).astype(np.float32)
        bias = random.uniform(-0.2, 0.2, size[0]).astype(np.float32)
        weights[f"{layer.name}.bias"] = bias
    return weights


def prototxt_logits(
    weights: dict[str, np.ndarray], picture: np.ndarray, *, pool_first: bool
) -> np.ndarray:
    """bvlc_alexnet's train_val.prototxt read by hand: blue first, norm across all maps, k = 1.

    By the oracles' float64 loops: kernels 11/4, 5, 3, 3, 3 with pads 0, 2, 1, 1, 1 and groups 1,
    2, 1, 2, 2; LRN n = 5, alpha = 1e-4 divided by n, beta = 0.75; pools 3/2.
    """
    x = picture.astype(np.float64)
    geometry = [(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)]
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    for n, (stride, padding, groups) in enumerate(geometry, 1):
        x = oracles.convolve(
            *(x, w[f"conv{n}.weight"], w[f"conv{n}.bias"]),
            stride=stride,
            padding=padding,
            groups=groups,
        )
        x = oracles.relu(x)
        if n in (1, 2):
            for step in ("pool", "norm") if pool_first else ("norm", "pool"):
                if step == "norm":
                    x = oracles.response_norm(x, size=5, alpha=1e-4 / 5, beta=0.75, k=1.0)
                else:
                    x = oracles.pool(x, size=3, stride=2, kind="max")
        elif n == 5:
            x = oracles.pool(x, size=3, stride=2, kind="max")
    x = x.reshape(-1)
    for n in (6, 7, 8):
        x = oracles.linear(x, w[f"fc{n}.weight"], w[f"fc{n}.bias"])
        x = x if n == 8 else oracles.relu(x)
    return x


@pytest.fixture
def two_small_networks(monkeypatch: pytest.MonkeyPatch) -> tuple[Network, Network]:
    pair = (small(CAFFE), small(CAFFENET))
    monkeypatch.setattr(converting._from_caffe, "__defaults__", (pair,))
    return pair


@pytest.mark.parametrize("old", [False, True], ids=["LayerParameter", "V1LayerParameter"])
@pytest.mark.parametrize("pool_first", [False, True], ids=["bvlc_alexnet", "caffenet"])
def test_logits_of_a_caffemodel_are_those_of_its_prototxt(
    tmp_path: Path, two_small_networks: tuple[Network, Network], old: bool, pool_first: bool
) -> None:
    network = two_small_networks[pool_first]
    weights = weights_of(network)
    layers = caffe_files.alexnet_layers(weights, pool_first=pool_first)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffe_files.net(layers, old=old))
    found = converting._from_caffe(path)
    assert found.network is network
    model = TrainedAlexNet(network, 6)
    model.load_state_dict(found.state)
    picture = np.random.default_rng(1).uniform(-120, 120, (3, 67, 67)).astype(np.float32)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(picture.copy())[None])[0].numpy()
    expected = prototxt_logits(weights, picture[::-1], pool_first=pool_first)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    assert found.difference(model) < 1e-5
    with torch.no_grad():
        model.get_parameter("conv2.weight").mul_(1.01)
    assert found.difference(model) > converting.TOLERANCE


@pytest.mark.slow
def test_a_full_size_caffemodel_is_converted_by_the_command(tmp_path: Path) -> None:
    weights = weights_of(CAFFE, 1000)
    path = tmp_path / "bvlc_alexnet.caffemodel"
    path.write_bytes(caffe_files.net(caffe_files.alexnet_layers(weights, pool_first=False)))
    mean = np.random.default_rng(2).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    proto = tmp_path / "mean.binaryproto"
    proto.write_bytes(caffe_files.blob(mean[None], old=True))
    target = tmp_path / "model.safetensors"
    finished = alexnet("convert", path, target, "--mean", proto)
    assert finished.code == 0, finished
    assert "Caffe, network caffe, 1,000 classes; on 2 pictures it differs" in finished.out
    model = load(target)
    assert model.card.origin["sha256"] == sha256_of(path)
    np.testing.assert_array_equal(
        model.card.preprocessing.mean_image.numpy(), mean[::-1].transpose(1, 2, 0)
    )
    picture = np.random.default_rng(1).uniform(-120, 120, (1, 3, 227, 227))
    expected = caffe.run(read_caffemodel(path), picture[:, ::-1])
    with torch.no_grad():
        logits = model(torch.from_numpy(picture.astype(np.float32))).numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_files_own_rules_in_numpy_are_those_of_the_oracles() -> None:
    network = small(CAFFENET)
    weights = weights_of(network)
    layers = caffe_files.alexnet_layers(weights, pool_first=True)
    read = caffe._layers(Message(caffe_files.net(layers)))
    picture = np.random.default_rng(3).uniform(-120, 120, (3, 67, 67))
    expected = prototxt_logits(weights, picture, pool_first=True)
    np.testing.assert_allclose(caffe.run(read, picture[None])[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["binaryproto", "npy"])
def test_a_mean_image_of_caffe_is_turned_to_red_first(tmp_path: Path, kind: str) -> None:
    mean = np.arange(3 * 5 * 5, dtype=np.float32).reshape(3, 5, 5)
    path = tmp_path / f"mean.{kind}"
    if kind == "npy":
        np.save(path, mean)
    else:
        path.write_bytes(caffe_files.blob(mean[None], old=True, packed=False))
    found = read_mean(path)
    assert found.shape == (5, 5, 3)
    assert found[1, 2].tolist() == [mean[2, 1, 2], mean[1, 1, 2], mean[0, 1, 2]]


@pytest.mark.parametrize(
    ("norm", "said"),
    [
        ({1: 5, 2: 0.0001, 3: 0.75, 5: 2.0}, "after conv1 come relu, ResponseNorm"),
        ({1: 3, 2: 0.0001, 3: 0.75}, "after conv1 come"),
        ({1: 5, 2: 0.0001, 3: 0.75, 4: 1}, "normalises within maps"),
    ],
)
def test_another_networks_caffemodel_is_refused_with_the_difference(
    tmp_path: Path, two_small_networks: tuple[Network, Network], norm: dict[int, Any], said: str
) -> None:
    weights = weights_of(two_small_networks[0])
    path = tmp_path / "net.caffemodel"
    layers = caffe_files.alexnet_layers(weights, pool_first=False, norm=norm)
    path.write_bytes(caffe_files.net(layers))
    with pytest.raises(UserError, match=said):
        converting._from_caffe(path)


SMALL_FILE = caffe_files.net(caffe_files.alexnet_layers(weights_of(small(CAFFE)), pool_first=False))


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_or_hostile_caffemodel_is_only_ever_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.caffemodel"
    damaged = bytearray(SMALL_FILE)
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged) - 1))]
    for _ in range(data.draw(st.integers(0, 6))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 4000) - 1))] = data.draw(
                st.integers(0, 255)
            )
    path.write_bytes(bytes(damaged))
    try:
        read_caffemodel(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(st.binary(max_size=300))
def test_bytes_are_fields_or_a_value_error(data: bytes) -> None:
    try:
        message = Message(data)
        for number in message.fields:
            message.floats(number)
            message.integers(number)
            message.text(number)
    except ValueError:
        pass


# --- cuda-convnet ---------------------------------------------------------------------------------


def matrix(weight: np.ndarray) -> np.ndarray:
    """A kernel a column: (O, I, k, k) -> (I x k x k, O); (O, I) -> (I, O)."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T)


def two_column_checkpoint(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Run 145's layers as its Python saves them: halves a and b, a matrix for each input."""
    layers: dict[str, Any] = {"data": {"name": "data", "type": "data", "inputs": []}}

    def add(name: str, inputs: list[str], weights: list[np.ndarray], bias: np.ndarray) -> None:
        layers[name] = {
            "name": name,
            "type": "fc" if name.startswith("fc") else "conv",
            "inputs": inputs,
            "weights": weights,
            "weightsInc": [np.zeros_like(w) for w in weights],
            "biases": bias.reshape(-1, 1),
        }

    for n in range(1, 6):
        weight, bias = state[f"conv{n}.weight"], state[f"conv{n}.bias"]
        for column, letter in enumerate("ab"):
            part = np.split(weight, 2)[column]
            own = np.split(bias, 2)[column]
            if n == 1:
                add(f"conv1{letter}", ["data"], [matrix(part)], own)
            elif n == 3:  # reads both, each by a matrix of its own
                halves = np.split(part, 2, axis=1)
                add(f"conv3{letter}", ["pool2a", "pool2b"], [matrix(h) for h in halves], own)
            else:
                source = {2: "pool1", 4: "conv3", 5: "conv4"}[n] + letter
                add(f"conv{n}{letter}", [source], [matrix(part)], own)
            for pool in {1: ["pool1"], 2: ["pool2"], 5: ["pool3"]}.get(n, []):
                layers[f"{pool}{letter}"] = {
                    "name": f"{pool}{letter}",
                    "type": "pool",
                    "inputs": [f"conv{n}{letter}"],
                }
    full = {6: ("fc2048", "pool3"), 7: ("fc2048b", "fc2048"), 8: ("fc1000", "fc2048b")}
    for n, (stem, source) in full.items():
        weight, bias = state[f"fc{n}.weight"], state[f"fc{n}.bias"]
        for column, letter in enumerate("ab" if n < 8 else [""]):
            rows = np.split(weight, 2)[column] if n < 8 else weight
            own = np.split(bias, 2)[column] if n < 8 else bias
            halves = np.split(rows, 2, axis=1)
            inputs = [f"{source}a", f"{source}b"]
            if (n, letter) == (7, "b"):  # as the file of run 145: b's inputs the other way round
                inputs, halves = inputs[::-1], halves[::-1]
            add(f"{stem}{letter}", inputs, [matrix(h) for h in halves], own)
    # A dictionary of Python 2 is in no order.
    shuffled = {name: layers[name] for name in sorted(layers, key=lambda name: hash(name[::-1]))}
    return {"model_state": {"layers": shuffled, "epoch": 91, "batchnum": 1300}, "op": None}


def thin_source() -> Network:
    return thinned(NETWORKS["source"])


def test_two_columns_of_the_source_become_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = thin_source()
    monkeypatch.setitem(NETWORKS, "source", network)
    model = build(network, 6, torch.Generator().manual_seed(0))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    folder = tmp_path / "ConvNet__2012"
    folder.mkdir()
    for name, scale in (("9.1300", 0.0), ("91.1300", 1.0)):
        scaled = {key: value * np.float32(scale) for key, value in state.items()}
        with open(folder / name, "wb") as file:
            pickle.dump(two_column_checkpoint(scaled), file, protocol=2)
    target = tmp_path / "model.safetensors"
    convert(folder, target, mean="123,117,104", network="source")
    loaded = load(target)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.card.origin["converted_from"] == "91.1300"
    mean = loaded.card.preprocessing.mean_image
    assert mean.shape == (256, 256, 3)
    assert mean[7, 9].tolist() == [123, 117, 104]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_cifar_checkpoint_comes_with_its_mean_and_classes(tmp_path: Path, zipped: bool) -> None:
    model = build("cifar10-80sec", 10, torch.Generator().manual_seed(0))
    layers: list[dict[str, Any]] = [{"name": "data", "type": "data", "inputs": []}]
    for index, name in enumerate(model.layer_names):
        weight, bias = (
            model.get_parameter(f"{name}.{kind}").detach().numpy() for kind in ("weight", "bias")
        )
        layers.append(
            # Convolutions of early versions hold the matrix itself.
            {
                "name": name,
                "inputs": [index],
                "weights": matrix(weight) if weight.ndim == 4 else [matrix(weight)],
                "biases": bias,
            }
        )
    path = tmp_path / "120.5"
    data = pickle.dumps({"model_state": {"layers": layers}}, protocol=2)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", data)
    else:
        path.write_bytes(data)
    mean = np.arange(3 * 32 * 32, dtype=np.float32)[:, None] / 13
    meta = {"data_mean": mean, "label_names": [f"thing {n}" for n in range(10)]}
    (tmp_path / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    target = tmp_path / "model.safetensors"
    flags = ("--mean", tmp_path / "batches.meta", "--network", "cifar10-80sec")
    finished = alexnet("convert", path, target, *flags)
    assert finished.code == 0, finished
    loaded = load(target)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.card.class_names[3] == "thing 3"
    found = loaded.card.preprocessing.mean_image.numpy()
    np.testing.assert_array_equal(found, mean.reshape(3, 32, 32).transpose(1, 2, 0))


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["91.1300", "batches.meta", "net.pth"])
def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    (tmp_path / name).write_bytes(pickle.dumps({"model_state": Payload(f"touch {mark}")}))
    target = tmp_path / "model.safetensors"
    if name == "batches.meta":
        with pytest.raises(UserError, match="which no checkpoint needs"):
            convnet.read_pickle(tmp_path / name)
    else:
        flags = ("--network", "source") if name == "91.1300" else ()
        said = refusal("convert", tmp_path / name, target, "--mean", "1,2,3", *flags)
        assert (
            "no checkpoint needs" in said
            or "cannot be read safely" in said
            or ("no state dict that can be read safely" in said)
        )
    assert not mark.exists()
    assert not target.exists()


def test_options_of_the_release_become_nothing(tmp_path: Path) -> None:
    """An object of a module called options, as "op" is, whose state asks for nothing."""
    text = b"\x80\x02}q\x00(U\x02opq\x01coptions\nOptionsParser\n)\x81}U\x01aK\x01sbU\x01bK\x02u."
    (tmp_path / "1.1").write_bytes(text)
    found = convnet.read_pickle(tmp_path / "1.1")
    assert isinstance(found["op"], convnet.StandIn)
    assert found["b"] == 2


# --- torchvision and mistakes ---------------------------------------------------------------------


@pytest.mark.slow
def test_torchvisions_file_there_and_back_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    import torchvision

    theirs = torchvision.models.alexnet(num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    target = tmp_path / "model.safetensors"
    finished = alexnet("convert", tmp_path / "theirs.pth", target)
    assert finished.code == 0, finished
    assert load(target).card.class_names[281] == "tabby"
    finished = alexnet("export", target, tmp_path / "back.pth")
    assert finished.code == 0, finished
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_what_cannot_be_converted_is_a_line(
    tmp_path: Path, two_small_networks: tuple[Network, Network]
) -> None:
    target = tmp_path / "model.safetensors"
    assert "is not there" in refusal("convert", tmp_path / "none.caffemodel", target)
    for name, content, said in (
        ("a.caffemodel", b"", "it is empty"),
        ("b.caffemodel", b"hello world", "is no .caffemodel"),
        ("c.pth", b"hello", "no state dict that can be read safely"),
        ("d.h5", b"hello", "weights are read from"),
        ("e.safetensors", b"hello", "needs no conversion"),
        ("91.2", b"hello", "does not say which network"),
    ):
        (tmp_path / name).write_bytes(content)
        assert said in refusal("convert", tmp_path / name, target), name
    torch.save({"x": torch.zeros(2)}, tmp_path / "f.pth")
    assert "is not torchvision's alexnet" in refusal("convert", tmp_path / "f.pth", target)
    (tmp_path / "g.caffemodel").write_bytes(SMALL_FILE)
    said = refusal("convert", tmp_path / "g.caffemodel", target)
    assert "--mean 123,117,104" in said
    said = refusal("convert", tmp_path / "g.caffemodel", target, "--mean", "no.file")
    assert "no such file" in said
    assert not target.exists()


# --- ONNX -----------------------------------------------------------------------------------------


def test_caffes_network_as_the_model_zoo_has_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    network = small(CAFFE)
    weights = weights_of(network)
    nodes, x = [], "data_0"

    def add(kind: str, name: str, *inputs: str, **attributes: Any) -> None:
        nonlocal x
        nodes.append(helper.make_node(kind, [x, *inputs], [name], name=name, **attributes))
        x = name

    for name, kind, fields, blobs in caffe_files.alexnet_layers(weights, pool_first=False):
        arrays = (f"{name}.weight", f"{name}.bias")
        if kind == "Convolution":
            pads, strides = 4 * [fields.get(3, 0)], 2 * [fields.get(6, 1)]
            add("Conv", name, *arrays, pads=pads, strides=strides, group=fields.get(5, 1))
        elif kind == "InnerProduct":
            if name == "fc6":
                add("Flatten", "flat")
            add("Gemm", name, *arrays, transB=1)
        elif kind == "ReLU":
            add("Relu", name)
        elif kind == "LRN":
            add("LRN", name, size=5, alpha=1e-4, beta=0.75, bias=1.0)
        elif kind == "Pooling":
            add("MaxPool", name, kernel_shape=[3, 3], strides=[2, 2])
        elif kind == "Softmax":
            add("Softmax", name, axis=1)
        del blobs
    number = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "bvlcalexnet",
        [helper.make_tensor_value_info("data_0", number, [1, 3, 67, 67])],
        [helper.make_tensor_value_info(x, number, [1, 6])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    onnx.save(proto, tmp_path / "net.onnx")
    found = converting._from_onnx(tmp_path / "net.onnx", (network, small(CAFFENET)))
    assert found.network is network
    model = TrainedAlexNet(network, 6)
    model.load_state_dict(found.state)
    model.eval()
    assert found.difference(model) < 1e-5
    picture = np.random.default_rng(1).uniform(-120, 120, (3, 67, 67)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(picture.copy())[None])[0].numpy()
    expected = prototxt_logits(weights, picture[::-1], pool_first=False)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
