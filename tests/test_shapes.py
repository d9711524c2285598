import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import UserError
from alexnet.shapes import (
    ARRANGEMENTS,
    SHAPES,
    TEXTURES,
    Shape,
    _cover,
    _scenes,
    class_names,
    shapes,
)

DIGEST = "b4f76bf77f4b5f1e786889ec7b90b6cadaac2cac27b0a8e1d7a6df56c0938e97"
FIRST_SIXTEEN = (
    "disc",
    "ring",
    "triangle",
    "square",
    "hourglass",
    "star",
    "cross",
    "crescent",
    "heart",
    "arrow",
    "drop",
    "semicircle",
    "diamond",
    "flower",
    "horseshoe",
    "lightning bolt",
)


@given(
    seed=st.integers(0, 2**40),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    image_px=st.sampled_from([16, 33, 64]),
    num_classes=st.sampled_from([2, 16, 137, 1000]),
    threads=st.integers(1, 3),
)
def test_a_picture_has_the_same_bytes_alone_and_in_any_batch(
    seed: int, indices: list[int], image_px: int, num_classes: int, threads: int
) -> None:
    size = {"image_px": image_px, "num_classes": num_classes}
    images, labels = shapes(seed, indices, **size, threads=threads)
    assert images.shape == (len(indices), image_px, image_px, 3)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    for image, label, index in zip(images, labels, indices, strict=True):
        (alone,), (alone_label,) = shapes(seed, [index], **size, threads=1)
        np.testing.assert_array_equal(image, alone)
        assert label == alone_label


def test_a_picture_does_not_depend_on_the_block_or_chunk_that_it_falls_into() -> None:
    every, _ = shapes(5, np.arange(2500), image_px=16)
    some = np.array([0, 1, 2047, 2048, 2049, 2499])
    np.testing.assert_array_equal(shapes(5, some, image_px=16)[0], every[some])


def test_pictures_have_the_same_bytes_on_every_machine() -> None:
    images, _ = shapes(0, np.arange(64), image_px=48, num_classes=1000)
    assert hashlib.sha256(images.tobytes()).hexdigest() == DIGEST, "the data set has changed"


def test_no_two_pictures_are_alike() -> None:
    images = np.concatenate([shapes(seed, np.arange(64), image_px=32)[0] for seed in (0, 1)])
    assert len({image.tobytes() for image in images}) == 128


def test_a_scene_is_the_same_at_every_size() -> None:
    small, _ = shapes(3, np.arange(64), image_px=64)
    large, _ = shapes(3, np.arange(64), image_px=128)
    other, _ = shapes(4, np.arange(64), image_px=64)
    halved = large.reshape(64, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - halved).mean() < 7  # noise and edges
    assert np.abs(other - halved).mean() > 30


@given(num_classes=st.integers(2, 1000), first=st.integers(0, 10**9), rounds=st.integers(1, 2))
def test_consecutive_indices_hold_each_class_equally_often(
    num_classes: int, first: int, rounds: int
) -> None:
    indices = first + np.arange(rounds * num_classes)
    _, labels = shapes(0, indices[:4], image_px=16, num_classes=num_classes)
    np.testing.assert_array_equal(labels, indices[:4] % num_classes)
    assert set(np.bincount(indices % num_classes)) == {rounds}


def test_sixteen_classes_have_sixteen_words() -> None:
    assert class_names(16) == FIRST_SIXTEEN


@pytest.mark.parametrize("num_classes", [2, 16, 20, 21, 200, 201, 1000])
def test_class_names_are_unique(num_classes: int) -> None:
    names = class_names(num_classes)
    assert len(names) == len(set(names)) == num_classes


def test_a_thousand_classes_say_texture_shape_and_arrangement() -> None:
    names = class_names(1000)
    assert len(SHAPES) * len(TEXTURES) * len(ARRANGEMENTS) == 1000
    assert "striped star, three in a row" in names
    assert "striped star" in class_names(200)


@pytest.mark.parametrize("num_classes", [16, 200, 1000])
def test_a_name_says_what_is_drawn(num_classes: int) -> None:
    labels = np.arange(num_classes)
    scenes = _scenes(0, labels, labels, num_classes)
    for row, name in enumerate(class_names(num_classes)):
        words = [SHAPES[scenes.shape[row]].name]
        if num_classes > 20:
            words.insert(0, TEXTURES[scenes.texture[row]].name)
        said = " ".join(words)
        if num_classes > 200:
            said += f", {ARRANGEMENTS[scenes.arrangement[row]].name}"
        assert name == said


def _grid(image_px: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels of a square, turned so that no edge lies along its rows."""
    axis = reach * ((np.arange(image_px) + 0.5) * 2 / image_px - 1)
    x, y = np.meshgrid(axis, axis)
    c, s = np.cos(0.3), np.sin(0.3)
    return (c * x + s * y).astype(np.float32), (c * y - s * x).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("vary", [0.0, 0.99])
def test_a_figure_fits_its_circle_and_its_distance_is_one(shape: Shape, vary: float) -> None:
    reach = 1.25
    x, y = _grid(200, reach)
    distance = shape.distance(x, y, np.float32(vary))
    assert np.hypot(x, y)[distance < 0].max() < 1.07
    step = 2 * reach / 200
    slopes = [np.abs(np.diff(distance, axis=axis)).max() / step for axis in (0, 1)]
    assert max(slopes) < 1.001, "steeper than a distance can be"
    assert -distance.min() == pytest.approx(shape.depth, rel=0.3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_an_edge_is_smooth_over_one_pixel_and_keeps_the_area(shape: Shape) -> None:
    vary = np.float32(0.5)
    coarse = _cover(shape.distance(*_grid(40, 1.25), vary) * np.float32(20 / 1.25))
    fine = shape.distance(*_grid(800, 1.25), vary) < 0
    assert coarse.mean() == pytest.approx(fine.mean(), rel=0.02)
    pooled = fine.reshape(40, 20, 40, 20).mean(axis=(1, 3))
    assert np.abs(coarse - pooled).max() < 0.35


def test_no_shape_is_another_one_turned_or_mirrored() -> None:
    x, y = _grid(64, 1.6)
    turns = [(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 36, endpoint=False)]

    def mask(shape: Shape, c: float, s: float, mirror: int) -> np.ndarray:
        vary = np.float32(0.5)
        area = (shape.distance(x, y, vary) < 0).mean() * 3.2**2
        u, v = mirror * (c * x + s * y), c * y - s * x
        scale = np.float32(np.sqrt(area / 1.8))  # all of one size
        return shape.distance((u * scale).astype("f4"), (v * scale).astype("f4"), vary) < 0

    upright = np.array([mask(shape, 1, 0, 1).ravel() for shape in SHAPES], dtype=np.float32)
    worst = {}
    for k, shape in enumerate(SHAPES):
        turned = np.array([mask(shape, *t, m).ravel() for t in turns for m in (1, -1)], "f4")
        both = upright @ turned.T
        either = upright.sum(1)[:, None] + turned.sum(1) - both
        overlap = (both / either).max(axis=1)
        assert overlap[k] > 0.99
        worst |= {(SHAPES[i].name, shape.name): overlap[i] for i in range(len(SHAPES)) if i != k}
    pair = max(worst, key=lambda pair: worst[pair])
    assert worst[pair] < 0.92, f"{pair} overlap by {worst[pair]:.3f}"


NUM_TRAIN, NUM_TEST = 1600, 800


def _mean_colour(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2))


def _colour_histogram(images: np.ndarray) -> np.ndarray:
    bins = (images // 64).astype(np.int64) @ np.array([16, 4, 1])
    return np.stack([np.bincount(row, minlength=64) for row in bins.reshape(len(images), -1)])


def _lightness_shares(images: np.ndarray) -> np.ndarray:
    """How large each lightness is, largest first: the figure's area among them."""
    bins = (images.mean(axis=3) // 16).astype(np.int64).reshape(len(images), -1)
    return np.sort(np.stack([np.bincount(row, minlength=16) for row in bins]), axis=1)


def _edge_density(images: np.ndarray) -> np.ndarray:
    grey = images.mean(axis=3)
    steps = np.abs(np.diff(grey, axis=1))[:, :, 1:] + np.abs(np.diff(grey, axis=2))[:, 1:]
    return np.stack([(steps > limit).mean(axis=(1, 2)) for limit in (10, 20, 40, 80)], axis=1)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), 16, 2, 16, 2, 3).mean(axis=(2, 4)).reshape(len(images), -1)


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    return shapes(0, np.arange(NUM_TRAIN + NUM_TEST), image_px=32)


@pytest.mark.parametrize(
    "cue", [_mean_colour, _colour_histogram, _lightness_shares, _edge_density, _pixels]
)
def test_no_trivial_cue_tells_the_class(cue, pictures) -> None:
    images, labels = pictures
    features = cue(images).astype(np.float64)
    train, test = features[:NUM_TRAIN], features[NUM_TRAIN:]
    centre, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, test = (train - centre) / spread, (test - centre) / spread
    known, wanted = labels[:NUM_TRAIN], labels[NUM_TRAIN:]

    means = np.stack([train[known == k].mean(axis=0) for k in range(16)])
    nearest = ((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    ridge = train.T @ train + 100 * np.eye(train.shape[1])
    weights = np.linalg.solve(ridge, train.T @ (np.eye(16)[known] - 1 / 16))
    for name, guess in (("class mean", nearest), ("ridge", (test @ weights).argmax(axis=1))):
        wrong = (guess != wanted).sum()
        assert wrong / NUM_TEST > 0.75, f"{name}: {wrong} of {NUM_TEST} wrong, of chance 94 %"


def test_no_pictures_are_no_pictures() -> None:
    images, labels = shapes(0, [], image_px=32)
    assert (images.shape, labels.shape) == ((0, 32, 32, 3), (0,))


@pytest.mark.parametrize("num_classes", [-3, 0, 1, 1001])
def test_a_number_of_classes_that_does_not_exist_is_a_user_error(num_classes: int) -> None:
    with pytest.raises(UserError, match="from 2 to 1000"):
        shapes(0, [0], num_classes=num_classes)
    with pytest.raises(UserError, match="from 2 to 1000"):
        class_names(num_classes)


def test_a_picture_too_small_to_show_a_shape_is_a_user_error() -> None:
    with pytest.raises(UserError, match="16 or more"):
        shapes(0, [0], image_px=15)
