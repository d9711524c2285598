"""The order, the crops and the draws of a batch are pure functions of (seed, epoch, picture)."""

import threading
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fabricate
from alexnet.config import Recipe
from alexnet.dataset import Split
from alexnet.loader import Batch, batches, epoch_order, num_batches, read_batch


def numbered(count: int, size_px: int = 12) -> Split:
    """Pictures of noise; each one's label is its number."""
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64)
    return Split("train", images, labels, tuple(f"train/{label}" for label in labels))


def tiny(batch_size: int = 8, order: str = "shuffled", seed: int = 0, **augment: object) -> Recipe:
    return fabricate.recipe(
        data={"image_px": 12, "order": order},
        augment={"crop_px": 8, **augment},
        optimizer={"batch_size": batch_size},
        system={"seed": seed},
    )


def assert_same(batch: Batch, other: Batch) -> None:
    for name in ("crops", "labels", "top", "left", "flip", "colour"):
        assert torch.equal(getattr(batch, name), getattr(other, name)), name


def an_epoch(split: Split, recipe: Recipe, epoch: int) -> list[Batch]:
    return [
        read_batch(split, recipe, epoch, index) for index in range(num_batches(recipe, len(split)))
    ]


def labels_of(split: Split, recipe: Recipe, epoch: int) -> list[int]:
    return torch.cat([batch.labels for batch in an_epoch(split, recipe, epoch)]).tolist()


@given(st.integers(1, 40), st.integers(1, 15), st.integers(0, 3), st.integers(0, 2**62 - 1))
def test_every_picture_comes_exactly_once_in_an_epoch(
    count: int, batch_size: int, epoch: int, seed: int
) -> None:
    split, recipe = numbered(count), tiny(batch_size, seed=seed)
    assert sorted(labels_of(split, recipe, epoch)) == list(range(count))
    sizes = [len(batch.labels) for batch in an_epoch(split, recipe, epoch)]
    assert all(size == batch_size for size in sizes[:-1])
    assert 1 <= sizes[-1] <= batch_size


def test_a_batch_is_the_same_whatever_came_before_it() -> None:
    split, recipe = numbered(21), tiny()
    alone = read_batch(split, recipe, 3, 1)
    for epoch in (0, 3, 1):
        an_epoch(split, recipe, epoch)
    torch.rand(5)
    np.random.default_rng().random(5)
    assert_same(read_batch(split, recipe, 3, 1), alone)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7, 8])
def test_batches_from_any_step_on_are_the_tail_of_all_batches(start: int) -> None:
    split, recipe = numbered(21), tiny()  # 3 batches per epoch
    whole = list(batches(split, recipe, step=0, stop=9))
    assert len(whole) == 9
    tail = list(batches(split, recipe, step=start, stop=9))
    assert len(tail) == 9 - start
    for batch, other in zip(whole[start:], tail, strict=True):
        assert_same(batch, other)


def test_each_epoch_has_its_own_order_and_a_fixed_order_never_changes() -> None:
    split = numbered(40)
    shuffled = [labels_of(split, tiny(), epoch) for epoch in range(3)]
    fixed = [labels_of(split, tiny(order="fixed"), epoch) for epoch in range(3)]
    assert shuffled[0] != shuffled[1] != shuffled[2] != shuffled[0]
    assert fixed[0] == fixed[1] == fixed[2] == shuffled[0] != list(range(40))


def test_crops_change_from_epoch_to_epoch_even_in_a_fixed_order() -> None:
    split, recipe = numbered(40), tiny(order="fixed")
    first, second = (an_epoch(split, recipe, epoch) for epoch in (0, 1))
    for name in ("top", "left", "flip", "colour"):
        assert not torch.equal(getattr(first[0], name), getattr(second[0], name)), name


def test_another_seed_is_another_order_and_other_draws() -> None:
    split = numbered(40)
    batch, other = (read_batch(split, tiny(seed=seed), 0, 0) for seed in (0, 1))
    for name in ("labels", "top", "flip", "colour"):
        assert not torch.equal(getattr(batch, name), getattr(other, name)), name


def test_what_is_drawn_for_a_picture_does_not_depend_on_the_size_of_batches() -> None:
    split = numbered(24)
    whole = an_epoch(split, tiny(batch_size=24), 2)[0]
    parts = an_epoch(split, tiny(batch_size=7), 2)
    for name in ("crops", "labels", "top", "left", "flip", "colour"):
        joined = torch.cat([getattr(batch, name) for batch in parts])
        assert torch.equal(getattr(whole, name), joined), name


def test_a_crop_is_the_window_of_its_own_picture() -> None:
    split = numbered(30)
    for batch in an_epoch(split, tiny(), 1):
        for row, label in enumerate(batch.labels.tolist()):
            top, left = int(batch.top[row]), int(batch.left[row])
            window = split.images[label][top : top + 8, left : left + 8]
            np.testing.assert_array_equal(batch.crops[row].numpy(), window)


def test_every_offset_and_both_sides_are_drawn() -> None:
    batch = read_batch(numbered(400), tiny(batch_size=400), 0, 0)
    assert set(batch.top.tolist()) == set(batch.left.tolist()) == set(range(5))
    assert 150 < int(batch.flip.sum()) < 250
    assert not torch.equal(batch.top, batch.left)


@pytest.mark.parametrize("batch_size", [64, 40])
def test_32_pictures_in_a_row_share_a_crop_and_a_flip_as_in_the_source(batch_size: int) -> None:
    split = numbered(160)
    epoch = an_epoch(split, tiny(batch_size, crop_chunk=32), 0)
    draws = torch.cat(
        [torch.stack([batch.top, batch.left, batch.flip.long()], dim=1) for batch in epoch]
    )
    chunks = draws.view(5, 32, 3)
    assert torch.equal(chunks, chunks[:, :1].expand(-1, 32, -1))
    assert len({tuple(chunk[0].tolist()) for chunk in chunks}) > 1
    colours = torch.cat([batch.colour for batch in epoch])
    assert len(torch.unique(colours, dim=0)) == 160  # the source draws those for each picture


def test_without_random_crops_the_centre_is_taken_and_nothing_mirrored() -> None:
    batch = read_batch(numbered(20), tiny(random_crop=False), 0, 0)
    assert set(batch.top.tolist()) == set(batch.left.tolist()) == {2}
    assert not batch.flip.any()


def test_without_flips_the_crops_stay_the_same() -> None:
    split = numbered(20)
    plain, flipped = (read_batch(split, tiny(flip=flip), 0, 0) for flip in (False, True))
    assert not plain.flip.any()
    assert flipped.flip.any()
    assert torch.equal(plain.crops, flipped.crops)


def test_the_kinds_and_sizes_of_a_batch() -> None:
    batch = read_batch(numbered(20), tiny(batch_size=5), 0, 0)
    assert (batch.crops.dtype, tuple(batch.crops.shape)) == (torch.uint8, (5, 8, 8, 3))
    assert (batch.labels.dtype, tuple(batch.labels.shape)) == (torch.int64, (5,))
    assert (batch.flip.dtype, tuple(batch.flip.shape)) == (torch.bool, (5,))
    assert (batch.colour.dtype, tuple(batch.colour.shape)) == (torch.float32, (5, 3))


def test_an_order_holds_each_number_once() -> None:
    order = epoch_order(tiny(), 1000, 5)
    assert sorted(order.tolist()) == list(range(1000))


class Broken:
    """Pictures that cannot be read."""

    shape = (20, 12, 12, 3)

    def __getitem__(self, key: object) -> None:
        raise OSError("the disk is gone")


def test_an_error_while_reading_ahead_is_raised_where_training_is() -> None:
    split = Split("train", Broken(), np.arange(20), ())  # type: ignore[arg-type]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches(split, tiny(), step=0, stop=3))
    assert not loader_threads()


def test_the_reading_thread_ends_with_whoever_reads_its_batches() -> None:
    reading = batches(numbered(40), tiny(), step=0, stop=1000)
    assert len(list(islice(reading, 2))) == 2
    assert loader_threads()
    reading.close()
    assert not loader_threads()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]
