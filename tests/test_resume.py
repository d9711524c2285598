"""A training that was stopped goes on exactly: the same weights, bit for bit, and the same losses.

On a CPU in float32, as promised. Stops are SIGINT and SIGTERM, in this process at a chosen step and
from outside at whatever step they arrive, and SIGKILL, which nobody can answer.
"""

import copy
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fabricate
from alexnet import checkpoint, sessions, step, stopping, train
from alexnet.config import Recipe, from_dict
from alexnet.dataset import PackedDataset, open_packed
from alexnet.files import read_json, write_json
from alexnet.loader import batches
from alexnet.schedule import set_rates
from alexnet.stopping import EXIT_STOPPED
from fabricate import SHAPES, alexnet, alexnet_process, finish, refusal

STEPS = 8  # of 6 per epoch: an evaluation lies in between

# What a resumed training must remember: the noise of rates has a generator of its own, a plateau
# counts evaluations, a table freezes conv1 and ends the colour noise, chunks share crops.
KINDS = {
    "default": (),
    "noisy rates": ("--set", "schedule.noise=0.5"),
    "plateau": ("--set", "schedule.kind=plateau", "--set", "schedule.patience=1"),
    "frozen conv1": (
        *("--set", "schedule.kind=epochs", "--set", "schedule.table=source-2012"),
        *("--set", "augment.crop_chunk=32", "--set", "augment.colour=source"),
        *("--set", "data.order=fixed", "--epochs", "1.5"),
    ),
}


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def kill_self_after(steps: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal in the middle of its step number `steps`."""
    real, done = train.train_step, 0

    def step(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == steps:
            os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(train, "train_step", step)


def assert_same_training(run: Path, whole: Path) -> None:
    assert fabricate.losses(run) == fabricate.losses(whole)
    for kind in ("rate", "scales"):
        found, expected = (
            [(event["step"], event.get("lr")) for event in fabricate.events(folder, kind)]
            for folder in (run, whole)
        )
        assert found == expected, kind
    for name in ("loss", "top1_wrong", "top5_wrong", "epoch"):
        found, expected = (
            [(event["step"], event["views"], event.get(name)) for event in events]
            for events in (
                fabricate.events(run, "evaluation"),
                fabricate.events(whole, "evaluation"),
            )
        )
        assert found == expected, name
    assert weights(run) == weights(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A training of so many steps that nobody stopped."""
    done: dict[tuple[Any, ...], Path] = {}

    def of(steps: int = STEPS, kind: str = "default") -> Path:
        if (steps, kind) not in done:
            run = tmp_path_factory.mktemp("whole") / "run"
            finished = alexnet(*SHAPES, "--run", run, "--max-steps", str(steps), *KINDS[kind])
            assert finished.code == 0, finished
            done[steps, kind] = run
        return done[steps, kind]

    return of


@pytest.mark.parametrize(
    ("kind", "stop_at"),
    [
        ("default", 1),
        ("default", 6),
        ("default", STEPS),
        ("noisy rates", 3),
        ("plateau", 7),
        ("frozen conv1", 5),
        ("frozen conv1", 7),
    ],
)
def test_a_stopped_training_goes_on_bit_for_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Path],
    kind: str,
    stop_at: int,
) -> None:
    run = tmp_path / "run"
    command = (*SHAPES, "--run", run, "--max-steps", str(STEPS), *KINDS[kind])
    with monkeypatch.context() as patch:
        kill_self_after(stop_at, signal.SIGTERM, patch)
        stopped = alexnet(*command)
    assert stopped.code == EXIT_STOPPED, stopped
    assert list(fabricate.losses(run)) == list(range(1, stop_at + 1))
    assert [event["step"] for event in fabricate.events(run, "stop")] == [stop_at]
    assert not (run / "model.safetensors").exists()
    resumed = alexnet("train", "--resume", "--run", run, "--no-report")
    assert resumed.code == 0, resumed
    assert_same_training(run, whole(STEPS, kind))


def test_a_training_may_be_stopped_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    command: tuple[Any, ...] = (*SHAPES, "--run", run, "--max-steps", str(STEPS))
    for steps in (2, 3, 1):
        with monkeypatch.context() as patch:
            kill_self_after(steps, signal.SIGINT, patch)
            stopped = alexnet(*command)
        assert stopped.code == EXIT_STOPPED, stopped
        command = ("train", "--resume", "--run", run, "--no-report")
    assert alexnet(*command).code == 0
    assert_same_training(run, whole())


def test_the_way_to_go_on_is_said_and_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "a run"
    kill_self_after(1, signal.SIGINT, monkeypatch)
    stopped = alexnet(*SHAPES, "--run", run, "--max-steps", "2")
    said = f"stopped and saved; go on with: alexnet train --resume --run '{run}'"
    assert stopped.err == f"alexnet: {said}\n"


def test_the_handlers_of_signals_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    kill_self_after(1, signal.SIGTERM, monkeypatch)
    alexnet(*SHAPES, "--run", tmp_path / "run", "--max-steps", "2")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("views", [1, 10])
def test_a_training_stopped_while_it_evaluates_at_the_end_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., Path], views: int
) -> None:
    evaluate = train.evaluate_runs

    def stop(*arguments: Any, **settings: Any) -> Any:
        if settings["views"] == views:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(60)
        return evaluate(*arguments, **settings)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate_runs", stop)
        stopped = alexnet(*SHAPES, "--run", run, "--max-steps", str(STEPS))
    assert stopped.code == EXIT_STOPPED, stopped
    assert "go on with: alexnet train --resume" in stopped.err
    assert alexnet("train", "--resume", "--run", run, "--no-report").code == 0
    assert_same_training(run, whole())


def test_a_resumed_training_may_be_longer(tmp_path: Path, whole: Callable[..., Path]) -> None:
    run = tmp_path / "run"
    assert alexnet(*SHAPES, "--run", run, "--max-steps", "3").code == 0
    resume = ("train", "--resume", "--run", run, "--no-report", "--max-steps", str(STEPS))
    assert alexnet(*resume).code == 0
    assert fabricate.losses(run) == fabricate.losses(whole())
    assert weights(run) == weights(whole())
    summary = read_json(run / "summary.json")
    assert summary["steps"] == STEPS
    assert read_json(run / "recipe.json")["system"]["max_steps"] == STEPS


def test_more_epochs_are_more_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert alexnet(*SHAPES, "--run", run, "--epochs", "0.5").code == 0
    assert alexnet("train", "--resume", "--run", run, "--no-report", "--epochs", "1").code == 0
    assert list(fabricate.losses(run)) == [1, 2, 3, 4, 5, 6]
    recipe = read_json(run / "recipe.json")
    assert recipe["schedule"]["epochs"] == 1
    assert recipe["data"]["dataset"] == "shapes"


def test_a_resumed_run_keeps_its_recipe_and_tells_of_each_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_self_after(1, signal.SIGTERM, patch)
        alexnet(*SHAPES, "--run", run, "--max-steps", "2")
    recipe, environment = (run / "recipe.json").read_bytes(), read_json(run / "environment.json")
    resume = ("train", "--resume", "--run", run, "--no-report")
    assert alexnet(*resume).code == 0
    assert (run / "recipe.json").read_bytes() == recipe
    assert alexnet(*resume, "--max-steps", "3").code == 0
    after = read_json(run / "environment.json")
    told = after.pop("sessions")
    assert told[:1] == environment.pop("sessions")
    assert after == environment
    assert [session["step"] for session in told] == [0, 1, 2]
    assert told[1]["command"] == ["alexnet", *map(str, resume)]
    assert [session["changed"] for session in told] == [{}, {}, {"system.max_steps": [2, 3]}]


@pytest.mark.parametrize("left", ["nothing", "recipe", "environment", "log"])
def test_a_training_killed_before_its_first_checkpoint_can_be_begun_again(
    tmp_path: Path, whole: Callable[..., Path], left: str
) -> None:
    run, command = tmp_path / "run", (*SHAPES, "--max-steps", str(STEPS))
    shutil.copytree(whole(), run)
    kept = ["recipe.json", "environment.json", "log.jsonl"]
    kept = kept[: ["nothing", "recipe", "environment", "log"].index(left)]
    for path in run.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / ".environment.json.4711.tmp").write_text("{")
    if len(kept) < 2:
        assert alexnet(*command, "--run", run).code == 0
    else:
        assert "exists already" in refusal(*command, "--run", run)
        resumed = alexnet("train", "--resume", "--run", run, "--no-report")
        assert resumed.code == 0, resumed
        assert "beginning anew" in resumed.out
    assert_same_training(run, whole())
    assert not list(run.glob(".*.tmp"))


def test_two_trainings_do_not_share_a_run(run: Path) -> None:
    before = fabricate.snapshot(run)
    with sessions.alone_in(run):
        assert "another process trains in" in refusal("train", "--resume", "--run", run)
    assert fabricate.snapshot(run) == before


def test_what_killed_processes_left_half_written_is_removed(run: Path) -> None:
    leftover = run / "checkpoints" / ".step-00000008.pt.4711.tmp"
    leftover.write_bytes(b"half")
    assert alexnet("train", "--resume", "--run", run, "--no-report").code == 0
    assert not leftover.exists()


# --- Processes that are started again ------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("who", ["torchrun", "slurm"])
def test_a_training_that_is_started_again_goes_on_with_its_own_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Path],
    who: str,
    named: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    if who == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    else:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
    counter = "TORCHELASTIC_RESTART_COUNT" if who == "torchrun" else "SLURM_RESTART_COUNT"
    run = Path("run" if named else "runs/shapes")
    command = (*SHAPES, *(("--run", run) if named else ()), "--max-steps", str(STEPS))
    for count, stop_at in enumerate((2, 3)):
        monkeypatch.setenv(counter, str(count))
        with monkeypatch.context() as patch:
            kill_self_after(stop_at, signal.SIGTERM, patch)
            assert alexnet(*command).code == EXIT_STOPPED
    monkeypatch.setenv(counter, "2")
    assert alexnet(*command).code == 0
    assert_same_training(run, whole())
    told = read_json(run / "environment.json")["sessions"]
    assert [(session["restart"], session["step"]) for session in told] == [(0, 0), (1, 2), (2, 5)]


def test_what_another_launch_began_is_left_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command a second time: refused at first, and no less when it is started again."""
    before = fabricate.snapshot(run)
    command = ["alexnet", *map(str, SHAPES), "--run", str(run)]
    environment = read_json(run / "environment.json")
    environment["sessions"] = [{"command": command, "launch": ["agent 0123"], "restart": 0}]
    write_json(run / "environment.json", environment)
    before = fabricate.snapshot(run)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert "exists already" in refusal(*SHAPES, "--run", run)
    assert fabricate.snapshot(run) == before


def test_a_training_stopped_while_it_evaluates_on_the_way_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., Path]
) -> None:
    """It does not wait for the end of the evaluation, and the resumed training begins with it."""
    run, predict, looked = tmp_path / "run", train.predict, []

    def stopped(*arguments: Any, progress: Callable[[int, int], None], **settings: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)

        def look(done: int, total: int) -> None:
            looked.append(done)
            progress(done, total)
            raise AssertionError("the evaluation goes on")

        return predict(*arguments, progress=look, **settings)

    command: tuple[Any, ...] = (*SHAPES, "--run", run, "--max-steps", str(STEPS), *KINDS["plateau"])
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(train, "predict", stopped)
            first = alexnet(*command)
        assert first.code == EXIT_STOPPED, first
        assert looked.pop() == 24
        assert not fabricate.events(run, "evaluation")
        assert [event["step"] for event in fabricate.events(run, "stop")][-1:] == [6]
        command = ("train", "--resume", "--run", run, "--no-report")
    assert alexnet(*command).code == 0
    assert_same_training(run, whole(STEPS, "plateau"))


def test_a_signal_that_comes_twice_is_one_wish_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under torchrun, where Ctrl-C comes from the terminal and from torchrun."""
    real = train.train_step

    def step(*arguments: Any) -> Any:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(train, "train_step", step)
    stopped = alexnet(*SHAPES, "--run", tmp_path / "run", "--max-steps", "9")
    assert stopped.code == EXIT_STOPPED, stopped
    assert [event["step"] for event in fabricate.events(tmp_path / "run", "stop")] == [1]


def test_who_asks_again_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "SAME_WISH_SECONDS", 0.0)
    disk, save, saves = threading.Event(), checkpoint.save, []

    def hang(*arguments: Any, **settings: Any) -> Path:
        saves.append(1)
        if len(saves) > 1:  # the first is that of step 0
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            disk.wait(60)
        return save(*arguments, **settings)

    monkeypatch.setattr(checkpoint, "save", hang)
    kill_self_after(1, signal.SIGINT, monkeypatch)
    # A shell starts what runs in the background with SIGINT ignored.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = alexnet(*SHAPES, "--run", tmp_path / "run", "--max-steps", "9")
    finally:
        signal.signal(signal.SIGINT, ignored)
        disk.set()
    assert (stopped.code, stopped.err) == (130, "alexnet: interrupted\n")


# --- What a checkpoint must hold ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("model", "default"),
        ("optimizer", "default"),
        ("schedule", "plateau"),
        ("dropout", "default"),
        ("noise", "noisy rates"),
        ("step", "default"),
        ("reason", "plateau"),
        ("detector", "default"),
        ("best_error", "default"),
        ("best_step", "default"),
        ("rates", "default"),
        ("seconds", "default"),
        ("wait_seconds", "default"),
        ("owes_evaluation", "default"),
        ("has_ended", "default"),
    ],
)
def test_each_part_of_a_checkpoint_is_needed(
    whole: Callable[..., Path], part: str, kind: str
) -> None:
    """A training that forgot this part alone is another one, and the comparison sees it."""
    run = whole(STEPS, kind)
    recipe = from_dict(read_json(run / "recipe.json"))
    dataset = open_packed(Path(read_json(run / "environment.json")["data_path"]))
    state = fabricate.checkpoint_state(run, 6)
    state |= {"owes_evaluation": True, "has_ended": True, "reason": "drop 1 of 3"}
    forgotten = {part: step.start(recipe, dataset).state_dict()[part]}
    remembered = outcome(recipe, dataset, state)
    assert remembered == outcome(recipe, dataset, state)
    assert remembered != outcome(recipe, dataset, {**state, **forgotten})


def outcome(recipe: Recipe, dataset: PackedDataset, state: dict[str, Any]) -> Any:
    """Everything that a training knows two steps after a checkpoint."""
    training = step.start(recipe, dataset)
    training.load_state_dict(copy.deepcopy(state))
    split = dataset.splits["train"]
    for batch in batches(split, recipe, step=training.step, stop=training.step + 2):
        rates = training.schedule.rates(training.step / 6)
        set_rates(training.optimizer.param_groups, rates, training.noise_generator)
        loss = step.train_step(training, *step.network_input(training, batch))
        training.step += 1
        training.detector.observe(training.step, loss.item())
    training.schedule.observe(0.999)
    return plain(training.state_dict())


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


# --- Processes that are stopped from outside ----------------------------------------------------


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    log = run / "log.jsonl"
    while process.poll() is None:
        if log.exists() and log.read_text().count('"event": "step"') >= step:
            return
        time.sleep(0.01)
    raise AssertionError(finish(process))


def resume_a_little_further(run: Path) -> int:
    """Go on for two steps after the newest checkpoint; return the number of steps."""
    newest = max(int(path.stem.removeprefix("step-")) for path in run.glob("checkpoints/*.pt"))
    steps = str(newest + 2)
    resumed = alexnet("train", "--resume", "--run", run, "--no-report", "--max-steps", steps)
    assert resumed.code == 0, resumed
    return newest + 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_process_saves_when_it_is_asked_to_stop(
    tmp_path: Path, whole: Callable[..., Path], number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with alexnet_process(*SHAPES, "--run", run) as process:
        wait_for_step(run, 2, process)
        process.send_signal(number)
        stopped = finish(process)
    assert stopped.code == EXIT_STOPPED, stopped
    assert stopped.err.count("\n") == 1, stopped.err
    assert f"alexnet train --resume --run {run}" in stopped.err
    (event,) = fabricate.events(run, "stop")
    assert event["signal"] == number
    assert max(fabricate.losses(run)) == event["step"]
    steps = resume_a_little_further(run)
    assert steps == event["step"] + 2
    assert fabricate.losses(run) == fabricate.losses(whole(steps))
    assert weights(run) == weights(whole(steps))


def test_a_killed_process_goes_on_from_its_last_checkpoint(
    tmp_path: Path, whole: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    often = ("--set", "system.checkpoint_minutes=0.0005", "--set", "system.keep_checkpoints=3")
    with alexnet_process(*SHAPES, "--run", run, *often) as process:
        wait_for_step(run, 5, process)
        process.kill()
        assert finish(process).code == -signal.SIGKILL
    # Events of the step that it will do again, ahead of which they were written.
    log = run / "log.jsonl"
    rate = next(line for line in log.read_text().splitlines() if '"rate"' in line)
    newest_step = max(checkpoint.step_of(path) for path in run.glob("checkpoints/step-*.pt"))
    with log.open("a") as file:
        file.write(rate.replace('"step": 0', f'"step": {newest_step}') + "\n")
    # A disk that died with the machine: the newest checkpoint is not whole.
    newest = max(run.glob("checkpoints/*.pt"))
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    path = cut / "checkpoints" / newest.name
    path.write_bytes(path.read_bytes()[:-1000])
    for interrupted in (run, cut):
        steps = resume_a_little_further(interrupted)
        assert fabricate.losses(interrupted) == fabricate.losses(whole(steps))
        assert weights(interrupted) == weights(whole(steps))


# --- Checkpoints that are damaged ---------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of STEPS steps that was stopped after six, with checkpoints at six and at two."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with fabricate.shared_cache(tmp_path_factory), pytest.MonkeyPatch.context() as patch:
        first = alexnet(*SHAPES, "--run", run, "--max-steps", "2")
        kill_self_after(4, signal.SIGTERM, patch)
        resume = ("train", "--resume", "--run", run, "--no-report", "--max-steps", str(STEPS))
        second = alexnet(*resume)
    assert (first.code, second.code) == (0, EXIT_STOPPED), (first, second)
    names = sorted(path.name for path in run.glob("checkpoints/*.pt"))
    assert names == ["step-00000002.pt", "step-00000006.pt"]
    return run


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_run, tmp_path / "copy"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no checksum"])
def test_the_checkpoint_before_a_damaged_one_is_used_and_said_so(
    run: Path, whole: Callable[..., Path], damage: str
) -> None:
    newest = run / "checkpoints" / "step-00000006.pt"
    if damage == "cut":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif damage == "flipped":
        fabricate.flip_bit(newest, 0.6)
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        newest.with_suffix(".sha256").unlink()
    resumed = alexnet("train", "--resume", "--run", run, "--no-report")
    assert resumed.code == 0, resumed
    (said,) = [line for line in resumed.out.splitlines() if "using the one before" in line]
    assert str(newest.with_suffix("")) in said
    assert [event["step"] for event in fabricate.events(run, "resume")][-1] == 2
    assert fabricate.losses(run) == fabricate.losses(whole())
    assert weights(run) == weights(whole())


def test_without_a_whole_checkpoint_the_folder_is_named_and_left_alone(run: Path) -> None:
    for path in run.glob("checkpoints/*.pt"):
        fabricate.flip_bit(path, 0.5)
    before = fabricate.snapshot(run)
    assert "is damaged; start a new run" in refusal("train", "--resume", "--run", run)
    assert fabricate.snapshot(run) == before


def test_a_log_cut_short_by_a_crash_is_mended(run: Path, whole: Callable[..., Path]) -> None:
    log = run / "log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "step", "step": 7, "lo')
    assert alexnet("train", "--resume", "--run", run, "--no-report").code == 0
    assert fabricate.losses(run) == fabricate.losses(whole())


def test_pictures_whose_cache_was_emptied_are_packed_again(
    run: Path, whole: Callable[..., Path]
) -> None:
    expected = whole()
    packed = Path(read_json(run / "environment.json")["data_path"])
    shutil.rmtree(packed)
    assert alexnet("train", "--resume", "--run", run, "--no-report").code == 0
    assert packed.exists()
    assert weights(run) == weights(expected)


# --- What a resumed training does not do --------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "source-2012"), "was begun with recipe shapes, not source-2012"),
        (("--set", "network.name=paper"), "keeps its network.name"),
        (("--seed", "1"), "keeps its system.seed"),
        (("--lr", "0.5"), "keeps its optimizer.lr, optimizer.bias_lr"),
        (("--batch-size", "32"), "keeps its optimizer.batch_size"),
        (("--set", "data.order=fixed"), "keeps its data.order"),
        (("--set", "schedule.kind=exp"), "keeps its schedule.kind"),
        (("elsewhere",), "was begun with the pictures shapes, not elsewhere"),
    ],
)
def test_a_resumed_training_stays_the_same_training(
    run: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = fabricate.snapshot(run)
    assert said in refusal("train", *arguments, "--resume", "--run", run)
    assert fabricate.snapshot(run) == before


def test_the_same_words_as_at_the_start_are_taken(run: Path) -> None:
    same = ("shapes", "--recipe", "shapes", "--seed", "0", "--batch-size", "16")
    assert alexnet("train", *same, "--resume", "--run", run, "--no-report").code == 0


def test_a_checkpoint_of_another_network_is_refused(run: Path) -> None:
    recipe = read_json(run / "recipe.json")
    recipe["network"]["name"] = "cifar10-80sec"
    recipe["augment"]["crop_px"] = 32
    write_json(run / "recipe.json", recipe)
    said = refusal("train", "--resume", "--run", run)
    assert "the checkpoint is of network small with 4 classes" in said
    assert "the recipe says cifar10-80sec with 4" in said


def test_a_checkpoint_of_another_version_is_refused(run: Path) -> None:
    state = fabricate.checkpoint_state(run, 6)
    del state["dropout"]
    checkpoint.save(run / "checkpoints", 6, state, keep=1)
    said = refusal("train", "--resume", "--run", run)
    assert "another version of alexnet: it has no dropout" in said


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    assert "--resume needs the run" in refusal("train", "--resume")
    said = refusal("train", "--resume", "--run", tmp_path / "none")
    assert "is no run to resume" in said


@pytest.mark.parametrize("name", ["recipe.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 1}'])
def test_a_damaged_description_of_the_run_is_named(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    assert name in refusal("train", "--resume", "--run", run)
