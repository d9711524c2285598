"""Inside a network: which pixels a unit sees, which pictures excite it, where the label lies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.augment import Preprocessing, centre_view
from alexnet.dataset import Split
from alexnet.exciting import (
    Best,
    evenly,
    layers_shown,
    merged,
    most_exciting,
    of_one_class,
    of_one_class_by_chance,
)
from alexnet.findings import colour_index
from alexnet.inside_figures import Occluded, Unit, colour_strips, exciting, heat_over, occlusion
from alexnet.model import AlexNet, build
from alexnet.networks import (
    NETWORKS,
    Network,
    Pool,
    ResponseNorm,
    SpatialNorm,
    change,
    find_network,
)
from alexnet.receptive import field_px, pixels_seen, windows

RANDOM = np.random.default_rng(0)

# The order of `source`, at a size that is quick.
NORM_AND_POOL = change(
    change(find_network("small"), "conv2", then=("relu", ResponseNorm(), SpatialNorm(), Pool())),
    "conv5",
    then=(Pool(), "relu"),
)

# Between them: overhanging zeros, pools before the nonlinearity and with a last window that is cut
# off, a pool without overlap, the spatial norm, unshared convolutions.
GEOMETRIES = [
    (find_network("small"), "conv2"),
    (find_network("small"), "conv5"),
    (find_network("small/no-overlap"), "conv3"),
    (NORM_AND_POOL, "conv3"),
    (NORM_AND_POOL, "conv5"),
    (replace(find_network("source"), input_px=64), "conv1"),
    (find_network("cifar10-18pct"), "conv3"),
    (find_network("cifar10-13pct"), "local4"),
]
TRIES = 6  # pictures, since a pool may hide what changes in one of them


def averaging(network: Network) -> AlexNet:
    """A network whose units are averages of what they read: no ReLU or norm hides a pixel.

    In float64, since a pixel that only a spatial norm reads counts for little.
    """
    model = build(network, 4).double().eval()
    model.kernels = "plain"
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.layer_names:
            weight = model.get_parameter(f"{layer}.weight")
            inputs = model.shapes[layer].macs // model.shapes[layer].neurons
            weight.uniform_(0.5, 1.5, generator=draw).div_(inputs)
            model.get_parameter(f"{layer}.bias").zero_()
    return model


# Receptive fields


@pytest.mark.parametrize(("network", "layer"), GEOMETRIES)
def test_a_unit_answers_to_the_pixels_that_it_sees_and_to_no_others(
    network: Network, layer: str
) -> None:
    model, draw = averaging(network), torch.Generator().manual_seed(1)
    side = network.input_px
    plain = torch.rand((TRIES, 3, side, side), dtype=torch.float64, generator=draw)

    def responses(pictures: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model.features(pictures, layer)[:, 0]

    before = responses(plain)
    size = before.shape[-1]
    for row, column in ((0, 0), (size // 2, size - 1), (size - 1, size // 3)):
        rows, columns = pixels_seen(network, layer, (row, column))
        elsewhere = plain + 50
        elsewhere[..., rows, columns] = plain[..., rows, columns]
        after = responses(elsewhere)[:, row, column]
        np.testing.assert_allclose(after, before[:, row, column], rtol=1e-13)
        for edge in (
            (rows.start, columns),
            (rows.stop - 1, columns),
            (rows, columns.start),
            (rows, columns.stop - 1),
        ):
            brighter = plain.clone()
            brighter[:, :, *edge] += 10
            after = responses(brighter)[:, row, column]
            assert ((after / before[:, row, column] - 1).abs() > 1e-12).any(), (row, column, edge)


def test_the_fields_of_the_papers_network_grow_from_11_pixels_to_163() -> None:
    paper = find_network("paper")
    fields = [field_px(paper, name) for name in paper.layer_names]
    assert fields == [11, 51, 99, 131, 163, 0, 0, 0]


def test_a_fully_connected_unit_sees_the_whole_picture() -> None:
    small = find_network("small")
    assert windows(small, "fc6") == []
    assert pixels_seen(small, "fc6", (0, 0)) == (slice(0, 56), slice(0, 56))


# Pictures that excite


@given(st.data(), st.integers(1, 5), st.integers(1, 4))
def test_the_running_choice_is_that_of_one_sort_of_everything(
    data: st.DataObject, count: int, batch: int
) -> None:
    values = st.lists(st.integers(0, 4), min_size=3, max_size=3)  # of three units: many ties
    responses = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=12))).float()
    best: Best | None = None
    for start in range(0, len(responses), batch):
        part = responses[start : start + batch].T
        rows = torch.arange(start, start + part.shape[1]).expand(3, -1)
        best = merged(best, Best(part, rows, 10 * rows), count)
    assert best is not None
    for unit in range(3):
        order = sorted(range(len(responses)), key=lambda row: (-float(responses[row, unit]), row))
        assert best.pictures[unit].tolist() == order[:count]
        assert best.values[unit].tolist() == [float(responses[row, unit]) for row in order[:count]]
        assert best.places[unit].tolist() == [10 * row for row in order[:count]]


def test_one_pass_finds_the_pictures_and_places_that_a_full_sort_finds() -> None:
    model = build("small", 4, torch.Generator().manual_seed(0)).eval()
    model.kernels = "plain"
    images = RANDOM.integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)
    split = Split("val", images, np.zeros(11, np.int64), [""] * 11)
    preprocessing = Preprocessing(torch.full((64, 64, 3), 128.0), 56)
    with torch.inference_mode():
        all_of_them = model.activations(centre_view(torch.from_numpy(images), preprocessing))
    found = most_exciting(
        model, split, preprocessing, ("conv5", "fc7"), count=3, batch_size=4, device="cpu"
    )
    for name, best in found.items():
        responses = all_of_them[name].numpy().reshape(11, len(best.values), -1)
        highest = responses.max(axis=2)
        for unit in range(len(best.values)):
            order = np.argsort(-highest[:, unit], kind="stable")[:3]
            np.testing.assert_allclose(best.values[unit], highest[order, unit], rtol=1e-4)
            if highest[order[-1], unit] > 0 and len(set(highest[:, unit])) == 11:
                assert best.pictures[unit].tolist() == order.tolist()
                places = [int(responses[row, unit].argmax()) for row in order]
                assert best.places[unit].tolist() == places
    assert found["conv5"].width == 7
    assert found["fc7"].width == 1


def test_a_unit_that_never_answers_or_is_not_finite_is_not_alive() -> None:
    values = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-torch.inf, -torch.inf]])
    nothing = torch.zeros((3, 2), dtype=torch.int64)
    assert Best(values, nothing, nothing).alive().tolist() == [1]


def test_units_are_shown_evenly_and_never_twice() -> None:
    assert evenly(np.arange(64), 4).tolist() == [8, 24, 40, 56]
    assert evenly(np.array([3, 9]), 4).tolist() == [3, 9]
    assert evenly(np.array([], np.int64), 4).tolist() == []


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_layers_to_show(name: str) -> None:
    network = find_network(name)
    shown = layers_shown(network)
    assert 2 <= len(shown) <= 3
    assert network.layers[-1].name not in shown
    assert network.layers[0].name not in shown


def test_pictures_of_one_class_are_counted_by_the_commonest() -> None:
    labels = np.array([[1, 2, 1, 1], [0, 1, 2, 3], [5, 5, 6, 6]])
    assert of_one_class(labels).tolist() == [3, 1, 2]


def test_by_chance_two_of_two_classes_are_alike_as_often_as_they_can_be() -> None:
    labels = np.repeat([0, 1], 50)
    # Two of 100 are of one class with probability 49 / 99.
    assert of_one_class_by_chance(labels, 2, 0) == pytest.approx(1 + 49 / 99, abs=0.04)
    assert of_one_class_by_chance(labels[:50], 3, 0) == 3


# Colours


def test_a_grey_kernel_has_no_colour_and_an_opponent_kernel_nothing_else() -> None:
    shape = RANDOM.normal(size=(5, 5))
    grey, opponent = np.stack([shape] * 3), np.stack([shape, -shape, 0 * shape])
    index = colour_index(np.stack([grey, opponent, grey + opponent, 0 * grey]), 0)
    # Of grey + opponent: (2, 0, 1) times the shape, whose mean is 1: colour 2 of 5 parts.
    assert index.kernels[:3] == (pytest.approx(0), pytest.approx(1), pytest.approx(0.4))
    assert np.isnan(index.kernels[3])


def test_halves_without_any_weight_do_not_part() -> None:
    assert colour_index(np.zeros((8, 3, 3, 3)), 0).parted_p == 1


@pytest.mark.parametrize("narrow", [False, True])
def test_each_kernel_is_a_dot_in_its_columns_row(narrow: bool) -> None:
    shares = [[0.1, 0.11, float("nan")], [0.8]]
    figure = colour_strips(shares, [0.1, 0.8], narrow=narrow)
    dots = [[line for line in axes.lines if line.get_marker() == "o"] for axes in figure.axes]
    assert [len(line.get_xdata()) for (line,) in dots] == [2, 1]
    (stacked,) = dots[0]
    assert len({tuple(place) for place in stacked.get_xydata().tolist()}) == 2


# Occlusion


def test_heat_is_warm_where_a_square_takes_and_blue_where_it_gives() -> None:
    picture = np.full((40, 40, 3), 100, np.uint8)
    change = np.zeros((3, 3), np.float32)
    change[0, 0], change[2, 2] = -0.8, 0.4
    heat = heat_over(picture, change).astype(int)
    red, blue = heat[0, 0, 0] - heat[0, 0, 2], heat[-1, -1, 2] - heat[-1, -1, 0]
    assert red > 150
    assert 30 < blue < red  # half the change
    assert len(set(heat[20, 20].tolist())) == 1  # grey where nothing changes
    pale = heat_over(picture, change / 100).astype(int)
    assert np.abs(pale - heat[20, 20]).max() < 25  # noise is not blown up


def test_the_figures_show_each_picture_that_they_are_given() -> None:
    square = RANDOM.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    maps = np.zeros((3, 3), np.float32)
    shown = [Occluded(square, "cat", "dog", 0.4, maps)] * 4
    assert len(occlusion(shown).axes[0].images) == 8
    flat = square[:6]
    figure = exciting([Unit("conv2", 7, (square, flat), (3.0, 2.0), ("cat", "dog"))])
    (left, right, bottom, top) = figure.axes[0].images[1].get_extent()
    assert (right - left) == pytest.approx(2 * abs(top - bottom))
