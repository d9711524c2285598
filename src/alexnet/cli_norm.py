"""`alexnet bench norm` on the command line.

Not here: what is measured (`bench_norm.py`).
"""

import functools
import json
from typing import Any

from rich.console import Console


def bench_norm(*, rounds: int, batch_size: int, as_json: bool) -> None:
    """Measure every stage and rival, and print a table or one JSON object."""
    from alexnet import bench_norm as module

    say = functools.partial(
        Console(stderr=True).print, highlight=False, markup=False, soft_wrap=True
    )
    measured = module.bench_norm(rounds=rounds, batch_size=batch_size, say=say)
    if as_json:
        print(json.dumps(measured))
    else:
        print_rows(measured["rows"])


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Milliseconds, GB/s, share of a copy's rate and peak memory, stage by stage."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("stage", "precision", "rival"):
        table.add_column(heading)
    for heading in ("forward ms", "backward ms", "both ms", "least-most", "x stock", "GB/s"):
        table.add_column(heading, justify="right")
    table.add_column("of a copy", justify="right")
    table.add_column("peak MB", justify="right")
    stock = {
        (row["stage"], row["precision"]): row["both"]["median"]
        for row in rows
        if row["rival"] == "stock"
    }
    for row in rows:
        both = row["both"]
        times = stock.get((row["stage"], row["precision"]), both["median"]) / both["median"]
        peak = row["peak_bytes"]
        table.add_row(
            row["stage"],
            row["precision"],
            row["rival"],
            *(f"{1e3 * row[part]['median']:.1f}" for part in ("forward", "backward", "both")),
            f"{1e3 * both['least']:.1f}-{1e3 * both['most']:.1f}",
            f"{times:.1f}",
            f"{row['gb_per_s']:.1f}",
            f"{row['copy_share']:.0%}",
            "-" if peak is None else f"{peak / 1e6:,.0f}",
        )
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
