"""docs/reproduction.md: every claim with the paper's figures, the source's and ours.

Tables and figures are drawn from the lines of results.jsonl alone. What has not run is listed with
the command that would run it. Not here: verdicts (`judging.py`), how a figure looks (`drawing.py`).
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.claims import BY_VALUE, CLAIMS, FIGURE_1_ERROR, Claim, Lines, find_claim
from alexnet.costs import SUSTAINED_FLOP_PER_S, table_2_costs
from alexnet.drawing import COLOURS, INK, LINE, SOFT, chart, save, style
from alexnet.errors import UserError
from alexnet.files import write_text
from alexnet.judging import Finding, arms_of, findings, verdict_of
from alexnet.log import duration
from alexnet.scales import Scale
from alexnet.trials import read_lines, train_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICT_COLOURS = {
    "holds": COLOURS["green"],
    "does not hold here": COLOURS["vermillion"],
    "undecided": COLOURS["blue"],
    "-": SOFT,
}
BEGIN, END = "<!-- reproduction: summary -->", "<!-- /reproduction: summary -->"
TOY = "toy"  # its figures mean nothing


def all_findings(lines: Lines) -> dict[Scale, dict[str, list[Finding]]]:
    """{scale as it was asked for: {claim: findings}}, of everything that has run but toys."""
    asked = {json.dumps(line["asked"]): line["asked"] for line in lines.values()}
    scales = [Scale(**settings) for settings in asked.values() if settings["name"] != TOY]
    found: dict[Scale, dict[str, list[Finding]]] = {}
    told: dict[str, list[list[Finding]]] = {}
    for scale in sorted(scales, key=lambda scale: (scale.name, scale.full, scale.epochs)):
        own = {line["trial"]: line for line in lines.values() if line["asked"] == scale.as_dict()}
        shared = {**lines, **own}
        by_claim = {claim.name: findings(claim, scale, shared) for claim in CLAIMS}
        # Runs that no setting of the scale touches are told once, not for each way of asking.
        new = {n: rows for n, rows in by_claim.items() if rows and rows not in told.get(n, [])}
        for name, rows in new.items():
            told.setdefault(name, []).append(rows)
        if new:
            found[scale] = new
    return found


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
        "whether the paper's figure lies in our interval; at another scale it need not.",
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
    """A row for each claim: what it says, the paper's figure, and the verdict at each scale."""
    rows = ["| claim | section | the paper | verdict here |", "|---|---|---|---|"]
    for claim in CLAIMS:
        verdicts = [
            f"{scale.title}: {verdict_of(by_claim[claim.name])}"
            for scale, by_claim in found.items()
            if claim.name in by_claim
        ]
        rows.append(
            f"| {claim.number}. {claim.says} | {claim.section} | {claim.paper} "
            f"| {'; '.join(verdicts) or 'not run yet'} |"
        )
    return "\n".join(rows)


def short_summary(found: Mapping[Scale, Mapping[str, Sequence[Finding]]]) -> str:
    """The summary's rows of the claims that have a run, and how many have none."""
    have_run = {claim.number for claim in CLAIMS if any(claim.name in by for by in found.values())}
    head, line, *rows = summary_table(found).splitlines()
    kept = [row for row in rows if int(row.removeprefix("| ").partition(".")[0]) in have_run]
    left = len(CLAIMS) - len(kept)
    return "\n".join(
        [head, line, *kept, *["", f"{left} claims have not been run yet."] * (left > 0)]
    )


def _claim_text(claim: Claim, found: Mapping[Scale, Mapping[str, Sequence[Finding]]]) -> list[str]:
    parts = [
        f"## {claim.number}. {claim.name} (Section {claim.section})",
        "",
        f"{claim.says}. Paper: {claim.paper}. Source: {claim.source}.",
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
            p = "-" if row.p is None else f"{row.p:.3f}"
            cells = (row.scale, row.what, row.paper, row.source, ours(row), f"{row.n:,}", p)
            parts.append(f"| {' | '.join((*cells, row.verdict, row.size, row.note))} |")
    commands = "\n".join(command(claim, scale) for scale in measured)
    return [*parts, "", "```sh", commands, "```", ""]


def ours(row: Finding) -> str:
    """Mean and interval: "+1.31 (0.72 to 1.90)"."""
    if row.unit == "share":
        mean, low, high = (f"{100 * (value or 0):.0f} %" for value in (row.mean, row.low, row.high))
        return f"{mean} ({low} to {high})"
    sign = "+" if row.unit == "points" else ""
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
    words += ["--pretrain", scale.pretrain] if scale.pretrain else []
    return shlex.join(words)


def _table_2_text() -> list[str]:
    parts = [
        "## What Section 6 takes on ImageNet",
        "",
        "Floating point operations of the trainings behind each row, and hours on one GPU at "
        f"{SUSTAINED_FLOP_PER_S / 1e12:.0f} TFLOP/s sustained: divide by what yours sustains on "
        "this network (`alexnet bench`). Pre-training's epochs are those of the source's notes.",
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
        "differences": differences_figure([row for row in rows if row.unit == "points"]),
        "figure-1": figure_1(lines, found),
        "colour-of-kernels": kernels_figure(lines, found),
        "stalls": shares_figure([row for row in rows if row.claim == "stall"]),
    }


def differences_figure(rows: Sequence[Finding]) -> "Figure | None":
    """All differences with their intervals; hollow diamonds are the paper's."""
    shown = [row for row in rows if row.low is not None and row.high is not None]
    if not shown:
        return None
    with style():
        title = "Differences in points of error, with 95 % intervals; diamonds are the paper's"
        figure = chart(10.4, 0.8 + 0.26 * len(shown), title)
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, row in enumerate(shown):
            colour = VERDICT_COLOURS[row.verdict]
            axes.plot([row.low or 0.0, row.high or 0.0], [place, place], color=colour, linewidth=2)
            axes.plot([row.mean], [place], "o", color=colour, markersize=5)
            if row.paper != "-":
                axes.plot(
                    [float(row.paper)],
                    [place],
                    "D",
                    markersize=5,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                )
        labels = [f"{row.claim}: {row.what} ({row.scale}, n = {row.n:,})" for row in shown]
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="x")
        for verdict, colour in VERDICT_COLOURS.items():
            axes.plot([], [], color=colour, linewidth=2, label=verdict.replace("-", "not claimed"))
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


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
    scale = next((scale for scale, rows in found.items() if "kernels" in rows), None)
    if scale is None:
        return None
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


def shares_figure(rows: Sequence[Finding]) -> "Figure | None":
    """Share of runs that are still at ln(classes), with Wilson intervals."""
    if not rows:
        return None
    with style():
        figure = chart(7.4, 0.8 + 0.26 * len(rows), "Runs that are still at ln(classes)")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            axes.plot(
                [row.low or 0.0, row.high or 0.0],
                [place, place],
                color=COLOURS["blue"],
                linewidth=2,
            )
            axes.plot([row.mean], [place], "o", color=COLOURS["blue"], markersize=5)
        labels = [f"{row.what.partition(':')[0]} (n = {row.n})" for row in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.02, 1.02), xlabel="share, 95 % interval")
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
