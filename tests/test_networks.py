"""The networks as descriptions: their names, their sizes, and exact counts.

The expected rows are written from Section 3.5, from `layers-*.cfg` of the 2012 source as the
reference reports it, and from the prototxt files of Caffe; they share nothing with `networks.py`.
"""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from alexnet.errors import UserError
from alexnet.model import AlexNet
from alexnet.networks import (
    ABLATIONS,
    NETWORKS,
    BatchNorm,
    Conv,
    Full,
    Network,
    Pool,
    find_network,
    trace,
)

NAMES = [
    *("paper", "source", "one-gpu", "sixth-conv", "no-lrn", "no-overlap", "tanh", "no-dropout"),
    *("no-columns", "no-conv3", "no-conv4", "no-conv5", "no-fc6", "no-fc7"),
    *("caffe", "caffenet", "torchvision"),
    *("cifar10-80sec", "cifar10-18pct", "cifar10-13pct", "cifar10-11pct"),
    *("cifar10-figure1", "cifar10-figure1-tanh", "small"),
]

# A layer is (maps seen by one kernel, kernels, kernel size, side of its output); a fully
# connected one sees single numbers at one place.
Row = tuple[int, int, int, int]
CONV1: Row = (3, 96, 11, 55)
CONV2: Row = (48, 256, 5, 27)
CONV3: Row = (256, 384, 3, 13)
CONV4: Row = (192, 384, 3, 13)
CONV5: Row = (192, 256, 3, 13)
FC6: Row = (9216, 4096, 1, 1)
FC7: Row = (4096, 4096, 1, 1)
FC8: Row = (4096, 1000, 1, 1)
PAPER = [CONV1, CONV2, CONV3, CONV4, CONV5, FC6, FC7, FC8]
CIFAR10_CONVS: list[Row] = [(3, 32, 5, 32), (32, 32, 5, 16), (32, 64, 5, 8)]

SHARED: dict[str, list[Row]] = {
    **dict.fromkeys(
        ["paper", "source", "no-lrn", "tanh", "no-dropout", "caffe", "caffenet"], PAPER
    ),
    "one-gpu": [
        (3, 48, 11, 55),
        (48, 128, 5, 27),
        (128, 192, 3, 13),
        (192, 192, 3, 13),
        (192, 256, 3, 13),
        FC6,
        FC7,
        FC8,
    ],
    "sixth-conv": [*PAPER[:5], (256, 256, 3, 6), FC6, FC7, FC8],
    "no-overlap": [  # run 147: 55-28-26-13-13-13-11-6
        CONV1,
        (48, 256, 5, 26),
        CONV3,
        CONV4,
        (192, 256, 3, 11),
        FC6,
        FC7,
        FC8,
    ],
    "no-columns": [
        CONV1,
        (96, 256, 5, 27),
        CONV3,
        (384, 384, 3, 13),
        (384, 256, 3, 13),
        FC6,
        FC7,
        FC8,
    ],
    "no-conv3": [CONV1, CONV2, (256, 384, 3, 13), CONV5, FC6, FC7, FC8],
    "no-conv4": [CONV1, CONV2, CONV3, CONV5, FC6, FC7, FC8],
    "no-conv5": [CONV1, CONV2, CONV3, CONV4, (384 * 6 * 6, 4096, 1, 1), FC7, FC8],
    "no-fc6": [*PAPER[:5], FC6, FC8],
    "no-fc7": [*PAPER[:5], FC6, FC8],
    "torchvision": [
        (3, 64, 11, 55),
        (64, 192, 5, 27),
        (192, 384, 3, 13),
        (384, 256, 3, 13),
        (256, 256, 3, 13),
        FC6,
        FC7,
        FC8,
    ],
}
CIFAR10: dict[str, list[Row]] = {
    "cifar10-80sec": [*CIFAR10_CONVS, (64 * 4 * 4, 64, 1, 1), (64, 10, 1, 1)],
    "cifar10-18pct": [*CIFAR10_CONVS, (64 * 4 * 4, 10, 1, 1)],
    "cifar10-figure1": [*CIFAR10_CONVS, (64 * 4 * 4, 10, 1, 1)],
    "cifar10-figure1-tanh": [*CIFAR10_CONVS, (64 * 4 * 4, 10, 1, 1)],
    "cifar10-13pct": [
        (3, 64, 5, 24),
        (64, 64, 5, 12),
        (64, 32, 3, 6),
        (32, 32, 3, 6),
        (32 * 6 * 6, 10, 1, 1),
    ],
    "cifar10-11pct": [
        (3, 64, 5, 24),
        (64, 64, 5, 12),
        (64, 64, 3, 6),
        (64, 32, 3, 6),
        (32 * 6 * 6, 10, 1, 1),
    ],
}
LOCAL = {"local3", "local4"}  # filters and biases of their own at each place
ROWS = SHARED | CIFAR10


def test_every_network_has_its_name() -> None:
    assert sorted(NETWORKS) == sorted(NAMES)
    for name, network in NETWORKS.items():
        assert network.name == name


@pytest.mark.parametrize("name", ROWS)
def test_every_layer_has_the_counts_of_its_printed_size(name: str) -> None:
    shapes = trace(NETWORKS[name], 10 if name in CIFAR10 else 1000)
    assert len(shapes) == len(ROWS[name])
    for shape, (seen, kernels, kernel, side) in zip(shapes, ROWS[name], strict=True):
        places = side * side
        weights = kernels * seen * kernel * kernel
        filters = places if shape.name in LOCAL else 1
        measured = (shape.parameters, shape.macs, shape.neurons)
        expected = (filters * (weights + kernels), weights * places, kernels * places)
        assert measured == expected, f"{shape.name}: parameters, multiply-adds, neurons"
        assert shape.output in [(kernels, side, side), (kernels,)], shape.name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("paper", 60_965_224),
        ("source", 60_965_224),
        ("one-gpu", 59_798_312),
        ("sixth-conv", 61_555_304),
        ("no-lrn", 60_965_224),
        ("no-overlap", 60_965_224),
        ("tanh", 60_965_224),
        ("no-dropout", 60_965_224),
        ("no-columns", 62_378_344),
        ("caffe", 60_965_224),
        ("caffenet", 60_965_224),
        ("torchvision", 61_100_840),
    ],
)
def test_the_totals_are_those_that_the_world_knows(name: str, parameters: int) -> None:
    assert sum(shape.parameters for shape in trace(NETWORKS[name])) == parameters


@pytest.mark.parametrize("name", ["paper", "source"])
def test_the_papers_net_has_its_neurons_and_multiply_adds(name: str) -> None:
    shapes = trace(NETWORKS[name])
    assert sum(shape.neurons for shape in shapes) == 659_272
    assert sum(shape.macs for shape in shapes) == 724_406_816
    assert [shape.parameters for shape in shapes] == [
        34_944,
        307_456,
        885_120,
        663_936,
        442_624,
        37_752_832,
        16_781_312,
        4_097_000,
    ]
    assert shapes[0].neurons == 55 * 55 * 96 == 290_400  # the caption of Figure 2 says 253,440


@pytest.mark.parametrize("num_classes", [2, 10, 1000, 10_184])
@pytest.mark.parametrize("name", NAMES)
def test_the_module_has_the_parameters_of_its_description(name: str, num_classes: int) -> None:
    with torch.device("meta"):
        model = AlexNet(NETWORKS[name], num_classes)
    counted = {
        layer: sum(p.numel() for p in model.get_submodule(layer).parameters())
        for layer in model.layer_names
    }
    expected = {shape.name: shape.parameters for shape in trace(NETWORKS[name], num_classes)}
    assert counted == expected
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert list(model.state_dict()) == [
        f"{layer}.{kind}" for layer in model.layer_names for kind in ("weight", "bias")
    ]


def test_layers_have_the_names_of_the_paper() -> None:
    paper = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    for name in NAMES[: NAMES.index("cifar10-80sec")]:
        names = list(NETWORKS[name].layer_names)
        if name == "sixth-conv":
            names.remove("conv6")
        expected = [layer for layer in paper if name != f"no-{layer}"]
        assert names == expected, name


@pytest.mark.parametrize(
    ("name", "feature_layer"),
    [("paper", "fc7"), ("source", "fc7"), ("no-fc7", "fc6"), ("no-fc6", "fc7"), ("small", "fc7")],
)
def test_the_signature_of_a_picture_is_the_last_hidden_layer(name: str, feature_layer: str) -> None:
    assert NETWORKS[name].feature_layer == feature_layer


def test_networks_take_the_pictures_of_their_origin() -> None:
    sizes = {name: network.input_px for name, network in NETWORKS.items()}
    expected = dict.fromkeys(NAMES, 224)
    expected |= {"caffe": 227, "caffenet": 227}
    expected |= {name: 32 for name in NAMES if name.startswith("cifar10")}
    expected |= {"cifar10-13pct": 24, "cifar10-11pct": 24}  # crops with a border of 4
    expected["small"] = sizes["small"]  # ours to choose
    assert sizes == expected


@pytest.mark.parametrize("name", NAMES)
def test_columns_meet_before_conv3_and_the_fully_connected_layers_only(name: str) -> None:
    network = NETWORKS[name]
    one_column = {"one-gpu", "no-columns", "torchvision"}
    if name in one_column or name.startswith("cifar10"):
        assert network.columns == 1
        assert network.meets_before() == ()
        return
    assert network.columns == 2
    meeting = [
        layer for layer in ("conv3", "conv6", "fc6", "fc7", "fc8") if layer in network.layer_names
    ]
    if name == "no-conv3":
        meeting.insert(0, "conv4")  # reads what conv3 read
    assert list(network.meets_before()) == meeting


def test_only_torchvision_divides_its_pictures() -> None:
    for name, network in NETWORKS.items():
        # transforms.Normalize's std of 0.229, 0.224, 0.225 on the 0..255 scale
        expected = (58.395, 57.12, 57.375) if name == "torchvision" else (1.0, 1.0, 1.0)
        assert network.input_std == pytest.approx(expected), name


def test_a_description_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        NETWORKS["paper"].columns = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        NETWORKS["paper"].layers[0].name = "conv0"  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["no-lrn", "no-overlap", "tanh", "no-dropout", "no-columns", "one-gpu", "source"]
)
def test_a_variant_of_the_paper_has_the_papers_layers_in_order(name: str) -> None:
    kinds = [(type(layer), layer.name) for layer in NETWORKS[name].layers]
    assert kinds == [(type(layer), layer.name) for layer in NETWORKS["paper"].layers]


@pytest.mark.parametrize(("name", "answer"), [("papr", "paper"), ("sixth_conv", "sixth-conv")])
def test_an_unknown_network_is_answered_with_the_nearest(name: str, answer: str) -> None:
    with pytest.raises(UserError, match=answer) as raised:
        find_network(name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("input_px", [1, 10, 51])
def test_a_picture_that_is_too_small_is_refused_by_name(input_px: int) -> None:
    with pytest.raises(UserError, match="paper"):
        trace(NETWORKS["paper"], 10, input_px)


def test_the_smallest_picture_for_the_paper_has_52_pixels() -> None:
    # 52 -> 12 -> 6 -> 3 -> 1 with windows that are clipped
    sides = [shape.output[-1] for shape in trace(NETWORKS["paper"], 10, 52)[:5]]
    assert sides == [12, 6, 3, 3, 3]


def test_another_picture_size_changes_the_places_and_not_the_filters() -> None:
    shapes = {shape.name: shape for shape in trace(NETWORKS["paper"], 1000, 227)}
    assert [shape.parameters for shape in shapes.values()] == [
        shape.parameters for shape in trace(NETWORKS["paper"])
    ]
    assert shapes["conv1"].output == (96, 55, 55)
    assert trace(NETWORKS["paper"], 1000, 256)[0].output == (96, 63, 63)


def test_descriptions_hold_convolutions_then_fully_connected_layers() -> None:
    for name, network in NETWORKS.items():
        kinds = [isinstance(layer, Full) for layer in network.layers]
        assert kinds == sorted(kinds), name
        assert isinstance(network.layers[0], Conv), name
        assert network.layers[-1].then == (), name
        assert replace(network) == network, name


# --- Ablations of any network ---------------------------------------------------------------------


@pytest.mark.parametrize("ablation", sorted(ABLATIONS))
def test_an_ablation_of_any_network_is_a_network_that_runs(ablation: str) -> None:
    network = find_network(f"small/{ablation}")
    assert network != replace(find_network("small"), **_label(network))
    model = AlexNet(network, 3)
    model.reset_parameters(torch.Generator().manual_seed(0))
    assert model(torch.zeros(2, 3, network.input_px, network.input_px)).shape == (2, 3)


def _label(network: Network) -> dict[str, str]:
    return {"name": network.name, "lineage": network.lineage, "source": network.source}


@pytest.mark.parametrize(
    "name", ["one-gpu", "sixth-conv", "no-lrn", "no-overlap", "tanh", "no-columns", "no-conv4"]
)
def test_the_named_ablations_are_those_of_paper(name: str) -> None:
    named = NETWORKS[name]
    assert replace(find_network(f"paper/{name}"), **_label(named)) == named


def test_ablations_add_up_and_an_unknown_one_is_answered_with_the_nearest() -> None:
    both = find_network("source/no-overlap/no-conv2-norm")
    assert both.layer("conv2").then == ("relu", Pool(size=2))
    assert both.lineage == "source"
    with pytest.raises(UserError, match="did you mean 'no-lrn'"):
        find_network("small/no-lnr")
    with pytest.raises(UserError, match="nothing that no-conv5 could change"):
        find_network("cifar10-18pct/no-conv5")


@pytest.mark.parametrize("name", ["paper", "source"])
def test_the_sources_start_at_another_width_is_its_own_at_its_own(name: str) -> None:
    started = find_network(f"{name}/{name}-start")
    assert [(layer.std, layer.bias) for layer in started.layers] == [
        (layer.std, layer.bias) for layer in NETWORKS[name].layers
    ]


def test_a_narrow_layer_starts_with_the_signal_of_the_papers_wide_one() -> None:
    narrow = find_network("small/paper-start")
    shapes = {shape.name: shape.macs // shape.neurons for shape in trace(narrow)}
    wide = {shape.name: shape.macs // shape.neurons for shape in trace(NETWORKS["paper"])}
    for layer in narrow.layers:
        assert layer.std**2 * shapes[layer.name] == pytest.approx(0.01**2 * wide[layer.name])


def test_batch_norm_stands_where_the_norms_stood_and_before_the_relu() -> None:
    network = find_network("paper/batch-norm")
    assert network.layer("conv2").then == (BatchNorm(), "relu", Pool())
    model = AlexNet(find_network("small/batch-norm"), 3)
    model.reset_parameters(torch.Generator().manual_seed(0))
    images = 60 * torch.randn(8, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    linear = model.features(images, "conv1", before_relu=True)
    mean, variance = linear.mean((0, 2, 3)), linear.var((0, 2, 3), correction=0)
    expected = (linear - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(model.features(images, "conv1"), expected.relu())
    assert not [name for name, _ in model.named_parameters() if "norm" in name]
