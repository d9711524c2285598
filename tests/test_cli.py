"""The command line as people meet it: help at once, flags that arrive, one object with --json."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fabricate
from alexnet import begun, cli
from alexnet.bench import PEERS
from alexnet.config import differences, from_dict
from alexnet.errors import UserError
from alexnet.files import read_json
from alexnet.images import RESAMPLING
from alexnet.packing import STORES
from alexnet.recipes import find_recipe
from alexnet.sources import KINDS
from fabricate import SHAPES, alexnet, refusal, strict_json

COMMANDS = ("train", "evaluate", "report", "describe", "prepare", "check", "bench")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run"
    with fabricate.shared_cache(tmp_path_factory):
        finished = alexnet(*SHAPES, "--run", path, "--max-steps", "2")
    assert finished.code == 0, finished
    return path


def recipe_of(run: Path, base: str) -> dict[str, Any]:
    """{"section.field": value} where the recipe of a run differs from a named one."""
    changed = differences(find_recipe(base), from_dict(read_json(run / "recipe.json")))
    return {path: there for path, (_, there) in changed.items()}


# --- Help ---------------------------------------------------------------------------------------


def test_help_comes_without_torch() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['alexnet', '--help']\n"
        "from alexnet.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    slow = {'torch', 'torchvision', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "    assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    finished = alexnet(command, "--help")
    assert (finished.code, finished.err) == (0, "")
    assert f"usage: alexnet {command}" in finished.out


def test_help_names_every_flag_that_everybody_changes() -> None:
    said = alexnet("train", "--help").out
    for flag in (
        *("--recipe", "--set", "--run", "--resume", "--epochs", "--max-steps", "--batch-size"),
        *("--lr", "--seed", "--device", "--precision", "--json"),
    ):
        assert flag in said, flag


# --- Mistakes in the command line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Expected one of {train, evaluate,"),
        (("trane",), "trane"),
        (("train", "--learning-rate", "3"), "--learning-rate"),
        (("train", "--epochs", "many"), "--epochs"),
        (("train", "--precision", "fp16"), "--precision"),
        (("evaluate", "run", "--views", "ten"), "--views"),
        (("report",), "RUN"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    line = refusal(*arguments)
    assert said.lower() in line.lower()
    assert "│" not in line
    assert "─" not in line


def test_ctrl_c_before_training_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alexnet.opening.open_dataset", interrupted)
    finished = alexnet(*SHAPES)
    assert (finished.code, finished.err) == (130, "alexnet: interrupted\n")


def test_python_m_alexnet_is_the_command(tmp_path: Path) -> None:
    with fabricate.alexnet_process("train", tmp_path / "nothing") as process:
        line = fabricate.the_one_line(fabricate.finish(process))
    assert "no data set or folder" in line


# --- What the flags of `train` do ---------------------------------------------------------------


def test_flags_arrive_in_the_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished = alexnet(
        *(*SHAPES, "--run", run, "--max-steps", "1", "--lr", "0.004", "--seed", "7"),
        *("--precision", "bf16", "--set", "optimizer.momentum=0.5"),
        *("--set", "evaluate.views=1", "--set", "optimizer.momentum=0.8"),
    )
    assert finished.code == 0, finished
    assert recipe_of(run, "shapes") == {
        "data.num_train": 96,
        "data.num_val": 24,
        "data.num_classes": 4,
        "optimizer.lr": 0.004,
        "optimizer.bias_lr": 0.004,
        "optimizer.momentum": 0.8,  # the last one counts
        "optimizer.batch_size": 16,
        "schedule.epochs": 100.0,
        "evaluate.views": "1",
        "system.seed": 7,
        "system.device": "cpu",
        "system.precision": "bf16",
        "system.threads": 1,
        "system.max_steps": 1,
        "system.log_steps": 1,
    }
    assert read_json(run / "summary.json")["seed"] == 7


def test_lr_keeps_the_ratio_of_the_biases() -> None:
    recipe = cli._with_flags(find_recipe("source-2012"), {}, 0.003, ())
    assert (recipe.optimizer.lr, recipe.optimizer.bias_lr) == (0.003, 0.006)


@pytest.mark.parametrize(
    ("data", "name", "recipe", "dataset"),
    [
        (None, None, "shapes", "shapes"),
        ("shapes", None, "shapes", "shapes"),
        ("cifar10", None, "cifar10-80sec", "cifar10"),
        ("imagenette", None, "imagenette", "imagenette"),
        ("holiday/", None, "pictures", "holiday/"),
        ("holiday/", "paper-2012", "paper-2012", "holiday/"),
        ("holiday/", "shapes", "shapes", "holiday/"),
        ("shapes", "paper-2010", "paper-2010", "shapes"),
    ],
)
def test_the_pictures_choose_the_recipe_unless_it_is_named(
    data: str | None, name: str | None, recipe: str, dataset: str
) -> None:
    chosen = cli._chosen_recipe(data, name)
    assert (chosen.name, chosen.data.dataset) == (recipe, dataset)
    sizes = (chosen.data.num_train, chosen.data.num_val, chosen.data.num_classes)
    assert (sizes == (0, 0, 0)) == (dataset != "shapes")


def test_a_recipe_for_ones_own_pictures_asks_for_them() -> None:
    with pytest.raises(UserError, match="needs pictures: alexnet train DATA --recipe source-2012"):
        cli._chosen_recipe(None, "source-2012")


def test_runs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/shapes", "runs/shapes-2", "runs/shapes-3"):
        assert begun.new_run_folder(None, "shapes") == Path(expected)
        Path(expected).mkdir(parents=True)


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert begun.new_run_folder(tmp_path / "run", "shapes") == tmp_path / "run"


def test_nothing_is_written_outside_the_run_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    assert alexnet(*SHAPES, "--run", tmp_path / "run", "--max-steps", "1").code == 0
    assert sorted(os.listdir(tmp_path)) == ["cache", "here", "home", "run"]
    assert os.listdir(tmp_path / "here") == []
    assert [name for name in os.listdir(tmp_path / "home") if "alexnet" in name] == []


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    finished = alexnet(*SHAPES, "--run", tmp_path / "run", "--max-steps", "7")
    assert finished.err == ""
    assert "\x1b" not in finished.out
    lines = finished.out.splitlines()
    (last,) = [line for line in lines if line.startswith("step 7/7")]
    for word in ("epoch 1.17", "loss", "img/s", "waiting", "left"):
        assert word in last
    (epoch,) = [line for line in lines if line.startswith("epoch 1.0: validation error")]
    assert "of 24 pictures, one view" in epoch
    assert [line.partition(":")[0] for line in lines[-2:]] == ["val, 1 view", "val, 10 views"]


# --- Output for programs ------------------------------------------------------------------------


def test_train_prints_its_summary_as_one_object(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished = alexnet(*SHAPES, "--run", run, "--max-steps", "1", "--json")
    assert finished.code == 0
    assert json.loads(finished.out) == read_json(run / "summary.json")
    assert "evaluating" in finished.err


def test_evaluate_prints_the_errors_of_the_summary(run: Path) -> None:
    for views, found in zip((1, 10), read_json(run / "summary.json")["evaluations"], strict=True):
        finished = alexnet("evaluate", run, "--views", str(views), "--json", "--device", "cpu")
        assert finished.code == 0, finished
        result = json.loads(finished.out)
        assert (result["split"], result["views"], result["dataset"]) == ("val", views, "shapes")
        (scored,) = result["runs"]
        for name in ("images", "top1_wrong", "top5_wrong", "top1_error", "top5_error"):
            assert scored[name] == found[name]


def test_evaluate_averages_several_runs_in_a_table(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert alexnet(*SHAPES, "--run", other, "--seed", "1", "--max-steps", "2").code == 0
    finished = alexnet("evaluate", run, other, "--views", "1", "--weights", "2", "1")
    assert finished.code == 0, finished
    assert "weighted average of 2" in " ".join(finished.out.split())
    assert "95 %" in finished.out


def test_prepare_packs_a_folder_that_train_takes(tmp_path: Path) -> None:
    source = fabricate.pictures(tmp_path / "pictures")
    (source / "red" / "broken.png").write_bytes(b"\x89PNG")
    packed = tmp_path / "packed"
    finished = alexnet("prepare", source, packed, "--image-px", "64")
    assert finished.code == 0, finished
    assert f"{packed}: 44 train, 4 val, 4 classes" in finished.out
    assert "left out: red/broken.png: " in finished.out
    trained = alexnet(*fabricate.FOLDER, packed, "--run", tmp_path / "run")
    assert trained.code == 0, trained
    assert "left out: red/broken.png: " in trained.out
    assert read_json(tmp_path / "run" / "environment.json")["data_path"] == str(packed)


def test_train_leaves_a_report_unless_it_is_told_not_to(tmp_path: Path) -> None:
    command = [part for part in SHAPES if part != "--no-report"]
    run = tmp_path / "a [dim] run"
    finished = alexnet(*command, "--run", run, "--max-steps", "2")
    assert finished.code == 0, finished
    assert (run / "report.html").stat().st_size > 1000
    assert f"report: {run / 'report.html'}" in finished.out.splitlines()


# --- check, shares and bench --------------------------------------------------------------------


def test_check_names_what_is_odd_in_a_table_in_lines_and_on_a_sheet(tmp_path: Path) -> None:
    source = fabricate.pictures(tmp_path / "source", per_class=4)
    (source / "red" / "empty.png").write_bytes(b"")
    (source / "red" / "twice.png").write_bytes((source / "red" / "00.png").read_bytes())
    lines, sheet = tmp_path / "odd.jsonl", tmp_path / "odd.png"
    options = ("--image-px", "32", "--processes", "1", "--lines", lines, "--sheet", sheet)
    finished = alexnet("check", source, *options)
    assert finished.code == 0, finished
    assert "empty.png" in finished.out
    assert "18 pictures as folder; prepare leaves out 1" in finished.out
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {(finding["kind"], Path(finding["name"]).name) for finding in found} >= {
        ("empty", "empty.png"),
        ("duplicate", "twice.png"),
    }
    assert sheet.read_bytes().startswith(b"\x89PNG")
    counted = strict_json(alexnet("check", source, *options, "--json").out)
    assert counted["left_out"] == 1
    assert counted["counts"]["empty"] == 1
    assert "a contact sheet is" in refusal("check", source, "--processes", "1", "--sheet", "x.txt")


def test_shares_are_prepared_and_merged(tmp_path: Path) -> None:
    source = fabricate.pictures(tmp_path / "source", per_class=4)
    for shard in ("1/2", "2/2"):
        finished = alexnet("prepare", source, tmp_path / "data", "--shard", shard)
        assert finished.code == 0, finished
        assert f"share {shard} is ready" in finished.out
    finished = alexnet("prepare", source, tmp_path / "data", "--merge", "--json")
    assert strict_json(finished.out)["images"] == {"train": 12, "val": 4}


@pytest.mark.parametrize("shard", ["3/2", "0/2", "2", "a/b", "1/0"])
def test_a_share_that_cannot_be_is_refused(tmp_path: Path, shard: str) -> None:
    source = fabricate.pictures(tmp_path / "source", per_class=2)
    assert "--shard is" in refusal("prepare", source, tmp_path / "data", "--shard", shard)


def test_an_unknown_peer_is_refused() -> None:
    assert "no peer 'fccv'" in refusal("bench", "loader", "--peers", "fccv")


@pytest.mark.parametrize(
    ("command", "names"),
    [("prepare", (*KINDS, *RESAMPLING, *STORES)), ("check", tuple(KINDS)), ("bench", tuple(PEERS))],
)
def test_help_names_what_can_be_chosen(command: str, names: tuple[str, ...]) -> None:
    text = re.sub(r"[\s│]+", "", alexnet(command, "--help").out)
    assert [name for name in names if name not in text] == []
