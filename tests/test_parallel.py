"""Several ranks train as one does: order, losses, weights, evaluations; and what goes wrong is
told in one line.

Most with four processes over loopback that stay (`ranks.Crew`); torchrun itself at the end.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from rich.console import Console

import fabricate
from alexnet import checkpoint, collectives, parallel
from alexnet.config import Recipe, diff
from alexnet.errors import UserError
from alexnet.parallel import Plan, Ranks, parse
from alexnet.predictions import mean_over_views
from alexnet.rendezvous import own_store
from alexnet.step import start
from alexnet.stopping import Interrupted
from alexnet.train import train
from alexnet.weights import load
from ranks import Crew

# 33 pictures in a minibatch, and one in the last: parts differ in size, and some ranks get none.
STEPS = 6
WAYS = [("columns=2", 2), ("data=2", 2), ("columns=2,data=2", 4), ("data=4", 4)]
WAYS += [("hybrid", 2), ("hybrid", 4)]


def small_recipe(steps: int = STEPS, **system: object) -> Recipe:
    recipe = fabricate.recipe(
        data={"dataset": "shapes", "num_train": 100, "num_val": 25, "num_classes": 5},
        optimizer={"batch_size": 33},
        evaluate={"views": "10", "batch_size": 7},
        schedule={"epochs": 50.0},
    )
    settings = {"device": "cpu", "precision": "fp64", "log_steps": 1, "max_steps": steps}
    return diff(recipe, system=settings | {"threads": 1, "loader_threads": 1} | system)


def run_training(ranks: Ranks, recipe: Recipe, run: Path, resume: bool = False) -> None:
    dataset = fabricate.shapes(100, 25, 5)
    console = Console(quiet=True)
    train(recipe, dataset, run, resume=resume, console=console, ranks=ranks)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    with fabricate.shared_cache(tmp_path_factory):
        run_training(Ranks(), small_recipe(scales_steps=3), run)
    return run


def assert_same_run(run: Path, expected: Path) -> None:
    for kind, names in (("step", ("loss", "lr")), ("evaluation", ("loss", "top1_error", "images"))):
        found, wanted = fabricate.events(run, kind), fabricate.events(expected, kind)
        assert len(found) == len(wanted) > 0
        for event, other in zip(found, wanted, strict=True):
            for name in names:
                if name in other:
                    assert event[name] == pytest.approx(other[name], abs=1e-9, rel=0), name
    weights, others = load(run).state_dict(), load(expected).state_dict()
    for name, weight in others.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-8)
    newest = [checkpoint.load_newest(r / "checkpoints", print) for r in (run, expected)]
    for name, weight in newest[1]["model"].items():
        torch.testing.assert_close(newest[0]["model"][name], weight, rtol=0, atol=1e-9)
    velocities = [state["optimizer"]["state"] for state in newest]
    for index, other in velocities[1].items():
        velocity = velocities[0][index]["velocity"]
        torch.testing.assert_close(velocity, other["velocity"], rtol=0, atol=1e-9)
    assert torch.equal(newest[0]["dropout"], newest[1]["dropout"])


@pytest.mark.parametrize(("way", "size"), WAYS)
def test_ranks_train_as_one_device_does(
    crew: Crew, one_device: Path, tmp_path: Path, way: str, size: int
) -> None:
    crew.run(run_training, small_recipe(scales_steps=3), tmp_path / "run", size=size, way=way)
    assert_same_run(tmp_path / "run", one_device)
    found, wanted = (fabricate.events(run, "scales") for run in (tmp_path / "run", one_device))
    for event, other in zip(found, wanted, strict=True):
        for layer, expected in zip(event["layers"], other["layers"], strict=True):
            assert layer == pytest.approx(expected, abs=1e-9)


def test_a_run_goes_on_with_any_number_of_ranks(
    crew: Crew, one_device: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_training(Ranks(), small_recipe(2), run)
    crew.run(run_training, small_recipe(4), run, True, size=4, way="columns=2,data=2")
    crew.run(run_training, small_recipe(5), run, True, size=2, way="data=2")
    run_training(Ranks(), small_recipe(6), run, True)
    losses = fabricate.losses(run)
    assert losses == pytest.approx(fabricate.losses(one_device), abs=1e-9, rel=0)


def leave_in_an_evaluation(ranks: Ranks, recipe: Recipe, run: Path) -> None:
    fails = mock.patch("alexnet.train._evaluate", side_effect=ZeroDivisionError)
    with fails, pytest.raises(ZeroDivisionError):
        run_training(ranks, recipe, run)


def test_ranks_that_are_killed_in_an_evaluation_lose_no_step(
    crew: Crew, tmp_path: Path, one_device: Path
) -> None:
    run = tmp_path / "run"
    crew.run(leave_in_an_evaluation, small_recipe(), run, way="data=2")
    saved = checkpoint.load_newest(run / "checkpoints", print)
    assert (saved["step"], saved["owes_evaluation"]) == (4, True)  # the first epoch
    crew.run(run_training, small_recipe(), run, True, way="data=2")
    assert_same_run(run, one_device)


@pytest.mark.parametrize("way", ["data=4", "hybrid"])
def test_four_ranks_that_go_on_end_with_the_same_bits(crew: Crew, tmp_path: Path, way: str) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    recipe = partial(small_recipe, precision="fp32")
    crew.run(run_training, recipe(5), whole, size=4, way=way)
    for steps in (1, 3, 5):
        crew.run(run_training, recipe(steps), stopped, steps > 1, size=4, way=way)
    assert fabricate.losses(stopped) == fabricate.losses(whole)
    weights, others = load(stopped).state_dict(), load(whole).state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in others.items())


def test_the_first_rank_alone_writes(crew: Crew, tmp_path: Path) -> None:
    crew.run(run_training, small_recipe(2), tmp_path / "run", size=4, way="data=4")
    (begun,) = fabricate.events(tmp_path / "run", "start")
    assert (begun["parallel"], begun["ranks"]) == ("data=4", 4)
    assert len(fabricate.events(tmp_path / "run", "step")) == 2
    assert not [path for path in (tmp_path / "run").rglob(".*") if "seen" in path.name]


def parts_of_a_network(ranks: Ranks) -> tuple[int, int]:
    training = start(small_recipe(), fabricate.shapes(100, 25, 5), ranks)
    for group in training.optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    training.optimizer.step()
    parameters = sum(weight.numel() for weight in training.model.parameters())
    state = training.optimizer.state.values()
    return parameters, sum(values["velocity"].numel() for values in state)


def test_a_column_holds_half_of_the_parameters_and_velocities(crew: Crew) -> None:
    whole = parts_of_a_network(Ranks())
    halves = crew.run(parts_of_a_network, size=2, way="columns=2")
    assert tuple(map(sum, zip(*halves, strict=True))) == whole
    for half in halves:
        assert half[0] == half[1] <= 0.55 * whole[0]


def shared_vectors(ranks: Ranks, count: int) -> np.ndarray:
    dataset = fabricate.shapes(100, count, 5)
    preprocessing = start(small_recipe(), dataset).preprocessing
    return mean_over_views(
        lambda crops: crops.mean((2, 3)),
        dataset.splits["val"],
        preprocessing,
        views=10,
        batch_size=40,
        device="cpu",
        group=ranks.everyone,
    )


@pytest.mark.parametrize("count", [5, 25, 27])
def test_ranks_share_the_pictures_of_an_evaluation_and_none_counts_twice(
    crew: Crew, count: int
) -> None:
    alone = shared_vectors(Ranks(), count)
    for vectors in crew.run(shared_vectors, count, size=4, way="data=4"):
        np.testing.assert_array_equal(vectors, alone)


def disagree(ranks: Ranks) -> str:
    recipe = {"optimizer": {"lr": 0.02 if ranks.rank == 1 else 0.01}, "seed": 0}
    with pytest.raises(UserError) as refused:
        ranks.same(recipe=recipe)
    return str(refused.value)


def test_ranks_that_start_differently_are_told_apart_at_once(crew: Crew) -> None:
    for line in crew.run(disagree, size=2):
        assert "rank 1 disagrees with rank 0 about the recipe: optimizer.lr is 0.02 there" in line


# --- What --parallel says ------------------------------------------------------------------------


def test_a_way_fits_the_number_of_processes() -> None:
    assert parse(None, 1) == Plan()
    assert parse(None, 4) == Plan(replicas=4) == parse("data=4", 4)
    assert parse("columns=2", 4) == Plan(replicas=2, columns=2) == parse("columns=2,data=2", 4)
    assert str(parse("data=2,columns=2", 4)) == "columns=2,data=2"
    assert parse("hybrid", 2).hybrid


@pytest.mark.parametrize(
    ("text", "size", "says"),
    [
        ("columns=2", 1, "needs 2 processes and 1 process runs; start torchrun --nproc-per-node 2"),
        ("columns=2", 3, "needs 2 processes and 3 processes run"),
        ("data=3", 2, "needs 3 processes and 2 processes run"),
        ("colums=2", 2, "did you mean 'columns'"),
        ("columns=two", 2, "say columns=N once"),
        ("columns=2,columns=2", 4, "say columns=N once"),
        ("hybrid,columns=2", 2, "hybrid stands alone"),
        ("", 2, "no ''"),
    ],
)
def test_a_way_that_cannot_be_is_refused(text: str, size: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(text, size)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--parallel", "columns=2"), "needs 2 processes"),
        (("--parallel", "columns"), "say columns=N"),
    ],
)
def test_without_a_launcher_the_command_says_how_to_start(
    tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    assert says in fabricate.refusal(*fabricate.SHAPES, "--run", tmp_path / "run", *flags)


def test_a_batch_smaller_than_the_replicas_is_refused(crew: Crew, tmp_path: Path) -> None:
    for line in crew.run(refused_training, tmp_path / "run", size=4, way="data=4"):
        assert "a batch of 3 pictures has none for some of 4 replicas" in line


def refused_training(ranks: Ranks, run: Path) -> str:
    with pytest.raises(UserError) as refused:
        run_training(ranks, diff(small_recipe(), optimizer={"batch_size": 3}), run)
    return str(refused.value)


# --- torchrun -------------------------------------------------------------------------------------


def torchrun(*arguments: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of ours."""
    return [line for line in done.stderr.splitlines() if line.startswith("alexnet:")]


def test_torchrun_trains_two_columns_by_the_command(tmp_path: Path) -> None:
    shapes = [flag for flag in fabricate.SHAPES if flag != "--no-report"]
    steps = ("--max-steps", "2", "--no-report", "--set", "evaluate.views=1")
    done = torchrun(
        "-m", "--", "alexnet", *shapes, *steps, "--run", tmp_path / "two", "--parallel", "columns=2"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("evaluating") == 1
    alone = fabricate.alexnet(*shapes, *steps, "--run", tmp_path / "one")
    assert alone.code == 0
    losses = fabricate.losses(tmp_path / "two")
    assert losses == pytest.approx(fabricate.losses(tmp_path / "one"), abs=1e-5)


SCRIPT = """
import sys, time, torch
from alexnet.errors import UserError
from alexnet.rendezvous import own_store
from alexnet.parallel import joined, parse
with joined(parse(None, 2), seconds=2) as ranks:
    ranks.everyone.sum(torch.ones(1), "first sum")
    if ranks.rank == 1:
        {fault}
    ranks.everyone.sum(torch.ones(1), "second sum")
"""

FAULTS = {
    "time.sleep(60)": "rank 0 has waited 2 s in the exchange 'second sum'; rank 1 has not come to "
    "it (its last exchange: 'first sum')",
    "raise torch.OutOfMemoryError('no memory left')": "rank 1: out of memory: no memory left",
    "raise UserError('no such thing')": "rank 1: no such thing",
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.slow if "UserError" in fault else ())
        for fault in FAULTS
    ],
)
def test_what_one_rank_fails_at_ends_all_in_one_line(tmp_path: Path, fault: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(fault=fault))
    done = torchrun(script)
    assert done.returncode != 0
    (line,) = told(done)
    assert FAULTS[fault] in line
    assert "[rank" not in done.stderr  # with which PyTorch marks tracebacks


STARTED_AGAIN = """
import sys, time, torch
import torch.distributed as dist
from alexnet.parallel import joined, parse
with joined(parse(None, 2), seconds=30) as ranks:
    print("sum", ranks.everyone.sum(torch.ones(1), "a sum").item(), flush=True)
    if sys.argv[1] == "fail":
        raise MemoryError
"""


def test_ranks_that_start_again_do_not_meet_what_the_dead_have_left(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(STARTED_AGAIN)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }

    def start(rank: int, what: str) -> subprocess.Popen[str]:
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(script), what]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=own)

    ranks = [start(0, "fail"), start(1, "fail")]
    assert [rank.wait(100) for rank in ranks] == [1, 1]
    first = start(0, "work")
    time.sleep(0.5)  # in which it finds only the dead
    ranks = [first, start(1, "work")]
    for rank in ranks:
        out, error = rank.communicate(timeout=100)
        assert (rank.returncode, out) == (0, "sum 2.0\n"), error


def test_ranks_that_are_for_different_things_say_so_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from alexnet.parallel import joined, parse\n"
        "way = ('columns=2', 'data=2')[int(os.environ['RANK'])]\n"
        "with joined(parse(way, 2), seconds=30, resume=False):\n"
        "    pass\n"
    )
    (line,) = told(torchrun(script))
    assert "rank 1 disagrees with rank 0 about the parallel" in line
    assert "'data=2' there and 'columns=2' here" in line


def test_memory_that_is_not_there_is_no_failure_of_the_network() -> None:
    with pytest.raises(MemoryError), collectives._explained("an exchange"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
    told = pytest.raises(collectives.RankFailed, match="'an exchange' failed: gone")
    with told, collectives._explained("an exchange"):
        raise RuntimeError("gone")


def test_several_ranks_are_told_how_all_of_them_go_on() -> None:
    said = str(Interrupted(15, Path("runs/two"), 4, "columns=2,data=2"))
    assert said.endswith(
        "torchrun --nproc-per-node 4 -m -- alexnet train --resume --run runs/two "
        "--parallel columns=2,data=2"
    )


@pytest.mark.slow
def test_ranks_share_the_pictures_that_are_predicted(tmp_path: Path) -> None:
    assert (
        fabricate.alexnet(*fabricate.SHAPES, "--max-steps", "2", "--run", tmp_path / "a").code == 0
    )
    fabricate.pictures(tmp_path / "pictures", per_class=3)
    line = ("predict", tmp_path / "a", tmp_path / "pictures", "--json", "--device", "cpu")
    alone = json.loads(fabricate.alexnet(*line).out)
    several = json.loads(torchrun("-m", "--", "alexnet", *line).stdout)
    assert [entry["path"] for entry in several] == [entry["path"] for entry in alone]
    for one, other in zip(several, alone, strict=True):
        assert [g["class"] for g in one["top5"]] == [g["class"] for g in other["top5"]]


def test_a_rank_that_does_not_come_is_named() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RuntimeError, match=r"rank 1 has not come within 0\.1 s"):
        own_store(store, 0, 2, 0.1)
    with pytest.raises(RuntimeError):
        own_store(store, 1, 2, 0.1)


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    with pytest.raises(UserError, match="built without gloo"):
        parallel.start_engine(2, 5.0)
    monkeypatch.undo()
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="MASTER_ADDR is not set; start with torchrun"):
        parallel.start_engine(2, 5.0)
