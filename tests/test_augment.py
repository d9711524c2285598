"""Crops, flips, mean subtraction, colour noise and views against their float64 loops."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import oracles
from alexnet import augment
from alexnet.augment import MeanAt, Preprocessing

Convention = Literal["paper", "source"]
CONVENTIONS: tuple[Convention, ...] = ("paper", "source")


def pictures(count: int, side_px: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side_px, side_px, 3), dtype=np.uint8)


def mean_image(side_px: int, seed: int = 1) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.uniform(80, 150, (side_px, side_px, 3)).astype(np.float32)


def preprocessing(side_px: int, crop_px: int, mean_at: MeanAt = "crop") -> Preprocessing:
    return Preprocessing(
        mean_image=torch.from_numpy(mean_image(side_px)),
        crop_px=crop_px,
        mean_at=mean_at,
        input_std=(1.0, 1.0, 1.0),
    )


@st.composite
def crops(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int, bool]]]:
    """(side of the picture, side of the crop, places) with every place inside the picture."""
    side_px = draw(st.integers(1, 12))
    crop_px = draw(st.integers(1, side_px))
    offset = st.integers(0, side_px - crop_px)
    place = st.tuples(offset, offset, st.booleans())
    return side_px, crop_px, draw(st.lists(place, min_size=1, max_size=4))


def columns_of(
    places: list[tuple[int, int, bool]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    top, left, flip = zip(*places, strict=True)
    return torch.tensor(top), torch.tensor(left), torch.tensor(flip)


@given(case=crops())
def test_a_crop_is_the_square_at_its_offset_mirrored_after_cropping(
    case: tuple[int, int, list[tuple[int, int, bool]]],
) -> None:
    side_px, crop_px, places = case
    images = pictures(len(places), side_px)
    cropped = augment.crop_and_flip(torch.from_numpy(images), *columns_of(places), crop_px)
    assert cropped.dtype == torch.uint8
    expected = [
        oracles.crop_and_flip(image, top, left, flip, crop_px)
        for image, (top, left, flip) in zip(images, places, strict=True)
    ]
    assert_array_equal(cropped.numpy(), np.stack(expected))


@given(case=crops(), mean_at=st.sampled_from(["crop", "centre"]))
def test_the_mean_that_is_subtracted_is_the_crops_own_or_the_centre_one(
    case: tuple[int, int, list[tuple[int, int, bool]]], mean_at: MeanAt
) -> None:
    side_px, crop_px, places = case
    images = pictures(len(places), side_px)
    settings = preprocessing(side_px, crop_px, mean_at)
    where = columns_of(places)
    cropped = augment.crop_and_flip(torch.from_numpy(images), *where, crop_px)
    computed = augment.subtract_mean(cropped, *where, settings)
    assert computed.shape == (len(places), 3, crop_px, crop_px)
    assert computed.dtype == torch.float32
    expected = [
        oracles.prepared_crop(
            image, settings.mean_image.numpy(), top, left, flip, crop_px, mean_at
        ).transpose(2, 0, 1)
        for image, (top, left, flip) in zip(images, places, strict=True)
    ]
    assert_allclose(computed.numpy(), np.stack(expected), rtol=1e-6, atol=1e-4)


def test_one_picture_is_cut_at_many_places() -> None:
    image = pictures(1, 9)
    top, left = torch.tensor([0, 5, 2]), torch.tensor([5, 0, 3])
    cut = augment.crop(torch.from_numpy(image), top, left, 4)
    for n, (row, column) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        assert_array_equal(cut[n], oracles.crop_and_flip(image[0], row, column, False, 4))


def test_the_two_means_differ_for_an_uncentred_and_for_a_flipped_crop() -> None:
    cropped = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    where = torch.tensor([0, 2]), torch.tensor([0, 2]), torch.tensor([False, True])
    paper = augment.subtract_mean(cropped, *where, preprocessing(8, 4, "crop"))
    source = augment.subtract_mean(cropped, *where, preprocessing(8, 4, "centre"))
    for case, apart in enumerate((paper - source).abs().amax(dim=(1, 2, 3))):
        assert apart > 1, f"crop {case}: at most {apart} apart"
    assert_array_equal(source[0], source[1])


def test_the_divisor_of_the_input_is_applied_per_channel_after_the_mean() -> None:
    images = pictures(2, 6)
    settings = replace(preprocessing(6, 6), input_std=(1.0, 2.0, 4.0))
    computed = augment.centre_view(torch.from_numpy(images), settings)
    expected = (images.astype(np.float64) - mean_image(6)) / np.array([1.0, 2.0, 4.0])
    assert_allclose(computed.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mean_at", ["crop", "centre"])
@pytest.mark.parametrize(("side_px", "crop_px"), [(8, 4), (9, 4), (8, 5), (5, 5)])
def test_the_centre_view_is_the_centre_crop_without_its_mean(
    mean_at: MeanAt, side_px: int, crop_px: int
) -> None:
    images = pictures(3, side_px)
    computed = augment.centre_view(
        torch.from_numpy(images), preprocessing(side_px, crop_px, mean_at)
    )
    border = (side_px - crop_px) // 2
    expected = [
        oracles.prepared_crop(
            image, mean_image(side_px), border, border, False, crop_px, mean_at
        ).transpose(2, 0, 1)
        for image in images
    ]
    assert_allclose(computed.numpy(), np.stack(expected), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("mean_at", ["crop", "centre"])
@pytest.mark.parametrize(("side_px", "crop_px"), [(8, 4), (9, 4), (256, 224)])
def test_ten_views_are_corners_and_centre_then_their_mirror_images(
    mean_at: MeanAt, side_px: int, crop_px: int
) -> None:
    images = pictures(2, side_px)
    computed = augment.ten_views(torch.from_numpy(images), preprocessing(side_px, crop_px, mean_at))
    assert computed.shape == (2, 10, 3, crop_px, crop_px)
    for n, image in enumerate(images):
        for view, (top, left, flip) in enumerate(oracles.ten_view_places(side_px, crop_px)):
            if side_px == 256 and (n, view) not in [(0, 1), (1, 8)]:
                continue  # the loops are slow: one corner and one mirrored corner
            expected = oracles.prepared_crop(
                image, mean_image(side_px), top, left, flip, crop_px, mean_at
            ).transpose(2, 0, 1)
            assert_allclose(
                computed[n, view].numpy(),
                expected,
                rtol=1e-6,
                atol=1e-4,
                err_msg=f"picture {n}, view {view}: top {top}, left {left}, flip {flip}",
            )


def test_the_third_view_is_the_centre_view() -> None:
    images = torch.from_numpy(pictures(2, 9))
    settings = preprocessing(9, 4)
    assert_array_equal(
        augment.ten_views(images, settings)[:, 2], augment.centre_view(images, settings)
    )


# -- where crops are drawn


@pytest.mark.parametrize("num_offsets", [1, 33])
def test_crops_are_drawn_from_every_offset_and_half_of_them_are_mirrored(num_offsets: int) -> None:
    count = 33_000
    draws = augment.draw_crops(0, 0, np.arange(count), num_offsets=num_offsets, flip=True)
    for name, offsets in (("top", draws.top), ("left", draws.left)):
        counts = np.bincount(offsets, minlength=num_offsets)
        assert len(counts) == num_offsets, f"{name}: an offset of {offsets.max()}"
        expected = count / num_offsets
        assert np.abs(counts - expected).max() <= 5 * expected**0.5, f"{name}: {counts}"
    assert abs(draws.flip.mean() - 0.5) < 5 * 0.5 / count**0.5, f"{draws.flip.mean():.3f} mirrored"
    if num_offsets > 1:
        table = np.corrcoef([draws.top, draws.left, draws.flip])
        assert np.abs(table - np.eye(3)).max() < 5 / count**0.5, f"{table}"


def test_pictures_of_one_unit_share_a_crop_and_a_flip() -> None:
    units = np.arange(128) // 32  # the source: 4 settings in a batch of 128
    draws = augment.draw_crops(0, 0, units, num_offsets=33, flip=True)
    settings = {*zip(draws.top.tolist(), draws.left.tolist(), draws.flip.tolist(), strict=True)}
    assert len(settings) == 4
    for start in range(0, 128, 32):
        for values in (draws.top, draws.left, draws.flip):
            assert len(set(values[start : start + 32].tolist())) == 1


def test_an_epoch_and_a_seed_have_crops_of_their_own() -> None:
    units = np.arange(1000)
    base = augment.draw_crops(0, 0, units, num_offsets=33, flip=True)
    for seed, epoch in ((1, 0), (0, 1)):
        other = augment.draw_crops(seed, epoch, units, num_offsets=33, flip=True)
        for field in ("top", "left", "flip"):
            same = (getattr(base, field) == getattr(other, field)).mean()
            expected = 0.5 if field == "flip" else 1 / 33
            assert abs(same - expected) < 5 * (expected / 1000) ** 0.5, f"{field}: {same:.3f} same"


def test_without_flips_no_picture_is_mirrored() -> None:
    with_flips = augment.draw_crops(0, 0, np.arange(100), num_offsets=33, flip=True)
    without = augment.draw_crops(0, 0, np.arange(100), num_offsets=33, flip=False)
    assert not without.flip.any()
    assert_array_equal(without.top, with_flips.top)


# -- colour noise, Section 4.1


EIGENVALUES = np.array([121.78, 37.094, 19.721]) ** 2  # those of cuda-convnet2's ImageNet
EIGENVECTORS, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))


def noisy(
    images: NDArray[np.float64],
    normals: NDArray[np.float64],
    convention: Convention,
    **strength: float,
) -> NDArray[np.float64]:
    """`add_colour_noise` of pictures (B, H, W, 3)."""
    basis = augment.colour_basis(
        torch.from_numpy(EIGENVALUES), torch.from_numpy(EIGENVECTORS), convention
    )
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    changed = augment.add_colour_noise(
        batch, torch.from_numpy(normals), basis, convention, **strength
    )
    return changed.numpy().transpose(0, 2, 3, 1)


@given(
    convention=st.sampled_from(CONVENTIONS),
    strength=st.sampled_from([0.1, 0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_colour_noise_is_one_triple_per_picture_along_the_components(
    convention: Convention, strength: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.uniform(-150, 150, (3, 4, 5, 3))
    normals = rng.standard_normal((3, 3))
    expected = [
        oracles.add_colour_noise(image, draw, EIGENVALUES, EIGENVECTORS, convention, strength)
        for image, draw in zip(images, normals, strict=True)
    ]
    computed = noisy(images, normals, convention, strength=strength)
    assert_allclose(computed, np.stack(expected), rtol=1e-9, atol=1e-9)


def test_colour_noise_has_the_strength_that_the_reference_states() -> None:
    # 12.2 grey levels along the first component by the source's standard deviation of 121.78,
    # then / 1.1; 5.8 levels by the paper's eigenvalue of pixels in 0..1, which is 0.228.
    black, draw = np.zeros((1, 1, 1, 3)), np.array([[1.0, 0.0, 0.0]])
    paper, source = (noisy(black, draw, convention).flatten() for convention in CONVENTIONS)
    assert np.linalg.norm(paper) == pytest.approx(0.1 * 0.228 * 255, rel=0.001)
    assert np.linalg.norm(source) * 1.1 == pytest.approx(12.178)
    for shift in (paper, source):
        assert abs(shift @ EIGENVECTORS[:, 0]) == pytest.approx(np.linalg.norm(shift))


def test_the_default_strength_of_colour_noise_is_a_tenth() -> None:
    rng = np.random.default_rng(3)
    images, normals = rng.uniform(-100, 100, (2, 2, 2, 3)), rng.standard_normal((2, 3))
    for convention in CONVENTIONS:
        stated = noisy(images, normals, convention, strength=0.1)
        assert_array_equal(noisy(images, normals, convention), stated)


def test_a_drawn_colour_shift_has_the_covariance_of_its_convention() -> None:
    normals = np.random.default_rng(0).standard_normal((50_000, 3))
    black = np.zeros((len(normals), 1, 1, 3))
    covariance = EIGENVECTORS @ np.diag(EIGENVALUES) @ EIGENVECTORS.T  # of the training pixels
    shifts = noisy(black, normals, "source").reshape(-1, 3) * 1.1
    error = np.abs(np.cov(shifts.T) - 0.01 * covariance).max() / (0.01 * EIGENVALUES[0])
    assert error < 5 * 2**0.5 / len(normals) ** 0.5, f"source: {error:.4f}"
    shifts = noisy(black, normals, "paper").reshape(-1, 3)
    expected = 0.01 * covariance @ covariance / 255**2  # eigenvalues l^2 / 255^2
    error = np.abs(np.cov(shifts.T) - expected).max() / np.abs(expected).max()
    assert error < 5 * 2**0.5 / len(normals) ** 0.5 * 1.5, f"paper: {error:.4f}"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_colour_noise_in_float32_keeps_the_type_of_its_pictures(convention: Convention) -> None:
    basis = augment.colour_basis(
        torch.from_numpy(EIGENVALUES).float(), torch.from_numpy(EIGENVECTORS).float(), convention
    )
    images, normals = (
        100 * torch.randn(2, 3, 4, 4),
        np.random.default_rng(0).standard_normal((2, 3)),
    )
    expected = noisy(images.permute(0, 2, 3, 1).double().numpy(), normals, convention)
    changed = augment.add_colour_noise(images, torch.from_numpy(normals), basis, convention)
    assert changed.dtype == torch.float32
    assert_allclose(changed.permute(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-4)
