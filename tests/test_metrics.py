"""Counting errors (Sections 2 and 6), held to loops that sort and to the equations' own terms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.metrics import ErrorCount, count_errors, label_ranks, wilson_interval


def random_scores(seed: int, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a few values only, so that ties are common."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, (images, classes)).astype(np.float32)
    return scores, generator.integers(0, classes, images)


def source_credit(scores: np.ndarray, label: int, guesses: int) -> float:
    """The 2012 source (`src/layer_kernels.cu:96-118`): the slots left, shared among the equal."""
    better = sum(score > scores[label] for score in scores)
    equal = sum(score == scores[label] for score in scores)
    return min(1.0, max(0.0, (guesses - better) / equal))


def test_distinct_scores_count_as_a_sorted_list_of_guesses_does():
    generator = np.random.default_rng(0)
    scores = generator.permuted(np.tile(np.arange(30.0), (200, 1)), axis=1)
    labels = generator.integers(0, 30, 200)
    guesses = np.argsort(-scores, axis=1)
    top1 = sum(labels[i] != guesses[i, 0] for i in range(200))
    top5 = sum(labels[i] not in guesses[i, :5] for i in range(200))
    assert count_errors(scores, labels) == ErrorCount(top1, top5, 200)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 9))
def test_a_tie_counts_as_wrong_unless_all_that_tie_are_among_the_guesses(seed, images, classes):
    scores, labels = random_scores(seed, images, classes)
    wrong = [0, 0]
    for i in range(images):
        ahead = sum(scores[i, c] >= scores[i, labels[i]] for c in range(classes) if c != labels[i])
        wrong[0] += ahead >= 1
        wrong[1] += ahead >= 5
    assert count_errors(scores, labels) == ErrorCount(wrong[0], wrong[1], images)


@given(st.integers(0, 10**6))
def test_the_count_is_never_kinder_than_the_credit_of_the_2012_source(seed):
    scores, labels = random_scores(seed, 30, 8)
    errors = count_errors(scores, labels)
    for guesses, wrong in ((1, errors.top1_wrong), (5, errors.top5_wrong)):
        lost = sum(1 - source_credit(scores[i], labels[i], guesses) for i in range(30))
        assert wrong >= lost - 1e-9


def test_without_ties_the_count_is_that_of_the_2012_source():
    generator = np.random.default_rng(1)
    scores, labels = generator.standard_normal((50, 8)), generator.integers(0, 8, 50)
    lost = sum(1 - source_credit(scores[i], labels[i], 1) for i in range(50))
    assert count_errors(scores, labels).top1_wrong == lost


@given(st.integers(0, 10**6))
def test_no_order_of_the_classes_changes_the_count(seed):
    scores, labels = random_scores(seed, 30, 8)
    order = np.random.default_rng(seed).permutation(8)
    moved = np.argsort(order)[labels]
    assert count_errors(scores[:, order], moved) == count_errors(scores, labels)


def test_a_network_that_gives_all_classes_the_same_score_is_wrong_on_every_image():
    assert count_errors(torch.full((9, 7), 1 / 7), torch.arange(9) % 7) == ErrorCount(9, 9, 9)


def test_with_five_classes_or_fewer_five_guesses_are_never_wrong():
    labels = torch.tensor([0, 1, 2])
    assert count_errors(torch.zeros(3, 5), labels) == ErrorCount(3, 0, 3)
    assert count_errors(torch.eye(3), labels) == ErrorCount(0, 0, 3)


def test_a_label_whose_score_is_not_a_number_is_never_found():
    scores = torch.tensor([[math.nan, 0.0, 0.0]] * 2)
    assert count_errors(scores, torch.tensor([0, 0])) == ErrorCount(2, 2, 2)
    assert label_ranks(scores, torch.tensor([1, 2])).tolist() == [2, 2]


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_counts_of_batches_add_up_to_the_count_of_all(seed, batch_size):
    scores, labels = random_scores(seed, 30, 8)
    batches = range(0, 30, batch_size)
    counts = [count_errors(scores[i : i + batch_size], labels[i : i + batch_size]) for i in batches]
    assert sum(counts, ErrorCount()) == count_errors(scores, labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_scores_of_any_float_type_are_counted(dtype):
    scores = torch.eye(6, dtype=dtype)
    assert count_errors(scores, torch.tensor([0, 1, 2, 3, 4, 0])) == ErrorCount(1, 1, 6)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_counted_without_a_warning():
    scores, labels = np.eye(3, dtype=np.float32), np.arange(3)
    scores.flags.writeable = labels.flags.writeable = False
    assert count_errors(scores, labels) == ErrorCount(0, 0, 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match=f"{label}.*3 classes"):
        count_errors(torch.eye(3), torch.tensor([1, label, 1]))


def test_scores_and_labels_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(2,\)"):
        count_errors(torch.eye(3), torch.tensor([1, 1]))


def test_no_images_count_as_nothing_and_have_no_error():
    nothing = count_errors(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert nothing == ErrorCount()
    for error in (lambda: nothing.top1_error, lambda: nothing.top5_error, nothing.as_dict):
        with pytest.raises(ValueError, match="at least one image"):
            error()


def test_the_counts_behind_the_paper_give_the_errors_that_the_source_logged():
    errors = ErrorCount(56209, 25498, 150_000)
    assert (round(errors.top1_error, 6), round(errors.top5_error, 6)) == (0.374727, 0.169987)
    assert errors.as_dict() == {
        "images": 150_000,
        "top1_wrong": 56209,
        "top5_wrong": 25498,
        "top1_error": 56209 / 150_000,
        "top5_error": 25498 / 150_000,
    }


@pytest.mark.parametrize("counts", [(1, 2, 3), (4, 0, 3), (0, -1, 3)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="impossible"):
        ErrorCount(*counts)


@given(st.integers(1, 10**6), st.data())
def test_the_ends_of_the_interval_are_z_standard_deviations_from_the_error(images, data):
    wrong = data.draw(st.integers(0, images))
    p = wrong / images
    for end in wilson_interval(wrong, images):
        distance, deviation = abs(p - end), math.sqrt(end * (1 - end) / images)
        assert distance == pytest.approx(1.959964 * deviation, rel=1e-5, abs=1e-7)


def test_the_interval_has_a_width_when_nothing_is_wrong_or_everything_is():
    low, high = wilson_interval(0, 100)
    assert (low, round(high, 4)) == (0.0, 0.0370)
    assert wilson_interval(100, 100) == pytest.approx((1 - high, 1.0))


def test_more_confidence_makes_a_wider_interval():
    (low, high), (lower, higher) = wilson_interval(30, 100), wilson_interval(30, 100, 0.99)
    assert lower < low < 0.3 < high < higher


@pytest.mark.parametrize("arguments", [(0, 0), (5, 4), (-1, 4), (1, 4, 1.0), (1, 4, 0.0)])
def test_an_interval_of_impossible_counts_is_refused(arguments):
    with pytest.raises(ValueError, match=r"no interval|at least one image"):
        wilson_interval(*arguments)
