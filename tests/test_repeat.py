"""A run can be repeated: the same bits on the same machine, and what is not the same is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fabricate
from alexnet import step
from alexnet.files import read_json, write_json
from alexnet.loader import batches
from fabricate import SHAPES, alexnet, refusal

STEPS = ("--max-steps", "4")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("repeat") / "run"
    with fabricate.shared_cache(tmp_path_factory):
        assert alexnet(*SHAPES, "--run", run, *STEPS, "--set", "system.threads=0").code == 0
    return run


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def repeat(run: Path, *arguments: str) -> tuple[Path, str]:
    again = run.parent / "again"
    finished = alexnet("train", "--repeat", run, "--run", again, "--no-report", *arguments)
    assert finished.code == 0, finished
    return again, finished.out


def test_a_repeated_run_ends_with_the_same_bits_and_says_so(run: Path) -> None:
    again, said = repeat(run)
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert fabricate.losses(again) == fabricate.losses(run)
    assert f"the weights are those of {run}, bit for bit" in said
    assert "not as in" not in said


def test_as_many_threads_are_taken_as_before(run: Path) -> None:
    """They decide the order of sums; a run that left them to PyTorch noted how many it had."""
    environment = read_json(run / "environment.json")
    write_json(run / "environment.json", {**environment, "threads": 3})
    again, said = repeat(run)
    assert read_json(again / "recipe.json")["system"]["threads"] == 3
    assert "not as in" not in said


def test_what_is_not_as_before_is_named_in_a_line(run: Path) -> None:
    environment = read_json(run / "environment.json")
    environment |= {"torch": "1.0", "cpu": "abacus"}
    environment["sessions"].append({"step": 2, "changed": {"schedule.epochs": [50, 100]}})
    write_json(run / "environment.json", environment)
    _, said = repeat(run)
    (line,) = [line for line in said.splitlines() if "not as in" in line]
    assert f"torch 1.0 -> {torch.__version__}, cpu abacus -> " in line
    assert "commit" not in line
    assert "gone on with at step 2 with schedule.epochs 50 -> 100" in said


def test_another_seed_is_another_training_and_the_difference_is_told(run: Path) -> None:
    _, said = repeat(run, "--seed", "1")
    assert f"other settings than {run}: system.seed 0 -> 1" in said
    assert f"the weights are not those of {run}: they differ by up to " in said


def test_pictures_that_are_not_the_same_are_refused(run: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    environment = read_json(run / "environment.json")
    shutil.copytree(environment["data_path"], packed)
    write_json(run / "environment.json", {**environment, "data_path": str(packed)})
    repeat(run)
    described = read_json(packed / "dataset.json")
    write_json(packed / "dataset.json", {**described, "name": "others"})
    said = refusal("train", "--repeat", run, "--run", tmp_path / "more")
    assert f"the pictures in {packed} are others than {run} was begun with" in said
    assert "are others than" in refusal("train", "--resume", "--run", run)
    assert not (tmp_path / "more").exists()


def test_pictures_named_from_another_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabricate.pictures(tmp_path / "there" / "pictures")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    run = tmp_path / "there" / "run"
    assert alexnet(*fabricate.FOLDER, "pictures", "--run", run, "--no-report").code == 0
    shutil.rmtree(read_json(run / "environment.json")["data_path"])
    monkeypatch.chdir(tmp_path / "here")
    _, said = repeat(run)
    assert "bit for bit" in said


def test_the_report_lists_each_session_of_a_run_that_was_gone_on_with(run: Path) -> None:
    environment = read_json(run / "environment.json")
    assert alexnet("report", run).code == 0
    assert "taken up" not in (run / "report.html").read_text()
    first = environment["sessions"][0]
    later = {**first, "step": 1234, "command": ["alexnet", "train", "--resume"]}
    write_json(run / "environment.json", {**environment, "sessions": [first, later]})
    assert alexnet("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "It was taken up 2 times" in page
    assert '<td class="number">1,234</td><td><code>alexnet train --resume</code></td>' in page


@pytest.mark.parametrize(
    "arguments", [("shapes",), ("--recipe", "shapes"), ("--resume", "--run", "x")]
)
def test_a_repetition_takes_everything_from_its_run(run: Path, arguments: tuple[str, ...]) -> None:
    assert "--repeat has all from its run" in refusal("train", *arguments, "--repeat", run)


def test_only_a_run_can_be_repeated(tmp_path: Path) -> None:
    assert "is no run to" in refusal("train", "--repeat", tmp_path)


# --- The same bits --------------------------------------------------------------------------------


@pytest.fixture
def restored() -> Any:
    yield
    step.repeat_bits(always=False)


def test_deterministic_kernels_are_asked_for_and_given_up_again(
    tmp_path: Path, restored: None
) -> None:
    run = tmp_path / "run"
    assert alexnet(*SHAPES, "--run", run, *STEPS, "--deterministic").code == 0
    assert read_json(run / "recipe.json")["system"]["deterministic"] is True
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert alexnet(*SHAPES, "--run", tmp_path / "other", *STEPS).code == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert fabricate.losses(run) == fabricate.losses(tmp_path / "other")


def weights_after(steps: int, device: str, precision: str) -> list[torch.Tensor]:
    recipe = fabricate.recipe(
        data={"num_train": 96, "num_val": 24, "num_classes": 4},
        optimizer={"batch_size": 32},
        system={"device": device, "deterministic": True, "precision": precision},
    )
    dataset = fabricate.shapes()
    training = step.start(recipe, dataset)
    for batch in batches(dataset.splits["train"], recipe, step=0, stop=steps):
        step.train_step(training, *step.network_input(training, batch))
    return [weight.detach().cpu() for weight in training.model.parameters()]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_trainings_on_a_gpu_are_the_same_bits(precision: str, restored: None) -> None:
    first, second = (weights_after(20, "cuda", precision) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("threads", [1, 2])
def test_two_trainings_on_a_cpu_are_the_same_bits(
    threads: int, restored: None, each_with: Callable[[int], None]
) -> None:
    each_with(threads)
    first, second = (weights_after(4, "cpu", "fp32") for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.fixture
def each_with() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
