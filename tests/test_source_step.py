"""What one step of the 2012 source does to its pictures and its gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fabricate
from alexnet import step
from alexnet.layers import max_pool
from alexnet.loader import read_batch


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with fabricate.shared_cache(tmp_path_factory):
        yield


def source_training() -> tuple[step.Training, object]:
    recipe = fabricate.recipe(
        augment={"mean": "centre", "colour": "source"}, network={"dropout": "none"}
    )
    dataset = fabricate.shapes()
    return step.start(recipe, dataset), dataset


def plain_input(batch, found) -> np.ndarray:
    """Crops less the centre of the mean image, (B, 3, s, s) float64."""
    window = found.mean_image[4:60, 4:60].astype(np.float64)
    rows = []
    for crop, flip in zip(batch.crops.numpy(), batch.flip.numpy(), strict=True):
        picture = crop[:, ::-1] if flip else crop
        rows.append((picture.astype(np.float64) - window).transpose(2, 0, 1))
    return np.stack(rows)


def test_colours_are_shifted_by_standard_deviations_and_the_picture_divided_by_1_1() -> None:
    training, dataset = source_training()
    batch = read_batch(dataset.splits["train"], training.recipe, 0, 0)
    found = dataset.statistics
    draws = batch.colour.numpy().astype(np.float64)
    shift = 0.1 * (draws * np.sqrt(found.eigenvalues)) @ found.eigenvectors.T
    expected = (plain_input(batch, found) + shift[:, :, None, None]) / 1.1
    images, _ = step.network_input(training, batch)
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-3)


def test_without_colour_noise_late_in_training_pictures_have_their_full_scale() -> None:
    training, dataset = source_training()
    training.colour_noise = False
    batch = read_batch(dataset.splits["train"], training.recipe, 0, 0)
    images, _ = step.network_input(training, batch)
    np.testing.assert_allclose(images.numpy(), plain_input(batch, dataset.statistics), atol=1e-3)


def test_a_short_minibatch_is_averaged_over_its_own_pictures() -> None:
    training, dataset = source_training()
    recipe, split = training.recipe, dataset.splits["train"]
    last = read_batch(split, recipe, 0, len(split) // recipe.optimizer.batch_size)
    assert 0 < len(last.labels) < recipe.optimizer.batch_size
    images, labels = step.network_input(training, last)
    parameters = list(training.model.parameters())
    summed = F.cross_entropy(training.model(images), labels, reduction="sum") / len(labels)
    wanted = torch.autograd.grad(summed, parameters)
    step.train_step(training, images, labels)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_one_of_several_equal_maxima_gets_the_whole_gradient() -> None:
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    max_pool(x, 3, 2).sum().backward()
    assert x.grad is not None
    assert sorted(x.grad.flatten().tolist()) == [0.0] * 8 + [1.0]
