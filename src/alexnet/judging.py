"""What the finished runs of a claim say: findings, each a number with n and a verdict.

A finding is made of lines of results.jsonl alone, of those trials that the claim names at this
scale and with these settings. Differences are arm less control, in points of error, paired by
seed. Not here: statistics (`verdicts.py`), tables and figures (`reproduction.py`).
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alexnet.claims import Claim, Comparison
from alexnet.metrics import wilson_interval
from alexnet.plans import FIGURE_1_ERROR, Lines
from alexnet.scales import Scale
from alexnet.stall_claim import PRINTED, STALL_ARMS, WHOLE_NETWORKS, StallArm, single_change
from alexnet.trials import Line, epochs_to, error_of, train_curve
from alexnet.verdicts import (
    CONFIDENCE,
    FEWEST_PAIRS,
    Estimate,
    Verdict,
    estimate,
    mcnemar_p,
    median_interval,
    ratio_estimate,
    sign_flip_p,
    size_words,
    verdict_above,
    verdict_at_most,
    verdict_every,
)

NO_WORSE_POINTS = 0.5  # what "no worse" leaves open, of 100
MOST_SEEDS = 100  # lines of more seeds are not looked for
MEASURES = {
    "val/1": "validation error, one view",
    "val/10": "validation error, ten views",
    "train": "training error",
    "gap": "validation less training error",
}


@dataclass(frozen=True)
class Finding:
    """One number of one claim at one scale. `unit`: points, times, share ...; n: pairs or runs."""

    claim: str
    scale: str
    what: str
    unit: str
    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    paper: str
    source: str
    verdict: str  # a Verdict, or "-" where nothing is claimed
    size: str
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Arms = Mapping[str, Mapping[int, Line]]


def arms_of(claim: Claim, scale: Scale, lines: Lines) -> Arms:
    """{arm: {seed: line}} of what is done of a claim."""
    found: dict[str, dict[int, Line]] = {}
    seeds = sorted({line["seed"] for line in lines.values() if line["seed"] < MOST_SEEDS})
    for trial in claim.plan(scale, seeds, lines):
        if trial.name in lines:
            found.setdefault(trial.arm, {})[trial.seed] = lines[trial.name]
    return found


def findings(claim: Claim, scale: Scale, lines: Lines) -> list[Finding]:
    """All that is known about a claim at a scale; empty where nothing has run."""
    arms = arms_of(claim, scale, lines)
    found = [
        finding
        for comparison in claim.comparisons
        if (finding := compared(claim, scale, comparison, arms)) is not None
    ]
    judge = JUDGES.get(claim.name)
    return found + (judge(claim, scale, arms) if judge else [])


def pairs(arms: Arms, arm: str, against: str) -> list[tuple[Line, Line]]:
    ours, theirs = arms.get(arm, {}), arms.get(against, {})
    return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def compared(claim: Claim, scale: Scale, comparison: Comparison, arms: Arms) -> Finding | None:
    """The paired difference of two arms, or None where no seed has both."""
    both = pairs(arms, comparison.arm, comparison.against)
    measure = comparison.measure
    if not both:
        return None
    differences = [error_of(one, measure) - error_of(other, measure) for one, other in both]
    found = estimate(differences)
    sign = -1.0 if comparison.claims == "better" else 1.0
    claimed = sign * (comparison.paper or comparison.source or 0.0)
    verdict: str = "-"
    if comparison.claims in ("worse", "better"):
        verdict = verdict_above(_turned(found, sign), claimed)
    elif comparison.claims == "no worse":
        verdict = verdict_at_most(found, NO_WORSE_POINTS)
    means = [
        sum(error_of(line, measure) for line in side) / len(both)
        for side in zip(*both, strict=True)
    ]
    diverged = sum(bool(line["results"].get("diverged")) for pair in both for line in pair)
    note = f"{means[0]:.2f} against {means[1]:.2f} %"
    note += f"; {diverged} diverged and count as 100 %" if diverged else ""
    return _finding(
        claim,
        scale,
        f"{comparison.arm} less {comparison.against}, {MEASURES[measure]}",
        found,
        unit="points",
        p=sign_flip_p(differences),
        paper=_points(comparison.paper),
        source=_points(comparison.source),
        verdict=verdict,
        size=size_words(found, comparison.paper),
        note=note,
    )


def _turned(found: Estimate, sign: float) -> Estimate:
    low, high = sorted((sign * found.low, sign * found.high))
    return Estimate(sign * found.mean, low, high, found.n)


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2g}"


def _finding(claim: Claim, scale: Scale, what: str, found: Estimate, **more: Any) -> Finding:
    numbers = found.as_dict()
    defaults: dict[str, Any] = {"p": None, "paper": "-", "source": "-", "size": "-", "note": ""}
    return Finding(
        claim=claim.name,
        scale=scale.title,
        what=what,
        **{key: numbers[key] for key in ("mean", "low", "high", "n")},  # type: ignore[arg-type]
        **{**defaults, **more},
    )


# --- Claims with measures of their own ------------------------------------------------------------


def _relu(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    """Epochs of tanh over epochs of ReLU, at the rates that the search chose."""
    runs = {
        kind: {
            seed: line
            for arm, by_seed in arms.items()
            if arm.startswith(f"{kind}-rate-")
            for seed, line in by_seed.items()
            if seed < MOST_SEEDS
        }
        for kind in ("relu", "tanh")
    }
    seeds = sorted(runs["relu"].keys() & runs["tanh"].keys())
    ends = {
        kind: [_epochs_or_all(runs[kind][seed], FIGURE_1_ERROR) for seed in seeds] for kind in runs
    }
    if not seeds:
        return []
    found = ratio_estimate(
        [slow / fast for (slow, _), (fast, _) in zip(ends["tanh"], ends["relu"], strict=True)]
    )
    verdict: Verdict = "undecided"
    if found.n >= FEWEST_PAIRS:
        verdict = "holds" if found.low > 1 else "does not hold here" if found.high < 1 else verdict
    rates = sorted({arm for arm in arms if arm.startswith(("relu", "tanh"))})
    note = f"searched: {', '.join(rates)}"
    short = {kind: sum(not reached for _, reached in ends[kind]) for kind in ends}
    bound = ""
    if any(short.values()):
        bound = "" if all(short.values()) else ", at least" if short["tanh"] else ", at most"
        note += f"; {short['tanh']} of tanh and {short['relu']} of ReLU never got there and count "
        note += "with all their epochs"
    return [
        _finding(
            claim,
            scale,
            f"epochs to {FIGURE_1_ERROR:g} % training error, tanh over ReLU{bound}",
            found,
            unit="times",
            paper="6",
            verdict=verdict,
            size="-" if any(short.values()) else size_words(found, 6.0),
            note=note,
        )
    ]


def _epochs_or_all(line: Line, error: float) -> tuple[float, bool]:
    """Epochs to a training error and True, or all that were planned and False."""
    found = epochs_to(line, error)
    planned = float(line["settings"]["schedule"]["epochs"])
    return (planned, False) if found is None else (found, True)


def _views(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    lines = [line for line in arms.get("control", {}).values() if "val/10" in _errors(line)]
    if not lines:
        return []
    gains = [error_of(line, "val/1") - error_of(line, "val/10") for line in lines]
    found = estimate(gains)
    return [
        _finding(
            claim,
            scale,
            "one view less ten, validation error",
            found,
            unit="points",
            p=sign_flip_p(gains),
            paper="+1.5",
            source="+1.55",
            verdict=verdict_above(found, 1.5),
            size=size_words(found, 1.5),
        )
    ]


def _errors(line: Line) -> Mapping[str, Any]:
    return line["results"].get("errors", {})  # type: ignore[no-any-return]


def _averaging(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    """Five networks, and seven, which are the paper's only in Table 2."""
    rows = [_averaged(claim, scale, arms, "average-of-5", "5", 2.6)]
    rows += [_averaged(claim, scale, arms, "average-of-7", "7, two of six convolutions", None)]
    return [row for group in rows for row in group]


def _table_2(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    rows = _averaged(claim, scale, arms, "average-of-5", "5", 2.6)
    two = "average-of-5-and-2-pre-trained"
    rows += _averaged(claim, scale, arms, two, "7, two of them pre-trained", 4.0)
    return [row for row in rows if "searched" not in row.what]


def _averaged(
    claim: Claim, scale: Scale, arms: Arms, arm: str, words: str, paper: float | None
) -> list[Finding]:
    """What one average gains over its members; there is one of it, so n counts pictures."""
    if not (line := arms.get(arm, {}).get(0)):
        return []
    results = line["results"]
    images = results["images"]

    def over_pictures(key: str) -> Estimate:
        mean, low, high = results[key]
        return Estimate(mean, low, high, images)

    gain = over_pictures("gain_over_pictures")
    alone = sum(results["single_wrong"]) / len(results["single_wrong"])
    percent = {
        "one": 100 * alone / images,
        **{key: 100 * results[f"{key}_wrong"] / images for key in ("average", "equal", "searched")},
        "seen": 100 * results["searched_on_what_is_scored_wrong"] / images,
    }
    return [
        _finding(
            claim,
            scale,
            f"one network on average less the average of {words}, ten views",
            gain,
            unit="points",
            paper=_points(paper),
            verdict=verdict_above(gain, paper or 0.0),
            size=size_words(gain, paper),
            note="n counts pictures; {one:.2f} against {average:.2f} %".format(**percent),
        ),
        _finding(
            claim,
            scale,
            f"equal less searched weights of {words}, on pictures that the search did not see",
            over_pictures("search_gain_over_pictures"),
            unit="points",
            verdict="-",
            note=(
                "n counts pictures; {equal:.2f} against {searched:.2f} %; searched on what is "
                "scored: {seen:.2f} %"
            ).format(**percent),
        ),
    ]


def _iterations(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    """How much longer dropout takes to the training error that it ends with."""
    ratios, short = [], 0
    for dropped, none in pairs(arms, "control", "no-dropout"):
        curve = train_curve(dropped)
        if not curve:
            continue
        end = min(error for _, error in curve)
        slow, _ = _epochs_or_all(dropped, end)
        fast, reached = _epochs_or_all(none, end)
        short += not reached
        ratios.append(slow / fast)
    if not ratios:
        return []
    found = ratio_estimate(ratios)
    verdict: Verdict = "undecided"
    if found.n >= FEWEST_PAIRS:
        verdict = "holds" if found.low > 1 else "does not hold here" if found.high < 1 else verdict
    note = "rates fall with the schedule in both"
    note += f"; {short} without dropout never got there" if short else ""
    return [
        _finding(
            claim,
            scale,
            "epochs with dropout over those without, to the training error that it ends with",
            found,
            unit="times",
            paper="2",
            verdict=verdict,
            size="-" if short else size_words(found, 2.0),
            note=note,
        )
    ]


def _kernels(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    """In how many runs the two halves of conv1 part by colour more than random halves do."""
    found = []
    for arm, words in (("control", "two columns"), ("no-columns", "halves of one column")):
        lines = [line for line in arms.get(arm, {}).values() if "colour" in line["results"]]
        if not lines:
            continue
        colours = [line["results"]["colour"] for line in lines]
        parted = sum(colour["parted_p"] < 0.05 for colour in colours)
        n = len(lines)
        low, high = wilson_interval(parted, n)
        apart = [abs(colour["halves"][0] - colour["halves"][1]) for colour in colours]
        halves = ", ".join(
            f"{min(colour['halves']):.2f}/{max(colour['halves']):.2f}" for colour in colours[:5]
        )
        found.append(
            _finding(
                claim,
                scale,
                f"runs whose {words} part by colour",
                Estimate(parted / n, low, high, n),
                unit="share",
                paper="every run" if arm == "control" else "-",
                verdict=verdict_every(parted, n, high) if arm == "control" else "-",
                note=f"mean difference {sum(apart) / n:.3f}; shares of colour {halves}",
            )
        )
    return found


CLAIMED_FURTHER = ("pixels", "untrained network")  # "near in meaning, not in pixels"


def _neighbours(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    lines = list(arms.get("neighbours", {}).values())
    found = []
    for way in ("pixels", "last pool", "untrained network"):
        gains = []
        for line in lines:
            precision = line["results"]["precision"]
            gains.append(100 * (precision["last hidden layer"] - precision[way]))
        if not gains:
            continue
        gain = estimate(gains)
        means = {
            key: sum(line["results"]["precision"][key] for line in lines) / len(lines)
            for key in ("last hidden layer", way, "chance")
        }
        found.append(
            _finding(
                claim,
                scale,
                f"precision at 6, last hidden layer less {way}",
                gain,
                unit="points of precision",
                p=sign_flip_p(gains),
                verdict=verdict_above(gain, 0.0) if way in CLAIMED_FURTHER else "-",
                note=", ".join(f"{key} {100 * value:.1f} %" for key, value in means.items()),
            )
        )
    return found


def _stalls(claim: Claim, scale: Scale, arms: Arms) -> list[Finding]:
    """Runs that are still at ln(classes) when their steps end; then what single changes do."""
    shares = [
        _stalled(claim, scale, arm, arms[arm.name])
        for arm in (*STALL_ARMS, *WHOLE_NETWORKS)
        if arm.name in arms
    ]
    changes = [
        _single_change(
            claim, scale, f"{before.name}: {changed}", *(arms[a.name] for a in (before, after))
        )
        for before, after in itertools.product(STALL_ARMS, STALL_ARMS)
        if {before.name, after.name} <= arms.keys()
        and (changed := single_change(before, after)) is not None
    ]
    return shares + [change for change in changes if change is not None]


def _stalled(claim: Claim, scale: Scale, arm: StallArm, by_seed: Mapping[int, Line]) -> Finding:
    lines = list(by_seed.values())
    steps = [_steps_to_leave(line) for line in lines]
    n, stalled = len(steps), sum(map(math.isinf, steps))
    note = f"within {max(map(_most_steps, lines)):.0f} steps"
    if stalled < n and (found := median_interval(steps)) is not None:
        middle, low, high = (f"{x:.0f}" if math.isfinite(x) else "later" for x in found)
        note += f"; median step {middle} ({low} to {high})"
    elif stalled < n:
        note += f"; from step {min(steps):.0f} to {max(filter(math.isfinite, steps)):.0f}"
    left = wilson_interval(n - stalled, n)
    return _finding(
        claim,
        scale,
        f"{arm.name}: runs at ln(classes)",
        Estimate(stalled / n, 1 - left[1], 1 - left[0], n),
        unit="share",
        verdict=verdict_every(n - stalled, n, left[1]) if arm in PRINTED else "-",
        note=note,
    )


def _most_steps(line: Line) -> float:
    return float(line["settings"]["system"]["max_steps"])


def _steps_to_leave(line: Line) -> float:
    left = line["results"]["left_chance"]
    return math.inf if left is None else float(left)


def _single_change(
    claim: Claim, scale: Scale, changed: str, before: Mapping[int, Line], after: Mapping[int, Line]
) -> Finding | None:
    """How much longer it takes; a run that never leaves counts with all of its steps.

    None where no run leaves on either side: that the steps are equal says nothing.
    """
    seeds = sorted(before.keys() & after.keys())
    ends = [[_steps_to_leave(arm[seed]) for seed in seeds] for arm in (before, after)]
    if not any(map(math.isfinite, ends[0] + ends[1])):
        return None
    most = [[_most_steps(arm[seed]) for seed in seeds] for arm in (before, after)]
    ratios = [
        min(last, last_steps) / min(first, first_steps)
        for first, last, first_steps, last_steps in zip(*ends, *most, strict=True)
    ]
    stays = [[math.isinf(end) for end in arm] for arm in ends]
    both = list(zip(*stays, strict=True))
    p = mcnemar_p(both.count((True, False)), both.count((False, True)))
    n = len(seeds)
    note = f"at ln(classes): {sum(stays[0])} of {n} before, {sum(stays[1])} of {n} after"
    if p < 1 - CONFIDENCE:
        note += f": decides (McNemar's p = {p:.2g})"
    return _finding(
        claim,
        scale,
        f"{changed}, steps to leave",
        ratio_estimate(ratios),
        unit="times",
        p=sign_flip_p([math.log(ratio) for ratio in ratios]),
        verdict="-",
        note=note,
    )


Judge = Callable[[Claim, Scale, Arms], list[Finding]]
JUDGES: dict[str, Judge] = {
    "relu": _relu,
    "views": _views,
    "averaging": _averaging,
    "overfitting": _iterations,
    "kernels": _kernels,
    "neighbours": _neighbours,
    "stall": _stalls,
    "table2": _table_2,
}
