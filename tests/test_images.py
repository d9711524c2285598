"""Decoding of every kind of picture, and the one resize-and-crop, held to float64 loops."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from alexnet.images import MAX_PIXELS, UnreadableImage, read_image, resize_and_crop

WHITE, RED = (255, 255, 255), (255, 0, 0)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def bicubic_weights(size: int, source_size: int, start: int, length: int) -> np.ndarray:
    """(size, source_size): Keys' cubic with a = -1/2, widened by the scale when shrinking."""
    weights = np.zeros((size, source_size))
    scale = length / size
    for out in range(size):
        centre = start + (out + 0.5) * scale
        for pixel in range(source_size):
            x = abs(pixel + 0.5 - centre) / max(scale, 1.0)
            if x < 1:
                weights[out, pixel] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weights[out, pixel] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return weights / weights.sum(axis=1, keepdims=True)


def resize_and_crop_oracle(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width, _ = pixels.shape
    side = min(height, width)
    rows = bicubic_weights(size, height, (height - side) // 2, side)
    columns = bicubic_weights(size, width, (width - side) // 2, side)
    return np.einsum("ih,hwc,jw->ijc", rows, pixels.astype(np.float64), columns).clip(0, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("RGB", RED, "PNG", RED),
        ("L", 100, "PNG", (100, 100, 100)),
        ("L", 100, "JPEG", (100, 100, 100)),
        ("1", 1, "PNG", WHITE),
        ("CMYK", (0, 255, 255, 0), "JPEG", RED),
        ("CMYK", (0, 255, 255, 0), "TIFF", RED),
        ("YCbCr", (76, 85, 255), "JPEG", RED),
        ("RGBA", (255, 0, 0, 255), "PNG", RED),
        ("RGBA", (255, 0, 0, 0), "PNG", WHITE),
        ("RGBA", (255, 0, 0, 51), "WEBP", (255, 204, 204)),
        ("LA", (0, 51), "PNG", (204, 204, 204)),
        ("I;16", 0x80FF, "PNG", (128, 128, 128)),
        ("I;16", 0xFFFF, "TIFF", WHITE),
        ("I", 0x4000, "TIFF", (64, 64, 64)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: Any, kind: str, expected: Any) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read_image(encoded(Image.new(mode, (9, 7), colour), kind, **options))
    assert image.mode == "RGB"
    assert image.size == (9, 7)
    tolerance = 3 if kind == "JPEG" else 1
    assert_allclose(np.asarray(image)[3, 4].astype(int), expected, atol=tolerance)


def test_a_palette_becomes_its_colours_and_its_transparent_entry_white() -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        pixels = np.asarray(read_image(encoded(image, kind, transparency=1)))
        assert tuple(pixels[0, 0]) == RED
        assert tuple(pixels[0, 1]) == WHITE


def test_a_transparent_colour_of_an_rgb_picture_becomes_white() -> None:
    image = Image.new("RGB", (4, 2), RED)
    pixels = np.asarray(read_image(encoded(image, "PNG", transparency=RED)))
    assert tuple(pixels[0, 0]) == WHITE


def test_ycck_is_read_like_any_jpeg() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")
    marker = data.index(b"Adobe")
    ycck = data[: marker + 11] + b"\x02" + data[marker + 12 :]  # its byte for the transform
    image = read_image(ycck)
    assert image.mode == "RGB"
    assert image.size == (16, 16)


@pytest.mark.parametrize(("mode", "colour"), [("F", 0.5), ("I", 1 << 20), ("I", -1)])
def test_pixels_without_a_fixed_range_are_refused(mode: str, colour: Any) -> None:
    with pytest.raises(UnreadableImage, match="fixed range"):
        read_image(encoded(Image.new(mode, (4, 4), colour), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(orientation: int) -> None:
    stored = noise(3, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.asarray(stored)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]
    assert_array_equal(np.asarray(read_image(encoded(stored, "PNG", exif=exif))), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_make_a_picture_unreadable() -> None:
    damaged = b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + bytes(range(40))
    assert read_image(encoded(noise(8, 8), "JPEG", exif=damaged)).size == (8, 8)


def test_the_first_frame_of_several_is_taken() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in (RED, WHITE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(np.asarray(read_image(data))[0, 0]) == RED


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.JPEG"
    path.write_bytes(encoded(noise(6, 5), "PNG"))
    assert_array_equal(np.asarray(read_image(path)), np.asarray(noise(6, 5)))


def test_a_file_and_its_bytes_give_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(noise(20, 10), "JPEG"))
    assert_array_equal(np.asarray(read_image(path)), np.asarray(read_image(path.read_bytes())))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not a picture in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture in a known format"),
        (encoded(noise(64, 64), "JPEG")[:1000], "truncated"),
        (encoded(noise(64, 64), "PNG")[:1000], "truncated"),
        (b"P6 30000 30000 255\n", "limit"),
    ],
)
def test_a_file_that_is_no_whole_picture_is_refused_with_the_reason(
    data: bytes, reason: str
) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read_image(data)


def test_a_bomb_is_refused_even_where_pillow_would_let_it_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImage, match=f"more than {MAX_PIXELS:,}"):
        read_image(b"P6 30000 30000 255\n")


def test_a_file_that_is_not_there_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "missing.jpg")


JPEG = encoded(noise(40, 30), "JPEG")


@given(length=st.integers(0, len(JPEG) - 3))
def test_no_part_of_a_jpeg_passes_for_the_whole(length: int) -> None:
    with pytest.raises(UnreadableImage) as refused:
        read_image(JPEG[:length])
    assert "\n" not in str(refused.value)


@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 7)), min_size=1, max_size=20),
)
@pytest.mark.filterwarnings("ignore")
def test_a_file_with_flipped_bits_is_read_or_refused_in_one_line(
    kind: str, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(encoded(noise(24, 16), kind))
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    try:
        image, reason = read_image(bytes(data)), "readable"
    except UnreadableImage as refused:
        image, reason = Image.new("RGB", (1, 1)), str(refused)
    assert image.mode == "RGB"
    assert reason
    assert "\n" not in reason


@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 30))
def test_resize_and_crop_equals_a_float64_loop(width: int, height: int, size: int) -> None:
    # Contrast is low because Pillow clips overshoot between its two passes as well as after.
    pixels = np.asarray(noise(width, height, seed=width * 41 + height)) // 4 + 96
    result = resize_and_crop(Image.fromarray(pixels), size)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    assert_allclose(result.astype(float), resize_and_crop_oracle(pixels, size), atol=1.6)


@given(
    size=st.integers(1, 20),
    shrink=st.integers(1, 4),
    extra=st.integers(0, 10),
    tall=st.booleans(),
)
def test_resize_and_crop_equals_resizing_the_whole_and_cutting_the_middle(
    size: int, shrink: int, extra: int, tall: bool
) -> None:
    long = size + 2 * extra
    shape = (size, long) if tall else (long, size)
    image = noise(shape[0] * shrink, shape[1] * shrink)
    whole = np.asarray(image.resize(shape, Image.Resampling.BICUBIC))
    cut = whole[extra : extra + size] if tall else whole[:, extra : extra + size]
    # Pillow works in fixed point: the last bit may fall either way.
    assert_allclose(resize_and_crop(image, size).astype(int), cut.astype(int), atol=1)


@given(width=st.integers(1, 50), height=st.integers(1, 50))
def test_a_picture_whose_shorter_side_fits_is_only_cut(width: int, height: int) -> None:
    image = noise(width, height)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    expected = np.asarray(image)[top : top + side, left : left + side]
    assert_array_equal(resize_and_crop(image, side), expected)


def test_shrinking_averages_what_is_too_fine_to_be_seen() -> None:
    rows, columns = np.indices((256, 256))
    checkers = ((rows + columns) % 2 * 255).astype(np.uint8)
    result = resize_and_crop(Image.fromarray(checkers).convert("RGB"), 32).astype(int)
    assert abs(result - 127).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (20_000, 3)])
def test_the_narrowest_pictures_are_cut_like_any_other(shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, (10, 20, 30))
    result = resize_and_crop(read_image(encoded(image, "PNG")), 64)
    assert (result == (10, 20, 30)).all()
