"""The listing: order, labels, what is held out, and bytes from where they are."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import listing as listings
from alexnet.errors import UserError
from alexnet.images import UnreadableImage
from alexnet.listing import Listing, Picture, Place, read_bytes


def listing_of(*names: str, split: str = "train") -> Listing:
    """A listing, not finished, of pictures named class/picture."""
    listing = Listing()
    listing.add(
        Picture(split, name.partition("/")[0], name, Place("file", f"/{name}")) for name in names
    )
    return listing


def held_out(names: list[str], fraction: float, seed: int) -> set[str]:
    listing = listing_of(*names)
    listing.hold_out(fraction, seed)
    listing.finish()
    return {listed.name for listed in listing.pictures() if listed.split == "val"}


def test_pictures_come_by_split_class_and_name() -> None:
    listing = listing_of("dog/2", "cat/1", "dog/10", "cat/0")
    listing.add([Picture("val", "ant", "ant/9", Place("file", "/x"))])
    listing.add([Picture("val", "cat", "cat/7", Place("file", "/y"))])
    listing.finish(class_names={"ant": "an ant"})
    found = [(listed.split, listed.label, listed.name) for listed in listing.pictures()]
    assert found == [
        *(("train", 1, "cat/0"), ("train", 1, "cat/1"), ("train", 2, "dog/10")),
        *(("train", 2, "dog/2"), ("val", 0, "ant/9"), ("val", 1, "cat/7")),
    ]
    assert listing.class_ids == ("ant", "cat", "dog")
    assert listing.class_names == ("an ant", "cat", "dog")
    assert listing.counts() == {"train": 4, "val": 2}
    assert listing.class_counts() == {"train": [0, 2, 2], "val": [1, 1, 0]}
    assert [listed.name for listed in listing.pictures(2, 4)] == ["dog/10", "dog/2"]


def test_a_source_that_is_read_forwards_keeps_its_order() -> None:
    listing = listing_of("dog/2", "cat/1", "dog/10")
    listing.finish(class_ids=["dog", "cat", "eel"], by_class=False)
    found = [(listed.label, listed.name) for listed in listing.pictures()]
    assert found == [(0, "dog/2"), (1, "cat/1"), (0, "dog/10")]


def test_a_class_that_is_not_among_those_given_is_named() -> None:
    with pytest.raises(UserError, match="'dog' is not among the 1 classes"):
        listing_of("dog/2", "cat/1").finish(class_ids=["cat"])


def test_the_fingerprint_tells_any_two_listings_apart() -> None:
    listings = [listing_of("a/1", "b/1"), listing_of("a/1", "b/2"), listing_of("a/1", "b/1")]
    for listing, order in zip(listings, (None, None, ["b", "a"]), strict=True):
        listing.finish(class_ids=order)
    assert len({listing.fingerprint() for listing in listings}) == 3


@given(
    count=st.integers(2, 60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_a_split_is_a_function_of_seed_and_names(
    count: int, fraction: float, seed: int, order: Random
) -> None:
    names = [f"cat/{number}.jpg" for number in range(count)]
    chosen = held_out(names, fraction, seed)
    order.shuffle(names)
    assert held_out(names, fraction, seed) == chosen <= set(names)
    assert 1 <= len(chosen) <= count - 1
    assert abs(len(chosen) - fraction * count) <= 1


@given(count=st.integers(10, 60), seed=st.integers(0, 5))
def test_one_more_picture_moves_at_most_one_other_across(count: int, seed: int) -> None:
    names = [f"cat/{number}.jpg" for number in range(count)]
    before = held_out(names, 0.2, seed)
    after = held_out([*names, "cat/new.jpg"], 0.2, seed)
    assert len((before ^ after) - {"cat/new.jpg"}) <= 1


def test_another_seed_splits_otherwise() -> None:
    names = [f"cat/{number}.jpg" for number in range(40)]
    assert held_out(names, 0.5, 0) != held_out(names, 0.5, 1)


def test_a_span_is_read_from_the_middle_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"0123456789")
    place = Place("span", str(tmp_path / "archive"), 3, 4)
    assert read_bytes(place) == b"3456"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Place("span", "archive", 8, 4), "ends in the middle"),
        (Place("span", "archive", 0, 2**40), "more than"),
        (Place("file", "missing"), "No such file"),
        (Place("file", "."), "directory"),
    ],
)
def test_bytes_that_are_not_there_are_a_reason_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archive").write_bytes(b"0123456789")
    with pytest.raises(UnreadableImage, match=reason):
        read_bytes(place)


def test_a_file_larger_than_any_picture_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_PICTURE_BYTES", 100)
    (tmp_path / "grown").write_bytes(bytes(101))
    with pytest.raises(UnreadableImage, match="more than 100 bytes"):
        read_bytes(Place("file", str(tmp_path / "grown"), size=10))
