"""Broken, odd and hostile pictures: each is named, and none becomes black pixels in silence."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet.audit import check
from alexnet.errors import UserError
from alexnet.examine import KINDS, Seen, look_at
from alexnet.images import UnreadableImage, decode, read_image
from alexnet.listing import Listed, Place
from alexnet.prepare import Form
from alexnet.prepare import decode as decode_as_prepare
from alexnet.sources import find_source
from zoo import Animal, bad_archives, encoded, flipped, photograph, scan_start, zoo

ANIMALS = {animal.name: animal for animal in zoo()}
IMAGE_PX = 256


def listed(animal: Animal, folder: Path) -> Listed:
    path = folder / animal.name
    path.write_bytes(animal.data)
    return Listed("train", 0, animal.name, Place("file", str(path), size=len(animal.data)))


def looked_at(animal: Animal, folder: Path) -> Seen:
    return look_at(0, listed(animal, folder), IMAGE_PX)


def flat_share(image: Image.Image) -> float:
    """The share of pixels that have the most frequent colour."""
    colours = np.asarray(image).reshape(-1, 3).astype(np.int64) @ (1, 1 << 8, 1 << 16)
    return float(np.unique(colours, return_counts=True)[1].max() / len(colours))


def test_the_zoo_has_more_than_sixty_different_animals() -> None:
    odd = [animal for animal in ANIMALS.values() if animal.kinds]
    assert len(odd) >= 100
    assert len({animal.data for animal in odd}) == len(odd)


def test_every_kind_that_one_picture_can_show_lives_in_the_zoo() -> None:
    elsewhere = {"crash", "refused", "duplicate", "near-duplicate", "known"}
    kinds = set().union(*(animal.kinds for animal in ANIMALS.values()))
    assert kinds == set(KINDS) - elsewhere


@pytest.mark.parametrize("name", ANIMALS)
def test_every_animal_is_reported_as_what_it_is(name: str, tmp_path: Path) -> None:
    animal = ANIMALS[name]
    seen = looked_at(animal, tmp_path)
    assert {kind for kind, _, _ in seen.found} == animal.kinds
    actions = [action for _, _, action in seen.found]
    assert not actions or any(action.startswith(animal.action) for action in actions), actions


@pytest.mark.parametrize("name", ANIMALS)
def test_prepare_does_with_every_animal_what_check_says(name: str, tmp_path: Path) -> None:
    animal = ANIMALS[name]
    block = decode_as_prepare(Form(IMAGE_PX), [listed(animal, tmp_path)])
    said = [action for _, _, action in looked_at(animal, tmp_path).found]
    if animal.left_out:
        assert f"left out: {block.left_out[0]['reason']}" in said
        assert len(block.labels) == 0
    else:
        assert block.left_out == []
        assert not any(action.startswith("left out") for action in said)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ANIMALS)
def test_no_animal_that_is_read_becomes_one_flat_value(name: str) -> None:
    animal = ANIMALS[name]
    if animal.left_out:
        with pytest.raises(UnreadableImage):
            read_image(animal.data)
    elif not animal.plain:
        flattest = 0.7 if name == "mode-1.png" else 0.4
        assert flat_share(read_image(animal.data)) < flattest


@pytest.mark.parametrize("animal", ["bomb.png", "bomb.gif", "bomb.tiff", "bomb.ppm"])
def test_a_bomb_is_refused_without_decoding_it(
    animal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    with pytest.raises(UnreadableImage, match=r"pixels.*limit"):
        read_image(ANIMALS[animal].data)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 20},
        {"optimize": True},
        {"subsampling": 0},
        {"restart_marker_blocks": 3},
        {"progressive": True},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_was_cut_and_given_an_end_is_no_whole_picture(
    options: dict[str, bool], mode: str
) -> None:
    jpeg = encoded(photograph().convert(mode), "JPEG", **options)
    assert decode(jpeg).image.size == photograph().size
    first = scan_start(jpeg) + 30
    for share in (0.0, 0.2, 0.5, 0.8, 0.98):
        cut = jpeg[: int(first + share * (len(jpeg) - first))].rstrip(b"\xff") + b"\xff\xd9"
        with pytest.raises(UnreadableImage, match="end early") as refused:
            read_image(cut)
        assert refused.value.kind == "truncated"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_that_ends_in_mid_grey_is_whole_all_the_same(options: dict[str, bool]) -> None:
    pixels = np.array(photograph())
    pixels[150:] = 128
    data = encoded(Image.fromarray(pixels), "JPEG", **options)
    assert read_image(data).getpixel((299, 259)) == (128, 128, 128)


JPEG = encoded(photograph(), "JPEG")


@given(place=st.integers(0, len(JPEG) - 1), bit=st.integers(0, 7))
@pytest.mark.filterwarnings("ignore")
def test_a_jpeg_with_a_flipped_bit_is_refused_or_not_mostly_flat(place: int, bit: int) -> None:
    try:
        image = read_image(flipped(JPEG, place, 1 << bit))
    except UnreadableImage as refused:
        image, reason = None, str(refused)
    if image is None:
        assert reason.count("\n") == 0
    # In a table of the header, a bit can spoil the whole picture in a way that nothing tells.
    elif place > scan_start(JPEG) + 14:
        assert flat_share(image) < 0.4


ARCHIVES = {archive.name: archive for archive in bad_archives()}


@pytest.mark.parametrize("name", [name for name in ARCHIVES if ARCHIVES[name].mistake])
def test_an_archive_that_is_none_is_a_mistake_said_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ARCHIVES[name].data)
    with pytest.raises(UserError, match=re.escape(ARCHIVES[name].mistake)) as mistake:
        find_source(tmp_path / name)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("name", [name for name in ARCHIVES if not ARCHIVES[name].mistake])
def test_what_an_archive_must_not_hold_is_refused_by_name(name: str, tmp_path: Path) -> None:
    archive = ARCHIVES[name]
    (tmp_path / name).write_bytes(archive.data)
    audit = check(find_source(tmp_path / name), image_px=64, workers=1)
    found = [(finding.name, finding.detail) for finding in audit if finding.left_out]
    where, reason = archive.refused
    assert [True for path, why in found if where in path and reason in why], found
    assert audit.num_images - audit.num_left_out() >= 5
