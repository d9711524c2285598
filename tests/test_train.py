"""Learning: the step, what a run leaves behind, and what must not change the mathematics."""

import io
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import alexnet
import fabricate
from alexnet import checkpoint, step, train
from alexnet.config import SECTIONS, EvaluateConfig, Recipe, differences, from_dict
from alexnet.errors import UserError
from alexnet.files import read_json, sha256_of
from alexnet.loader import num_batches, read_batch
from alexnet.optim import paper_sgd_step_reference
from alexnet.predictions import Predictions, score
from alexnet.recipes import find_recipe
from fabricate import SHAPES

STEPS = 8


def losses_of(run: Path, *arguments: str) -> dict[int, float]:
    finished = fabricate.alexnet(*SHAPES, "--run", run, "--max-steps", str(STEPS), *arguments)
    assert finished.code == 0, finished
    return fabricate.losses(run)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps, six to the epoch."""
    path = tmp_path_factory.mktemp("train") / "run"
    with fabricate.shared_cache(tmp_path_factory):
        losses_of(path)
    return path


def tiny_recipe(**sections: dict[str, Any]) -> Recipe:
    flags = {"data": {"num_train": 96, "num_val": 24, "num_classes": 4}}
    sections["system"] = {"device": "cpu", **sections.get("system", {})}
    return fabricate.recipe(optimizer={"batch_size": 16}, **{**flags, **sections})


# --- What a run leaves --------------------------------------------------------------------------


def test_a_run_holds_these_files_and_no_others(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        "best.safetensors",
        "checkpoints",
        "environment.json",
        "log.jsonl",
        "model.safetensors",
        "predictions_val_1.npz",
        "predictions_val_10.npz",
        "recipe.json",
        "summary.json",
        "tensorboard",
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best-00000006.pt",
        "best-00000006.sha256",
        "step-00000006.pt",
        "step-00000006.sha256",
        "step-00000008.pt",
        "step-00000008.sha256",
    ]


def test_the_recipe_of_a_run_is_the_one_that_was_asked_for(run: Path) -> None:
    values = fabricate.strict_json((run / "recipe.json").read_text())
    assert set(values) == {"name", "base", *SECTIONS}
    asked = differences(find_recipe("shapes"), from_dict(values))
    assert {path: there for path, (_, there) in asked.items()} == {
        "data.num_train": 96,
        "data.num_val": 24,
        "data.num_classes": 4,
        "optimizer.batch_size": 16,
        "schedule.epochs": 100.0,
        "system.device": "cpu",
        "system.log_steps": 1,
        "system.max_steps": STEPS,
        "system.threads": 1,
    }


def test_the_environment_says_with_what_and_on_what_it_ran(run: Path) -> None:
    environment = fabricate.strict_json((run / "environment.json").read_text())
    assert environment["alexnet"] == alexnet.__version__
    assert environment["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert environment["threads"] == 1
    assert environment["command"][:2] == ["alexnet", "train"]
    assert Path(environment["data_path"]).is_dir()
    assert environment["dataset"] == {
        "name": "shapes",
        "classes": 4,
        "train_images": 96,
        "val_images": 24,
        "left_out": 0,
        "statistics_images": 96,
        "sha256": sha256_of(Path(environment["data_path"]) / "dataset.json"),
    }
    (session,) = environment["sessions"]
    assert session["command"] == environment["command"]
    assert (session["step"], session["changed"], session["restart"]) == (0, {}, 0)
    assert {"commit", "python", "cpu", "started"} <= set(environment)


def test_the_summary_agrees_with_the_predictions_and_the_log(run: Path) -> None:
    summary = fabricate.strict_json((run / "summary.json").read_text())
    assert set(summary) == {
        *("recipe", "network", "dataset", "seed", "precision", "epochs", "steps", "seconds"),
        *("images_per_second", "wait_share", "evaluations", "parallel", "departs_from_paper"),
    }
    assert (summary["recipe"], summary["network"], summary["seed"]) == ("shapes", "small", 0)
    assert summary["steps"] == STEPS
    assert summary["epochs"] == pytest.approx(STEPS / 6)
    assert [(found["split"], found["views"]) for found in summary["evaluations"]] == [
        ("val", 1),
        ("val", 10),
    ]
    logged = fabricate.events(run, "evaluation")[-2:]
    for found, event in zip(summary["evaluations"], logged, strict=True):
        predictions = Predictions.load(run / f"predictions_val_{found['views']}.npz")
        assert score(predictions).as_dict() == {
            name: value for name, value in found.items() if name not in ("split", "views")
        }
        assert found["images"] == len(predictions.labels) == 24
        np.testing.assert_allclose(predictions.probabilities.sum(1), 1, rtol=1e-5)
        assert found.items() <= event.items()
        assert (event["step"], event["epoch"]) == (STEPS, summary["epochs"])


def test_the_rate_is_the_median_after_the_first_five_steps(run: Path) -> None:
    summary, steps = read_json(run / "summary.json"), fabricate.events(run, "step")
    rates = [event["images_per_second"] for event in steps]
    assert summary["images_per_second"] == statistics.median(rates[5:])
    seconds = sum(16 / rate for rate in rates)
    assert summary["seconds"] == pytest.approx(seconds)
    waited = sum(16 / event["images_per_second"] * event["wait_share"] for event in steps)
    assert summary["wait_share"] == pytest.approx(waited / seconds)
    assert 0 <= summary["wait_share"] <= 1


def test_each_step_and_each_epoch_is_in_the_log(run: Path) -> None:
    steps = fabricate.events(run, "step")
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    for event in steps:
        assert event["epoch"] == pytest.approx(event["step"] / 6)
        assert math.isfinite(event["loss"])
        # linear[100] over 600 steps, from 0.01
        assert event["lr"] == pytest.approx(0.01 * (1 - 0.99 * (event["step"] - 1) / 600))
        assert event["images_per_second"] > 0
        assert 0 <= event["wait_share"] <= 1
    first = fabricate.events(run, "evaluation")[0]
    assert (first["step"], first["epoch"], first["split"], first["views"]) == (6, 1.0, "val", 1)
    assert set(first) == {
        *("event", "step", "epoch", "split", "views", "images", "loss"),
        *("top1_wrong", "top5_wrong", "top1_error", "top5_error"),
    }
    order = [event["event"] for event in map(fabricate.strict_json, log_lines(run))]
    assert order[:2] == ["start", "rate"]
    assert order[-1] == "end"


def log_lines(run: Path) -> list[str]:
    return (run / "log.jsonl").read_text().splitlines()


def test_the_first_loss_is_that_of_fresh_weights_on_the_first_minibatch(run: Path) -> None:
    recipe, dataset = tiny_recipe(), fabricate.shapes()
    training = step.start(recipe, dataset)
    batch = read_batch(dataset.splits["train"], recipe, 0, 0)
    images, labels = step.network_input(training, batch)
    training.model.train()
    loss = F.cross_entropy(training.model(images), labels)
    assert loss.item() == pytest.approx(fabricate.losses(run)[1], rel=1e-5)


def test_saved_weights_are_those_of_the_last_checkpoint(run: Path) -> None:
    state = fabricate.checkpoint_state(run, 8)
    model = alexnet.load(run)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state["model"][name]), name
    card = model.card
    assert card.class_names == fabricate.shapes().class_names
    assert card.views == (1, 10)
    mean_image = fabricate.shapes().statistics.mean_image
    np.testing.assert_array_equal(card.preprocessing.mean_image.numpy(), mean_image)


def test_tensorboard_has_what_the_log_has(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("step/loss")] == list(range(1, STEPS + 1))
    logged = list(fabricate.losses(run).values())
    assert [event.value for event in board.Scalars("step/loss")] == pytest.approx(logged)
    assert board.Scalars("evaluation_10/top1_error")


# --- The mathematics ----------------------------------------------------------------------------


def test_a_step_is_the_gradient_of_the_mean_loss_by_the_papers_rule() -> None:
    recipe, dataset = tiny_recipe(network={"dropout": "none"}), fabricate.shapes()
    training = step.start(recipe, dataset)
    images, labels = step.network_input(training, read_batch(dataset.splits["train"], recipe, 0, 0))
    training.model.train()
    parameters = list(training.model.parameters())
    expected = [parameter.detach().clone() for parameter in parameters]
    loss = F.cross_entropy(training.model(images), labels)
    gradients = list(torch.autograd.grad(loss, parameters))
    velocities = [torch.zeros_like(weight) for weight in expected]
    paper_sgd_step_reference(
        expected, gradients, velocities, lr=0.01, momentum=0.9, weight_decay=0.0005
    )
    assert step.train_step(training, images, labels).item() == pytest.approx(loss.item())
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mean", ["crop", "centre"])
def test_the_network_sees_its_crop_mirrored_less_the_mean_and_shifted(mean: str) -> None:
    recipe = tiny_recipe(augment={"mean": mean, "colour": "paper"})
    dataset = fabricate.shapes()
    training = step.start(recipe, dataset)
    batch = read_batch(dataset.splits["train"], recipe, 2, 1)
    images, labels = step.network_input(training, batch)
    assert torch.equal(labels, batch.labels)
    found = dataset.statistics
    for row in range(len(labels)):
        top, left = (4, 4) if mean == "centre" else (int(batch.top[row]), int(batch.left[row]))
        window = found.mean_image[top : top + 56, left : left + 56].astype(np.float64)
        picture = batch.crops[row].numpy().astype(np.float64)
        if batch.flip[row]:
            picture = picture[:, ::-1]
            window = window if mean == "centre" else window[:, ::-1]
        # Section 4.1 in units of 0..1: [p1 p2 p3][a1 l1, a2 l2, a3 l3]^T with a ~ N(0, 0.1)
        alphas = 0.1 * batch.colour[row].numpy().astype(np.float64)
        shift = 255 * found.eigenvectors @ (alphas * found.eigenvalues / 255**2)
        expected = (picture - window + shift).transpose(2, 0, 1)
        np.testing.assert_allclose(images[row].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "system.log_steps=7"),
        ("--set", "system.scales_steps=1"),
        ("--set", "evaluate.every_epochs=0.3"),
        ("--set", "evaluate.views=1"),
        ("--set", "system.checkpoint_minutes=0.0001"),
        ("--set", "system.stall_steps=1"),
    ],
    ids=lambda arguments: arguments[1],
)
def test_looking_does_not_change_what_is_learned(
    tmp_path: Path, run: Path, arguments: tuple[str, ...]
) -> None:
    assert losses_of(tmp_path / "run", *arguments) == fabricate.losses(run)


def test_the_seed_decides_everything(tmp_path: Path, run: Path) -> None:
    again, other = (losses_of(tmp_path / f"run{seed}", "--seed", str(seed)) for seed in range(2))
    assert again == fabricate.losses(run)
    assert not set(other.values()) & set(again.values())
    pictures = {
        read_json(tmp_path / f"run{seed}" / "environment.json")["data_path"] for seed in (0, 1)
    }
    assert len(pictures) == 1


def test_bf16_trains_with_weights_in_full_precision(tmp_path: Path, run: Path) -> None:
    losses = losses_of(tmp_path / "run", "--precision", "bf16", "--set", "system.max_steps=3")
    exact = fabricate.losses(run)
    assert losses[1] != exact[1]
    assert losses[1] == pytest.approx(exact[1], rel=0.02)
    assert all(p.dtype == torch.float32 for p in alexnet.load(tmp_path / "run").parameters())


def test_a_frozen_layer_stays_as_it_is_and_can_still_be_measured(tmp_path: Path) -> None:
    table = ("--set", "schedule.kind=epochs", "--set", "schedule.table=source-2012")
    losses_of(tmp_path / "run", *table, "--epochs", "1", "--set", "system.scales_steps=1")
    scales = fabricate.events(tmp_path / "run", "scales")
    assert [event["step"] for event in scales] == [0, 1, 2, 3, 4, 5]
    norms = {
        layer["name"]: [
            found["weight_norm"]
            for event in scales
            for found in event["layers"]
            if found["name"] == layer["name"]
        ]
        for layer in scales[0]["layers"]
    }
    # Frozen at 72 of 91 epochs, which is 4.7 of 6 steps: the sixth step, after step 5.
    lr = {event["step"]: event["lr"] for event in fabricate.events(tmp_path / "run", "step")}
    assert lr == pytest.approx({1: 1e-2, 2: 1e-2, 3: 1e-3, 4: 1e-3, 5: 1e-4, 6: 1e-4})
    state = fabricate.checkpoint_state(tmp_path / "run", 6)
    final = {name: state["model"][f"{name}.weight"].norm().item() for name in norms}
    assert final["conv1"] == pytest.approx(norms["conv1"][-1], rel=1e-6)
    assert len({round(norm, 7) for norm in norms["conv1"]}) > 1


@given(every=st.floats(0.3, 50), steps=st.integers(1, 300))
def test_due_falls_as_often_as_its_multiples(every: float, steps: int) -> None:
    found = [step for step in range(1, steps + 1) if train.due(step, every)]
    if every >= 1:
        assert len(found) == math.floor(steps / every)
    for at in found:
        assert math.floor(at / every) * every > at - 1 - 1e-9  # quotients are rounded


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(2.0, 0, 14), (0.5, 0, 4), (0.01, 0, 1), (2.0, 5, 5), (2.0, 50, 14)],
)
def test_a_training_ends_with_its_epochs_or_its_steps(
    epochs: float, max_steps: int, expected: int
) -> None:
    recipe = tiny_recipe(schedule={"epochs": epochs}, system={"max_steps": max_steps})
    assert num_batches(recipe, 100) == 7
    assert train.num_steps(recipe, 100) == expected


def test_a_short_last_minibatch_counts_as_what_it_is(tmp_path: Path) -> None:
    """17 pictures in minibatches of 16: the second one is a single picture."""
    run = tmp_path / "run"
    one = ("--set", "data.num_train=17", "--set", "system.stall_steps=2")
    losses = losses_of(run, *one, "--set", "system.scales_steps=1", "--max-steps", "4")
    assert list(losses) == [1, 2, 3, 4]
    assert [event["epoch"] for event in fabricate.events(run, "step")] == [0.5, 1.0, 1.5, 2.0]


# --- When it does not learn ---------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    finished = fabricate.alexnet(*SHAPES, "--run", run, "--lr", "1e9", "--max-steps", str(STEPS))
    assert finished.code == 1, finished
    assert finished.err.count("\n") == 1
    assert "the last checkpoint is kept" in finished.err
    (stall,) = fabricate.events(run, "stall")
    assert set(stall) == {"event", "step", "reason", "message", "layers"}
    assert "nan" in stall["reason"] or "inf" in stall["reason"]
    assert "The recipe was not changed" in stall["message"]
    assert [layer["name"] for layer in stall["layers"]][0::7] == ["conv1", "fc8"]
    assert_good_checkpoints(run)
    assert not (run / "summary.json").exists()


def assert_good_checkpoints(run: Path) -> None:
    paths = checkpoint.available(run / "checkpoints")
    assert paths
    for path in paths:
        for name, tensor in checkpoint.load(path)["model"].items():
            assert tensor.isfinite().all(), (path, name)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "system.log_steps=100"),
        ("--set", "system.log_steps=100", "--set", "evaluate.every_epochs=0.2"),
        ("--set", "system.log_steps=100", "--set", "system.checkpoint_minutes=0.00001"),
    ],
)
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    command = (*SHAPES, "--run", run, "--lr", "1e38", "--max-steps", str(STEPS), *arguments)
    assert fabricate.alexnet(*command).code == 1
    assert_good_checkpoints(run)
    assert not (run / "model.safetensors").exists()


def test_a_last_step_that_ruins_the_weights_is_noticed_though_its_loss_is_finite(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    finished = fabricate.alexnet(*SHAPES, "--run", run, "--lr", "1e39", "--max-steps", "1")
    assert finished.code == 1, finished
    assert "step 1: weights are no longer finite; the last checkpoint is kept" in finished.err
    assert math.isfinite(fabricate.losses(run)[1])
    assert_good_checkpoints(run)


def test_a_run_that_stays_at_chance_says_so_and_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    losses = losses_of(run, "--lr", "1e-12", "--set", "system.stall_steps=4")
    assert len(losses) == STEPS
    stalls = [event for event in fabricate.events(run, "stall") if "guess" in event["reason"]]
    assert 1 <= len(stalls) <= 2  # at the loss of guessing, and perhaps above it
    assert stalls[0]["step"] <= STEPS
    assert read_json(run / "recipe.json")["optimizer"]["lr"] == 1e-12


def test_dead_layers_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = step.start

    def with_dead_units(*arguments: Any) -> step.Training:
        training = start(*arguments)
        with torch.no_grad():
            training.model.get_parameter("fc6.bias").fill_(-1e6)
        return training

    monkeypatch.setattr(train, "start", with_dead_units)
    losses_of(tmp_path / "run")
    (stall,) = fabricate.events(tmp_path / "run", "stall")
    assert stall["step"] == 6
    assert "units that are zero for every picture: 100% of fc6" in stall["reason"]


# --- Devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_cannot_be_used_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"device .* cannot be used: .*try --device cpu") as caught:
        step.find_device(name)
    assert "\n" not in str(caught.value)


def test_the_cpu_can_be_used() -> None:
    assert step.find_device("cpu").type == "cpu"
    assert step.find_device("auto").type in ("cpu", "cuda")


# --- Learning -----------------------------------------------------------------------------------


def test_the_small_network_learns_shapes(tmp_path: Path) -> None:
    """512 pictures of 4 classes, 288 steps of 32: far from ln(4) = 1.386."""
    run = tmp_path / "run"
    finished = fabricate.alexnet(
        *("train", "--no-report", "--run", run, "--device", "cpu", "--batch-size", "32"),
        *("--set", "data.num_train=512", "--set", "data.num_val=128", "--epochs", "18"),
        *("--set", "data.num_classes=4", "--set", "evaluate.views=1"),
    )
    assert finished.code == 0, finished
    losses = list(fabricate.losses(run).values())
    assert len(losses) == 288
    first, last = statistics.mean(losses[:8]), statistics.mean(losses[-16:])
    assert last < 0.8 * math.log(4), (first, last)


# --- Training pictures that are evaluated (Figure 1) ----------------------------------------------


def run_of(folder: Path, **evaluate: Any) -> Path:
    recipe = tiny_recipe(evaluate={"views": "1", **evaluate}, schedule={"epochs": 2.0})
    quiet = Console(file=io.StringIO())
    train.train(recipe, fabricate.shapes(), folder, resume=False, console=quiet)
    return folder


def test_training_pictures_are_evaluated_where_the_recipe_asks_for_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", train_pictures=40)
    found = [event for event in fabricate.events(run, "evaluation") if event["split"] == "train"]
    assert [(event["epoch"], event["images"]) for event in found] == [(1.0, 40), (2.0, 40)]


def test_training_ends_once_enough_training_pictures_are_right(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", train_pictures=40, stop_train_error=1.0)
    assert read_json(run / "summary.json")["epochs"] == 1.0
    assert checkpoint.available(run / "checkpoints")[0].name == "step-00000006.pt"


def test_the_pictures_evaluated_are_the_same_whatever_the_seed() -> None:
    split, settings = fabricate.shapes().splits["train"], EvaluateConfig(train_pictures=10)
    chosen = train.first_of(split, settings)
    rows = [list(split.sources).index(source) for source in chosen.sources]
    assert rows == sorted(set(rows)) != list(range(10))
    np.testing.assert_array_equal(chosen.images, np.asarray(split.images)[rows])
    np.testing.assert_array_equal(chosen.labels, np.asarray(split.labels)[rows])
