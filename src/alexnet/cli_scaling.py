"""`alexnet bench scaling` on the command line.

Not here: what is predicted (`scaling.py`) and measured (`bench_scaling.py`).
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from alexnet.errors import UserError

# Of a link that nobody described: what a message between two GPUs costs at least.
LATENCY_SECONDS = 15e-6


def bench_scaling(
    network: str,
    devices: Sequence[int],
    batch_size: int,
    *,
    precision: str,
    images_per_second: float,
    link_gb_per_s: float,
    batch_for_each: bool,
    as_json: bool,
) -> None:
    """Predict for given devices and a given link; without a speed, measure and check here.

    Raises UserError for a speed without a link, or numbers that cannot be.
    """
    if not devices or min(devices) < 1:
        raise UserError("--devices takes numbers from 1 on, as in --devices 1 2 4")
    if min(images_per_second, link_gb_per_s) < 0 or batch_size < 1:
        raise UserError("a speed, a link and a batch are more than 0")
    if bool(images_per_second) != bool(link_gb_per_s):
        raise UserError(
            "--images-per-second and --link-gb-per-s go together: with both a prediction, "
            "with neither a measurement on this machine"
        )
    if images_per_second:
        found = _foresee(
            network,
            devices,
            batch_size,
            images_per_second,
            link_gb_per_s,
            batch_for_each,
            precision,
        )
    else:
        found = _measure(network, devices, batch_size, precision)
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)


def _foresee(
    network: str,
    devices: Sequence[int],
    batch_size: int,
    images_per_second: float,
    link_gb_per_s: float,
    batch_for_each: bool,
    precision: str,
) -> dict[str, Any]:
    from alexnet.bench_scaling import foresee
    from alexnet.scaling import Link, Speed

    link = Link(LATENCY_SECONDS, link_gb_per_s * 1e9)
    speed = Speed(0.0, 1 / images_per_second)
    plans = foresee(
        network,
        devices,
        batch_size,
        speed,
        link,
        strict=not batch_for_each,
        activation_bytes=2 if precision == "bf16" else 4,
    )
    return {
        "network": network,
        "images_per_second_of_one": images_per_second,
        "link_gb_per_s": link_gb_per_s,
        "precision": precision,
        "plans": [plan.as_json() for plan in plans],
    }


def _measure(
    network: str, devices: Sequence[int], batch_size: int, precision: str
) -> dict[str, Any]:
    from alexnet.bench_scaling import measure

    console = Console(stderr=True)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    return measure(network, devices, batch_size, precision=precision, say=say)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("devices", justify="right")
    table.add_column("way")
    measures = any("measured_images_per_second" in row for row in found["plans"])
    headings = ["batch", "MB received", "compute, ms", "waiting, ms", "images/s"]
    for heading in headings + ["measured", "least", "most"] * measures:
        table.add_column(heading, justify="right")
    for row in found["plans"]:
        cells = [
            f"{row['batch_size']:,}",
            f"{row['received_bytes'] / 1e6:,.1f}",
            f"{row['compute_seconds'] * 1e3:,.1f}",
            f"{row['exposed_seconds'] * 1e3:,.1f}",
            f"{row['images_per_second']:,.1f}",
        ]
        if measures:
            rates = (row["measured_images_per_second"], *row["measured_spread"])
            cells += [f"{rate:,.1f}" for rate in rates]
        table.add_row(f"{row['devices']}", row["name"], *cells)
    Console().print(table)
