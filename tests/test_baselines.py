"""Table 1's baselines: descriptors and encodings against plain loops and scikit-learn."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from alexnet import baselines
from alexnet.dataset import PackedDataset, Split
from alexnet.errors import UserError

pytest.importorskip("cv2")
pytest.importorskip("sklearn")


def images(count: int, px: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, px, px, 3), np.uint8)


def test_patches_lie_inside_the_picture_on_a_grid() -> None:
    points = baselines.grid(64)
    assert len(points) == 13**2 + 11**2 + 9**2
    for x, y, side in points:
        assert side / 2 <= min(x, y)
        assert max(x, y) <= 64 - side / 2


def test_larger_pictures_have_more_patches_of_the_same_pixels() -> None:
    points = baselines.grid(256)
    assert {side for _, _, side in points} == set(baselines.PATCHES_PX)
    assert len(points) > 10 * len(baselines.grid(64))


def test_dense_sift_has_a_root_share_for_each_bin() -> None:
    described = baselines.dense_sift(images(2))
    assert described.vectors.shape == (2, 371, 128)
    np.testing.assert_allclose((described.vectors**2).sum(2), 1, rtol=1e-5)


def test_sift_sees_edges_and_not_brightness() -> None:
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[:, :, 32:] = 100
    brighter = picture + 100
    one, other = (baselines.dense_sift(p).vectors for p in (picture, brighter))
    np.testing.assert_allclose(one, other, atol=0.02)
    assert one.std() > 0.01


def test_dense_colours_are_the_means_and_deviations_of_their_cells() -> None:
    pictures = images(2)
    described = baselines.dense_colours(pictures)
    x, y, side = baselines.grid(64)[37]
    number = 37
    edges = np.rint(np.linspace(0, side, 5)).astype(int)
    top, left = round(y - side / 2), round(x - side / 2)
    cell = pictures[1, top + edges[2] : top + edges[3], left + edges[1] : left + edges[2]] / 255
    expected = np.concatenate([cell.mean((0, 1)), cell.std((0, 1))])
    found = described.vectors[1, number].reshape(4, 4, 6)[2, 1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_small_pictures_are_enlarged() -> None:
    assert baselines.dense_sift(images(1, 32)).vectors.shape == (1, 371, 128)


def test_fisher_vectors_are_the_gradients_of_the_mixtures_likelihood() -> None:
    draw = np.random.default_rng(0)
    sample = draw.normal(size=(400, 8)).astype(np.float32)
    places = draw.uniform(size=(400, 2)).astype(np.float32)
    codebook = baselines.FisherVectors(sample, places, {"gaussians": 3}, 0)
    described = baselines.Described(sample[:20].reshape(2, 10, 8), places[:10])
    found = codebook.encode(described)
    x = torch.from_numpy(codebook._placed(sample[:10], places[:10])).double()
    means = torch.from_numpy(codebook.means).double().requires_grad_(True)
    deviations = torch.from_numpy(codebook.deviations).double().requires_grad_(True)
    weights = torch.from_numpy(codebook.weights).double()
    logs = torch.distributions.Normal(means, deviations).log_prob(x[:, None]).sum(2)
    likelihood = (logs + weights.log()).logsumexp(1).mean()
    likelihood.backward()
    # The Fisher information of a mean is w / s^2, of a deviation 2 w / s^2 (Perronnin 2010).
    scale = deviations.detach() / weights.sqrt()[:, None]
    gradients = [means.grad * scale, deviations.grad * scale / 2**0.5]
    expected = torch.cat(gradients, 1).flatten()
    expected = expected.sign() * expected.abs().sqrt()
    expected = expected / expected.norm()
    np.testing.assert_allclose(found[0], expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("nonzeros", baselines.TRIED["sparse-coding"])
def test_sparse_codes_are_scikit_learns_matching_pursuit(
    nonzeros: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.decomposition import sparse_encode

    monkeypatch.setattr(baselines, "CODED_AT_ONCE", 16)
    draw = torch.Generator().manual_seed(0)
    x, dictionary = torch.randn(50, 12, generator=draw), torch.randn(40, 12, generator=draw)
    dictionary /= dictionary.norm(dim=1, keepdim=True)
    found = baselines.sparse_codes(x, dictionary, nonzeros)
    expected = sparse_encode(
        x.double().numpy(),
        dictionary.double().numpy(),
        algorithm="omp",
        n_nonzero_coefs=nonzeros,
    )
    assert (np.count_nonzero(found.numpy(), axis=1) == nonzeros).all()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_a_picture_keeps_the_largest_entry_of_each_sign_in_each_cell() -> None:
    draw = np.random.default_rng(0)
    sample = draw.normal(size=(400, 8)).astype(np.float32)
    places = draw.uniform(size=(200, 2)).astype(np.float32)
    codebook = baselines.SparseCodes(sample[:40], places[:40], {"nonzeros": 2}, 0)
    described = baselines.Described(sample.reshape(2, 200, 8), places)
    unit = codebook._reduced(sample)
    codes = baselines.sparse_codes(unit, codebook.dictionary, 2).numpy().reshape(2, 200, -1)
    expected = []
    for picture in codes:
        cells = []
        for across in (1, 2, 4):
            for y in range(across):
                for x in range(across):
                    inside = [
                        code
                        for code, place in zip(picture, places, strict=True)
                        if (int(place[0] * across), int(place[1] * across)) == (x, y)
                    ]
                    for sign in (1, -1):
                        cells.append([max([0, *column]) for column in sign * np.transpose(inside)])
        vector = np.concatenate(cells)
        expected.append(vector / np.linalg.norm(vector))
    np.testing.assert_allclose(codebook.encode(described), expected, atol=1e-6)


def test_the_strength_is_the_best_before_the_errors_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {0.1: 0.5, 1.0: 0.3, 10.0: 0.4, 100.0: 0.1}
    fitted = []

    class Classifier:
        def fit(self, strength: float, coded: object, labels: object) -> "Classifier":
            fitted.append(strength)
            return self

        def misses(self, coded: object, labels: object) -> float:
            return errors[fitted[-1]]

    monkeypatch.setattr(baselines, "_Classifier", Classifier)
    coded, labels = np.zeros((10, 2), np.float32), np.zeros(10)
    assert baselines._tuned_strength(coded, labels, np.arange(10), 2) == (1.0, 0.3)
    assert fitted == [0.1, 1.0, 10.0]


def test_a_fit_from_another_strength_ends_where_one_from_nothing_ends() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(300) % 5
    coded = draw.normal(size=(300, 2000)).astype(np.float32)
    coded += 0.2 * draw.normal(size=(5, 2000)).astype(np.float32)[labels]
    coded /= np.linalg.norm(coded, axis=1, keepdims=True)
    path, errors = baselines._Classifier(), []
    for strength in baselines.STRENGTHS:
        one = path.fit(strength, coded, labels).model.predict_proba(coded)
        other = baselines._Classifier().fit(strength, coded, labels).model.predict_proba(coded)
        errors.append(np.abs(one - other).max())
    assert max(errors) < 0.05, errors


def test_two_atoms_that_are_the_same_are_no_trouble() -> None:
    x = torch.eye(4)[:2]
    dictionary = torch.cat([torch.eye(4), torch.eye(4)])
    found = baselines.sparse_codes(x, dictionary, 3)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found @ dictionary, x, atol=1e-4, rtol=0)


def test_a_learned_dictionary_codes_better_than_pictures_do() -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(16, 12, generator=draw), dim=1)
    codes = torch.randn(3000, 16, generator=draw) * (torch.rand(3000, 16, generator=draw) < 0.15)
    x = torch.nn.functional.normalize(codes @ truth + 1e-3, dim=1)

    def cost(dictionary: torch.Tensor) -> float:
        z = baselines.sparse_codes(x, dictionary, 3)
        return float((x - z @ dictionary).square().sum(1).mean())

    learned = baselines.learn_dictionary(x, 16, 3, seed=1)
    torch.testing.assert_close(learned.norm(dim=1), torch.ones(16))
    assert cost(learned) < 0.7 * cost(x[:16])


def coloured(count: int, seed: int) -> Split:
    """Pictures that differ by class in colour and in the direction of their stripes."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pictures = draw.integers(0, 60, (count, 32, 32, 3))
    for picture, label in zip(pictures, labels, strict=True):
        picture[..., label] += 60
        picture[::4] += 60 * (label == 0)
        picture[:, ::4] += 60 * (label == 1)
    sources = [str(index) for index in range(count)]
    return Split("train", pictures.astype(np.uint8), labels.astype(np.int64), sources)


@pytest.mark.parametrize("method", baselines.METHODS)
def test_a_baseline_learns_what_can_be_seen(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "STRENGTHS", (1.0, 10.0))
    monkeypatch.setattr(baselines, "ATOMS", 24)
    monkeypatch.setattr(baselines, "DICTIONARY_SAMPLES", 2000)
    splits = {"train": coloured(45, 0), "val": replace(coloured(30, 1), name="val")}
    names = ("a", "b", "c")
    data = cast(PackedDataset, SimpleNamespace(splits=splits, class_names=names))
    found = baselines.measure(data, method, seed=0, tried=(3, 4), say=lambda text: None)
    counts = found["errors"]["val/1"]
    assert counts["images"] == 30
    assert counts["top1_wrong"] <= 10  # by chance 20, and as few as this once in 6,000
    assert set(found["tuned"]) == {"sift", "colour"}


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'alexnet\[baselines\]'"):
        baselines._check_packages()
