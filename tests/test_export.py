"""`alexnet export`: ONNX, torch.export and torchvision's state dict, equal to the network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.augment import Preprocessing, centre_view
from alexnet.errors import UserError
from alexnet.export import (
    TOLERANCE,
    Deployed,
    export,
    relative_difference,
    run_onnx,
    sample_pixels,
)
from alexnet.model import build
from alexnet.networks import NETWORKS, Conv, Full, Network, Pool, ResponseNorm, SpatialNorm
from alexnet.onnx_graph import to_onnx
from alexnet.trained import TrainedAlexNet
from alexnet.weights import load, save_model
from fabricate import alexnet, refusal
from test_weights import card_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = tuple("abcdefg")
SMALL = [name for name, network in NETWORKS.items() if network.input_px < 100]
LARGE = [name for name in NETWORKS if name not in SMALL]


def trained(network: Network, seed: int = 0) -> TrainedAlexNet:
    """Of fresh weights, larger than a training begins with, so that each layer tells."""
    model = TrainedAlexNet(network, len(CLASSES))
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    with torch.no_grad():
        for layer, shape in model.shapes.items():
            weight = model.get_parameter(f"{layer}.weight")
            weight.normal_(0, (2 * shape.neurons / shape.macs) ** 0.5, generator=generator)
            model.get_parameter(f"{layer}.bias").uniform_(-0.5, 0.5, generator=generator)
    px = network.input_px
    mean = 60 + 120 * torch.rand(px + 9, px + 9, 3, generator=generator)
    preprocessing = Preprocessing(mean, px, "crop", network.input_std)
    model.card = card_of(
        network.name if network.name in NETWORKS else "small",
        class_names=CLASSES,
        class_ids=CLASSES,
        preprocessing=preprocessing,
    )
    return model.eval()


def thinned(network: Network) -> Network:
    """The network with few kernels, so that it is checked in a moment: the geometry is its own."""
    layers = [
        replace(layer, units=layer.units and 32)
        if isinstance(layer, Full)
        else replace(layer, maps=16)
        for layer in network.layers
    ]
    return replace(network, layers=tuple(layers))


def onnx_difference(model: TrainedAlexNet, count: int) -> float:
    data = to_onnx(model).SerializeToString()
    pixels = sample_pixels(model, count)
    with torch.no_grad():
        expected = Deployed(model)(pixels).numpy()
    return relative_difference(run_onnx(data, pixels.numpy()), expected)


@pytest.mark.parametrize("name", SMALL)
def test_onnx_runtime_agrees_on_every_small_network(name: str) -> None:
    model = trained(NETWORKS[name])
    assert onnx_difference(model, 1) <= TOLERANCE
    assert onnx_difference(model, 5) <= TOLERANCE  # the batch is free


@pytest.mark.parametrize("name", LARGE)
def test_onnx_runtime_agrees_on_every_large_network_with_few_kernels(name: str) -> None:
    assert onnx_difference(trained(thinned(NETWORKS[name])), 2) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_onnx_runtime_agrees_on_every_large_network(name: str) -> None:
    assert onnx_difference(trained(NETWORKS[name]), 2) <= TOLERANCE


@pytest.mark.parametrize("name", ["source", "paper", "caffe", "caffenet", "small", "cifar10-11pct"])
def test_each_response_norm_is_one_lrn_node(name: str) -> None:
    network = NETWORKS[name] if name in SMALL else thinned(NETWORKS[name])
    graph = to_onnx(trained(network)).graph
    norms = [s for layer in network.layers for s in layer.then if isinstance(s, ResponseNorm)]
    nodes = [node for node in graph.node if node.op_type == "LRN"]
    assert len(nodes) == len(norms) > 0
    for node, norm in zip(nodes, norms, strict=True):
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert found["alpha"] == pytest.approx(norm.alpha * norm.size)
        assert (found["size"], found["bias"]) == (norm.size, norm.k)


def test_nodes_carry_the_names_of_layers_and_the_file_its_classes() -> None:
    model = trained(NETWORKS["small"])
    proto = to_onnx(model)
    names = [node.name for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert names == list(model.layer_names)
    facts = {prop.key: prop.value for prop in proto.metadata_props}
    assert facts["network"] == "small"
    assert facts["class_names"] == '["a", "b", "c", "d", "e", "f", "g"]'


def test_odd_geometry_survives_the_way_to_onnx() -> None:
    """Windows that stand over or leave pixels out, a norm of even size in the plane."""
    network = Network(
        "odd",
        "",
        "this test",
        (
            Conv(
                "conv1",
                6,
                4,
                (SpatialNorm(size=4), Pool("avg", 4, 3), "tanh"),
                stride=3,
                padding=1,
                joined=True,
                rounded_up=True,
            ),
            Conv("local2", 5, 3, ("relu", Pool("max", 3, 2)), padding=2, shared=False),
            Full("fc3", 9, ("relu",)),
            Full("fc4", 0, ()),
        ),
        input_px=38,
        columns=1,
    )
    assert onnx_difference(trained(network), 3) <= TOLERANCE


def test_a_norm_that_onnx_has_not_is_refused() -> None:
    layers = list(NETWORKS["small"].layers)
    layers[0] = replace(layers[0], then=("relu", ResponseNorm(size=4), Pool()))
    with pytest.raises(UserError, match="size is even"):
        to_onnx(trained(replace(NETWORKS["small"], layers=tuple(layers))))


def test_deployed_pixels_give_what_predict_gives() -> None:
    model = trained(NETWORKS["small"])
    pictures = np.random.default_rng(0).integers(0, 256, (2, 65, 65, 3), np.uint8)
    crops = centre_view(torch.from_numpy(pictures), model.card.preprocessing)
    border, px = model.card.preprocessing.border_px, model.network.input_px
    cut = pictures[:, border : border + px, border : border + px]
    with torch.no_grad():
        expected = model(crops)
        found = Deployed(model)(torch.from_numpy(cut).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["small", "cifar10-13pct", "cifar10-18pct"])
def test_a_program_of_torch_export_is_the_network(tmp_path: Path, name: str) -> None:
    model = trained(NETWORKS[name])
    done = export(model, tmp_path / "net.pt2")
    assert done.difference <= TOLERANCE
    program = torch.export.load(tmp_path / "net.pt2").module()
    for count in (1, 7):
        pixels = sample_pixels(model, count)
        with torch.no_grad():
            expected = Deployed(model)(pixels)
        assert relative_difference(program(pixels).detach().numpy(), expected.numpy()) <= TOLERANCE


def test_the_command_exports_and_says_how_near_it_is(tmp_path: Path) -> None:
    model = trained(NETWORKS["small"])
    save_model(tmp_path / "model.safetensors", model, model.card)
    finished = alexnet("export", tmp_path, tmp_path / "net.onnx")
    assert finished.code == 0, finished
    assert "its logits differ from the network's by at most" in finished.out
    pixels = sample_pixels(model, 2)
    with torch.no_grad():
        expected = Deployed(model)(pixels).numpy()
    found = run_onnx((tmp_path / "net.onnx").read_bytes(), pixels.numpy())
    assert relative_difference(found, expected) <= TOLERANCE


def test_an_export_that_would_be_wrong_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(NETWORKS["small"])
    monkeypatch.setattr(
        "alexnet.export.run_onnx", lambda data, pixels: run_onnx(data, pixels) * 1.1
    )
    with pytest.raises(UserError, match="was not written"):
        export(model, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(NETWORKS["small"])
    save_model(tmp_path / "model.safetensors", model, model.card)
    assert "exported to .onnx" in refusal("export", tmp_path, tmp_path / "net.h5")
    said = refusal("export", tmp_path, tmp_path / "net.pth")
    assert "network small is not torchvision's alexnet" in said
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    said = refusal("export", tmp_path, tmp_path / "net.onnx")
    assert "pip install 'alexnet[onnx]'" in said


@pytest.mark.slow
def test_torchvisions_state_dict_comes_back_bit_by_bit(tmp_path: Path) -> None:
    import torchvision

    theirs = torchvision.models.alexnet(num_classes=7)
    model = trained(NETWORKS["torchvision"])
    model.load_state_dict(theirs.state_dict())
    save_model(tmp_path / "model.safetensors", model, model.card)
    done = export(load(tmp_path), tmp_path / "net.pth")
    assert done.difference <= TOLERANCE
    back = torch.load(tmp_path / "net.pth", weights_only=True)
    assert list(back) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_kernels_are_chosen_again_after_an_export(tmp_path: Path) -> None:
    model = build("small", 3)
    exported = trained(NETWORKS["small"])
    exported.kernels = "auto"
    export(exported, tmp_path / "net.onnx")
    assert exported.kernels == model.kernels == "auto"
