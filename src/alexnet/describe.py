"""What a network costs, layer by layer (Sections 3.2 and 3.5): `alexnet describe NETWORK`.

Everything follows from the description in `networks.py`; no network is made or run. Counts are
for one picture. On two GPUs each holds its own column, and what they exchange is counted where
they meet: before conv3 and each fully connected layer (conv6 too in `sixth-conv`).

Not here: how two networks differ and why (`differences.py`), or how fast they are.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from alexnet.config import OptimizerConfig
from alexnet.differences import Difference, differences, step_words
from alexnet.errors import UserError
from alexnet.layers import overhang
from alexnet.networks import (
    Conv,
    Full,
    Layer,
    LayerShape,
    Network,
    Pool,
    ResponseNorm,
    find_network,
    groups,
    pooled,
    trace,
)

FLOAT_BYTES = 4  # float32

PAPER_BATCH = OptimizerConfig().batch_size

# From this width on, tables have room for multiply-adds in full; notes are never wider.
WIDE_TERMINAL = 96

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One step of a layer and its output, (C, H, W) or (N,), for one picture."""

    name: str
    output: Shape

    @property
    def output_bytes(self) -> int:
        return prod(self.output) * FLOAT_BYTES


@dataclass(frozen=True)
class LayerDescription:
    """One layer and the steps after it, for one picture.

    reads: the "image", the maps of its "own" column, or of "both"; "" in one-column networks.
    exchange_bytes: what all columns together send one another before it, forward.
    """

    name: str
    reads: str
    groups: int
    parameters: int
    macs: int
    exchange_bytes: int
    operations: tuple[Operation, ...]  # the linear one first

    @property
    def output(self) -> Shape:
        """Of the linear operation, before any pool."""
        return self.operations[0].output

    @property
    def neurons(self) -> int:
        return prod(self.output)

    @property
    def activation_bytes(self) -> int:
        """float32 outputs of all its operations."""
        return sum(operation.output_bytes for operation in self.operations)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "output": list(self.output),
            "parameters": self.parameters,
            "macs": self.macs,
            "neurons": self.neurons,
            "activation_bytes": self.activation_bytes,
            "reads": self.reads,
            "groups": self.groups,
            "operations": [
                {
                    "name": operation.name,
                    "output": list(operation.output),
                    "output_bytes": operation.output_bytes,
                }
                for operation in self.operations
            ],
        }


@dataclass(frozen=True)
class Memory:
    """Bytes that training in float32 holds on one GPU, without libraries' work space.

    Parameters, their gradients and velocities; for each image of the batch the input and every
    operation's output, once, for the backward pass. (PyTorch drops some of these, and keeps the
    norms' divisors and the pools' positions too: up to a third less or more.) On one of several
    GPUs: its own column's share of these, the whole image, and what the other columns send.
    """

    parameters: int
    gradients: int
    velocity: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.velocity + self.activations

    def as_json(self) -> dict[str, int]:
        return {f"{name}_bytes": value for name, value in asdict(self).items()} | {
            "total_bytes": self.total
        }


@dataclass(frozen=True)
class Description:
    """A network for a number of classes, and the memory of its training at a batch size."""

    network: Network
    num_classes: int
    batch_size: int
    layers: tuple[LayerDescription, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def neurons(self) -> int:
        """Units of all layers: outputs of the linear operations, as the paper counts."""
        return sum(layer.neurons for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass, biases and norms not counted."""
        return sum(layer.macs for layer in self.layers)

    @property
    def input(self) -> Operation:
        return Operation("image less the mean", (3, *2 * (self.network.input_px,)))

    @property
    def activation_bytes(self) -> int:
        return self.input.output_bytes + sum(layer.activation_bytes for layer in self.layers)

    @property
    def exchange_bytes(self) -> int:
        return sum(layer.exchange_bytes for layer in self.layers)

    @property
    def logit_bytes(self) -> int:
        """What all columns together send one another of fc8, for the softmax of all classes."""
        return self.num_classes * FLOAT_BYTES * (self.network.columns - 1)

    def parameters_of(self, column: int) -> int:
        """Those that a rank holds which has this column only (columns.py)."""
        columns, total = self.network.columns, 0
        for layer in self.layers:
            outputs = layer.output[0]
            own = (column + 1) * outputs // columns - column * outputs // columns
            total += own * (layer.parameters // outputs)
        return total

    def memory(self, gpus: int = 1) -> Memory:
        """Of one GPU when the columns are on `gpus` of them: 1, or as many as there are columns.

        Where a layer's maps, units or classes do not divide evenly, of the fuller GPU.
        """
        assert gpus in (1, self.network.columns)
        parameters = activations = 0
        for layer in self.layers:
            share = -(-layer.output[0] // gpus)
            parameters += share * (layer.parameters // layer.output[0])
            for operation in layer.operations:
                activations += share * prod(operation.output[1:])
        weights = parameters * FLOAT_BYTES
        received = self.exchange_bytes // gpus if gpus > 1 else 0
        per_picture = activations * FLOAT_BYTES + self.input.output_bytes + received
        return Memory(weights, weights, weights, per_picture * self.batch_size)

    def as_json(self, diff: str | None = None) -> dict[str, Any]:
        """What `--json` prints; with `diff`, also how the network differs from that one.

        Raises UserError for an unknown network in `diff`.
        """
        columns = self.network.columns
        found: dict[str, Any] = {
            "network": self.network.name,
            "lineage": self.network.lineage,
            "source": self.network.source,
            "columns": columns,
            "input": list(self.input.output),
            "num_classes": self.num_classes,
            "batch_size": self.batch_size,
            "parameters": self.parameters,
            "neurons": self.neurons,
            "macs": self.macs,
            "activation_bytes": self.activation_bytes,
            "layers": [layer.as_json() for layer in self.layers],
            "exchanges": [
                {"before": layer.name, "bytes_per_image": layer.exchange_bytes}
                for layer in self.layers
                if layer.exchange_bytes
            ],
            "logit_bytes": self.logit_bytes,
            "parameters_per_column": [self.parameters_of(column) for column in range(columns)],
            "memory": {
                "one_gpu": self.memory().as_json(),
                "each_of_two_gpus": self.memory(columns).as_json() if columns > 1 else None,
            },
        }
        if diff is not None:
            other = find_network(diff)
            found["diff"] = other.name
            found["differences"] = [d.as_json() for d in differences(self.network, other)]
        return found


def describe_network(name: str, num_classes: int = 1000, batch_size: int = 128) -> Description:
    """Count everything about a network.

    Raises UserError for an unknown name, fewer than two classes or an empty batch.
    """
    return describe(find_network(name), num_classes, batch_size)


def describe(network: Network, num_classes: int = 1000, batch_size: int = 128) -> Description:
    """As `describe_network`, of any network."""
    if num_classes < 2:
        raise UserError(f"a network needs at least 2 classes, not {num_classes}")
    if batch_size < 1:
        raise UserError(f"a batch needs at least 1 picture, not {batch_size}")
    shapes = trace(network, num_classes)
    return Description(
        network,
        num_classes,
        batch_size,
        tuple(
            _describe_layer(network, layer, shape)
            for layer, shape in zip(network.layers, shapes, strict=True)
        ),
    )


def _describe_layer(network: Network, layer: Layer, shape: LayerShape) -> LayerDescription:
    meets = layer.name in network.meets_before()
    return LayerDescription(
        name=layer.name,
        reads=_reads(network, layer),
        groups=groups(network, layer) if isinstance(layer, Conv) else 1,
        parameters=shape.parameters,
        macs=shape.macs,
        exchange_bytes=prod(shape.input) * FLOAT_BYTES * (network.columns - 1) if meets else 0,
        operations=tuple(_operations(network, layer, shape)),
    )


def _reads(network: Network, layer: Layer) -> str:
    if network.columns == 1:
        return ""
    if layer is network.layers[0]:
        return "image"
    return "both" if isinstance(layer, Full) or layer.joined else "own"


def _operations(network: Network, layer: Layer, shape: LayerShape) -> Iterator[Operation]:
    yield Operation(_linear_words(layer, shape), shape.output)
    output = shape.output
    for step in layer.then:
        if isinstance(step, Pool):
            output = (output[0], *(pooled(px, step, network) for px in output[1:]))
        yield Operation(step_words(step), output)


def _linear_words(layer: Layer, shape: LayerShape) -> str:
    """E.g. "96 kernels 11x11, stride 4, 3 px overhang"."""
    if isinstance(layer, Full):
        return f"{shape.output[0]} units"
    words = [f"{layer.maps} kernels {layer.kernel}x{layer.kernel}"]
    if not layer.shared:
        words[0] = f"{layer.maps} unshared filters {layer.kernel}x{layer.kernel}"
    if layer.stride > 1:
        words.append(f"stride {layer.stride}")
    if layer.padding:
        words.append(f"pad {layer.padding}")
    extra_px = overhang(shape.input[1], layer.kernel, layer.stride, layer.padding)
    if layer.rounded_up and extra_px:
        words.append(f"{extra_px} px overhang")
    return ", ".join(words)


# --- Tables ---------------------------------------------------------------------------------------


def print_description(description: Description, console: Console) -> None:
    """Print the layers, what crosses between the columns, totals, and the memory of training."""
    wide = console.width >= WIDE_TERMINAL
    parts: list[RenderableType] = [
        Text("\n").join([_title(description.network), _summary(description)]),
        _layer_table(description, wide=wide),
        _memory_table(description),
        *(Text(note, style="dim") for note in _notes(description)),
    ]
    _print_parts(parts, console)


def print_differences(network: str, other: str, console: Console) -> None:
    """Print how two networks differ, where each choice comes from, and their totals.

    Raises UserError for an unknown network.
    """
    here, there = describe_network(network), describe_network(other)
    found = differences(here.network, there.network)
    parts: list[RenderableType] = [
        Text("\n").join([_title(here.network), _title(there.network)]),
        _difference_table(found, network, other) if found else Text("They do not differ."),
        _totals_table(here, there),
    ]
    _print_parts(parts, console)


def _print_parts(parts: list[RenderableType], console: Console) -> None:
    for part in parts:
        width = min(console.width, WIDE_TERMINAL) if isinstance(part, Text) else console.width
        console.print(part, width=width)
        console.print()


def _title(network: Network) -> Text:
    lineage = f"departs from {network.lineage}: " if network.lineage else ""
    return Text.assemble((network.name, "bold"), "  ", lineage, network.source)


def _summary(description: Description) -> Text:
    return Text(
        f"{description.parameters:,} parameters, {description.neurons:,} neurons, "
        f"{description.macs:,} multiply-adds; {description.num_classes:,} classes"
    )


def _table(*, wide: bool = True, **settings: Any) -> Table:
    """Columns two spaces apart, or one; a rule under the header and above the totals."""
    return Table(box=box.SIMPLE, show_edge=False, padding=(0, int(wide), 0, 0), **settings)


def _layer_table(description: Description, *, wide: bool) -> Table:
    def macs(count: int) -> str:
        return f"{count:,}" if wide else _short(count)

    table = _table(wide=wide, show_footer=True)
    table.add_column("layer", "total", no_wrap=True, style="bold")
    table.add_column("what it does")
    table.add_column("output", no_wrap=True)
    numbers = (
        ("parameters", f"{description.parameters:,}"),
        ("multiply-\nadds" if wide else "mult-\nadds", macs(description.macs)),
        ("activation\nbytes" if wide else "activ.\nbytes", f"{description.activation_bytes:,}"),
    )
    for header, footer in numbers:
        table.add_column(header, footer, justify="right", no_wrap=True)
    table.add_column("reads", no_wrap=True)
    crossing = _or_dash(description.exchange_bytes)
    table.add_column("crosses\nbytes", crossing, justify="right", no_wrap=True)
    words, output, output_bytes = _cells(description.input)
    table.add_row("input", words, output, "", "", output_bytes)
    for layer in description.layers:
        words, output, output_bytes = _cells(layer.operations[0])
        table.add_row(
            layer.name,
            words,
            output,
            f"{layer.parameters:,}",
            macs(layer.macs),
            output_bytes,
            layer.reads or "-",
            _or_dash(layer.exchange_bytes),
        )
        for operation in layer.operations[1:]:
            words, output, output_bytes = _cells(operation)
            table.add_row("", words, output, "", "", output_bytes, style="dim")
    return table


def _cells(operation: Operation) -> tuple[str, str, str]:
    output = "x".join(str(size) for size in operation.output)
    return operation.name, output, f"{operation.output_bytes:,}"


def _short(count: int) -> str:
    """Three digits: "724 M", "37.7 M", "10.2 k"."""
    unit, letter = (1e6, "M") if count >= 1e6 else (1e3, "k")
    value = count / unit
    return f"{value:.0f} {letter}" if value >= 99.95 else f"{value:.1f} {letter}"


def _or_dash(count: int) -> str:
    return f"{count:,}" if count else "-"


def _memory_table(description: Description) -> Table:
    """Training memory: one GPU beside each of two."""
    columns = description.network.columns
    table = _table(show_footer=True)
    one, each = description.memory(), description.memory(columns) if columns > 1 else None
    table.add_column(f"training, batch {description.batch_size}", "total")
    table.add_column("one GPU", _megabytes(one.total), justify="right")
    footer = _megabytes(each.total) if each else "-"
    table.add_column("each of two GPUs", footer, justify="right")
    for name, count in asdict(one).items():
        share = _megabytes(getattr(each, name)) if each else "-"
        table.add_row(name, _megabytes(count), share)
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _notes(description: Description) -> Iterator[str]:
    network = description.network
    yield (
        "Counts are for one image; multiply-adds without biases, norms and pools. Activations: "
        "the float32 output of every line, kept once for the backward pass. Memory: all in "
        "float32, without libraries' work space; 1 MB = 1,000,000 bytes."
    )
    if description.batch_size > PAPER_BATCH:
        yield (
            f"A batch of {description.batch_size:,} is a departure from the paper, whose is "
            f"{PAPER_BATCH}."
        )
    if any(isinstance(layer, Conv) and layer.rounded_up for layer in network.layers):
        yield "overhang: zeros at the right and bottom, so that the last kernels fit."
    if network.columns == 1:
        return
    yield (
        "crosses: where the columns meet, each sends its half of what the layer reads to the "
        "other; both directions are counted, forward. As much comes back as gradients. Each of "
        "two GPUs holds its own column's kernels, units and classes, the whole image, and what "
        "the other sends."
    )
    joined_norms = any(
        isinstance(step, ResponseNorm) and not step.per_column
        for layer in network.layers
        for step in layer.then
    )
    if not joined_norms:
        held = " and ".join(f"{description.parameters_of(c):,}" for c in range(network.columns))
        crossing = description.exchange_bytes
        yield (
            f"train --parallel columns={network.columns}: the ranks hold {held} parameters, and "
            f"together send {crossing:,} bytes for each image forward, {crossing:,} backward, and "
            f"{description.logit_bytes:,} of logits for the softmax."
        )
    else:
        yield (
            "Its response norms look across the border between the columns; what that would send "
            "is not counted. Its columns are groups, made for one device."
        )


def _difference_table(found: list[Difference], network: str, other: str) -> Table:
    """A row for each kind and origin: the clauses, and below them where the choices come from."""
    table = _table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for (kind, origin, other_origin), group in groupby(
        found, key=lambda d: (d.kind, d.origin, d.other_origin)
    ):
        words = Text("\n").join(Text(difference.sentence) for difference in group)
        if origin:
            words.append(f"\n`{network}`: {origin}\n`{other}`: {other_origin}", style="dim")
        table.add_row(kind, words, end_section=True)
    return table


def _totals_table(here: Description, there: Description) -> Table:
    table = _table()
    table.add_column("")
    for header in (here.network.name, there.network.name, "difference"):
        table.add_column(header, justify="right")
    for name, ours, theirs in (
        ("parameters", here.parameters, there.parameters),
        ("multiply-adds", here.macs, there.macs),
        ("neurons", here.neurons, there.neurons),
        ("crosses, bytes", here.exchange_bytes, there.exchange_bytes),
    ):
        table.add_row(name, f"{ours:,}", f"{theirs:,}", _difference(ours, theirs))
    return table


def _difference(ours: int, theirs: int) -> str:
    if ours == theirs:
        return "none"
    share = f" ({ours / theirs - 1:+.1%})" if theirs else ""
    return f"{ours - theirs:+,}{share}"
