"""Features and exact nearest neighbours (Section 6.1), held to sorting every distance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet import retrieval
from alexnet.augment import Preprocessing
from alexnet.dataset import Split
from alexnet.errors import UserError
from alexnet.model import build
from alexnet.retrieval import features, nearest


def sorted_distances(
    vectors: np.ndarray, queries: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: every float64 distance, sorted; equal ones in the order of the rows."""
    indices, distances = [], []
    for query in queries.astype(np.float64):
        distance = np.linalg.norm(vectors.astype(np.float64) - query, axis=1)
        order = np.argsort(distance, kind="stable")[:count]
        indices.append(order)
        distances.append(distance[order].astype(np.float32))
    return np.array(indices).reshape(-1, count), np.array(distances).reshape(-1, count)


def assert_exact(vectors: np.ndarray, queries: np.ndarray, count: int, device: str = "cpu") -> None:
    indices, distances = nearest(vectors, queries, count, device=device)
    expected_indices, expected_distances = sorted_distances(vectors, queries, count)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(distances, expected_distances)
    assert (indices.dtype, distances.dtype) == (np.int64, np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small arrays cross them."""
    monkeypatch.setattr(retrieval, "QUERY_BLOCK", 3)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", 7 * 8 * 16)


@pytest.mark.usefixtures("small_blocks")
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 16), st.data())
def test_the_nearest_are_those_of_sorting_every_distance(seed, rows, width, data):
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((rows, width)).astype(np.float32)
    queries = generator.standard_normal((7, width)).astype(np.float32)
    assert_exact(vectors, queries, data.draw(st.integers(1, rows)))


@pytest.mark.usefixtures("small_blocks")
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_equal_distances_come_in_the_order_of_the_rows(seed, count):
    generator = np.random.default_rng(seed)
    vectors = generator.integers(0, 3, (40, 4)).astype(np.float32)  # many rows are the same
    assert_exact(vectors, vectors[::5], count)


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_near_pairs_far_from_the_origin_are_told_apart(offset):
    generator = np.random.default_rng(0)
    vectors = (offset + generator.standard_normal((300, 64))).astype(np.float32)
    assert_exact(vectors, vectors[:20], 6)


@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_very_small_and_very_large_features_are_compared_exactly(scale):
    generator = np.random.default_rng(0)
    vectors = (scale * generator.standard_normal((100, 32))).astype(np.float32)
    assert_exact(vectors, vectors[:5], 6)


@pytest.mark.gpu
def test_a_gpu_finds_the_same_neighbours():
    vectors = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    assert_exact(vectors, vectors[:20], 6, device="cuda")


def test_features_that_are_all_the_same_come_in_the_order_of_the_rows():
    assert_exact(np.zeros((50, 8), np.float32), np.ones((2, 8), np.float32), 6)


def test_a_picture_is_nearest_to_itself():
    vectors = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    indices, distances = nearest(vectors, vectors, 1)
    assert indices[:, 0].tolist() == list(range(30))
    assert not distances.any()


def test_no_queries_have_no_neighbours():
    indices, distances = nearest(np.zeros((4, 3), np.float32), np.zeros((0, 3), np.float32), 2)
    assert indices.shape == distances.shape == (0, 2)


@pytest.mark.parametrize("count", [0, 5])
def test_as_many_neighbours_as_there_are_pictures_can_be_asked_for(count):
    with pytest.raises(UserError, match=f"{count} neighbours asked of 4 pictures"):
        nearest(np.zeros((4, 3), np.float32), np.zeros((1, 3), np.float32), count)


def test_features_of_another_width_are_refused():
    with pytest.raises(UserError, match=r"\(4, 3\).*\(1, 2\)"):
        nearest(np.zeros((4, 3), np.float32), np.zeros((1, 2), np.float32), 1)


@pytest.mark.parametrize("where", ["features", "queries"])
def test_features_that_are_not_finite_are_refused(where):
    arrays = {"features": np.zeros((4, 3), np.float32), "queries": np.zeros((2, 3), np.float32)}
    arrays[where][1, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        nearest(arrays["features"], arrays["queries"], 1)


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, 32, 32, 3), np.uint8)
    split = Split("val", images, np.arange(5), ())
    mean_image = torch.full((32, 32, 3), 120.0)
    return split, Preprocessing(mean_image, 24, "crop", (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def model():
    network = build("cifar10-13pct", 10, torch.Generator().manual_seed(0))
    return network.eval()


def crops_by_hand(split: Split) -> torch.Tensor:
    """The central 24 of 32 pixels less the mean, (5, 3, 24, 24)."""
    crops = split.images[:, 4:28, 4:28].astype(np.float32) - 120
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def test_features_are_the_last_hidden_layer_of_the_central_view(pictures, model):
    split, preprocessing = pictures
    vectors = features(model, split, preprocessing, batch_size=2, device="cpu")
    with torch.no_grad():
        expected = model.features(crops_by_hand(split), layer="local4").flatten(1).numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)


def test_features_come_after_the_nonlinearity(pictures, model):
    vectors = features(model, *pictures, layer="conv1", batch_size=8, device="cpu")
    assert len(vectors) == 5
    assert vectors.min() == 0


def test_progress_counts_every_picture(pictures, model):
    seen = []
    features(model, *pictures, batch_size=2, device="cpu", progress=lambda *n: seen.append(n))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_an_unknown_layer_is_refused_with_the_nearest_name(pictures, model):
    with pytest.raises(UserError, match="no layer 'conv11'; did you mean 'conv1'"):
        features(model, *pictures, layer="conv11", batch_size=2, device="cpu")
