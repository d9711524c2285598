"""Predictions over a whole split, ensembles, saved files and tables (Sections 4.1 and 6)."""

import errno
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from alexnet import evaluate
from alexnet.augment import Preprocessing
from alexnet.dataset import Split, open_packed
from alexnet.errors import UserError
from alexnet.evaluate import evaluate_runs, predictions_path
from alexnet.files import write_json
from alexnet.metrics import ErrorCount, count_errors
from alexnet.model import AlexNet, build
from alexnet.packing import Plan, make_block, packing
from alexnet.predictions import (
    Predictions,
    ensemble,
    mean_log_probability,
    most_confused,
    per_class_errors,
    predict,
    score,
)
from alexnet.results import PAPER_TABLES, Score, TableRow, print_results, results_table
from alexnet.weights import ModelCard, save_model

IMAGE_PX, CROP_PX, CLASSES = 12, 8, 7


def random_split(seed: int = 0, count: int = 23, *, name: str = "val") -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, IMAGE_PX, IMAGE_PX, 3), np.uint8)
    labels = generator.integers(0, CLASSES, count)
    return Split(name, images, labels, tuple(f"{seed}/{i}" for i in range(count)))


def random_preprocessing() -> Preprocessing:
    mean = torch.from_numpy(np.random.default_rng(1).uniform(90, 160, (IMAGE_PX, IMAGE_PX, 3)))
    return Preprocessing(mean.float(), CROP_PX)


def linear_network(seed: int = 2) -> tuple[np.ndarray, Callable[[Tensor], Tensor]]:
    """Weights (C, 3 * crop * crop) float64, and the callable from crops to logits."""
    size = (CLASSES, 3 * CROP_PX * CROP_PX)
    matrix = np.random.default_rng(seed).normal(0, 1e-3, size)
    as_tensor = torch.from_numpy(matrix).float()
    return matrix, lambda crops: crops.flatten(1) @ as_tensor.T


def softmax_by_hand(matrix: np.ndarray, image: np.ndarray, top: int, left: int) -> np.ndarray:
    window = image[top : top + CROP_PX, left : left + CROP_PX]
    powers = np.exp(matrix @ window.transpose(2, 0, 1).ravel())
    return powers / powers.sum()


def views_by_hand(matrix: np.ndarray, split: Split, views: int) -> np.ndarray:
    """The average of the softmax outputs, one crop at a time, in float64: (N, C)."""
    mean = random_preprocessing().mean_image.numpy().astype(np.float64)
    middle, far = (IMAGE_PX - CROP_PX) // 2, IMAGE_PX - CROP_PX
    averages = []
    for picture in split.images:
        image = picture.astype(np.float64) - mean
        if views == 1:
            averages.append(softmax_by_hand(matrix, image, middle, middle))
            continue
        total = np.zeros(CLASSES)
        for top, left in ((0, 0), (0, far), (middle, middle), (far, 0), (far, far)):
            total += softmax_by_hand(matrix, image, top, left)
            total += softmax_by_hand(matrix, image[:, ::-1], top, left)
        averages.append(total / 10)
    return np.array(averages)


def predict_on_cpu(
    logits_of: Callable[[Tensor], Tensor], split: Split, *, views: int = 1, batch_size: int = 8
) -> Predictions:
    return predict(
        logits_of,
        split,
        random_preprocessing(),
        views=views,
        batch_size=batch_size,
        device="cpu",
    )


def random_predictions(seed: int, images: int = 40, classes: int = 7) -> Predictions:
    """Multiples of 1/8, so that ties are common; the labels are those of seed 0."""
    draws = np.random.default_rng(seed).multinomial(8, [1 / classes] * classes, images)
    labels = np.random.default_rng(0).integers(0, classes, images)
    names = tuple(f"class {index}" for index in range(classes))
    return Predictions(
        (draws / 8).astype(np.float32), labels, "val", 1, "source", "ours", "d", names, seed
    )


@pytest.mark.parametrize("views", [1, 10])
def test_predictions_are_the_hand_written_average_over_the_views(views):
    matrix, logits_of = linear_network()
    split = random_split()
    predictions = predict_on_cpu(logits_of, split, views=views)
    expected = views_by_hand(matrix, split, views)
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=2e-5, atol=1e-6)
    assert predictions.probabilities.dtype == np.float32
    assert (predictions.split, predictions.views) == ("val", views)
    np.testing.assert_array_equal(predictions.labels, split.labels)
    assert score(predictions) == count_errors(expected, split.labels)


@given(st.integers(1, 60), st.integers(1, 14), st.sampled_from([1, 10]))
def test_each_picture_counts_once_whatever_the_batch_size(batch_size, images, views):
    split, seen = random_split(count=images), []

    def logits_of(crops: Tensor) -> Tensor:
        seen.append(len(crops))
        return crops.flatten(1)[:, :CLASSES] / 100

    predictions = predict_on_cpu(logits_of, split, views=views, batch_size=batch_size)
    assert max(seen) <= batch_size
    assert sum(seen) == images * views
    whole = predict_on_cpu(logits_of, split, views=views, batch_size=1000)
    np.testing.assert_allclose(predictions.probabilities, whole.probabilities, rtol=1e-6)


def test_logits_of_half_precision_become_float32_before_the_softmax():
    logits = torch.linspace(-4, 4, CLASSES).bfloat16()
    predictions = predict_on_cpu(lambda crops: logits.expand(len(crops), -1), random_split())
    expected = logits.float().softmax(0).expand(23, -1).numpy()
    np.testing.assert_array_equal(predictions.probabilities, expected)


def test_prediction_leaves_no_graph():
    weight = torch.zeros(CLASSES, requires_grad=True)
    outputs = []

    def logits_of(crops: Tensor) -> Tensor:
        outputs.append(crops.flatten(1)[:, :CLASSES] + weight)
        return outputs[-1]

    predict_on_cpu(logits_of, random_split())
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.gpu
@pytest.mark.parametrize("views", [1, 10])
def test_a_gpu_predicts_what_the_processor_does(views):
    matrix, _ = linear_network()
    on_gpu = torch.from_numpy(matrix).float().cuda()
    predictions = predict(
        lambda crops: crops.flatten(1).double() @ on_gpu.T.double(),
        random_split(),
        random_preprocessing(),
        views=views,
        batch_size=8,
        device="cuda",
    )
    expected = views_by_hand(matrix, random_split(), views)
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=2e-5, atol=1e-6)


def test_progress_counts_pictures_not_crops():
    seen = []
    predict(
        linear_network()[1],
        random_split(count=5),
        random_preprocessing(),
        views=10,
        batch_size=20,
        device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.filterwarnings("error")
def test_memory_mapped_pictures_are_read_without_a_warning(tmp_path):
    split = random_split()
    np.save(tmp_path / "images.npy", split.images)
    mapped = replace(split, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    _, logits_of = linear_network()
    expected = predict_on_cpu(logits_of, split).probabilities
    np.testing.assert_array_equal(predict_on_cpu(logits_of, mapped).probabilities, expected)


@pytest.mark.parametrize(
    ("split", "settings", "message"),
    [
        (random_split(), {"views": 5}, "5 views: choose 1 .* or 10"),
        (random_split(), {"batch_size": 0}, "batch size is 0"),
        (random_split(count=0), {}, "'val' has no pictures"),
        (replace(random_split(), images=np.zeros((23, 9, 9, 3), np.uint8)), {}, "9 px.*12 px"),
    ],
)
def test_what_cannot_be_predicted_is_refused(split, settings, message):
    with pytest.raises(UserError, match=message):
        predict_on_cpu(linear_network()[1], split, **settings)


def test_the_mean_log_probability_is_that_of_the_right_labels():
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]], np.float32)
    predictions = Predictions(probabilities, np.array([0, 1, 0]), "val", 1)
    expected = (math.log(0.5) + math.log(0.1) + math.log(1)) / 3
    assert mean_log_probability(predictions) == pytest.approx(expected, rel=1e-6)


def test_one_probability_of_zero_does_not_make_the_mean_infinite():
    predictions = Predictions(np.array([[1.0, 0.0]], np.float32), np.array([1]), "val", 1)
    assert mean_log_probability(predictions) == pytest.approx(-87.34, abs=0.01)


def test_saved_predictions_come_back_the_same(tmp_path):
    predictions = replace(
        random_predictions(3), precision="bf16", weights_sha256="a", data_sha256="b"
    )
    predictions.save(tmp_path / "p.npz")
    assert_equal(Predictions.load(tmp_path / "p.npz"), predictions)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def assert_equal(first: Predictions, second: Predictions) -> None:
    for name in Predictions.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "p.npz"
    random_predictions(3, images=4).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def damaged_path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "p.npz"


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_predictions_are_named_as_damaged(share, saved_bytes, damaged_path):
    damaged_path.write_bytes(saved_bytes[: int(share * len(saved_bytes))])
    with pytest.raises(UserError, match=r"p\.npz is damaged \(.*delete it"):
        Predictions.load(damaged_path)


@given(data=st.data())
def test_a_changed_byte_never_changes_a_prediction(data, saved_bytes, damaged_path):
    place = data.draw(st.integers(0, len(saved_bytes) - 1))
    changed = bytearray(saved_bytes)
    changed[place] ^= data.draw(st.integers(1, 255))
    damaged_path.write_bytes(changed)
    try:
        loaded = Predictions.load(damaged_path)
    except UserError:
        return
    assert_equal(loaded, random_predictions(3, images=4))


def test_predictions_whose_parts_do_not_fit_are_named_as_damaged(tmp_path):
    predictions = random_predictions(3)
    for wrong in (
        replace(predictions, labels=predictions.labels[:-1]),
        replace(predictions, probabilities=predictions.probabilities.astype(np.float64)),
        replace(predictions, class_names=("one",)),
        replace(predictions, labels=predictions.labels + 5),
    ):
        wrong.save(tmp_path / "p.npz")
        with pytest.raises(UserError, match="damaged"):
            Predictions.load(tmp_path / "p.npz")


def test_predictions_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"p\.npz is not there"):
        Predictions.load(tmp_path / "p.npz")


def test_a_full_disk_leaves_the_predictions_saved_before(tmp_path, monkeypatch):
    path = tmp_path / "p.npz"
    random_predictions(3).save(path)

    def no_space(file: io.BufferedWriter, **_: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(UserError, match="no space left"):
        random_predictions(4).save(path)
    assert_equal(Predictions.load(path), random_predictions(3))
    assert list(tmp_path.iterdir()) == [path]


def test_an_ensemble_is_the_mean_of_the_softmax_outputs():
    members = [random_predictions(seed) for seed in range(3)]
    average = ensemble(members)
    expected = sum(member.probabilities.astype(np.float64) for member in members) / 3
    np.testing.assert_allclose(average.probabilities, expected, rtol=1e-6)
    assert average.probabilities.dtype == np.float32
    assert (average.network, average.seed) == ("source", None)


@given(st.lists(st.floats(0.01, 1e6), min_size=3, max_size=3), st.floats(1e-3, 1e3))
def test_only_the_ratios_of_the_weights_of_an_ensemble_matter(weights, factor):
    members = [random_predictions(seed) for seed in range(3)]
    first = ensemble(members, weights).probabilities
    second = ensemble(members, [factor * weight for weight in weights]).probabilities
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(first.sum(1), 1, rtol=1e-6)


def test_a_weight_of_zero_leaves_a_network_out():
    members = [random_predictions(1), random_predictions(2)]
    average = ensemble(members, [0.0, 3.0])
    np.testing.assert_array_equal(average.probabilities, members[1].probabilities)


def test_an_ensemble_of_one_network_is_that_network():
    member = random_predictions(1)
    np.testing.assert_array_equal(ensemble([member]).probabilities, member.probabilities)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "'val' with 1 views cannot be averaged with those of 'test'"),
        ({"views": 10}, "with 1 views .* with 10"),
        ({"class_names": tuple("abcdefg")}, "class 0 is 'class 0' and 'a'"),
        ({"class_names": ("a", "b")}, "7 and 2 of them"),
        ({"labels": np.zeros(40, np.int64)}, "disagree on the pictures of 'val'"),
        ({"pictures_sha256": "others"}, "disagree on the pictures of 'val'"),
        (
            {"probabilities": np.zeros((9, 7), np.float32), "labels": np.zeros(9, np.int64)},
            r"\(40, 7\) and \(9, 7\)",
        ),
    ],
)
def test_predictions_of_something_else_are_not_averaged(change, message):
    with pytest.raises(UserError, match=message):
        ensemble([random_predictions(1), replace(random_predictions(2), **change)])


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 2.0, 3.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]]
)
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(UserError, match="weights"):
        ensemble([random_predictions(1), random_predictions(2)], weights)


def test_nothing_has_no_average():
    with pytest.raises(UserError, match="at least one network"):
        ensemble([])


@given(st.integers(0, 10**6))
def test_errors_per_class_and_confused_pairs_add_up_to_the_errors(seed):
    predictions = random_predictions(seed)
    errors = score(predictions)
    per_class = per_class_errors(predictions)
    assert sum((entry.errors for entry in per_class), ErrorCount()) == errors
    pairs = most_confused(predictions, count=100)
    assert sum(pair.images for pair in pairs) == errors.top1_wrong
    assert [pair.images for pair in pairs] == sorted((p.images for p in pairs), reverse=True)
    assert all(pair.label != pair.guess for pair in pairs)


def test_confused_pairs_say_what_was_taken_for_what():
    probabilities = np.eye(3, dtype=np.float32)[[1, 1, 0, 1, 0, 2]]
    predictions = Predictions(
        probabilities, np.array([0, 0, 0, 2, 2, 2]), "val", 1, class_names=("cat", "dog", "owl")
    )
    cat_dog, owl_cat, owl_dog = most_confused(predictions)
    assert (cat_dog.name, cat_dog.guess_name, cat_dog.images, cat_dog.label_images) == (
        "cat",
        "dog",
        2,
        3,
    )
    assert [(p.name, p.guess_name, p.images) for p in (owl_cat, owl_dog)] == [
        ("owl", "cat", 1),
        ("owl", "dog", 1),
    ]
    assert [entry.errors.images for entry in per_class_errors(predictions)] == [3, 0, 3]
    assert len(most_confused(predictions, count=1)) == 1


def a_score(
    *networks: str,
    split: str = "val",
    views: int = 10,
    num_classes: int = 1000,
    images: int = 50_000,
) -> Score:
    errors = ErrorCount(images // 3, images // 6, images)
    return Score("run", networks, "ours", 0, split, views, num_classes, errors, -1.7)


@pytest.mark.parametrize(
    ("dataset_name", "ours", "top1_error", "top5_error"),
    [
        ("ILSVRC-2010", a_score("source", split="test", images=150_000), 0.375, 0.170),
        ("ilsvrc2010", a_score("paper", split="test", images=149_998, views=1), 0.390, 0.183),
        ("imagenet", a_score("source"), 0.407, 0.182),
        ("imagenet", a_score(*["source"] * 4, "paper"), 0.381, 0.164),
        ("ILSVRC2012", a_score("sixth-conv"), 0.390, 0.166),
        ("imagenet-1k", a_score(*["sixth-conv"] * 2, *["source"] * 5), 0.367, 0.154),
        ("cifar10", a_score("cifar10-11pct", num_classes=10, images=10_000), 0.11, None),
    ],
)
def test_our_errors_stand_beside_those_of_the_paper(dataset_name, ours, top1_error, top5_error):
    first, *others = results_table([ours], dataset_name)
    assert first.ours is ours
    assert (first.paper.top1_error, first.paper.top5_error) == (top1_error, top5_error)
    assert all(row.ours is None and row.paper is not None for row in others)


@pytest.mark.parametrize(
    ("dataset_name", "ours"),
    [
        ("holiday", a_score("source")),
        ("imagenet", a_score("source", num_classes=10)),
        ("imagenet", a_score("source", images=1000)),
        ("imagenet", a_score("source", split="train")),
        ("ilsvrc2010", a_score("source")),
    ],
)
def test_other_pictures_than_those_of_the_paper_stand_alone(dataset_name, ours):
    (row,) = results_table([ours], dataset_name)
    assert row.paper is None


@pytest.mark.parametrize("ours", [a_score("caffe"), a_score("source", views=1)])
def test_another_experiment_on_the_pictures_of_the_paper_is_not_set_beside_its_own(ours):
    first, *others = results_table([ours], "imagenet")
    assert first.paper is None
    assert [row.paper.method for row in others] == ["1 CNN", "5 CNNs", "1 CNN*", "7 CNNs*"]


def test_top5_errors_of_the_paper_are_below_its_top1_errors():
    for table in PAPER_TABLES:
        for result in table.results:
            assert result.top5_error is None or 0 < result.top5_error < result.top1_error < 1


def printed(rows: list[TableRow]) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_results(rows, "errors", console)
    return console.file.getvalue()


def test_the_table_prints_percent_with_intervals_and_numbers_of_images():
    ours = replace(a_score("source"), name="runs/a[b]", errors=ErrorCount(20332, 9105, 50_000))
    text = printed(results_table([ours], "imagenet"))
    for cell in ("runs/a[b]", "50,000", "40.66 (40.2-41.1)", "18.21 (17.9-18.6)", "40.7 / 18.2"):
        assert cell in text, text
    assert "36.7 / 15.4" in text


def test_the_table_has_no_column_for_a_paper_that_says_nothing():
    text = printed(results_table([a_score("small", num_classes=3)], "holiday"))
    assert "paper" not in text
    assert "5 guesses cover all classes" in text


CLASS_NAMES = ("cat", "dog", "owl")


@pytest.fixture
def packed(tmp_path) -> Path:
    path = tmp_path / "packed"
    write_pictures(path, CLASS_NAMES)
    return path


def write_pictures(path: Path, class_names: tuple[str, ...], *, seed: int = 0) -> None:
    """A packed data set of 6 training and 7 validation pictures of 32 px."""
    generator = np.random.default_rng(seed)
    blocks = []
    for split, count in (("train", 6), ("val", 7)):
        images = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        labels = np.arange(count) % len(class_names)
        sources = tuple(f"{split}/{seed}/{index}.png" for index in range(count))
        blocks.append(make_block(split, images, labels, sources, []))
    with packing(path, Plan("three", source="", image_px=32, num_images=13)) as packed:
        for block in blocks:
            packed.add(block)
        packed.finish(class_names, class_names)


def a_model(seed: int) -> AlexNet:
    """Small, and decided enough that its seeds disagree."""
    model = build("cifar10-13pct", len(CLASS_NAMES), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def write_run(path: Path, data: Path, *, seed: int) -> Path:
    """A run folder as `train` leaves it, as far as evaluation reads it."""
    dataset = open_packed(data)
    statistics = dataset.statistics
    card = ModelCard(
        network="cifar10-13pct",
        dropout="described",
        class_names=CLASS_NAMES,
        class_ids=CLASS_NAMES,
        dataset=dataset.name,
        preprocessing=Preprocessing(torch.from_numpy(statistics.mean_image), 24),
        eigenvalues=torch.from_numpy(statistics.eigenvalues),
        eigenvectors=torch.from_numpy(statistics.eigenvectors.copy()),
        views=(1, 10),
    )
    path.mkdir()
    save_model(path / "model.safetensors", a_model(seed), card)
    write_json(path / "environment.json", {"data_path": str(data)})
    write_json(path / "recipe.json", {"name": "mine", "system": {"seed": seed}})
    return path


@pytest.fixture
def runs(tmp_path, packed) -> list[Path]:
    return [write_run(tmp_path / f"run-{seed}", packed, seed=seed) for seed in (1, 2)]


@pytest.fixture
def forbid_prediction(monkeypatch) -> Callable[[], None]:
    def forbid() -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("predicted again")

        monkeypatch.setattr(evaluate, "predict", refuse)

    return forbid


@pytest.mark.parametrize("views", [1, 10])
def test_a_run_is_scored_as_its_network_predicts(runs, packed, views):
    result = evaluate_runs(runs[:1], views=views)
    dataset = open_packed(packed)
    expected = predict(
        a_model(1).eval(),
        dataset.splits["val"],
        Preprocessing(torch.from_numpy(dataset.statistics.mean_image), 24),
        views=views,
        batch_size=128,
        device="cpu",
    )
    saved = Predictions.load(predictions_path(runs[0], "val", views))
    np.testing.assert_allclose(saved.probabilities, expected.probabilities, rtol=1e-6)
    assert result.runs[0].errors == score(expected)
    assert (saved.network, saved.recipe, saved.seed) == ("cifar10-13pct", "mine", 1)
    assert (saved.dataset, saved.class_names) == ("three", CLASS_NAMES)
    assert result.ensemble is None
    assert result.rows == result.runs


def test_several_runs_are_scored_and_averaged(runs):
    result = evaluate_runs(runs, weights=[1, 3])
    members = [Predictions.load(predictions_path(run, "val", 1)) for run in runs]
    assert [run.errors for run in result.runs] == [score(member) for member in members]
    expected = ensemble(members, [0.25, 0.75])
    assert result.ensemble.errors == score(expected)
    assert result.ensemble.mean_log_probability == mean_log_probability(expected)
    assert [row.name for row in result.rows] == [*map(str, runs), "weighted average of 2"]


def test_the_result_is_json_with_counts_and_intervals(runs):
    value = json.loads(json.dumps(evaluate_runs(runs).as_json(), allow_nan=False))
    assert (value["dataset"], value["split"], value["views"]) == ("three", "val", 1)
    assert [run["name"] for run in value["runs"]] == [str(run) for run in runs]
    ours = value["ensemble"]
    assert (ours["images"], ours["top5_wrong"], ours["top5_error"]) == (7, 0, 0.0)
    assert ours["top1_interval"][0] <= ours["top1_error"] <= ours["top1_interval"][1]
    assert value["paper"] == []


def test_saved_predictions_need_no_second_pass(runs, forbid_prediction):
    first = evaluate_runs(runs, views=10)
    forbid_prediction()
    assert evaluate_runs(runs, views=10) == first


def test_saved_predictions_outlive_the_data_set(runs, packed, forbid_prediction):
    first = evaluate_runs(runs)
    packed.rename(packed.with_name("elsewhere"))
    forbid_prediction()
    assert evaluate_runs(runs) == first


def test_new_weights_are_predicted_anew(runs):
    evaluate_runs(runs)
    second = Predictions.load(predictions_path(runs[1], "val", 1))
    (runs[1] / "model.safetensors").replace(runs[0] / "model.safetensors")
    evaluate_runs(runs[:1])
    anew = Predictions.load(predictions_path(runs[0], "val", 1))
    np.testing.assert_array_equal(anew.probabilities, second.probabilities)


@pytest.mark.parametrize("setting", ["data", "precision"])
def test_another_data_set_or_precision_is_predicted_anew(runs, tmp_path, setting):
    evaluate_runs(runs[:1])
    before = Predictions.load(predictions_path(runs[0], "val", 1))
    write_pictures(tmp_path / "others", CLASS_NAMES, seed=5)
    changed = {"data": str(tmp_path / "others"), "precision": "bf16"}
    evaluate_runs(runs[:1], **{setting: changed[setting]})
    after = Predictions.load(predictions_path(runs[0], "val", 1))
    assert not np.array_equal(after.probabilities, before.probabilities)


def test_damaged_predictions_are_made_anew(runs):
    first = evaluate_runs(runs)
    path = predictions_path(runs[0], "val", 1)
    path.write_bytes(path.read_bytes()[:100])
    assert evaluate_runs(runs) == first
    Predictions.load(path)


def test_progress_names_the_run(runs):
    seen = []
    evaluate_runs(runs, batch_size=4, progress=lambda *call: seen.append(call))
    assert seen == [(run, done, 7) for run in runs for done in (4, 7)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 2}, "2 views: choose 1"),
        ({"split": "vla"}, "three has no split 'vla'; did you mean 'val'"),
        ({"split": "test"}, "no split 'test'; .*train"),
        ({"weights": [1.0]}, "1 weights for 2 runs"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(runs, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        evaluate_runs(runs, **settings)
    assert "\n" not in str(raised.value)


def test_no_runs_are_refused():
    with pytest.raises(UserError, match="at least one run"):
        evaluate_runs([])


def test_a_run_that_is_not_there_is_refused_before_any_prediction(runs, forbid_prediction):
    forbid_prediction()
    with pytest.raises(UserError, match=r"run folder .*nowhere is not there"):
        evaluate_runs([*runs, runs[0].with_name("nowhere")])


def test_a_run_without_a_model_is_refused_before_any_prediction(runs, forbid_prediction):
    forbid_prediction()
    (runs[1] / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"run-2 has no model\.safetensors"):
        evaluate_runs(runs)


def test_a_run_without_its_data_set_asks_for_another(runs, packed):
    packed.rename(packed.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"packed is not there.*--data"):
        evaluate_runs(runs)
    assert evaluate_runs(runs, data=str(packed.with_name("elsewhere"))).runs[0].errors.images == 7


def test_a_run_that_does_not_know_its_data_set_asks_for_one(runs):
    write_json(runs[0] / "environment.json", {})
    with pytest.raises(UserError, match="use --data"):
        evaluate_runs(runs)


@pytest.mark.parametrize(
    ("class_names", "difference"),
    [(("cat", "dog", "emu"), "class 2 is 'owl' and 'emu'"), (("a", "b"), "3 and 2 of them")],
)
def test_a_data_set_of_other_classes_is_refused(runs, tmp_path, class_names, difference):
    write_pictures(tmp_path / "others", class_names)
    with pytest.raises(UserError, match=difference):
        evaluate_runs(runs, data=str(tmp_path / "others"))


def test_a_damaged_recipe_is_named(runs):
    (runs[0] / "recipe.json").write_text("[")
    with pytest.raises(UserError, match=r"recipe\.json is damaged"):
        evaluate_runs(runs)


def test_a_model_without_a_recipe_can_be_evaluated(runs):
    (runs[0] / "recipe.json").unlink()
    assert evaluate_runs(runs[:1]).runs[0].seed is None
