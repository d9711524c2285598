"""docs/reproduction.md: every claim with the paper's figures, the source's and ours.

Tables and figures are drawn from the lines of results.jsonl alone. What has not run is listed with
the command that would run it. Not here: verdicts (`judging.py`), how a figure looks (`drawing.py`).
"""

import json
import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.claims import (
    BY_VALUE,
    CLAIMS,
    PRETRAINED,
    Claim,
    find_claim,
)
from alexnet.costs import SUSTAINED_FLOP_PER_S, table_2_costs
from alexnet.drawing import COLOURS, INK, LINE, SOFT, chart, save, style
from alexnet.errors import UserError
from alexnet.files import write_text
from alexnet.judging import MEASURES, Finding, arms_of, findings
from alexnet.log import duration
from alexnet.plans import FIGURE_1_ERROR, Lines
from alexnet.scales import Scale
from alexnet.trials import read_lines, train_curve
from alexnet.verdicts import FEWEST_PAIRS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_COLOURS = {
    "holds": COLOURS["green"],
    "does not hold here": COLOURS["vermillion"],
    "undecided": COLOURS["blue"],
    "-": SOFT,
}
BEGIN, END = "<!-- reproduction: summary -->", "<!-- /reproduction: summary -->"
NOT_CLAIMED = {"-": "not claimed"}
USUAL = f", {MEASURES['val/1']}"  # said once, above the figure
LABEL_WIDTH = 56
SHARED_ROWS = ("table2",)  # rows that other claims have, too
TOY = "toy"  # its figures mean nothing


def all_findings(lines: Lines) -> dict[Scale, dict[str, list[Finding]]]:
    """{scale as it was asked for: {claim: findings}}, of everything that has run but toys.

    What no setting of the scale touches is told once, where most of its runs were asked for.
    """
    asked = {json.dumps(line["asked"]): line["asked"] for line in lines.values()}
    scales = [Scale(**settings) for settings in asked.values() if settings["name"] != TOY]
    scales.sort(key=lambda scale: (scale.name, scale.full, scale.epochs))
    found: dict[Scale, dict[str, list[Finding]]] = {scale: {} for scale in scales}
    for claim in CLAIMS:
        told: set[Finding] = set()
        for scale, _ in Counter({s: _asked_at(claim, s, lines) for s in scales}).most_common():
            own = {t: line for t, line in lines.items() if line["asked"] == scale.as_dict()}
            rows = findings(claim, scale, {**lines, **own})
            new = [row for row in rows if replace(row, scale="") not in told]
            told |= {replace(row, scale="") for row in new}
            if new:
                found[scale][claim.name] = new
    return {scale: by_claim for scale, by_claim in found.items() if by_claim}


def _asked_at(claim: Claim, scale: Scale, lines: Lines) -> int:
    """How many lines of a claim at a scale were asked for at this very scale."""
    arms = arms_of(claim, scale, lines)
    of_claim = [line for by_seed in arms.values() for line in by_seed.values()]
    return sum(line["asked"] == scale.as_dict() for line in of_claim)


def write_report(out: Path, page: Path, readme: Path | None = None) -> Path:
    """Write the page, its figures beside it, and the summary in the README if it has a place.

    Raises UserError where nothing has run.
    """
    lines = read_lines(out)
    found = all_findings(lines)
    if not found:
        raise UserError(f"{out / 'results.jsonl'} has no results yet; alexnet reproduce makes them")
    folder = page.with_suffix("")
    drawn = {name: figure for name, figure in _figures(lines, found).items() if figure is not None}
    for name, figure in drawn.items():
        save(figure, folder, name)
    write_text(page, page_text(lines, found, [f"{folder.name}/{name}.png" for name in drawn]))
    if readme is not None and readme.is_file():
        text = readme.read_text()
        if BEGIN in text and END in text:
            before, _, rest = text.partition(BEGIN)
            after = rest.partition(END)[2]
            write_text(readme, f"{before}{BEGIN}\n{short_summary(found)}\n{END}{after}")
    return page


# --- Text -----------------------------------------------------------------------------------------


def page_text(
    lines: Lines, found: Mapping[Scale, Mapping[str, Sequence[Finding]]], figures: Sequence[str]
) -> str:
    """The page in Markdown."""
    parts = [
        "# The paper, claim by claim",
        "",
        "Written by `alexnet reproduce --report` from the lines of `results.jsonl`, one for each "
        "run. What each run was is in its line: settings, seed, versions, commit, device.",
        "",
        "**How to read it.** Runs are paired by their seed. A difference is the arm less what it "
        "is compared with, in points of top-1 error; in brackets its 95 % interval (Student's t; "
        "shares: Wilson). p is that of flipping signs: it cannot be below 2/2^n. A claimed effect "
        "*holds* if the whole interval has its sign; it *does not hold here* if the whole interval "
        "has the other sign or lies below a quarter of the paper's figure; else, and for fewer "
        'than three pairs, it is *undecided*. "No worse" leaves half a point open. *Size* says '
        "whether the paper's figure lies in our interval; at another scale it need not. Their "
        "differences are of ten views, ours of one unless it is said. What is claimed of every run "
        "*holds* if it is so in all, three at least, and *does not hold here* if the interval of "
        "its share lies below nine tenths.",
        "",
        "## Summary",
        "",
        summary_table(found),
        "",
    ]
    for figure in figures:
        title = Path(figure).stem.replace("-", " ")
        parts += [f"![{title}]({figure})", ""]
    for claim in CLAIMS:
        parts += _claim_text(claim, found)
    parts += _table_2_text()
    parts += _machines(lines)
    return "\n".join(parts) + "\n"


def summary_table(found: Mapping[Scale, Mapping[str, Sequence[Finding]]]) -> str:
    """A row for each claim: what it says, the paper's figure, and what holds at each scale."""
    rows = ["| claim | section | the paper | here |", "|---|---|---|---|"]
    for claim in CLAIMS:
        here = [
            f"{scale.title}: {in_short(by_claim[claim.name])}"
            for scale, by_claim in found.items()
            if claim.name in by_claim
        ]
        rows.append(
            f"| {claim.number}. {claim.says} | {claim.section} | {claim.paper} "
            f"| {'<br>'.join(here) or 'not run yet'} |"
        )
    return "\n".join(rows)


def in_short(rows: Sequence[Finding]) -> str:
    """E.g. "no-lrn +3.44 **holds** (n = 5)", of all findings that a claim is about."""
    claimed = [row for row in rows if row.verdict != "-"]
    return (
        "; ".join(
            f"{_short_words(row)} {ours(row).partition(' (')[0]} **{row.verdict}** (n = {row.n:,})"
            for row in claimed
        )
        or "measured; nothing is claimed"
    )


def _short_words(row: Finding) -> str:
    return row.what.removesuffix(USUAL).replace(" less control", "")


def short_summary(found: Mapping[Scale, Mapping[str, Sequence[Finding]]]) -> str:
    """The summary's rows of the claims that have a run, and how many have none."""
    have_run = {claim.number for claim in CLAIMS if any(claim.name in by for by in found.values())}
    head, line, *rows = summary_table(found).splitlines()
    kept = [row for row in rows if int(row.removeprefix("| ").partition(".")[0]) in have_run]
    left = len(CLAIMS) - len(kept)
    return "\n".join(
        [
            head,
            line,
            *kept,
            *["", f"{left} of {len(CLAIMS)} claims have not been run yet."] * (left > 0),
        ]
    )


def _claim_text(claim: Claim, found: Mapping[Scale, Mapping[str, Sequence[Finding]]]) -> list[str]:
    parts = [
        f"## {claim.number}. {claim.name} (Section {claim.section})",
        "",
        f"{claim.says.removesuffix('?')}{'?' if claim.says.endswith('?') else '.'} "
        f"Paper: {claim.paper}. Source: {claim.source}."
        + (f" {claim.remark}" if claim.remark else ""),
        "",
    ]
    measured = {scale: rows[claim.name] for scale, rows in found.items() if claim.name in rows}
    if not measured:
        return [*parts, f"Not run yet: `{command(claim, None)}`.", ""]
    parts += [
        "| scale | what | paper | source | here | n | p | verdict | size | |",
        "|---|---|---:|---:|---:|---:|---:|---|---|---|",
    ]
    for rows in measured.values():
        for row in rows:
            p = "-" if row.p is None else f"{row.p:.3f}" if row.p >= 0.0005 else "<0.001"
            cells = (row.scale, row.what, row.paper, row.source, ours(row), f"{row.n:,}", p)
            parts.append(f"| {' | '.join((*cells, row.verdict, row.size, row.note))} |")
    commands = "\n".join(command(claim, scale) for scale in measured)
    return [*parts, "", "```sh", commands, "```", ""]


def ours(row: Finding) -> str:
    """Mean and interval: "+1.31 (0.72 to 1.90)"."""
    if row.unit == "share":
        mean, low, high = (f"{100 * (value or 0):.0f} %" for value in (row.mean, row.low, row.high))
        return f"{mean} ({low} to {high})"
    sign = "+" if row.unit.startswith("points") else ""
    mean = f"{row.mean:{sign}.2f}"
    if row.low is None or row.high is None:
        return mean
    return f"{mean} ({row.low:.2f} to {row.high:.2f})"


def command(claim: Claim, scale: Scale | None) -> str:
    """The command that makes a claim's runs."""
    words = ["alexnet", "reproduce", claim.name]
    if scale is None:
        return shlex.join([*words, "--scale", "imagenette"])
    words += ["--scale", scale.name]
    words += ["--full"] if scale.full else []
    words += ["--epochs", f"{scale.epochs:g}"] if scale.epochs else []
    words += ["--steps", str(scale.steps)] if scale.steps else []
    words += ["--precision", scale.precision] if scale.precision != "fp32" else []
    words += ["--pretrain", scale.pretrain] if scale.pretrain and claim.name in PRETRAINED else []
    return shlex.join(words)


def _table_2_text() -> list[str]:
    parts = [
        "## What Section 6 takes on ImageNet",
        "",
        "Floating point operations of the trainings behind each row, and hours on one GPU at "
        f"{SUSTAINED_FLOP_PER_S / 1e12:.0f} TFLOP/s sustained: divide by what yours sustains on "
        "this network (`alexnet bench`). Pre-training's epochs are those of the source's notes. "
        "Its CNN* began from runs 145 and 146-2009, not counted here, and had a narrower head.",
        "",
        "| row | paper | source | trainings | operations | GPU hours |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for row in table_2_costs():
        trainings = "; ".join(
            f"{part['count']} x `{part['network']}`, {part['classes']:,} classes, "
            f"{part['pictures']:,} pictures, {part['epochs']:g} epochs"
            for part in row["trainings"]
        )
        parts.append(
            f"| {row['row']} | {row['paper']} | {row['source']} | {trainings} "
            f"| {row['operations']:.2g} | {row['hours']:.1f} |"
        )
    return [*parts, ""]


def _machines(lines: Lines) -> list[str]:
    """What the runs were made with."""
    real = [line for line in lines.values() if line["asked"]["name"] != TOY]
    seconds = sum(line["seconds"] for line in real)
    kinds = sorted({line["kind"] for line in real})
    counts = ", ".join(f"{sum(line['kind'] == kind for line in real)} {kind}" for kind in kinds)

    def among(key: str) -> str:
        return ", ".join(sorted({str(line["environment"][key]) for line in real}))

    commits = ", ".join(sorted({line["environment"]["commit"][:12] for line in real}))
    return [
        "## The runs",
        "",
        f"{len(real)} runs ({counts}), {duration(seconds)} in all. Device: {among('device')}; CPU: "
        f"{among('cpu')}; torch {among('torch')}; commits {commits}.",
    ]


# --- Figures --------------------------------------------------------------------------------------


def _figures(
    lines: Lines, found: Mapping[Scale, Mapping[str, Sequence[Finding]]]
) -> "dict[str, Figure | None]":
    rows = [row for by_claim in found.values() for group in by_claim.values() for row in group]
    return {
        "differences": differences_figure(rows),
        "figure-1": figure_1(lines, found),
        "colour-of-kernels": kernels_figure(lines, found),
        "stalls": stalls_figure(lines, found),
    }


def differences_figure(rows: Sequence[Finding]) -> "Figure | None":
    """Differences of three pairs or more, a panel for each scale; diamonds are the paper's."""
    panels: dict[str, list[Finding]] = {}
    for row in rows:
        if row.unit == "points" and row.n >= FEWEST_PAIRS and row.claim not in SHARED_ROWS:
            panels.setdefault(row.scale, []).append(row)
    if not panels:
        return None
    heights = [_places(_labels(group))[1] + 1.6 for group in panels.values()]
    with style():
        title = "Points of top-1 error, one view or as said, 95 % intervals; diamonds: the paper's"
        figure = chart(10.0, 1.0 + 0.23 * sum(heights), title)
        several = figure.subplots(
            len(panels), 1, sharex=True, squeeze=False, height_ratios=heights
        )[:, 0]
        for axes, (scale, group) in zip(several, panels.items(), strict=True):
            _draw_differences(axes, scale, group)
        for verdict, colour in VERDICT_COLOURS.items():
            several[0].plot(
                [], [], color=colour, linewidth=2, label=NOT_CLAIMED.get(verdict, verdict)
            )
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_differences(axes: "Axes", title: str, rows: Sequence[Finding]) -> None:
    labels = _labels(rows)
    places, end = _places(labels)
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, row in zip(places, rows, strict=True):
        colour = VERDICT_COLOURS[row.verdict]
        axes.plot([row.low or 0.0, row.high or 0.0], [place, place], color=colour, linewidth=2)
        axes.plot([row.mean], [place], "o", color=colour, markersize=5)
        if row.paper != "-":
            diamond = axes.plot([float(row.paper)], [place], "D", markersize=5)[0]
            diamond.set(markerfacecolor="none", markeredgecolor=INK)
    axes.set_yticks(places, labels)
    axes.set(ylim=(end - 0.4, -0.6), title=title)
    axes.grid(axis="x")


def _labels(rows: Sequence[Finding]) -> list[str]:
    return [
        textwrap.fill(f"{row.claim}: {row.what.removesuffix(USUAL)} (n = {row.n:,})", LABEL_WIDTH)
        for row in rows
    ]


def _places(labels: Sequence[str]) -> tuple[list[float], int]:
    """Where labels stand, in lines from the top, and where the last one ends."""
    places, end = [], 0
    for label in labels:
        lines = label.count("\n") + 1
        places.append(end + (lines - 1) / 2)
        end += lines
    return places, end


def figure_1(
    lines: Lines, found: Mapping[Scale, Mapping[str, Sequence[Finding]]]
) -> "Figure | None":
    """Figure 1: training error by epoch, ReLU and tanh, each seed a line."""
    scale = next((scale for scale, rows in found.items() if "relu" in rows), None)
    if scale is None:
        return None
    arms = arms_of(find_claim("relu"), scale, lines)
    with style():
        figure = chart(
            6.4, 3.6, f"Training error with ReLU and with tanh, {scale.title} (Figure 1)"
        )
        axes = figure.subplots()
        for arm, by_seed in sorted(arms.items()):
            kind = arm.partition("-")[0]
            for seed, line in by_seed.items():
                if seed >= 100:  # the search
                    continue
                curve = train_curve(line)
                colour, dashes = (
                    (COLOURS["blue"], "-") if kind == "relu" else (COLOURS["orange"], "--")
                )
                axes.plot(
                    [epoch for epoch, _ in curve],
                    [error for _, error in curve],
                    dashes,
                    color=colour,
                    linewidth=1.2,
                    label=f"{arm.replace('-rate-', ', rate ')}" if seed == min(by_seed) else None,
                )
        axes.axhline(FIGURE_1_ERROR, color=SOFT, linewidth=0.8)
        axes.set(xlabel="epochs", ylabel="training error (%)", ylim=(0, None))
        axes.grid(axis="y")
        axes.legend(frameon=False)
    return figure


def kernels_figure(
    lines: Lines, found: Mapping[Scale, Mapping[str, Sequence[Finding]]]
) -> "Figure | None":
    """Each kernel's share of colour by column, a row of points for each run (Figure 3)."""
    scales = [scale for scale, rows in found.items() if "kernels" in rows]
    if not scales:
        return None
    scale = max(scales, key=lambda scale: scale.epochs)
    runs = arms_of(find_claim("kernels"), scale, lines).get("control", {})
    with style():
        title = f"Colour in the kernels of conv1, by column, {scale.title} (Figure 3)"
        figure = chart(7.4, 0.9 + 0.32 * len(runs), title)
        axes = figure.subplots()
        for place, (_, line) in enumerate(sorted(runs.items())):
            colour = line["results"]["colour"]
            kernels, halves = colour["kernels"], colour["halves"]
            middle = len(kernels) // 2
            parts = (kernels[:middle], kernels[middle:])
            for part, name, offset in zip(parts, ("blue", "orange"), (-0.13, 0.13), strict=True):
                axes.plot(
                    part, [place + offset] * len(part), "|", color=COLOURS[name], markersize=7
                )
            for half, name, offset in zip(halves, ("blue", "orange"), (-0.13, 0.13), strict=True):
                axes.plot([half], [place + offset], "o", color=COLOURS[name], markersize=5)
        labels = [
            f"seed {seed}, p = {line['results']['colour']['parted_p']:.3f}"
            for seed, line in sorted(runs.items())
        ]
        axes.set_yticks(range(len(runs)), labels)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.axvline(2 / 3, color=LINE)
        axes.set(xlim=(0, 1), xlabel="share of a kernel's energy that is colour; grey: by chance")
    return figure


def stalls_figure(
    lines: Lines, found: Mapping[Scale, Mapping[str, Sequence[Finding]]]
) -> "Figure | None":
    """When each run left ln(classes): a point for each seed, crosses for those that never did."""
    scale = next((scale for scale, rows in found.items() if "stall" in rows), None)
    if scale is None:
        return None
    arms = arms_of(find_claim("stall"), scale, lines)
    with style():
        title = f"When the loss leaves ln(classes), {scale.title}"
        figure = chart(7.4, 0.9 + 0.3 * len(arms), title)
        axes = figure.subplots()
        for place, by_seed in enumerate(arms.values()):
            runs = [line["results"] for line in by_seed.values()]
            for number, run in enumerate(runs):
                offset = 0.5 * (number / max(1, len(runs) - 1) - 0.5)
                left = run["left_chance"]
                mark, name = ("x", "vermillion") if left is None else ("o", "blue")
                step = run["steps"] if left is None else left
                axes.plot([step], [place + offset], mark, color=COLOURS[name], markersize=3.5)
        labels = [
            f"{arm} ({sum(line['results']['left_chance'] is None for line in runs.values())} of "
            f"{len(runs)} stay)"
            for arm, runs in arms.items()
        ]
        axes.set_yticks(range(len(arms)), labels)
        axes.set(ylim=(len(arms) - 0.4, -0.6), xlim=(0, None))
        axes.set_xlabel("step; crosses: not within the training")
        axes.grid(axis="x")
    return figure


def listing() -> list[dict[str, Any]]:
    """What `alexnet reproduce --list --json` prints."""
    return [
        {
            "claim": claim.name,
            "number": claim.number,
            "section": claim.section,
            "says": claim.says,
            "paper": claim.paper,
            "source": claim.source,
            "scales": list(claim.scales),
        }
        for claim in CLAIMS
    ]


def ordered_by_value() -> list[Claim]:
    return [find_claim(name) for name in BY_VALUE]
