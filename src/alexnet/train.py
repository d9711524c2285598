"""A whole training (Section 5): the loop around the step.

`train` sets the order of things: rates from the schedule, evaluations, logs, checkpoints,
interruption, the last evaluation with one and ten views. The step never waits for the device;
losses are read in blocks.

Not here: the step itself (`step.py`), how rates change (`schedule.py`), the command line.
"""

import math
import shlex
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from alexnet import checkpoint
from alexnet.config import EvaluateConfig, Recipe
from alexnet.dataset import PackedDataset, Split
from alexnet.evaluate import evaluate_runs
from alexnet.files import write_json
from alexnet.loader import batches, num_batches
from alexnet.log import Display, RunLog, environment
from alexnet.metrics import ErrorCount
from alexnet.predictions import mean_log_probability, predict, score
from alexnet.randomness import permutation
from alexnet.schedule import set_rates
from alexnet.stall import LayerScales, Stall, explain, layer_scales
from alexnet.step import Training, autocast, network_input, start, train_step
from alexnet.weights import ModelCard, save_model

# Steps that are left out of the median rate: memory is still being laid out.
WARM_UP_STEPS = 5


class Interrupted(Exception):
    """Training was asked to stop by a signal; everything is saved. `number` is the signal's."""

    def __init__(self, number: int, run: Path) -> None:
        command = shlex.join(["alexnet", "train", "--resume", "--run", str(run)])
        super().__init__(f"stopped and saved; go on with: {command}")
        self.number = number


class Diverged(Exception):
    """The loss is no longer finite; the last good checkpoint is kept."""


def train(
    recipe: Recipe,
    dataset: PackedDataset,
    run: Path,
    *,
    resume: bool,
    console: Console,
    begin: Callable[[Training], None] | None = None,
) -> dict[str, Any]:
    """Train by a recipe in a run folder, evaluate, and return what summary.json says.

    `begin` may change the fresh weights and rates of a training that is not resumed.
    Raises UserError, Interrupted (all saved) or Diverged (the last good checkpoint kept).
    """
    training = start(recipe, dataset)
    if resume:
        say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        training.load_state_dict(checkpoint.load_newest(run / "checkpoints", say))
    else:
        if begin is not None:
            begin(training)
        write_json(run / "environment.json", _environment(training, dataset))
    write_json(run / "recipe.json", recipe.as_dict())
    log = RunLog(run, step=training.step)
    total_steps = num_steps(recipe, len(dataset.splits["train"]))
    title = f"{recipe.name} on {dataset.name}"
    try:
        log.write("resume" if resume else "start", training.step, total_steps=total_steps)
        with Display(total_steps, title, console=console) as display:
            display.start_at(training.step)
            if training.step >= total_steps:
                more = "a larger --max-steps (0: all epochs) or --epochs trains on"
                display.say(f"all {total_steps:,} steps are done; {more}")
            if hint := _too_few(recipe, dataset, total_steps):
                display.say(hint)
            _loop(training, dataset, run, log, display, total_steps)
            display.say("evaluating")
        with _on_stop_signal(lambda number: _interrupt(number, run)):
            save_model(run / "model.safetensors", training.model, model_card(training, dataset))
            summary = summarise(training, dataset, run, log)
            write_json(run / "summary.json", summary)
        log.write("end", training.step, seconds=training.seconds)
    finally:
        log.close()
    return summary


# With fewer steps in all, the full-size networks have hardly left their first weights behind.
FEWEST_STEPS = 1000


def num_steps(recipe: Recipe, num_images: int) -> int:
    """Steps of the whole training: its epochs, cut at max_steps where that is set."""
    steps = math.ceil(recipe.schedule.epochs * num_batches(recipe, num_images))
    return min(steps, recipe.system.max_steps or steps)


def _too_few(recipe: Recipe, dataset: PackedDataset, total_steps: int) -> str:
    """What to tell somebody whose pictures are too few for the full-size network; else ""."""
    if recipe.network.name == "small" or recipe.system.max_steps or total_steps >= FEWEST_STEPS:
        return ""
    images = len(dataset.splits["train"])
    epochs = math.ceil(FEWEST_STEPS / num_batches(recipe, images))
    return (
        f"{images:,} pictures make {total_steps:,} steps in {recipe.schedule.epochs:g} epochs, and "
        f"a network of this size needs some thousand: --epochs {epochs:,} or more, or "
        "--recipe shapes for a small network of 64-pixel pictures, which learns sooner"
    )


def due(step: int, every: float) -> bool:
    """Whether a multiple of `every` steps, which may have a fraction, falls on this step."""
    return math.floor(step / every) > math.floor((step - 1) / every)


def _loop(
    training: Training,
    dataset: PackedDataset,
    run: Path,
    log: RunLog,
    display: Display,
    total_steps: int,
) -> None:
    recipe, system = training.recipe, training.recipe.system
    split = dataset.splits["train"]
    per_epoch = num_batches(recipe, len(split))
    pending = _Pending()
    stopped: list[int] = []
    last_checkpoint = time.monotonic()
    if not checkpoint.available(run / "checkpoints"):
        _save(training, run)
    training.model.train()
    with _on_stop_signal(stopped.append):
        began = time.perf_counter()
        feed = batches(
            split,
            recipe,
            step=training.step,
            stop=total_steps,
            threads=system.loader_threads,
            device=training.device,
        )
        for batch in feed:
            waited = time.perf_counter() - began
            _set_rates(training, per_epoch, log, display)
            images, labels = network_input(training, batch)
            _look_at_layers(training, per_epoch, images, labels, log, display)
            loss = train_step(training, images, labels)
            training.step += 1
            pending.add(training, loss, len(labels), time.perf_counter() - began, waited)
            evaluates = due(training.step, recipe.evaluate.every_epochs * per_epoch)
            minutes = (time.monotonic() - last_checkpoint) / 60
            stops = bool(stopped)  # looked at once: a later signal is for the next step
            at_end = training.step == total_steps
            saves = stops or at_end or minutes >= system.checkpoint_minutes
            if evaluates or saves or due(training.step, system.log_steps):
                pending.flush(training, per_epoch, log, display)
                _watch(training, pending, images, labels, log, display)
            if evaluates:
                at_end |= _validate(training, dataset, per_epoch, log, display)
            if saves or at_end:
                _save(training, run)
                last_checkpoint = time.monotonic()
            if stops or (stopped and at_end):
                log.write("stop", training.step, signal=stopped[0])
                raise Interrupted(stopped[0], run)
            if at_end:
                break
            began = time.perf_counter()


class _Pending:
    """Steps whose losses are still on the device: reading one would make the next step wait."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Tensor, float, int, float, float]] = []
        self.losses: list[tuple[int, float]] = []

    def add(
        self, training: Training, loss: Tensor, images: int, seconds: float, waited: float
    ) -> None:
        rate = training.optimizer.param_groups[0]["lr"]
        for group in training.optimizer.param_groups:
            if group["kind"] == "weight":
                rate = group["lr"]  # the last layer's: never frozen early
        self.steps.append((training.step, loss, rate, images, seconds, waited))

    def flush(self, training: Training, per_epoch: int, log: RunLog, display: Display) -> None:
        """Read the losses and log each step.

        On an accelerator, reading waits for the steps that still run: their time is shared out.
        """
        began = time.perf_counter()
        values = [loss.item() for _, loss, *_ in self.steps]
        late = (time.perf_counter() - began) / max(len(self.steps), 1)
        self.losses = []
        for (step, _, rate, images, queued, waited), value in zip(self.steps, values, strict=True):
            seconds = queued + late
            per_second = images / seconds
            training.seconds += seconds
            training.wait_seconds += waited
            training.rates.append(per_second)
            self.losses.append((step, value))
            log.write(
                "step",
                step,
                epoch=step / per_epoch,
                loss=value,
                lr=rate,
                images_per_second=per_second,
                wait_share=waited / seconds,
            )
        if self.steps:
            display.show(training.step, _note(training, per_epoch, self.losses[-1][1]))
        self.steps = []


def _note(training: Training, per_epoch: int, loss: float) -> str:
    recent = statistics.median(training.rates[-20:])
    share = training.wait_seconds / max(training.seconds, 1e-9)
    return (
        f"epoch {training.step / per_epoch:.2f}  loss {loss:.3f}  {recent:,.0f} img/s  "
        f"waiting {share:.1%}"
    )


def _set_rates(training: Training, per_epoch: int, log: RunLog, display: Display) -> None:
    epoch = training.step / per_epoch
    rates = training.schedule.rates(epoch)
    set_rates(training.optimizer.param_groups, rates, training.noise_generator)
    training.colour_noise = rates.colour_noise
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(group["lr"] != 0)
    if rates.reason != training.reason:
        training.reason = rates.reason
        lr = training.recipe.optimizer.lr * rates.weights
        log.write("rate", training.step, epoch=epoch, lr=lr, reason=rates.reason)
        if training.step:
            display.say(f"rate {lr:g}: {rates.reason}")


def _watch(
    training: Training,
    pending: _Pending,
    images: Tensor,
    labels: Tensor,
    log: RunLog,
    display: Display,
) -> None:
    """Let the stall detector see each loss; a loss that is not finite ends the training."""
    for step, loss in pending.losses:
        stall = training.detector.observe(step, loss)
        if stall is not None:
            _tell(stall, _scales(training, images, labels), log, display)
        if not math.isfinite(loss):
            raise Diverged(f"step {step}: the loss is {loss}; the last checkpoint is kept")


def _look_at_layers(
    training: Training,
    per_epoch: int,
    images: Tensor,
    labels: Tensor,
    log: RunLog,
    display: Display,
) -> None:
    """Look for dead layers in the first minibatch of each later epoch, and log the scales if due.

    The first minibatch is never a short one, in which units seem dead that are not.
    """
    step, every = training.step, training.recipe.system.scales_steps
    logs = every > 0 and (step == 0 or due(step, every))
    if not logs and (step == 0 or step % per_epoch):
        return
    scales = _scales(training, images, labels)
    if logs:
        log.write("scales", step, layers=[asdict(scale) for scale in scales])
    stall = training.detector.observe_layers(step, scales)
    if stall is not None:
        _tell(stall, scales, log, display)


def _scales(training: Training, images: Tensor, labels: Tensor) -> list[LayerScales]:
    """Measure each layer, frozen ones too; nothing on a last minibatch of a single picture."""
    if len(images) < 2:
        return []
    training.model.requires_grad_(True)  # until the rates of the next step are set
    return layer_scales(training.model, images, labels)


def _tell(stall: Stall, scales: list[LayerScales], log: RunLog, display: Display) -> None:
    message, layers = explain(stall, scales), [asdict(scale) for scale in scales]
    log.write("stall", stall.step, reason=stall.reason, message=message, layers=layers)
    display.say(message)


def _validate(
    training: Training, dataset: PackedDataset, per_epoch: int, log: RunLog, display: Display
) -> bool:
    """Evaluate with one view on the validation split, and tell the schedule the error.

    Where the recipe asks for it, on training pictures too. Returns whether training is to end.
    """
    errors = _evaluate(training, dataset.splits["val"], per_epoch, log)
    display.say(
        f"epoch {training.step / per_epoch:.1f}: validation error {errors.top1_error:.2%} top-1, "
        f"{errors.top5_error:.2%} top-5 of {errors.images:,} pictures, one view"
    )
    settings = training.recipe.evaluate
    training.schedule.observe(errors.top1_error, settings.every_epochs * per_epoch)
    if not settings.train_pictures:
        return False
    found = _evaluate(training, first_of(dataset.splits["train"], settings), per_epoch, log)
    display.say(f"training error {found.top1_error:.2%} of {found.images:,} pictures, one view")
    return found.top1_error <= settings.stop_train_error


def first_of(split: Split, settings: EvaluateConfig) -> Split:
    """The first `train_pictures` in the order of a shuffle that no seed of a training changes."""
    order = permutation(0, "training pictures to evaluate", 0, len(split))
    chosen = np.sort(order[: settings.train_pictures])
    sources = [split.sources[index] for index in chosen]
    return Split(split.name, split.images[chosen], split.labels[chosen], sources)


def _evaluate(training: Training, split: Split, per_epoch: int, log: RunLog) -> ErrorCount:
    training.model.eval()
    predictions = predict(
        _logits_of(training),
        split,
        training.preprocessing,
        views=1,
        batch_size=training.recipe.evaluate.batch_size,
        device=training.device,
    )
    training.model.train()
    errors = score(predictions)
    log.write(
        "evaluation",
        training.step,
        epoch=training.step / per_epoch,
        split=split.name,
        views=1,
        loss=-mean_log_probability(predictions),
        **errors.as_dict(),
    )
    return errors


def _logits_of(training: Training) -> Callable[[Tensor], Tensor]:
    def logits(crops: Tensor) -> Tensor:
        with autocast(training):
            return training.model(crops)  # type: ignore[no-any-return]

    return logits


def _save(training: Training, run: Path) -> None:
    """Save a checkpoint. Raises Diverged, and keeps the last, where weights are not finite.

    The loss of a step is of the weights before it: it cannot tell what the step itself did.
    """
    if not all(bool(weight.isfinite().all()) for weight in training.model.parameters()):
        raise Diverged(
            f"step {training.step}: weights are no longer finite; the last checkpoint is kept"
        )
    folder, keep = run / "checkpoints", training.recipe.system.keep_checkpoints
    checkpoint.save(folder, training.step, training.state_dict(), keep=keep)


def model_card(training: Training, dataset: PackedDataset) -> ModelCard:
    recipe, found = training.recipe, dataset.statistics
    return ModelCard(
        network=recipe.network.name,
        dropout=recipe.network.dropout,
        class_names=dataset.class_names,
        class_ids=dataset.class_ids,
        dataset=dataset.name,
        preprocessing=training.preprocessing,
        eigenvalues=torch.from_numpy(found.eigenvalues),
        eigenvectors=torch.from_numpy(found.eigenvectors),
        views=recipe.views,
    )


def summarise(training: Training, dataset: PackedDataset, run: Path, log: RunLog) -> dict[str, Any]:
    """Evaluate with the recipe's views, save the predictions, and sum up the training."""
    recipe = training.recipe
    per_epoch = num_batches(recipe, len(dataset.splits["train"]))
    evaluations = []
    for split in [name for name in ("val", "test") if name in dataset.splits]:
        for views in recipe.views:
            result = evaluate_runs(
                [run],
                split=split,
                views=views,
                device=training.device,
                precision=recipe.system.precision,
                batch_size=recipe.evaluate.batch_size,
            )
            counts = result.runs[0].errors.as_dict()
            evaluations.append({"split": split, "views": views, **counts})
            log.write(
                "evaluation",
                training.step,
                epoch=training.step / per_epoch,
                split=split,
                views=views,
                **counts,
            )
    measured = training.rates[WARM_UP_STEPS:] or training.rates
    return {
        "recipe": recipe.name,
        "network": recipe.network.name,
        "dataset": dataset.name,
        "seed": recipe.system.seed,
        "precision": recipe.system.precision,
        "epochs": training.step / per_epoch,
        "steps": training.step,
        "seconds": training.seconds,
        "images_per_second": statistics.median(measured),
        "wait_share": training.wait_seconds / training.seconds,
        "evaluations": evaluations,
    }


def _environment(training: Training, dataset: PackedDataset) -> dict[str, Any]:
    return {
        **environment(training.device),
        "data_path": str(dataset.path.resolve()),
        "dataset": {
            "name": dataset.name,
            "classes": len(dataset.class_names),
            **{f"{name}_images": len(split) for name, split in dataset.splits.items()},
            "left_out": len(dataset.left_out),
        },
    }


@contextmanager
def _on_stop_signal(handle: Callable[[int], None]) -> Iterator[None]:
    """Hand SIGINT or SIGTERM over instead of dying of the first; a second is not held back."""
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(number, previous[number])
        handle(number)

    for kind in (signal.SIGINT, signal.SIGTERM):
        previous[kind] = signal.signal(kind, note)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, run: Path) -> NoReturn:
    raise Interrupted(number, run)
