"""The paper's claims under one command: complete, resumable, paired, and one clear line for errors.

Everything here runs at scale `toy`, on a few drawn pictures; its figures mean nothing.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alexnet import (
    apart,
    baselines,
    campaign,
    claims,
    costs,
    judging,
    plans,
    reproduction,
    stall_claim,
    trials,
)
from alexnet.claims import CLAIMS, Claim, find_claim
from alexnet.errors import UserError
from alexnet.findings import colour_index
from alexnet.networks import find_network
from alexnet.reproducing import budget_seconds
from alexnet.scales import Scale, scale_of
from alexnet.stopping import EXIT_STOPPED
from alexnet.trials import Place, Trial, left_chance, read_lines
from fabricate import (
    alexnet,
    alexnet_process,
    finish,
    pictures,
    refusal,
    shared_cache,
    strict_json,
)

REPOSITORY = Path(__file__).resolve().parents[1]
LEDGER = REPOSITORY / "docs" / "fidelity.md"
TOY = Scale("toy")


def quiet(text: str) -> None:
    """What a campaign says is not looked at here."""


def campaign_of(out: Path, *names: str, seeds: int | None = 1, **more: Any) -> campaign.Campaign:
    place = Place(out, {}, threads=1)
    chosen = [find_claim(name) for name in names]
    return campaign.Campaign(chosen, TOY, place, seeds=seeds, devices=("cpu",), say=quiet, **more)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All claims but the baselines, at one seed and with fewer rates and recipes, in one folder."""
    folder = tmp_path_factory.mktemp("reproductions") / "out"
    names = [claim.name for claim in CLAIMS if claim.name != "baselines"]
    with pytest.MonkeyPatch.context() as patch, shared_cache(tmp_path_factory):
        patch.setattr(plans, "FIGURE_1_RATES", (0.001, 0.01))
        patch.setattr(plans, "WIDER", 0)
        patch.setattr(plans, "FIGURE_1_EPOCHS", 1.0)
        patch.setattr(stall_claim, "STALL_ARMS", stall_claim.STALL_ARMS[:2])
        patch.setattr(stall_claim, "STALL_STEPS", 12)
        campaign_of(folder, *names).run()
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that `out` was made with."""
    monkeypatch.setattr(plans, "FIGURE_1_RATES", (0.001, 0.01))
    monkeypatch.setattr(plans, "WIDER", 0)
    monkeypatch.setattr(stall_claim, "STALL_ARMS", stall_claim.STALL_ARMS[:2])
    monkeypatch.setattr(stall_claim, "STALL_STEPS", 12)


# --- The list of claims, against the ledger -------------------------------------------------------

# A sentence of the ledger's first part that reports a measurement, and not a setting.
MEASURED = re.compile(
    r"\bgains?\b|\blowers\b|\bworse\b|\bfaster\b|\boverfits\b|\bcosts about\b|in every run|"
    r"without it, \d|\d % (?:with|training)|\d\d\.\d / \d\d\.\d|six nearest|stops improving",
    re.IGNORECASE,
)


def ledger_rows() -> list[tuple[str, str]]:
    """(section, row) of the tables of the ledger's first part."""
    first_part = LEDGER.read_text().partition("\n## 2.")[0]
    rows, section = [], ""
    for line in first_part.splitlines():
        if heading := re.match(r"### Section ([\d.]+):", line):
            section = heading[1]
        elif line.startswith("| ") and section and not line.startswith("| the paper"):
            rows.append((section, line))
    return rows


def named_claims(row: str) -> list[str]:
    lists = re.findall(r"[Cc]laims? ((?:`[\w-]+`(?:, )?)+)", row)
    return re.findall(r"`([\w-]+)`", " ".join(lists))


def test_each_measurement_in_the_ledger_has_a_claim() -> None:
    measured = [(s, row) for s, row in ledger_rows() if MEASURED.search(row.split(" | ")[0])]
    assert len(measured) >= 15
    for _, row in measured:
        assert named_claims(row), f"no claim is named beside: {row}"


def test_each_claim_stands_in_the_ledger_beside_a_sentence_of_its_section() -> None:
    named = [(name, section) for section, row in ledger_rows() for name in named_claims(row)]
    for claim in CLAIMS:
        assert (claim.name, claim.section) in named, claim.name
    assert {name for name, _ in named} == {claim.name for claim in CLAIMS}


def test_a_claim_says_what_the_ledger_says() -> None:
    """The figures of a claim are those of the ledger's rows that name it."""
    for claim in CLAIMS:
        rows = " ".join(row for _, row in ledger_rows() if claim.name in named_claims(row))
        for figure in re.findall(r"\d+\.\d", claim.paper):
            assert figure in rows, f"{claim.name}: {figure} is not in the ledger"


def test_claims_are_numbered_named_once_and_ordered_by_value() -> None:
    assert [claim.number for claim in CLAIMS] == list(range(1, 18))
    names = [claim.name for claim in CLAIMS]
    assert sorted(claims.BY_VALUE) == sorted(set(names)) == sorted(names)


def test_the_list_is_one_json_array_with_these_keys() -> None:
    finished = alexnet("reproduce", "--list", "--json")
    assert finished.code == 0
    listed = strict_json(finished.out)
    assert [entry["claim"] for entry in listed] == [claim.name for claim in CLAIMS]
    for entry in listed:
        assert {"claim", "section", "paper", "source", "scales"} <= set(entry)
        assert {"toy", "imagenette", "imagenet"} <= set(entry["scales"])


def test_the_sources_differences_are_those_of_its_log() -> None:
    """Points of top-1 on 50,000 or 150,000 pictures, from the logged errors."""
    logged = {
        ("norm", "no-lrn"): 42.0340 - 40.6640,
        ("norm", "no-conv2-norm"): 40.4880 - 40.6640,
        ("overlap", "no-overlap"): 41.0580 - 40.6640,
        ("columns", "one-gpu"): 39.1680 - 37.4727,
        ("transfer", "fine-tuned"): 38.9900 - 40.6640,
        ("table2", "fine-tuned"): 38.9900 - 40.6640,
        ("schedule", "exp-from-double"): 40.7440 - 40.5960,
    }
    told = {(c.name, one.arm) for c in CLAIMS for one in c.comparisons if one.source is not None}
    assert told == set(logged)
    for (name, arm), difference in logged.items():
        sources = [
            comparison.source
            for comparison in find_claim(name).comparisons
            if comparison.arm == arm and comparison.source is not None
        ]
        assert sources == [pytest.approx(difference, abs=0.011)], (name, arm)


# --- Every claim runs -----------------------------------------------------------------------------


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "claim",  # test_baselines.py runs the baselines
    [claim for claim in CLAIMS if claim.name != "baselines"],
    ids=lambda claim: claim.name,
)
def test_each_claim_runs_and_finds_something(claim: Claim, out: Path) -> None:
    lines = read_lines(out)
    assert not campaign.blocks([claim], TOY, 1, lines), "something is left to do"
    found = judging.findings(claim, TOY, lines)
    assert found
    for finding in found:
        assert finding.n >= 1
        assert math.isfinite(finding.mean)
        assert finding.verdict in ("holds", "does not hold here", "undecided", "-")
    for comparison in claim.comparisons:
        if not comparison.arm.startswith("11pct"):  # CIFAR-10's
            whats = [finding.what for finding in found]
            assert any(what.startswith(f"{comparison.arm} less") for what in whats)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
@pytest.mark.parametrize(
    "scale",
    [Scale("cifar10"), Scale("imagenette"), Scale("imagenette", full=True), Scale("flowers"),
     Scale("imagenet", pretrain="fall2011")],
    ids=lambda scale: scale.title,
)  # fmt: skip
def test_each_claim_has_paired_trials_at_every_scale(claim: Claim, scale: Scale) -> None:
    if scale.name == "flowers" and claim.name in ("transfer", "table2"):
        with pytest.raises(UserError, match="--pretrain DATA"):
            claims.check_scale(claim, scale)
        return
    claims.check_scale(claim, scale)
    one, two = (claim.plan(scale, range(seeds), {}) for seeds in (1, 2))
    names = [trial.name for trial in two]
    assert len(set(names)) == len(names) or claim.name == "table2"
    assert {trial.name for trial in one} <= set(names)
    for trial in two:
        network = find_network(trial.recipe.network.name)
        assert trial.kind != "train" or trial.recipe.augment.crop_px == network.input_px
        assert set(trial.of) <= set(names)


def test_arms_differ_from_the_control_in_what_they_are_about(out: Path) -> None:
    control = plans.control(TOY, 0).settings()
    changed = {}
    for name in ("overlap", "columns", "colour", "overfitting", "depth", "decay"):
        for trial in find_claim(name).plan(TOY, [0], {}):
            settings = trial.settings()
            changed[trial.arm] = {
                f"{section}.{key}": value
                for section in settings
                for key, value in settings[section].items()
                if value != control[section][key] and (section, key) != ("evaluate", "views")
            }
    assert changed.pop("control") == {}
    assert changed.pop("no-colour") == {"augment.colour": "none"}
    assert changed.pop("no-crops") == {"augment.random_crop": False, "augment.flip": False}
    assert changed.pop("no-dropout") == {"network.dropout": "none"}
    decay = {"optimizer.weight_decay": 0.0, "optimizer.bias_weight_decay": 0.0}
    assert changed.pop("no-decay") == decay
    assert changed == {arm: {"network.name": f"small/{arm}"} for arm in changed}
    assert len(changed) == 8


def test_the_line_of_a_run_says_everything_that_tables_are_made_of(out: Path) -> None:
    for text in (out / "results.jsonl").read_text().splitlines():
        line = strict_json(text)
        assert str(out) not in text, "a line holds no path of the machine"
        assert {"trial", "kind", "seed", "settings", "results", "environment"} <= set(line)
        assert line["environment"]["torch"] == torch.__version__


# --- The queue ------------------------------------------------------------------------------------


def test_what_has_a_line_is_not_run_again(out: Path) -> None:
    before = (out / "results.jsonl").read_bytes()
    assert campaign_of(out, "overlap", "columns", "kernels").run() == 0
    assert (out / "results.jsonl").read_bytes() == before


def test_a_line_cut_short_by_a_crash_is_run_again(tmp_path: Path) -> None:
    assert campaign_of(tmp_path, "overlap").run() == 2
    path = tmp_path / "results.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + second[:-20])
    assert campaign_of(tmp_path, "overlap").run() == 1
    lines = read_lines(tmp_path)
    assert len(lines) == 2
    again = lines[json.loads(second)["trial"]]["results"]
    assert again["errors"] == json.loads(second)["results"]["errors"]


def test_a_killed_training_goes_on_and_leaves_the_line_that_it_would_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    campaign_of(whole, "views").run()
    real_measured = trials._measured

    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "_measured", killed)
    with pytest.raises(KeyboardInterrupt):
        campaign_of(cut, "views").run()
    assert not read_lines(cut)
    monkeypatch.setattr(trials, "_measured", real_measured)
    assert campaign_of(cut, "views").run() == 1
    (one,), (other,) = (list(read_lines(folder).values()) for folder in (whole, cut))
    assert one["results"]["errors"] == other["results"]["errors"]
    assert one["results"]["colour"] == other["results"]["colour"]


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        campaign.only_one(tmp_path),
        pytest.raises(UserError, match="another alexnet reproduce is at work"),
    ):
        campaign_of(tmp_path, "overlap").run()


def test_a_budget_takes_whole_pairs_and_refuses_less_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    real = campaign.carry_out

    def timed(trial: Trial, *rest: Any) -> trials.Line:
        clock[0] += 40.0
        return real(trial, *rest)

    monkeypatch.setattr(campaign, "carry_out", timed)
    monkeypatch.setattr(campaign.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(costs.Costs, "seconds", lambda self, trial: 40.0)
    with pytest.raises(UserError, match=r"too small: one pair of claim overlap takes about 1 min"):
        campaign_of(tmp_path, "overlap", seeds=5, budget=70.0).run()
    assert not (tmp_path / "results.jsonl").exists()
    assert campaign_of(tmp_path, "overlap", seeds=5, budget=100.0).run() == 2
    seeds = sorted((line["arm"], line["seed"]) for line in read_lines(tmp_path).values())
    assert seeds == [("control", 0), ("no-overlap", 0)]


class Pool:
    """Hands out a future that has ended as it is told to."""

    def __init__(self, end: Any) -> None:
        self.end, self.asked = end, 0

    def submit(self, *arguments: Any) -> "Future[Any]":
        self.asked += 1
        future: Future[Any] = Future()
        if isinstance(self.end, BaseException):
            future.set_exception(self.end)
        else:
            future.set_result(self.end)
        return future


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_worker_loses_nothing_of_the_other(
    out: Path, tmp_path: Path, failing: int
) -> None:
    line = read_lines(out)[plans.control(TOY, 0).name]
    pools: list[Any] = [Pool(line), Pool(line)]
    pools[failing] = Pool(UserError("no space left"))
    several = campaign_of(tmp_path, "views", seeds=5)
    several.devices = ("cpu", "cpu")
    with pytest.raises(UserError, match="no space left"):
        several._run_on(apart.Workers(pools, SimpleNamespace(value=0)), time.monotonic())
    assert list(read_lines(tmp_path)) == [line["trial"]]
    assert [pool.asked for pool in pools] == [1, 1]  # nothing new is begun after a failure


def test_a_wish_to_stop_while_it_is_seen_what_is_ready_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = SimpleNamespace(value=0)
    several = campaign_of(tmp_path, "views", seeds=5)
    several.devices = ("cpu",)
    monkeypatch.setattr(several, "_left", lambda ready: setattr(wish, "value", 1) or "")
    pool: Any = Pool({})
    assert several._run_on(apart.Workers([pool], wish), time.monotonic()) == 0
    assert pool.asked == 0


def test_what_cannot_be_told_stops_the_workers() -> None:
    """As where standard output is closed: nobody waits for a pipe that nobody reads."""

    def say(text: str) -> None:
        raise BrokenPipeError

    def talked() -> None:
        with apart.worker_pools(1, say) as several:
            assert several.pools[0].submit(talk, 200_000).result(timeout=60) == 200_000
            until(lambda: several.stopping, 10)

    with pytest.raises(BrokenPipeError):
        talked()


def talk(most: int) -> int:
    """In a worker: says more than a pipe holds."""
    for _ in range(0, most, 1000):
        apart._given["writer"].send_bytes(b"x" * 1000)
    return most


def test_what_reads_a_training_that_diverged_is_left_out_and_told(
    out: Path, tmp_path: Path
) -> None:
    line = read_lines(out)[plans.control(TOY, 0).name]
    line["results"] |= {"diverged": True, "errors": {}}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    told: list[str] = []
    one = campaign_of(tmp_path, "neighbours")
    one.say = told.append
    assert one.run() == 0
    assert told[-1].endswith(f"is left out: {line['trial']} diverged")


@pytest.mark.slow
def test_two_workers_make_the_same_lines(tmp_path: Path, out: Path) -> None:
    several = campaign_of(tmp_path, "overlap")
    told: list[str] = []
    several.devices, several.say = ("cpu", "cpu"), told.append
    assert several.run() == 2
    for arm in ("control", "no-overlap"):  # how far each of them is
        assert any(text.startswith(f"{arm} seed 0: step ") for text in told)
    alone = read_lines(out)
    for name, line in read_lines(tmp_path).items():
        assert line["results"]["errors"] == alone[name]["results"]["errors"]


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A command with two long trainings under way, and the processes that do them."""
    words = ["overlap", "--scale", "toy", "--epochs", "2000", "--devices", "cpu,cpu"]
    with alexnet_process("reproduce", *words, "--out", tmp_path) as process:
        until(lambda: len(list(tmp_path.glob("runs/*/checkpoints/*.pt"))) >= 2)
        workers = [pid for pid in children(process.pid) if "spawn_main" in command_line(pid)]
        assert len(workers) == 2
        yield process, workers
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""


def until(so: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.0])
def test_workers_that_are_just_starting_are_stopped_in_peace(
    tmp_path: Path, seconds: float
) -> None:
    words = ["overlap", "--scale", "toy", "--epochs", "2000", "--devices", "cpu,cpu"]
    with alexnet_process("reproduce", *words, "--out", tmp_path) as process:
        assert process.stdout is not None
        assert " on cpu" in process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
    assert ended.code == EXIT_STOPPED, ended.err
    assert ended.err == "alexnet: stopped and saved; the same command goes on\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes by /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_alone_to_stop_the_command_takes_its_workers_with_it(
    at_work: tuple["subprocess.Popen[str]", list[int]], tmp_path: Path, number: int
) -> None:
    process, workers = at_work
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == EXIT_STOPPED, said
    assert said.strip().endswith("stopped and saved; the same command goes on")
    assert not any(map(command_line, workers))
    assert not read_lines(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes by /proc")
def test_workers_save_and_end_when_the_command_is_killed(
    at_work: tuple["subprocess.Popen[str]", list[int]], tmp_path: Path
) -> None:
    process, workers = at_work
    before = {path.name for path in tmp_path.glob("runs/*/checkpoints/*.pt")}
    process.kill()
    process.wait()
    until(lambda: not any(map(command_line, workers)))
    assert {path.name for path in tmp_path.glob("runs/*/checkpoints/*.pt")} > before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes by /proc")
def test_a_killed_worker_is_one_line(
    at_work: tuple["subprocess.Popen[str]", list[int]],
) -> None:
    process, workers = at_work
    os.kill(workers[0], signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert said.startswith("alexnet: the process of toy-")
    assert said.count("\n") == 1


def test_the_plan_tells_what_is_missing_and_runs_nothing(out: Path) -> None:
    before = (out / "results.jsonl").read_bytes()
    (done, more) = (campaign_of(out, "overlap", seeds=seeds).plan() for seeds in (1, 3))
    assert [(row["runs"], row["seconds"]) for row in done] == [(0, 0)]
    assert more[0]["runs"] == 4 - sum(seed in (1, 2) for seed in (1, 2))  # two controls are there
    assert more[0]["seconds"] > 0
    assert (out / "results.jsonl").read_bytes() == before


# --- Wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["overlp"], "no claim 'overlp'; did you mean 'overlap'?"),
        (["18"], "no claim '18'"),
        (["overlap", "--scale", "imagenet"], "needs ImageNet"),
        (["overlap", "--scale", "imagenete"], "did you mean 'imagenette'?"),
        (["overlap", "--scale", "toy", "--budget", "soon"], "written 90s, 30m or 2h"),
        (["overlap", "--scale", "toy", "--budget", "0.001s"], "too small: one pair"),
        (["overlap", "--scale", "toy", "--seeds", "0"], "at least one"),
        (["overlap", "--scale", "toy", "--epochs", "nan"], "--epochs is nan"),
        (["overlap", "--scale", "toy", "--epochs", "-1", "--plan"], "--epochs is -1"),
        (["overlap", "--scale", "toy", "--threads", "-1"], "--threads is -1"),
        (["overlap", "--scale", "toy", "--full"], "224 pixels"),
        (["overlap", "--scale", "toy", "--devices", "abacus"], "abacus"),
        (["--report"], "has no results yet"),
    ],
)
def test_wrong_use_is_answered_with_one_line(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    assert words in refusal("reproduce", *arguments, "--out", tmp_path / "out")


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1.5h", 5400), ("90s", 90)])
def test_budgets_are_written_with_their_unit(text: str, seconds: float) -> None:
    assert budget_seconds(text) == seconds


def test_folders_are_scales_and_pretraining_by_their_own_names(tmp_path: Path) -> None:
    for name in ("flowers", "birds"):
        (tmp_path / name).mkdir()
    scale, places = scale_of(str(tmp_path / "flowers"), pretrain=str(tmp_path / "birds"))
    assert (scale.name, scale.pretraining) == ("flowers", "birds")
    assert places == {name: str(tmp_path / name) for name in ("flowers", "birds")}
    for trial in find_claim("transfer").plan(scale, [0], {}):
        assert str(tmp_path) not in json.dumps(trial.settings())
    (tmp_path / "toy").mkdir()
    with pytest.raises(UserError, match="has the name of another scale"):
        scale_of(str(tmp_path / "toy"))


def test_results_of_other_pictures_of_the_same_name_are_not_gone_on_with(tmp_path: Path) -> None:
    pictures(tmp_path / "mine" / "pets", ("cats", "dogs"), 6)
    pictures(tmp_path / "yours" / "pets", ("cats", "dogs"), 7)

    def campaign_on(folder: str, **more: Any) -> campaign.Campaign:
        scale, data = scale_of(str(tmp_path / folder / "pets"), **more)
        return campaign.Campaign([find_claim("overlap")], scale, Place(out, data), say=quiet)

    out = tmp_path / "out"
    out.mkdir()
    mine = campaign_on("mine")
    trial = plans.control(mine.scale, 0)

    def keep(red: float) -> None:
        """A line of `mine`, whose mean is so much redder."""
        seen = trials.pictures_of(trials.open_for(trial.recipe.data, mine.place))
        seen["mean_rgb"][0] += red
        line = {"trial": trial.name, "seed": 0, "pictures": seen, "asked": mine.scale.as_dict()}
        campaign.append_line(out, {**line, "settings": trial.settings()})

    keep(0.0)
    mine._check_pictures()
    campaign_on("yours", full=True)._check_pictures()  # its pictures are larger: other lines
    with pytest.raises(UserError, match=r"other pictures named pets \(2 classes"):
        campaign_on("yours").run()
    keep(0.1)  # as another decoder of JPEG would have it
    mine._check_pictures()
    keep(1.0)
    with pytest.raises(UserError, match="other pictures named pets"):
        mine._check_pictures()


# --- Measures -------------------------------------------------------------------------------------


def test_a_run_has_left_chance_when_its_smoothed_loss_is_5_percent_below() -> None:
    chance = math.log(10)
    assert left_chance([chance] * 50, chance) is None
    assert left_chance([chance] * 20 + [1.0] * 20, chance) == 21 + 0
    assert left_chance([100.0] + [chance] * 60, chance) is None
    assert left_chance([2.0, None, 1.0], chance) is None


def test_columns_part_by_colour_when_one_has_it_and_the_other_not() -> None:
    draw = np.random.default_rng(0)
    light = np.repeat(draw.normal(size=(16, 1, 5, 5)), 3, axis=1)
    colourful = draw.normal(size=(16, 3, 5, 5))
    parted = colour_index(np.concatenate([light, colourful]), 0)
    assert parted.halves == (pytest.approx(0, abs=1e-9), pytest.approx(2 / 3, abs=0.05))
    assert parted.parted_p < 0.01
    alike = colour_index(draw.normal(size=(32, 3, 5, 5)), 0)
    assert alike.parted_p > 0.05


def test_random_kernels_part_in_one_run_of_twenty() -> None:
    draw = np.random.default_rng(1)
    parted = [colour_index(draw.normal(size=(16, 3, 3, 3)), 0).parted_p < 0.05 for _ in range(60)]
    assert 1 <= sum(parted) <= 8


def figure_1_line(arm: str, rate: float, seed: int, epochs: float, end: int | None) -> trials.Line:
    """A training that gets to 25 % at epoch `end`, or stays above."""
    trial = plans._figure1(Scale("cifar10"), arm, seed, rate, epochs)
    curve = [["train", epoch, 30 if epoch != end else 25, 100] for epoch in range(1, 41)]
    results = {"curve": curve, "epochs": epochs}
    return {"trial": trial.name, "seed": seed, "results": results, "settings": trial.settings()}


@pytest.mark.parametrize(
    ("relu", "tanh", "ratio", "bound", "size", "words"),
    [
        (5, 35, 7.0, "ReLU", "larger here", "0.01"),
        (5, None, 8.0, "at least", "-", "3 of tanh and 0 of ReLU never got there"),
        (None, 20, 0.5, "at most", "-", "0 of tanh and 3 of ReLU never got there"),
        (None, None, 1.0, "ReLU", "-", "3 of tanh and 3 of ReLU never got there"),
    ],
)
def test_who_never_gets_to_25_percent_counts_with_all_its_epochs(
    relu: int | None, tanh: int | None, ratio: float, bound: str, size: str, words: str
) -> None:
    lines = {}
    for arm, best in (("relu", 0.003), ("tanh", 0.003)):
        for rate in plans.FIGURE_1_RATES:
            line = figure_1_line(arm, rate, plans.SEARCH_SEED, 10.0, 5 if rate == best else None)
            lines[line["trial"]] = line
    for seed in range(3):
        for arm, end in (("relu", relu), ("tanh", tanh)):
            line = figure_1_line(arm, 0.003, seed, 40.0, end)
            lines[line["trial"]] = line
    (found,) = judging.findings(find_claim("relu"), Scale("cifar10"), lines)
    assert found.mean == pytest.approx(ratio)
    assert (found.n, found.size) == (3, size)
    assert found.what.endswith(bound)
    assert words in found.note


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.003, [0.0003, 0.001, 0.003, 0.01]),
        (0.01, [0.0003, 0.001, 0.003, 0.01, 0.03]),
        (0.03, [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1]),
        (0.1, [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1]),
        (0.0001, [0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01]),
    ],
)
def test_a_search_goes_on_where_its_best_rate_is_the_last(best: float, tried: list[float]) -> None:
    scale, lines = Scale("cifar10"), {}
    for _ in range(4):  # what is planned runs, and is planned anew with its lines
        for trial in plans.nonlinearities(scale, [], lines):
            away = abs(math.log(trial.recipe.optimizer.lr / best))
            curve = [["train", 10.0, round(3000 + 100 * away), 5000]]
            lines[trial.name] = {"results": {"curve": curve}}
    rates = [trial.recipe.optimizer.lr for trial in plans.nonlinearities(scale, [0], lines)]
    assert rates == [*tried, best] * 2


def test_epochs_to_an_error_lie_between_two_evaluations() -> None:
    curve = [["train", 1.0, 50, 100], ["val", 1.0, 9, 10], ["train", 2.0, 30, 100]]
    line = {"results": {"curve": curve}}
    assert trials.epochs_to(line, 40.0) == pytest.approx(1.5)
    assert trials.epochs_to(line, 60.0) == 1.0
    assert trials.epochs_to(line, 10.0) is None


def test_fine_tuning_starts_from_the_other_training_at_the_sources_rates(out: Path) -> None:
    lines = read_lines(out)
    tuned = next(line for line in lines.values() if line["arm"] == "fine-tuned")
    assert lines[tuned["of"][0]]["arm"] == "pretraining"
    environment = json.loads((out / "runs" / tuned["trial"] / "environment.json").read_text())
    assert Path(environment["from"]["fine_tuned_from"]).parent.name == tuned["of"][0]
    convolutions = [f"conv{number}" for number in range(1, 7)]
    assert environment["from"]["copied"] == [*convolutions, "fc6", "fc7"]
    assert environment["from"]["new"] == ["fc8"]
    assert tuned["settings"]["optimizer"]["layer_lr"] == plans.FINE_TUNING_RATES


def test_retrieval_of_pixels_is_the_hand_count(out: Path) -> None:
    line = next(line for line in read_lines(out).values() if line["arm"] == "neighbours")
    assert line["results"]["queries"] == 48
    assert set(line["results"]["precision"]) == {
        *("last hidden layer", "last pool", "pixels", "untrained network", "chance")
    }
    from alexnet.opening import open_dataset

    data = open_dataset("shapes", image_px=64, num_train=96, num_val=48, num_classes=6)
    crop = slice(4, 60)
    vectors = {
        name: np.asarray(split.images)[:, crop, crop].astype(np.float64).reshape(len(split), -1)
        for name, split in data.splits.items()
    }
    hits = 0
    for vector, label in zip(vectors["val"], data.splits["val"].labels, strict=True):
        near = np.argsort(((vectors["train"] - vector) ** 2).sum(1), kind="stable")[:6]
        hits += int((data.splits["train"].labels[near] == label).sum())
    assert line["results"]["precision"]["pixels"] == pytest.approx(hits / (48 * 6))


# --- Table 2 and the report -----------------------------------------------------------------------


def test_table_2_costs_are_counted_from_its_trainings() -> None:
    rows = {row["row"]: row for row in costs.table_2_costs(1e14)}
    # 90 epochs of 1,281,167 pictures at 2 (3 x 724,406,816 - 105,415,200) operations
    one = 2 * (3 * 724_406_816 - 105_415_200) * 1_281_167 * 90
    assert rows["1 CNN"]["operations"] == pytest.approx(one)
    assert rows["1 CNN"]["hours"] == pytest.approx(one / 1e14 / 3600)
    assert rows["5 CNNs"]["operations"] == pytest.approx(5 * one)
    star = rows["1 CNN*"]["operations"]
    assert rows["7 CNNs*"]["operations"] == pytest.approx(5 * one + 2 * star)


@pytest.mark.usefixtures("few")
def test_the_report_is_made_of_the_lines_alone(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "results" / "results.jsonl"
    copied.parent.mkdir()
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    copied.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="no results yet"):  # toys are no results
        reproduction.write_report(copied.parent, tmp_path / "page.md")
    monkeypatch.setattr(reproduction, "TOY", "none")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{reproduction.BEGIN}\nyesterday\n{reproduction.END}\nafter\n")
    page = reproduction.write_report(copied.parent, tmp_path / "page.md", readme)
    text = page.read_text()
    for claim in CLAIMS:
        assert f"## {claim.number}. {claim.name}" in text
    for figure in re.findall(r"\]\((page/[\w-]+\.png)\)", text):
        assert (tmp_path / figure).is_file()
    assert "page/stalls.png" in text
    assert "Not run yet: `alexnet reproduce baselines" in text
    assert readme.read_text().startswith("before\n")
    assert "yesterday" not in readme.read_text()
    assert readme.read_text().endswith("after\n")


def finding(scale: str, n: int, **more: Any) -> judging.Finding:
    values = {"claim": "norm", "what": "a less b", "unit": "points", "mean": 1.0, "low": 0.5}
    values |= {"high": 1.5, "p": 0.1, "paper": "+1.4", "source": "-", "verdict": "holds"}
    return judging.Finding(scale=scale, n=n, size="agrees", **(values | more))


def test_differences_have_a_panel_for_each_scale_and_need_three_pairs() -> None:
    rows = [finding("one", 5), finding("two", 3), finding("two", 3, paper="-"), finding("three", 2)]
    figure = reproduction.differences_figure([*rows, finding("one", 5, unit="times")])
    assert figure is not None
    panels = {axes.get_title(loc="left"): len(axes.get_yticks()) for axes in figure.axes}
    assert panels == {"one": 1, "two": 2}
    assert reproduction.differences_figure([finding("three", 2)]) is None


def test_the_summary_tells_what_is_claimed_with_its_number_and_n() -> None:
    rows = [
        finding("one", 5, what="no-lrn less control, validation error, one view", mean=3.44),
        finding("one", 4, what="runs that part", unit="share", mean=0.2, verdict="undecided"),
        finding("one", 5, what="batch-norm less control", verdict="-"),
    ]
    told = "no-lrn +3.44 **holds** (n = 5); runs that part 20 % **undecided** (n = 4)"
    assert reproduction.in_short(rows) == told
    assert reproduction.in_short(rows[2:]) == "measured; nothing is claimed"


def test_baselines_are_held_against_ten_views_and_each_other() -> None:
    lines = {}
    for seed in range(3):
        for trial in plans.table_1(TOY, [seed], {}):
            wrong = {"control": 40, "sift-fisher": 50 + seed, "sparse-coding": 60}[trial.arm]
            errors = {"val/1": {"images": 100, "top1_wrong": wrong}}
            if trial.arm == "control":
                errors["val/10"] = {"images": 100, "top1_wrong": 35}
            line = {"trial": trial.name, "seed": seed, "kind": trial.kind}
            lines[trial.name] = line | {"results": {"errors": errors}}
    found = {row.what: row for row in judging.findings(find_claim("baselines"), TOY, lines)}
    assert found["sift-fisher less control, validation error, ten views"].mean == 16.0
    assert found["sparse-coding less control, validation error, ten views"].mean == 25.0
    assert found["sparse-coding less sift-fisher, validation error, one view"].mean == 9.0
    assert {row.n for row in found.values()} == {3}


def test_what_the_length_of_trainings_does_not_touch_is_told_once() -> None:
    lines = {}
    for scale in (Scale("imagenette", epochs=5), Scale("imagenette", epochs=40)):
        for seed in range(3):
            for trial in plans.table_1(scale, [seed], {}):
                wrong = {"control": 40 + scale.epochs, "sift-fisher": 50, "sparse-coding": 60}
                counts = {"images": 100, "top1_wrong": wrong[trial.arm]}
                line = {"trial": trial.name, "seed": seed, "kind": trial.kind, "arm": trial.arm}
                results = {"errors": {"val/1": counts, "val/10": counts}}
                lines[trial.name] = line | {"results": results, "asked": scale.as_dict()}
    told = [
        (row.scale, row.what.partition(",")[0])
        for by_claim in reproduction.all_findings(lines).values()
        for row in by_claim["baselines"]
    ]
    assert told == [
        *(("imagenette, 5 epochs", f"{arm} less control") for arm in baselines.METHODS),
        *(("imagenette, 40 epochs", f"{arm} less control") for arm in baselines.METHODS),
        ("imagenette, 40 epochs", "sparse-coding less sift-fisher"),
    ]


def test_a_baseline_is_the_same_run_however_long_the_networks_train() -> None:
    def names(epochs: float, kind: str) -> set[str]:
        planned = plans.table_1(Scale("imagenette", epochs=epochs), [0], {})
        return {trial.name for trial in planned if trial.kind == kind}

    assert len(names(5, "baseline")) == 2
    assert names(5, "baseline") == names(20, "baseline")
    assert names(5, "train")
    assert not names(5, "train") & names(20, "train")


# --- Claim 17: what a single change does ----------------------------------------------------------


def stall_line(arm: stall_claim.StallArm, seed: int, left: int | None) -> trials.Line:
    trial = stall_claim.stall_trial(TOY, arm, seed)
    results = {"left_chance": left, "steps": 200 if left else 0}  # a training that diverged: 0
    return {"trial": trial.name, "seed": seed, "results": results, "settings": trial.settings()}


def test_a_single_change_is_one_step_away_from_the_paper() -> None:
    paper = stall_claim.StallArm()
    hundred = paper._replace(pictures="shapes", classes="100-classes")
    ten = paper._replace(pictures="shapes")
    assert stall_claim.single_change(ten, hundred) == "10 classes -> 100"
    assert stall_claim.single_change(paper, ten) == "these pictures -> shapes"
    assert stall_claim.single_change(hundred, ten) is None
    assert stall_claim.single_change(paper, hundred) is None
    assert stall_claim.single_change(paper, stall_claim.StallArm("source")) is None
    assert stall_claim.single_change(paper, paper) is None
    two = paper._replace(norm="norm-first", dropout="inverted")
    assert stall_claim.single_change(paper, two) is None
    assert (
        stall_claim.single_change(
            stall_claim.StallArm("source-start"), stall_claim.StallArm("caffe-start")
        )
        is None
    )


def test_what_decides_a_stall_is_told_with_its_counts_and_steps() -> None:
    paper = stall_claim.StallArm()
    unit, inverted = paper._replace(pixels="unit-input"), paper._replace(dropout="inverted")
    made = [stall_line(paper, seed, 50 + seed) for seed in range(8)]
    made += [stall_line(unit, seed, None) for seed in range(8)]
    made += [stall_line(inverted, seed, 2 * (50 + seed)) for seed in range(8)]
    rows = judging.findings(find_claim("stall"), TOY, {line["trial"]: line for line in made})
    by_name = {row.what: row for row in rows}
    stays = by_name["paper-start-unit-input-plain: runs at ln(classes)"]
    assert (stays.mean, stays.n) == (1.0, 8)
    printed = by_name["paper-start-plain: runs at ln(classes)"]
    assert printed.verdict == "holds"
    assert "median step 54 (50 to 57)" in printed.note  # 8 values: the extremes cover 99.2 %
    pixels = by_name["paper-start-plain: pixels to 255 -> of unit scale, steps to leave"]
    assert "0 of 8 before, 8 of 8 after: decides (McNemar's p = 0.0078)" in pixels.note
    dropout = by_name["paper-start-plain: plain dropout -> inverted, steps to leave"]
    assert dropout.mean == pytest.approx(2.0)
    assert "decides" not in dropout.note
    assert len(rows) == 5


def test_a_change_between_runs_that_all_stay_is_not_told() -> None:
    ten = stall_claim.StallArm(pictures="shapes")
    made = [
        stall_line(arm, seed, None)
        for arm in (ten, ten._replace(dropout="inverted"))
        for seed in range(4)
    ]
    rows = judging.findings(find_claim("stall"), TOY, {line["trial"]: line for line in made})
    assert [row.verdict for row in rows] == ["does not hold here", "-"]


@pytest.mark.parametrize(
    "scale", [TOY, Scale("imagenette"), Scale("imagenette", full=True), Scale("imagenet")]
)
def test_stalls_are_of_networks_that_exist_trained_as_printed(scale: Scale) -> None:
    trials = {trial.arm: trial for trial in stall_claim.stalls(scale, [0], {})}
    for trial in trials.values():
        find_network(trial.recipe.network.name)
        assert trial.recipe.optimizer.bias_lr == trial.recipe.optimizer.lr  # the source doubles it
    if scale.is_full:
        paper = find_network("paper")
        assert find_network(trials["paper-start-plain"].recipe.network.name).layers == paper.layers
        assert trials["source-inverted"].recipe.network.name == "source"


def test_runs_on_other_pictures_have_other_names_and_say_so() -> None:
    names = set()
    for pretrain in ("birds", "cars"):
        scale = Scale("imagenette", pretrain=pretrain)
        before = next(t for t in plans.transfer(scale, [0], {}) if t.arm == "pretraining")
        assert before.settings()["data"]["dataset"] == pretrain
        names.add(before.name)
    assert len(names) == 2
