"""`alexnet bench`: how fast, beside others, in one interleaved run.

Not here: the measuring (`bench.py`, `bench_step.py`, `bench_layers.py`).
"""

import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from alexnet.errors import UserError


def bench(
    what: Positional[Literal["loader", "norm", "step", "evaluate", "train", "scaling"]],
    data: Positional[Path | None] = None,
    /,
    *,
    seconds: float = 3.0,
    rounds: int = 5,
    repeats: int = 4,
    batch_size: int = 128,
    network: str = "paper",
    device: str = "cpu",
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16"),
    layers: bool = False,
    num_pictures: int = 22_000,
    peers: tuple[str, ...] | None = None,
    workers: int = 0,
    wait_seconds: float = 30.0,
    devices: tuple[int, ...] = (1, 2, 4),
    images_per_second: float = 0.0,
    link_gb_per_s: float = 0.0,
    batch_for_each: bool = False,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Measure against peers in one interleaved run: crops, training steps or evaluations a second.

    norm takes `rounds`, `batch_size` and `json` alone. scaling predicts training on several
    devices, and, unless a speed and a link are given, measures both here and checks itself.

    Args:
        what: loader (crops fed), norm (response norm, ReLU and max pool alone), step (whole
            training steps), evaluate (ten views), train (steps with a loader before them), or
            scaling (several devices).
        data: for loader: a packed data set; without it, shapes are drawn (4.3 GB in the cache).
        seconds: of each turn of a loader.
        rounds: turns of each.
        repeats: steps or evaluations in a turn.
        batch_size: pictures in a batch.
        network: that is trained or evaluated.
        device: cpu, cuda, ...
        precisions: fp32, bf16 or both.
        layers: for step: our layers alone, forward and both gradients, beside the floor.
        num_pictures: of the training set that a loader uses.
        peers: for loader: numpy-memmap, imagefolder, imagefolder-500x375, webdataset,
            webdataset-pixels, huggingface, huggingface-pixels, litdata, litdata-pixels; for step:
            stock-eager, stock-compiled, stock-sliced-compiled, torchvision-eager,
            torchvision-compiled, keras-torch, keras-jax, lightning, stock-eager-kept-memory,
            torchvision-eager-kept-memory; for evaluate: stock-eager, stock-sliced-compiled,
            torchvision-eager; for train: plain-loop, plain-loop-sliced-compiled, lightning. By
            default all that are there.
        workers: threads or processes of each loader; 0: one per core.
        wait_seconds: of training the full-size network, to see how long it waits for data.
        devices: for scaling: how many, as in --devices 1 2 4.
        images_per_second: for scaling: of one device, given instead of measured.
        link_gb_per_s: for scaling: of a device's link in one direction.
        batch_for_each: for scaling: `batch_size` is that of each device, not of all together.
        json_: print one JSON object instead of the table.
    """
    if what == "norm":
        from alexnet.cli_norm import bench_norm

        bench_norm(rounds=rounds, batch_size=batch_size, as_json=json_)
        return
    if what == "scaling":
        from alexnet.cli_scaling import bench_scaling

        bench_scaling(
            network,
            devices,
            batch_size,
            precision=precisions[0],
            images_per_second=images_per_second,
            link_gb_per_s=link_gb_per_s,
            batch_for_each=batch_for_each,
            as_json=json_,
        )
        return
    console = Console(stderr=True)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    if what == "loader":
        from alexnet.bench import bench_loader

        measured = bench_loader(
            data,
            seconds=seconds,
            rounds=rounds,
            batch_size=batch_size,
            num_pictures=num_pictures,
            peers=peers,
            workers=workers,
            wait_seconds=wait_seconds,
            say=say,
        )
    elif data is not None:
        raise UserError(f"bench {what} takes random pictures, not {data}")
    elif layers:
        from alexnet.bench_layers import bench_layers

        if what != "step":
            raise UserError("--layers is for bench step")
        measured = bench_layers(
            network, batch_size=batch_size, rounds=rounds, precisions=precisions, say=say
        )
    else:
        from alexnet.bench_step import bench as bench_rivals

        measured = bench_rivals(
            what,
            network=network,
            batch_size=batch_size,
            rounds=rounds,
            repeats=repeats,
            device=device,
            precisions=precisions,
            peers=peers,
            say=say,
        )
    if json_:
        print(json.dumps(measured))
    elif what == "loader":
        _print_rates(measured)
    elif layers:
        _print_layers(measured)
    else:
        _print_rivals(measured)


def _print_rivals(measured: dict[str, Any]) -> None:
    headings = ("images/s", "least", "most", "of the floor", "peak memory", "first, s")
    table = _table(measured["what"], *headings)
    rows = measured["rows"]
    for name in sorted(rows, key=lambda name: -rows[name]["images_per_second"]):
        row = rows[name]
        table.add_row(
            name,
            *(f"{row[key]:,.1f}" for key in ("images_per_second", "slowest", "fastest")),
            f"{row['share_of_floor']:.0%}",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{row['first_seconds']:.1f}",
        )
    console = Console()
    console.print(table)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for name, reason in measured["missing"].items():
        say(f"not measured: {name}: {reason}")
    for precision, flops in measured["measured_flops"].items():
        say(f"floor of {precision}: at {flops / 1e9:,.0f} GFLOP/s, the most measured in a product")
    say(", ".join(f"{name} {value}" for name, value in measured["machine"].items() if value))


def _print_layers(measured: dict[str, Any]) -> None:
    headings = ("forward", "input gradient", "weight gradient", "floor", "of the floor")
    for precision, rows in measured["layers"].items():
        table = _table(f"{precision}, ms", *headings)
        for name, row in rows.items():
            times = [row[key] for key in ("forward", "input_gradient", "weight_gradient")]
            table.add_row(
                name,
                *(f"{1e3 * value:,.1f}" if value else "" for value in times),
                f"{1e3 * row['floor']:,.1f}",
                f"{row['floor'] / row['seconds']:.0%}",
            )
        Console().print(table)


def _table(first: str, *headings: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _print_rates(measured: dict[str, Any]) -> None:
    table = _table("loader", "crops/s", "least", "most", "bytes per picture")
    for name, rate in sorted(measured["rates"].items(), key=lambda item: -item[1]):
        least, most = measured["spread"][name]
        size = measured["bytes_on_disk"].get(name, 0) / measured["pictures"]
        table.add_row(name, f"{rate:,.0f}", f"{least:,.0f}", f"{most:,.0f}", f"{size:,.0f}")
    console = Console()
    console.print(table)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for name, reason in measured["missing"].items():
        say(f"not measured: {name}: {reason}")
    for recipe, share in measured["wait_shares"].items():
        say(f"waiting for data while training {recipe}: {share:.2%}")
