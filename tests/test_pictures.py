"""Pictures that are decoded when they are read look like the arrays that they stand for."""

import threading
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from alexnet.errors import UserError
from alexnet.pictures import (
    DecodedPictures,
    JpegPictures,
    decode_jpeg,
    decode_jpeg_by_pillow,
    encode_jpeg,
    read_crops,
)


def smooth(number: int, size_px: int = 32) -> np.ndarray:
    """A picture that JPEG keeps well, of its own for each number."""
    rows, columns = np.mgrid[:size_px, :size_px] / size_px
    planes = [np.sin(rows * (1 + number) + shade) + np.cos(columns * 3) for shade in range(3)]
    return np.clip(np.stack(planes, axis=-1) * 60 + 128, 0, 255).astype(np.uint8)


def jpegs_in(folder: Path, files: Sequence[bytes], image_px: int = 32) -> JpegPictures:
    path = folder / "images.jpegs"
    path.write_bytes(b"".join(files))
    offsets = np.cumsum([0, *map(len, files)], dtype=np.int64)
    return JpegPictures(path, offsets, image_px)


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def pictures(tmp_path: Path) -> JpegPictures:
    return jpegs_in(tmp_path, [encode_jpeg(smooth(number)) for number in range(10)])


def test_jpegs_look_like_the_array_of_their_pixels(pictures: JpegPictures) -> None:
    pixels = np.stack([by_pillow(encode_jpeg(smooth(number))) for number in range(10)])
    assert (pictures.shape, pictures.dtype, len(pictures)) == (pixels.shape, pixels.dtype, 10)
    assert_array_equal(np.asarray(pictures), pixels)
    assert_array_equal(pictures[3], pixels[3])
    assert_array_equal(pictures[np.int64(-1)], pixels[-1])
    assert_array_equal(np.array(pictures[2:9:3]), pixels[2:9:3])
    assert_array_equal(pictures[np.array([7, 0, 7])], pixels[[7, 0, 7]])
    assert_array_equal(np.stack(list(pictures)), pixels)
    with pytest.raises(IndexError):
        pictures[10]


def test_a_slice_reads_nothing_before_it_is_looked_at() -> None:
    read: list[int] = []

    def decode(number: int) -> np.ndarray:
        read.append(number)
        return smooth(number)

    every_third = DecodedPictures(decode, range(100), 32)[::3][1:]
    assert (len(every_third), every_third.shape, read) == (33, (33, 32, 32, 3), [])
    assert_array_equal(every_third[1], smooth(6))
    assert read == [6]


@pytest.mark.parametrize("cores", [1, 2, 50])
def test_several_pictures_are_decoded_by_as_many_threads_as_there_are_cores(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet.pictures.available_cores", lambda: cores)
    seen: set[str] = set()
    together = threading.Barrier(min(cores, 16))

    def decode(number: int) -> np.ndarray:
        together.wait(timeout=60)
        seen.add(threading.current_thread().name)
        return smooth(number)

    pictures = np.asarray(DecodedPictures(decode, range(32), 32))
    assert len(seen) == min(cores, 16)
    assert_array_equal(pictures, np.stack([smooth(number) for number in range(32)]))


def test_a_picture_that_fails_among_several_is_told_of() -> None:
    def decode(number: int) -> np.ndarray:
        if number == 5:
            raise UserError("this one")
        return smooth(number)

    with pytest.raises(UserError, match="this one"):
        np.asarray(DecodedPictures(decode, range(9), 32))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(30, 100))
def test_a_jpeg_is_decoded_to_the_same_pixels_with_and_without_the_extra(
    seed: int, side_px: int, quality: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    data = encode_jpeg(pixels, quality)
    assert_array_equal(decode_jpeg(data), decode_jpeg_by_pillow(data))


def test_a_jpeg_keeps_a_smooth_picture_to_a_few_levels(pictures: JpegPictures) -> None:
    difference = np.abs(pictures[4].astype(int) - smooth(4))
    assert difference.mean() < 2
    assert difference.max() < 20


def test_encoding_is_the_same_each_time() -> None:
    assert encode_jpeg(smooth(1)) == encode_jpeg(smooth(1))
    assert len(encode_jpeg(smooth(1), quality=30)) < len(encode_jpeg(smooth(1), quality=95))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: data[: len(data) // 2], "cannot be decoded"),
        (lambda data: data[:-2], "cannot be decoded"),
        (lambda data: b"no picture at all", "cannot be decoded"),
        (lambda data: encode_jpeg(smooth(0, 24)), "is an array of .24, 24, 3."),
    ],
)
def test_a_damaged_jpeg_is_named_and_never_becomes_pixels(
    tmp_path: Path, damage: object, what: str
) -> None:
    good = encode_jpeg(smooth(0))
    pictures = jpegs_in(tmp_path, [good, damage(good), good])  # type: ignore[operator]
    for number in (0, 2):
        assert_array_equal(pictures[number], by_pillow(good))
    with pytest.raises(UserError, match=f"images.jpegs is damaged .picture 1 {what}"):
        pictures[1]


def test_pictures_that_are_decoded_can_only_be_copied(pictures: JpegPictures) -> None:
    assert np.asarray(pictures[:2], np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="always a copy"):
        np.array(pictures, copy=False)


@given(st.data())
def test_crops_are_windows_of_arrays_memory_maps_and_decoded_pictures(data: st.DataObject) -> None:
    size_px = data.draw(st.integers(1, 12))
    count = data.draw(st.integers(1, 9))
    pixels = np.random.default_rng(count).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    draws = st.lists(
        st.tuples(
            st.integers(0, count - 1),
            st.integers(0, 12 - size_px),
            st.integers(0, 12 - size_px),
        ),
        max_size=6,
    )
    windows = data.draw(draws)
    indices, tops, lefts = np.array(windows, np.int64).reshape(-1, 3).T
    for images in (pixels, DecodedPictures(pixels.__getitem__, range(count), 12)):
        out = np.full((len(windows), size_px, size_px, 3), 77, np.uint8)
        read_crops(images, indices, tops, lefts, size_px, out)
        for row, (index, top, left) in enumerate(windows):
            assert_array_equal(out[row], pixels[index, top : top + size_px, left : left + size_px])


def test_crops_of_a_memory_map_and_of_a_part_of_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    out = np.empty((2, 8, 8, 3), np.uint8)
    read_crops(mapped[2::2], np.array([0, 3]), np.array([1, 4]), np.array([0, 3]), 8, out)
    assert_array_equal(out[0], pixels[2, 1:9, :8])
    assert_array_equal(out[1], pixels[8, 4:, 3:11])
