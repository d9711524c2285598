"""Binary codes (Section 6.1): Hamming search held to counting bits, and what training must do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet import codes
from alexnet.codes import Encoder, hamming_nearest, random_planes, rotation, train_encoder
from alexnet.errors import UserError


def clusters(count: int = 600, width: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features after a ReLU around 20 centres, and the centre of each."""
    generator = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(9).standard_normal((20, width))
    labels = generator.integers(0, 20, count)
    noise = generator.standard_normal((count, width))
    return np.maximum(centres[labels] + noise, 0).astype(np.float32), labels


@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 19), st.data())
def test_hamming_search_is_that_of_counting_every_bit(seed, rows, size, data):
    generator = np.random.default_rng(seed)
    stored = generator.integers(0, 4, (rows, size), np.uint8)  # few values: many ties
    queries = generator.integers(0, 4, (3, size), np.uint8)
    live = generator.random(rows) < 0.7
    live[0] = True
    count = data.draw(st.integers(1, int(live.sum())))
    found, distances = hamming_nearest(stored, queries, count, live)
    for query, row, away in zip(queries, found, distances, strict=True):
        bits = np.unpackbits(stored ^ query, axis=1).sum(1).astype(np.int64)
        alive = np.flatnonzero(live)
        expected = alive[np.argsort(bits[alive], kind="stable")[:count]]
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(away, bits[expected])


def test_without_numpys_counter_bits_are_counted_alike(monkeypatch):
    stored = np.random.default_rng(0).integers(0, 256, (50, 16), np.uint8)
    expected = hamming_nearest(stored, stored[:4], 5)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    for one, other in zip(expected, hamming_nearest(stored, stored[:4], 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_more_neighbours_than_codes_are_refused():
    with pytest.raises(UserError, match="5 neighbours asked of 4 pictures"):
        hamming_nearest(np.zeros((4, 2), np.uint8), np.zeros((1, 2), np.uint8), 5)


def test_a_code_is_the_signs_of_its_units():
    features, _ = clusters(50)
    encoder = rotation(features, 16)
    units = (features - encoder.mean.numpy()) / encoder.scale.numpy() @ encoder.linear.numpy()
    np.testing.assert_array_equal(np.unpackbits(encoder.encode(features), axis=1), units > 0)


def test_the_turn_is_closer_to_signs_than_the_components_are():
    features, _ = clusters()
    x, start = codes._prepared(features, 16, 0)
    _, plain = codes._prepared(features, 16, 0, rotations=0)

    def away(encoder: Encoder) -> float:
        units = x @ encoder.linear
        signs = torch.sign(units)
        # Of the best scale: what matters is the direction.
        scale = (units * signs).sum() / units.square().sum()
        return float((scale * units - signs).square().mean())

    assert away(start) < away(plain)


@pytest.mark.parametrize("bits", [16, 64])  # fewer and more than there are components
def test_training_lowers_the_error_of_the_features_that_codes_give_back(bits, monkeypatch):
    features, _ = clusters()
    losses: list[float] = []
    loss_of = codes._loss

    def noted(*arguments):
        loss = loss_of(*arguments)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(codes, "_loss", noted)
    trained = train_encoder(features, bits, steps=200)
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])

    def error(encoder: Encoder) -> float:
        """Of the best linear decoder of its codes: an independent measure."""
        signs = np.unpackbits(encoder.encode(features), axis=1) * 2.0 - 1
        inputs = np.column_stack([signs, np.ones(len(signs))])
        solution, *_ = np.linalg.lstsq(inputs, features.astype(np.float64), rcond=None)
        return float(np.square(inputs @ solution - features).mean())

    assert trained.bits == bits
    assert error(trained) < error(random_planes(features, bits))


def test_near_pictures_have_near_codes():
    features, labels = clusters()
    others, other_labels = clusters(60, seed=1)
    encoder = train_encoder(features, 32, steps=100)
    found, _ = hamming_nearest(encoder.encode(features), encoder.encode(others), 6)
    assert (labels[found] == other_labels[:, None]).mean() > 0.9  # 0.05 by chance


def test_the_same_features_and_seed_give_the_same_codes(tmp_path: Path):
    features, _ = clusters(100)
    first, second = (train_encoder(features, 16, steps=5) for _ in range(2))
    np.testing.assert_array_equal(first.encode(features), second.encode(features))
    first.save(tmp_path / "encoder.safetensors")
    again = Encoder.load(tmp_path / "encoder.safetensors")
    np.testing.assert_array_equal(first.encode(features), again.encode(features))


def test_a_damaged_encoder_is_one_line(tmp_path: Path):
    (tmp_path / "encoder.safetensors").write_bytes(b"no encoder")
    with pytest.raises(UserError, match="is damaged"):
        Encoder.load(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize("bits", [0, 7, 12])
def test_bits_that_fill_no_bytes_are_refused(bits):
    with pytest.raises(UserError, match="multiple of 8"):
        train_encoder(clusters(20)[0], bits)


def test_features_that_are_all_the_same_have_no_codes():
    with pytest.raises(UserError, match="differ"):
        train_encoder(np.ones((10, 4), np.float32), 8)
