"""A whole training (Section 5): the loop around the step.

`train` sets the order of things: rates from the schedule, evaluations, logs, checkpoints,
interruption, the last evaluation with one and ten views. The step never waits for the device;
losses are read in blocks.

Not here: the step itself (`step.py`), how rates change (`schedule.py`), the command line.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from alexnet import checkpoint
from alexnet.columns import PartAlexNet, whole_model
from alexnet.config import EvaluateConfig, Recipe, differences, from_dict
from alexnet.dataset import PackedDataset, Split
from alexnet.errors import UserError
from alexnet.evaluate import evaluate_runs
from alexnet.files import read_json, remove_leftovers, sha256_of, write_json
from alexnet.finetune import begin_from, told
from alexnet.large_batch import departures, rate_factor, warmed_up
from alexnet.loader import Batch, batch_images, batches, num_batches
from alexnet.log import Display, RunLog, SilentLog, environment
from alexnet.model import build
from alexnet.parallel import ALONE, Ranks, code_sha256
from alexnet.pictures import ListedPictures
from alexnet.predictions import Predictions, mean_log_probability, predict, score
from alexnet.randomness import permutation
from alexnet.saving import Saver, SilentSaver
from alexnet.schedule import set_rates
from alexnet.sessions import add_session, alone_in, session
from alexnet.stall import LayerScales, Stall, explain, layer_scales
from alexnet.step import (
    Training,
    logits,
    network_input,
    start,
    take_share,
    train_step,
    way,
)
from alexnet.stopping import Interrupted, on_stop_signal, resume_command
from alexnet.weights import ModelCard, save_model
from alexnet.workers import available_cores

# Steps that are left out of the median rate: memory is still being laid out.
WARM_UP_STEPS = 5


class Diverged(Exception):
    """The loss is no longer finite; the last good checkpoint is kept."""


def train(
    recipe: Recipe,
    dataset: PackedDataset,
    run: Path,
    *,
    resume: bool,
    console: Console,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train by a recipe in a run folder, evaluate, and return what summary.json says.

    Of several ranks, all call this alike; the first prints and writes, which the others see.
    Raises UserError, Interrupted (all saved) or Diverged (the last good checkpoint kept).
    """
    check_agreement(recipe, dataset, run, ranks)
    training = start(recipe, dataset, ranks)
    with alone_in(run) if ranks.speaks else nullcontext():
        return _train(training, dataset, run, resume, console)


def _train(
    training: Training,
    dataset: PackedDataset,
    run: Path,
    resume: bool,
    console: Console,
) -> dict[str, Any]:
    recipe, ranks = training.recipe, training.ranks
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    folder = run / "checkpoints"
    if ranks.speaks:
        remove_leftovers(run)
        remove_leftovers(folder)
    if resume and not ranks.of_first(checkpoint.has_any(folder)):
        say(f"{run} was stopped before its first checkpoint: beginning anew")
        resume = False
    if resume:
        training.load_state_dict(checkpoint.load_newest(folder, say))
        training.origin = dict(read_json(run / "environment.json").get("from", {}))
    else:
        if recipe.network.weights:
            begin_from(training, recipe.network.weights, dataset.class_ids)
        training.optimizer.write_copies()
    ranks.same(step=training.step)
    if ranks.speaks:
        _note_session(training, dataset, run)
        folder.mkdir(exist_ok=True)
    make_log = RunLog if ranks.speaks else SilentLog
    log = make_log(run, step=training.step, owes=training.owes_evaluation, warn=say)
    total_steps = num_steps(recipe, len(dataset.splits["train"]))
    title = f"{recipe.name} on {dataset.name}"
    try:
        how: dict[str, Any] = {}
        if ranks.size > 1:
            how |= {"parallel": str(ranks.plan), "ranks": ranks.size}
        if other := departures(recipe):
            how["departs_from_paper"] = other
        log.write("resume" if resume else "start", training.step, total_steps=total_steps, **how)
        with Display(total_steps, title, console=console) as display:
            display.start_at(training.step)
            if training.step >= total_steps:
                more = "a larger --max-steps (0: all epochs) or --epochs trains on"
                display.say(f"all {total_steps:,} steps are done; {more}")
            if other:
                display.say(f"a departure from the paper: {', '.join(other)}")
            if training.origin:
                display.say(told(training.origin))
            if not resume:
                display.say(", ".join(f"{what}: {how}" for what, how in way(training).items()))
            if hint := _too_few(recipe, dataset, total_steps):
                display.say(hint)
            _loop(training, dataset, run, log, display, total_steps)
            display.say("evaluating")
        with on_stop_signal(lambda number: _interrupt(number, run)):
            weights = training.model.state_dict()
            if ranks.speaks:
                card = model_card(training, dataset)
                save_model(run / "model.safetensors", training.model, card, weights)
                _save_best(training, card, run, say)
            ranks.everyone.wait("weights saved")
            summary = summarise(training, dataset, run, log)
            if ranks.speaks:
                write_json(run / "summary.json", summary)
        log.write("end", training.step, seconds=training.seconds)
    finally:
        log.close()
    return summary


def check_agreement(recipe: Recipe, dataset: PackedDataset, run: Path, ranks: Ranks) -> None:
    """Raises UserError when the ranks do not fit the recipe, or do not start from the same."""
    if recipe.optimizer.batch_size < ranks.plan.replicas:
        raise UserError(
            f"a batch of {recipe.optimizer.batch_size} pictures has none for some of "
            f"{ranks.plan.replicas} replicas; choose a larger --batch-size or fewer processes"
        )
    ranks.same(
        recipe=recipe.as_dict(),
        data={"dataset.json": sha256_of(dataset.path / "dataset.json")[:12]},
        code={"alexnet": code_sha256()[:12], "torch": torch.__version__},
    )
    ranks.check_sees(run)


# With fewer steps in all, the full-size networks have hardly left their first weights behind.
FEWEST_STEPS = 1000


def num_steps(recipe: Recipe, num_images: int) -> int:
    """Steps of the whole training: its epochs, cut at max_steps where that is set."""
    steps = math.ceil(recipe.schedule.epochs * num_batches(recipe, num_images))
    return min(steps, recipe.system.max_steps or steps)


def _too_few(recipe: Recipe, dataset: PackedDataset, total_steps: int) -> str:
    """What to tell somebody whose pictures are too few for the full-size network; else ""."""
    soon = recipe.network.name == "small" or bool(recipe.network.weights)
    if soon or recipe.system.max_steps or total_steps >= FEWEST_STEPS:
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


class PicturesLost(UserError):
    """The data set could not be read any more."""


def _loop(
    training: Training,
    dataset: PackedDataset,
    run: Path,
    log: RunLog,
    display: Display,
    total_steps: int,
) -> None:
    stopped: list[int] = []
    make_saver = Saver if training.ranks.speaks else SilentSaver
    saver = make_saver(run / "checkpoints", training.recipe.system.keep_checkpoints)
    with saver, on_stop_signal(stopped.append):
        try:
            _steps(training, dataset, saver, log, display, total_steps, stopped)
        except PicturesLost as lost:
            if training.ranks.size > 1:
                raise UserError(f"{lost}; the last checkpoint is kept") from lost
            log.write("stop", training.step, reason=str(lost))
            _save(training, saver)
            saver.finish()
            raise UserError(
                f"{lost}; stopped and saved at step {training.step}: when the pictures are back, "
                f"go on with: {resume_command(run)}"
            ) from lost
        if stopped:
            log.write("stop", training.step, signal=stopped[0])
            ranks = training.ranks
            raise Interrupted(stopped[0], run, ranks.size, str(ranks.plan))


def _steps(
    training: Training,
    dataset: PackedDataset,
    saver: Saver,
    log: RunLog,
    display: Display,
    total_steps: int,
    stopped: list[int],
) -> None:
    """Train until the last step or a signal in `stopped`; then all is saved."""
    recipe, system = training.recipe, training.recipe.system
    split = dataset.splits["train"]
    per_epoch = num_batches(recipe, len(split))
    pending = _Pending()
    known = split.images.unreadable if isinstance(split.images, ListedPictures) else ()
    named = set(known)
    last_checkpoint = time.monotonic()
    ranks = training.ranks
    if not ranks.of_first(bool(checkpoint.available(saver.folder))):
        _save(training, saver)
        saver.finish()
    training.model.train()
    if training.owes_evaluation:
        _validate(training, dataset, per_epoch, log, display, stopped)
        if not training.owes_evaluation:
            _save(training, saver, best=training.best_step == training.step)
            saver.finish()
    if training.owes_evaluation or training.has_ended:
        return
    began = time.perf_counter()
    feed = batches(
        split,
        recipe,
        step=training.step,
        stop=total_steps,
        rank=ranks.replicas.rank,
        ranks=ranks.replicas.size,
        threads=system.loader_threads or max(1, available_cores() // ranks.on_this_machine),
        device=training.device,
    )
    try:
        for batch in _unless_lost(feed):
            waited = time.perf_counter() - began
            _set_rates(training, per_epoch, log, display)
            index = training.step % per_epoch
            whole = batch_images(recipe.optimizer.batch_size, len(split), index)
            take_share(training, _images_by_replica(ranks, split, whole, len(batch.labels)))
            images, labels = network_input(training, batch)
            _look_at_layers(training, per_epoch, images, labels, log, display)
            loss = train_step(training, images, labels)
            training.step += 1
            pending.add(training, loss, training.batch_images, time.perf_counter() - began, waited)
            evaluates = due(training.step, recipe.evaluate.every_epochs * per_epoch)
            minutes = (time.monotonic() - last_checkpoint) / 60
            wants_save = minutes >= system.checkpoint_minutes and not saver.busy
            # Looked at once: a later signal is for the next step.
            stops, saves = _agreed(ranks, stopped, wants_save)
            saves |= stops
            ends = training.step == total_steps
            if evaluates or saves or ends or due(training.step, system.log_steps):
                pending.flush(training, per_epoch, log, display)
                _tell_unreadable(split, named, training.step, log, display)
                _watch(training, pending, images, labels, log, display)
            if evaluates and ranks.size > 1:
                # A stop waits for the end of an evaluation of all ranks, and a launcher may not.
                training.owes_evaluation = True
                _save(training, saver)
                last_checkpoint = time.monotonic()
            if evaluates:
                if not (stops and ranks.size > 1):
                    _validate(training, dataset, per_epoch, log, display, stopped)
                stops, ends = stops or training.owes_evaluation, ends or training.has_ended
            is_best = evaluates and training.best_step == training.step
            if saves or stops or ends or is_best:
                _save(training, saver, best=is_best)
                last_checkpoint = time.monotonic()
            if stops or ends:
                saver.finish()
                return
            if (error := saver.error()) is not None:
                _tell_unsaved(error, training, log, display)
            began = time.perf_counter()
    except PicturesLost:
        if ranks.size == 1:  # others are in another exchange
            pending.flush(training, per_epoch, log, display)
        raise


def _images_by_replica(ranks: Ranks, split: Split, whole: int, own: int) -> list[int]:
    """How many images of a batch each replica has: of those that can be decoded, no one knows."""
    if ranks.size > 1 and not isinstance(split.images, ListedPictures):
        return ranks.replicas.sizes(whole)
    counts = ranks.replicas.objects(own, "pictures read")
    if not any(counts):
        raise UserError(f"none of the {whole} pictures of a minibatch can be read")
    return counts


def _agreed(ranks: Ranks, stopped: list[int], wants_save: bool) -> tuple[bool, bool]:
    """Whether a rank was asked to stop, and whether the first wants to save."""
    if ranks.size == 1:
        return bool(stopped), wants_save
    signal = stopped[0] if stopped else 0
    wishes = torch.tensor([signal, int(wants_save and ranks.speaks)])
    signal, saves = ranks.everyone.max(wishes, "wishes").tolist()
    if signal and not stopped:
        stopped.append(signal)
    return bool(signal), bool(saves)


def _unless_lost(feed: Iterator[Batch]) -> Iterator[Batch]:
    """The batches. Raises PicturesLost where they cannot be read."""
    try:
        yield from feed
    except (UserError, OSError) as error:
        raise PicturesLost(str(error)) from error


def _tell_unsaved(error: UserError, training: Training, log: RunLog, display: Display) -> None:
    """Nothing saved is lost by going on, and all since then by leaving: so go on, and try again."""
    minutes = training.recipe.system.checkpoint_minutes
    message = f"not saved: {error}; training goes on and tries again in {minutes:g} min"
    log.write("unsaved", training.step, message=message)
    display.say(message)


def _tell_unreadable(
    split: Split, named: set[int], step: int, log: RunLog, display: Display
) -> None:
    """Name the pictures that could not be decoded when their turn came, once each."""
    if isinstance(split.images, ListedPictures):
        # A copy, taken in one go: threads that read ahead may find another one meanwhile.
        for number, reason in sorted(dict(split.images.unreadable).items()):
            if number not in named:
                named.add(number)
                path = split.sources[number]
                log.write("left_out", step, path=path, reason=reason)
                display.say(f"left out: {path}: {reason}")


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
        values: list[float] = []
        if self.steps:
            losses = torch.stack([loss for _, loss, *_ in self.steps])
            values = training.ranks.replicas.sum(losses, "losses").tolist()
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
    rates = warmed_up(training.schedule.rates(epoch), training.recipe, epoch)
    set_rates(training.optimizer.param_groups, rates, training.noise_generator)
    training.colour_noise = rates.colour_noise
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(group["lr"] != 0)
    if rates.reason != training.reason:
        training.reason = rates.reason
        lr = training.recipe.optimizer.lr * rate_factor(training.recipe) * rates.weights
        log.write("rate", training.step, epoch=epoch, lr=lr, reason=rates.reason, ahead=True)
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
        log.write("scales", step, layers=[asdict(scale) for scale in scales], ahead=True)
    stall = training.detector.observe_layers(step, scales)
    if stall is not None:
        _tell(stall, scales, log, display, ahead=True)


def _scales(training: Training, images: Tensor, labels: Tensor) -> list[LayerScales]:
    """Measure each layer, frozen ones too; nothing on a last minibatch of a single picture.

    Of several ranks, the first measures the whole network on the whole batch, for all.
    """
    ranks, model = training.ranks, training.model
    if training.batch_images < 2:
        return []
    images = images.to(next(model.parameters()).dtype)  # in bf16 the copies of these are less
    model.requires_grad_(True)  # until the rates of the next step are set
    if not isinstance(model, PartAlexNet):
        return layer_scales(model, images, labels)
    whole = whole_model(model, training.device)
    sizes = model.counts
    images = ranks.replicas.gather(images.contiguous(), 0, sizes, "images to measure")
    labels = ranks.replicas.gather(labels, 0, sizes, "labels to measure")
    found = layer_scales(whole, images, labels) if ranks.speaks else []
    return ranks.of_first(found)


def _tell(
    stall: Stall, scales: list[LayerScales], log: RunLog, display: Display, **more: bool
) -> None:
    message, layers = explain(stall, scales), [asdict(scale) for scale in scales]
    log.write("stall", stall.step, reason=stall.reason, message=message, layers=layers, **more)
    display.say(message)


def _validate(
    training: Training,
    dataset: PackedDataset,
    per_epoch: int,
    log: RunLog,
    display: Display,
    stopped: list[int],
) -> None:
    """Evaluate with one view on the validation split, and tell the schedule the error.

    Where the recipe asks for it, on training pictures too, which may end the training. A signal in
    `stopped` ends the evaluation: then the training still owes it.
    """
    settings = training.recipe.evaluate
    splits = [dataset.splits["val"]]
    if settings.train_pictures:
        splits.append(first_of(dataset.splits["train"], settings))
    training.owes_evaluation = True
    try:
        found = [_evaluate(training, split, stopped) for split in splits]
    except _Stop:
        return
    except (UserError, OSError) as error:
        raise PicturesLost(str(error)) from error
    training.owes_evaluation = False
    epoch = training.step / per_epoch
    for predictions in found:
        log.write(
            "evaluation",
            training.step,
            epoch=epoch,
            split=predictions.split,
            views=1,
            loss=-mean_log_probability(predictions),
            **score(predictions).as_dict(),
        )
    errors = score(found[0])
    display.say(
        f"epoch {epoch:.1f}: validation error {errors.top1_error:.2%} top-1, "
        f"{errors.top5_error:.2%} top-5 of {errors.images:,} pictures, one view"
    )
    if errors.top1_error < training.best_error:
        training.best_error, training.best_step = errors.top1_error, training.step
    training.schedule.observe(errors.top1_error, settings.every_epochs * per_epoch)
    for errors in map(score, found[1:]):
        display.say(
            f"training error {errors.top1_error:.2%} of {errors.images:,} pictures, one view"
        )
        training.has_ended = errors.top1_error <= settings.stop_train_error


def first_of(split: Split, settings: EvaluateConfig) -> Split:
    """The first `train_pictures` in the order of a shuffle that no seed of a training changes."""
    order = permutation(0, "training pictures to evaluate", 0, len(split))
    chosen = np.sort(order[: settings.train_pictures])
    return split.part(chosen)


def _evaluate(training: Training, split: Split, stopped: list[int]) -> Predictions:
    """What the network says with one view. Raises _Stop when there is a signal in `stopped`.

    Columns look at the same pictures together, replicas at different ones; of the hybrid, the
    network itself shares them out.
    """
    ranks = training.ranks

    def look(done: int, total: int) -> None:
        if stopped and ranks.size == 1:  # of several, all have to come to the end
            raise _Stop

    training.model.eval()
    try:
        return predict(
            partial(logits, training),
            split,
            training.preprocessing,
            views=1,
            batch_size=training.recipe.evaluate.batch_size,
            device=training.device,
            progress=look,
            group=ALONE.everyone if ranks.plan.hybrid else ranks.replicas,
        )
    finally:
        training.model.train()


class _Stop(Exception):
    """Ends an evaluation."""


def _save(training: Training, saver: Saver, *, best: bool = False) -> None:
    """Have a checkpoint saved. Raises Diverged, and keeps the last, where weights are not finite.

    The loss of a step is of the weights before it: it cannot tell what the step itself did.
    """
    broken = torch.tensor([not all_finite(training.model.parameters())], dtype=torch.uint8)
    if training.ranks.everyone.max(broken, "weights are finite").item():
        raise Diverged(
            f"step {training.step}: weights are no longer finite; the last checkpoint is kept"
        )
    saver.save(training.state_dict(), best=best)


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is: by sums, which a NaN or an infinity spoils and one look can tell."""
    tensors = list(tensors)
    if bool(torch.stack([tensor.sum() for tensor in tensors]).isfinite().all()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)  # or a sum that overflowed


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
        origin=training.origin,
        statistics_images=dataset.statistics_images,
    )


def _save_best(training: Training, card: ModelCard, run: Path, say: Callable[[str], None]) -> None:
    """RUN/best.safetensors: the weights of the best checkpoint, where they are not the last."""
    path = run / "best.safetensors"
    path.unlink(missing_ok=True)
    for found in checkpoint.available(run / "checkpoints", "best"):
        if checkpoint.step_of(found) == training.step:
            return
        try:
            state = checkpoint.load(found)
        except UserError as error:
            say(f"{error}; there will be no {path.name}")
            return
        best = build(training.model.network, training.model.num_classes)
        best.load_state_dict(state["model"])
        save_model(path, best, card)
        say(
            f"the least validation error, {state['best_error']:.2%} top-1, was at step "
            f"{state['step']:,}: {path}"
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
                ranks=training.ranks,
            )
            counts = result.runs[0].errors.as_dict()
            evaluations.append({"split": split, "views": views, **counts})
            log.write(
                "evaluation",
                training.step,
                epoch=training.step / per_epoch,
                split=split,
                views=views,
                final=True,
                **counts,
            )
    measured = training.rates[WARM_UP_STEPS:] or training.rates
    return {
        "recipe": recipe.name,
        "network": recipe.network.name,
        "dataset": dataset.name,
        "seed": recipe.system.seed,
        "precision": recipe.system.precision,
        "parallel": str(training.ranks.plan),
        "departs_from_paper": departures(recipe),
        "epochs": training.step / per_epoch,
        "steps": training.step,
        "seconds": training.seconds,
        "images_per_second": statistics.median(measured),
        "wait_share": training.wait_seconds / training.seconds,
        "evaluations": evaluations,
    }


def _note_session(training: Training, dataset: PackedDataset, run: Path) -> None:
    """Write recipe.json and environment.json, or what is new in this session of the run."""
    recipe, path = training.recipe, run / "environment.json"
    facts, changed = environment(training.device), {}
    facts["parallel"] = str(training.ranks.plan)
    facts["way"] = way(training)
    if (run / "recipe.json").exists() and path.exists():
        before = from_dict(read_json(run / "recipe.json"))
        changed = {name: list(values) for name, values in differences(before, recipe).items()}
    write_json(run / "recipe.json", recipe.as_dict())
    if not path.exists():
        write_json(path, {**facts, **_identity(training, dataset), "sessions": []})
    add_session(run, session(facts, training.step, changed))


def _identity(training: Training, dataset: PackedDataset) -> dict[str, Any]:
    """Which pictures these are, and where; the recipe says how they were asked for."""
    is_packed = training.recipe.data.prepare
    return {
        "data_path": str(dataset.path.resolve()),
        **({"from": training.origin} if training.origin else {}),
        "dataset": {
            "name": dataset.name,
            "classes": len(dataset.class_names),
            **{f"{name}_images": len(split) for name, split in dataset.splits.items()},
            "left_out": len(dataset.left_out),
            "statistics_images": dataset.statistics_images,
            **({"sha256": sha256_of(dataset.path / "dataset.json")} if is_packed else {}),
        },
    }


def _interrupt(number: int, run: Path) -> NoReturn:
    raise Interrupted(number, run)
