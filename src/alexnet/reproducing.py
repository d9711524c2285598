"""The command `alexnet reproduce`: the paper's claims, one by one, at the scale that one has.

Not here: the claims (`claims.py`), the queue (`campaign.py`), the report (`reproduction.py`).
"""

import functools
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from alexnet.errors import UserError

if TYPE_CHECKING:
    from alexnet.campaign import Campaign
    from alexnet.judging import Finding
    from alexnet.trials import Line

BUDGET = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)")
UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def reproduce(
    claims: Positional[tuple[str, ...]] = (),
    /,
    *,
    scale: str = "imagenette",
    data: Path | None = None,
    full: bool = False,
    seeds: int | None = None,
    budget: str | None = None,
    epochs: float = 0.0,
    steps: int = 0,
    pretrain: str = "",
    devices: str = "auto",
    threads: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
    out: Path = Path("reproductions"),
    list_: Annotated[bool, arg(name="list")] = False,
    plan: bool = False,
    report: bool = False,
    page: Path = Path("docs/reproduction.md"),
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Test the paper's claims with paired runs, and set ours beside the paper's and the source's.

    Stopped or killed at any moment, the same command goes on where it was; what has been run for
    one claim serves the others.

    Args:
        claims: names or numbers of claims (--list shows them); all, the most telling first.
        scale: imagenette, cifar10, shapes, imagenet, a folder of pictures, or toy: a smoke test.
        data: pictures of the scale, packed or not, where they are not to be downloaded.
        full: the full-size network on pictures of 224 pixels; imagenet always has it.
        seeds: paired runs of each comparison; by default each claim's own number, mostly 5.
        budget: stop begun pairs at 30m, 2h, ...: as many pairs as fit, none half done.
        epochs: of each training; by default the scale's.
        steps: of each training, at most.
        pretrain: other pictures to pre-train on, for the claims transfer and table2.
        devices: cpu, cuda:0,cuda:1, ... one worker each; cpu,cpu shares the cores.
        threads: of each worker on a CPU.
        precision: fp32, or bf16 with fp32 weights.
        out: folder of results.jsonl and of the runs.
        list_: show the claims and end.
        plan: show what would run and how long it would take, and end.
        report: write the page and its figures from the results so far, and end.
        page: of the report; figures go into a folder of its name.
        json_: print JSON instead of tables.
    """
    if list_:
        _print_claims(json_)
        return
    if report:
        _report(out, page)
        return
    from alexnet.campaign import Campaign
    from alexnet.claims import check_scale, find_claim
    from alexnet.reproduction import ordered_by_value
    from alexnet.scales import scale_of
    from alexnet.trials import Place

    everything = not claims or claims == ("all",)
    chosen = ordered_by_value() if everything else [find_claim(text) for text in claims]
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds is {seeds}; a comparison needs at least one")
    for option, value in (("--epochs", epochs), ("--steps", steps), ("--threads", threads)):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{option} is {value}; it is 0, for what is usual, or more")
    seconds = None if budget is None else budget_seconds(budget)
    found, places = scale_of(
        scale,
        data=data,
        full=full,
        epochs=epochs,
        steps=steps,
        precision=precision,
        pretrain=pretrain,
    )
    for claim in chosen:
        check_scale(claim, found)
    found.control()
    console = Console(stderr=json_)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    campaign = Campaign(
        chosen,
        found,
        Place(out, places, threads=threads),
        seeds=seeds,
        budget=seconds,
        devices=_devices(devices),
        say=say,
    )
    if plan:
        _print_plan(campaign, console, json_)
        return
    from alexnet.stopping import EXIT_STOPPED, Interrupted

    try:
        campaign.run()
    except Interrupted:
        print("alexnet: stopped and saved; the same command goes on", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    _print_findings(campaign, console, json_)


def budget_seconds(text: str) -> float:
    """ "30m", "90s", "2h" or "1.5h" in seconds. Raises UserError for anything else."""
    match = BUDGET.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--budget is {text!r}; it is written 90s, 30m or 2h")
    return float(match[1]) * UNIT_SECONDS[match[2]]


def _devices(text: str) -> tuple[str, ...]:
    """One worker for each. Raises UserError for a device that is not there."""
    from alexnet.step import find_device

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names == ("auto",):
        import torch

        count = torch.cuda.device_count()
        return tuple(f"cuda:{number}" for number in range(count)) or ("cpu",)
    for name in names:
        find_device(name)
    return names or ("cpu",)


def _print_claims(as_json: bool) -> None:
    from alexnet.reproduction import listing

    found = listing()
    if as_json:
        print(json.dumps(found))
        return
    _table(
        ("", "claim", "section", "the paper", "the source's log"),
        [
            [str(c["number"]), c["claim"], c["section"], f"{c['says']}: {c['paper']}", c["source"]]
            for c in found
        ],
        Console(),
    )


def _print_plan(campaign: "Campaign", console: Console, as_json: bool) -> None:
    from alexnet.log import duration

    found = campaign.plan()
    if as_json:
        print(json.dumps(found))
        return
    _table(
        ("claim", "seeds", "runs to make", "time", "adds up to"),
        [
            [
                row["claim"],
                str(row["seeds"]),
                str(row["runs"]),
                duration(row["seconds"]),
                duration(row["total_seconds"]),
            ]
            for row in found
        ],
        console,
    )


def _report(out: Path, page: Path) -> None:
    from alexnet.reproduction import write_report

    written = write_report(out, page, readme=Path("README.md"))
    print(written)


def _print_findings(campaign: "Campaign", console: Console, as_json: bool) -> None:
    from alexnet.judging import findings
    from alexnet.reproduction import ours
    from alexnet.trials import read_lines

    lines: dict[str, Line] = read_lines(campaign.place.out)
    found: list[Finding] = [
        row for claim in campaign.claims for row in findings(claim, campaign.scale, lines)
    ]
    if as_json:
        print(json.dumps([row.as_dict() for row in found]))
        return
    _table(
        ("claim", "what", "paper", "source", "here (95 %)", "n", "verdict", "size"),
        [
            [
                row.claim,
                row.what,
                row.paper,
                row.source,
                ours(row),
                f"{row.n:,}",
                row.verdict,
                row.size,
            ]
            for row in found
        ],
        console,
    )


def _table(headings: tuple[str, ...], rows: list[list[str]], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
