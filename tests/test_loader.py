"""The order, the crops and the draws of a batch are pure functions of (seed, epoch, picture)."""

import threading
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fabricate
from alexnet.config import Recipe
from alexnet.dataset import Split
from alexnet.errors import UserError
from alexnet.loader import (
    Batch,
    Buffers,
    batch_positions,
    batches,
    epoch_order,
    num_batches,
    read_batch,
)
from alexnet.pictures import JpegPictures, encode_jpeg


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
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_the_parts_of_the_ranks_put_together_are_the_batch() -> None:
    split, recipe = numbered(21), tiny(crop_chunk=3)
    for index in range(3):
        whole = read_batch(split, recipe, 1, index)
        parts = [read_batch(split, recipe, 1, index, rank=rank, ranks=3) for rank in range(3)]
        for name in ("crops", "labels", "top", "left", "flip", "colour"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))


@given(st.integers(1, 50), st.integers(1, 200), st.integers(1, 9), st.data())
def test_ranks_share_a_batch_in_consecutive_parts_of_nearly_one_size(
    batch_size: int, count: int, ranks: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, -(-count // batch_size) - 1))
    parts = [batch_positions(batch_size, count, index, rank=r, ranks=ranks) for r in range(ranks)]
    start = index * batch_size
    expected = list(range(start, min(start + batch_size, count)))
    assert np.concatenate(parts).tolist() == expected
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


# What tells a picture's place in a training: which one, how it is cut, mirrored and coloured.
Entry = tuple[int, int, int, bool, tuple[float, ...], bytes]


def entries(batch: Batch) -> list[Entry]:
    columns = (batch.labels, batch.top, batch.left, batch.flip, batch.colour)
    rows = zip(*(column.tolist() for column in columns), batch.crops.numpy(), strict=True)
    return [(*row[:4], tuple(row[4]), row[5].tobytes()) for row in rows]


def stretch(split: Split, recipe: Recipe, start: int, stop: int, **how: int) -> list[list[Entry]]:
    """The entries of each step, put together from all ranks."""
    ranks = how.pop("ranks", 1)
    of_ranks = [
        [
            entries(b)
            for b in batches(split, recipe, step=start, stop=stop, ranks=ranks, rank=r, **how)
        ]
        for r in range(ranks)
    ]
    return [list(chain.from_iterable(parts)) for parts in zip(*of_ranks, strict=True)]


@given(st.data())
def test_stopped_anywhere_and_continued_with_other_threads_and_ranks_nothing_changes(
    data: st.DataObject,
) -> None:
    count, batch_size = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 20))
    order = data.draw(st.sampled_from(["shuffled", "fixed"]))
    chunk = data.draw(st.sampled_from([1, 4, 32]))
    recipe = tiny(batch_size, order, data.draw(st.integers(0, 2**62 - 1)), crop_chunk=chunk)
    split = numbered(count)
    stop = data.draw(st.integers(1, 3 * num_batches(recipe, count)))
    cut = data.draw(st.integers(0, stop))
    how = st.fixed_dictionaries({"threads": st.integers(1, 4), "ranks": st.integers(1, 4)})
    whole = stretch(split, recipe, 0, stop, threads=1)
    first = stretch(split, recipe, 0, cut, **data.draw(how))
    rest = stretch(split, recipe, cut, stop, **data.draw(how))
    assert first + rest == whole


def test_batches_that_are_kept_keep_their_pictures() -> None:
    split, recipe = numbered(40), tiny()
    kept = list(batches(split, recipe, step=0, stop=50))
    views = [batch.crops[1:3] for batch in batches(split, recipe, step=0, stop=50)]
    for step, (batch, view) in enumerate(zip(kept, views, strict=True)):
        alone = read_batch(split, recipe, *divmod(step, 5))
        assert_same(batch, alone)
        assert torch.equal(view, alone.crops[1:3])


def test_memory_serves_again_once_nothing_refers_to_it() -> None:
    split, recipe = numbered(40), tiny()
    places = {
        batch.crops.data_ptr() for batch in batches(split, recipe, step=0, stop=200, threads=1)
    }
    assert len(places) <= 6, "one in use, one being read, the ones ahead"


def test_lent_memory_comes_back_with_the_last_view_of_it() -> None:
    buffers = Buffers()
    tensor = torch.from_numpy(buffers.lend((2, 3, 4)))
    place, view = tensor.data_ptr(), tensor[1]
    del tensor
    other = torch.from_numpy(buffers.lend((2, 3, 4)))
    assert other.data_ptr() != place, "a view still refers to the first"
    del view
    assert torch.from_numpy(buffers.lend((5,))).data_ptr() == place


class FailsAtOne:
    """Pictures of which one cannot be read."""

    shape = (20, 12, 12, 3)

    def __init__(self, bad: int) -> None:
        self._bad = bad

    def __getitem__(self, index: int) -> np.ndarray:
        if index == self._bad:
            raise UserError("this one cannot be read")
        return np.zeros((12, 12, 3), np.uint8)


def test_the_batches_before_a_picture_that_cannot_be_read_come_all_the_same() -> None:
    recipe = tiny(batch_size=4)
    bad = int(epoch_order(recipe, 20, 0)[13])  # in the fourth batch
    split = Split("train", FailsAtOne(bad), np.arange(20), ())  # type: ignore[arg-type]
    reading = batches(split, recipe, step=0, stop=5, threads=3)
    assert len(list(islice(reading, 3))) == 3
    with pytest.raises(UserError, match="this one cannot be read"):
        next(reading)
    assert not loader_threads()


def test_decoded_pictures_are_fed_as_their_pixels_are(tmp_path: Path) -> None:
    split, recipe = numbered(20), tiny()
    path = tmp_path / "images.jpegs"
    files = [encode_jpeg(picture) for picture in split.images]
    path.write_bytes(b"".join(files))
    jpegs = JpegPictures(path, np.cumsum([0, *map(len, files)]), 12)
    decoded = Split("train", np.asarray(jpegs), split.labels, split.sources)
    from_files = Split("train", jpegs, split.labels, split.sources)
    for batch, other in zip(
        batches(from_files, recipe, step=0, stop=6),
        batches(decoded, recipe, step=0, stop=6),
        strict=True,
    ):
        assert_same(batch, other)


def test_a_batch_goes_to_a_device_whole() -> None:
    batch = read_batch(numbered(20), tiny(), 0, 0)
    assert_same(batch.to(torch.device("cpu")), batch)
    moved = batch.to(torch.device("meta"))
    assert all(getattr(moved, part.name).is_meta for part in fields(moved))


@pytest.mark.gpu
def test_batches_on_the_gpu_are_those_of_the_cpu() -> None:
    split, recipe = numbered(40), tiny()
    device = torch.device("cuda")
    on_gpu = batches(split, recipe, step=0, stop=50, device=device)
    for batch, other in zip(on_gpu, batches(split, recipe, step=0, stop=50), strict=True):
        assert batch.crops.is_cuda
        assert_same(batch.to(torch.device("cpu")), other)
