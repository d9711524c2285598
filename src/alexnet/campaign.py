"""The queue of trials: in which order they run, on which devices, and what fits into a budget.

The trials of one claim and one seed are a block: a comparison needs all of them, so a block is
begun only where there is time for it. Each finished trial is one line of results.jsonl, flushed to
the disk; what has a line is never run again, and a training that was killed goes on from its last
checkpoint. Claims share runs, so the second costs less than the first.

Not here: what a trial does (`trials.py`), which trials a claim needs (`plans.py`), how several run
at a time (`apart.py`).
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alexnet import costs
from alexnet.apart import Say, Workers, killed, worker_pools
from alexnet.claims import Claim
from alexnet.errors import UserError
from alexnet.files import explain_os_error
from alexnet.log import duration
from alexnet.plans import Lines
from alexnet.scales import Scale
from alexnet.stopping import Interrupted, on_stop_signal
from alexnet.trials import Line, Place, Trial, carry_out, open_for, pictures_of, read_lines
from alexnet.workers import available_cores


@dataclass(frozen=True)
class Block:
    """What one seed adds to a claim."""

    claim: Claim
    seed: int
    trials: tuple[Trial, ...]


def blocks(claims: Sequence[Claim], scale: Scale, seeds: int | None, lines: Lines) -> list[Block]:
    """Blocks in order, each trial in the first that needs it; what has a line is left out.

    A claim's later trials may depend on the lines of its earlier ones.
    """
    found, known = [], set(lines)
    for claim in claims:
        for seed in range(claim.seeds if seeds is None else seeds):
            trials = claim.plan(scale, range(seed + 1), lines)
            new = tuple(t for t in dict.fromkeys(trials) if t.name not in known)
            known |= {trial.name for trial in new}
            if new:
                found.append(Block(claim, seed, new))
    return found


@dataclass
class Campaign:
    """Trials of some claims at one scale, run in a results' folder.

    `seeds`: of each claim, None for its own number. `budget`: seconds, or None for no limit.
    `devices`: one worker for each; several of "cpu" share the cores.
    """

    claims: Sequence[Claim]
    scale: Scale
    place: Place
    seeds: int | None = None
    budget: float | None = None
    devices: tuple[str, ...] = ("auto",)
    say: Say = print
    begun: set[tuple[int, int]] = field(default_factory=set, init=False)  # claim, seed

    def run(self) -> int:
        """Run what is missing and return how many trials were run.

        Raises UserError where not one block fits into the budget, and what trials raise.
        """
        with only_one(self.place.out):
            began = time.monotonic()
            self._check_pictures()
            if self.budget is not None:
                self._check_budget(self.budget)
            run = self._run_here if len(self.devices) == 1 else self._run_apart
            done = run(began)
            self._tell_left_out()
            return done

    def _check_pictures(self) -> None:
        """That the lines so far are of the pictures that are named now.

        Lines of before 28 November 2026 do not tell what their pictures were.
        """
        lines = read_lines(self.place.out)
        seeds = {claim.number: range(self.seeds or claim.seeds) for claim in self.claims}
        used = {
            trial.recipe.data
            for claim in self.claims
            for trial in claim.plan(self.scale, seeds[claim.number], lines)
            if trial.name not in lines or trial.recipe.data.dataset in self.place.data
        }
        for data in used:
            known = (line for line in lines.values() if line["settings"]["data"] == asdict(data))
            before = next((line["pictures"] for line in known if "pictures" in line), None)
            if before is None or _alike(before, now := pictures_of(open_for(data, self.place))):
                continue
            raise UserError(
                f"{self.place.out} holds results of other pictures named {data.dataset} "
                f"({_told(before)}; now {_told(now)}): give another folder as --out"
            )

    def _tell_left_out(self) -> None:
        lines = read_lines(self.place.out)
        for block in blocks(self.claims, self.scale, self.seeds, lines):
            for trial in block.trials:
                for name in filter(lines.__contains__, trial.of):
                    if lines[name]["results"].get("diverged"):
                        self.say(f"{trial.name} is left out: {name} diverged")

    def plan(self) -> list[dict[str, Any]]:
        """What is missing, claim by claim in order, with estimates; what is shared counts once.

        Trials that depend on the outcome of others are not in it until those have run.
        """
        lines = read_lines(self.place.out)
        price, rows, total = self._price(lines), [], 0.0
        waiting = blocks(self.claims, self.scale, self.seeds, lines)
        for claim in self.claims:
            own = [block for block in waiting if block.claim is claim]
            seconds = sum(price(trial) for block in own for trial in block.trials)
            total += seconds
            rows.append(
                {
                    "claim": claim.name,
                    "scale": self.scale.title,
                    "seeds": len(own),
                    "runs": sum(len(block.trials) for block in own),
                    "seconds": round(seconds, 1),
                    "total_seconds": round(total, 1),
                }
            )
        return rows

    def _check_budget(self, seconds: float) -> None:
        lines = read_lines(self.place.out)
        waiting = blocks(self.claims, self.scale, self.seeds, lines)
        price = self._price(lines)
        prices = [sum(map(price, block.trials)) / len(self.devices) for block in waiting]
        if prices and min(prices) > seconds:
            least = waiting[prices.index(min(prices))]
            raise UserError(
                f"a budget of {duration(seconds)} is too small: one pair of claim "
                f"{least.claim.name} takes about {duration(min(prices))}"
            )

    def _price(self, lines: Lines) -> Callable[[Trial], float]:
        known = costs.Costs(self.place, lines)
        return known.seconds

    def _ready(self, began: float, running: Mapping[str, Block]) -> list[tuple[Block, Trial]]:
        """Trials that can start now, in order: their sources are there, their block fits.

        A block that was begun is finished, whatever the clock says.
        """
        lines = read_lines(self.place.out)
        waiting = blocks(self.claims, self.scale, self.seeds, lines)
        if self.budget is not None:
            price = self._price(lines)
            left = (self.budget - (time.monotonic() - began)) * len(self.devices)
            begun = {(block.claim.number, block.seed) for block in running.values()} | self.begun
            affordable = []
            for block in waiting:
                cost = sum(map(price, block.trials))
                if (block.claim.number, block.seed) in begun or cost <= left:
                    left -= cost
                    affordable.append(block)
            waiting = affordable

        def there(name: str) -> bool:  # what diverged has left nothing to read
            return name in lines and not lines[name]["results"].get("diverged")

        return [
            (block, trial)
            for block in waiting
            for trial in block.trials
            if trial.name not in running and all(map(there, trial.of))
        ]

    def _left(self, ready: Sequence[tuple[Block, Trial]]) -> str:
        """E.g. "7 to go, about 12 min"; no time before a first run is there to go by."""
        lines = read_lines(self.place.out)
        if not any(line["scale"] == self.scale.name for line in lines.values()):
            return f"{len(ready)} to go"
        price = self._price(lines)
        seconds = sum(price(trial) for _, trial in ready) / len(self.devices)
        return f"{len(ready)} to go, about {duration(seconds)}"

    def _run_here(self, began: float) -> int:
        done = 0
        place = replace(self.place, device=self.devices[0])
        while ready := self._ready(began, {}):
            block, trial = ready[0]
            self.begun.add((block.claim.number, block.seed))
            self.say(f"{trial.name} ({self._left(ready)})")
            line = carry_out(trial, place, self.say)
            self._keep(line)
            done += 1
        return done

    def _run_apart(self, began: float) -> int:
        """One process for each device; each trial is handed to the first that is free.

        A signal that asks to stop is handed on to them: trainings save themselves. Raises
        Interrupted when the last has ended.
        """
        asked: list[int] = []
        with worker_pools(len(self.devices), self.say) as several:

            def pass_on(number: int) -> None:
                asked.append(number)
                several.stop()

            with on_stop_signal(pass_on):
                done = self._run_on(several, began)
        if asked:
            raise Interrupted(asked[0], self.place.out)
        return done

    def _run_on(self, several: Workers, began: float) -> int:
        """Hand out trials until none is left, one fails, or they are to stop.

        What is under way then saves itself, or is kept if it ends; the first failure is raised.
        """
        threads = max(1, available_cores() // len(self.devices))
        running: dict[str, Block] = {}
        work: dict[Future[Line], tuple[int, str]] = {}
        free, done, failures = list(range(len(self.devices))), 0, list[Exception]()
        while True:
            ready = [] if several.stopping else self._ready(began, running)
            for block, trial in ready[: len(free)]:
                left = self._left(ready)
                if several.stopping:  # it may have taken a while to see what is ready
                    break
                worker = free.pop()
                device = self.devices[worker]
                own_threads = threads if device == "cpu" else 0
                place = replace(self.place, device=device, threads=own_threads)
                self.begun.add((block.claim.number, block.seed))
                self.say(f"{trial.name} on {device} ({left})")
                try:
                    work[several.hand_out(worker, trial, place)] = (worker, trial.name)
                except BrokenProcessPool:
                    failures.append(killed(trial.name))
                    several.stop()
                    break
                running[trial.name] = block
            if not work:
                if failures:
                    raise failures[0]
                return done
            finished, _ = wait(work, return_when=FIRST_COMPLETED)
            for future in finished:
                worker, name = work.pop(future)
                try:
                    self._keep(future.result())
                    done += 1
                except KeyboardInterrupt:
                    pass  # it has saved itself
                except BrokenProcessPool:
                    if not several.stopping:
                        failures.append(killed(name))
                except Exception as error:
                    failures.append(error)
                del running[name]
                free.append(worker)
            if failures and not several.stopping:
                several.stop()

    def _keep(self, line: Line) -> None:
        append_line(self.place.out, {**line, "asked": self.scale.as_dict()})
        self.say(f"{line['trial']}: done in {duration(line['seconds'])}")


def append_line(out: Path, line: Line) -> None:
    """Add a line to results.jsonl, whole and on the disk when this returns."""
    path = out / "results.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a crash cut the line before short
                    file.write(b"\n")
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise explain_os_error(error, path) from error


def _alike(before: Line, now: Line) -> bool:
    """Within half a level of colour: another decoder makes no other pictures."""
    counts = [{key: value for key, value in p.items() if key != "mean_rgb"} for p in (before, now)]
    return counts[0] == counts[1] and all(
        abs(one - other) < 0.5
        for one, other in zip(before["mean_rgb"], now["mean_rgb"], strict=True)
    )


def _told(pictures: Line) -> str:
    """E.g. "10 classes, 9469 train, 3925 val, mean colour 118 114 108"."""
    colour = " ".join(f"{level:.0f}" for level in pictures["mean_rgb"])
    counts = [f"{value} {key}" for key, value in pictures.items() if key != "mean_rgb"]
    return ", ".join([*counts, f"mean colour {colour}"])


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold a results' folder. Raises UserError while another process holds it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / ".lock", "w")  # noqa: SIM115 (held as long as the block)
    except OSError as error:
        raise explain_os_error(error, out) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another alexnet reproduce is at work in {out}") from None
        yield
