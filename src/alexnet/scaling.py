"""How fast a network trains on several devices, predicted (Section 3.2; Krizhevsky 2014).

A step takes as long as its arithmetic and what the devices send one another. The arithmetic of a
device is measured, or given as images per second; what crosses is counted here, layer by layer,
from the description of the network; a link is a latency and a bandwidth. Three ways to share the
work: the paper's columns, replicas of the network ("data"), both at once, and the hybrid of "One
weird trick" (arXiv:1404.5997): replicas of the convolutions, slices of the fully connected layers.

Not here: doing it (`columns.py`, `parallel.py`), or measuring (`bench_scaling.py`).
"""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

from alexnet.errors import UserError
from alexnet.networks import Full, LayerShape, Network, find_network, trace
from alexnet.parallel import Plan

GRADIENT_BYTES = 4  # gradients are summed in float32
LABEL_BYTES = 8

# Multiply-adds of a training step per multiply-add forward: its output, and the gradients of its
# input and of its weights. The first layer needs no gradient of its input.
PASSES, FIRST_PASSES = 3, 2


@dataclass(frozen=True)
class Link:
    """One device's connection to the others: what a message costs at least, and bytes per second.

    Bandwidth in one direction; a link sends while it receives.
    """

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, received_bytes: float, messages: int) -> float:
        return messages * self.latency_seconds + received_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Links:
    """What a link does for each kind of exchange: a library is not equally good at all of them.

    gather: parts are put together. return_sum: each gets its part of a sum. sum: a ring's
    all-reduce.
    """

    gather: Link
    return_sum: Link
    sum: Link

    @classmethod
    def alike(cls, link: Link) -> "Links":
        return cls(link, link, link)

    def seconds(self, crossing: "Crossing") -> float:
        link: Link = getattr(self, crossing.kind)
        return link.seconds(crossing.received_bytes, crossing.messages)


@dataclass(frozen=True)
class Speed:
    """One device's training step of a whole network: so much per step and per image.

    The part per step is the update of the parameters; on a GPU its launches too.
    """

    seconds_per_step: float
    seconds_per_image: float


@dataclass(frozen=True)
class Crossing:
    """What one device receives in one step for one purpose, in how many messages.

    A "sum" may run beside the backward pass.
    """

    what: str
    kind: Literal["gather", "return_sum", "sum"]
    received_bytes: float
    messages: int


@dataclass(frozen=True)
class Prediction:
    """A step on several devices. `exposed_seconds` is the communication that nothing hides."""

    plan: Plan
    batch_size: int
    compute_seconds: float
    communication_seconds: float
    exposed_seconds: float
    received_bytes: float  # by one device in a step

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.step_seconds

    def as_json(self) -> dict[str, Any]:
        found = {**asdict(self), "name": str(self.plan), "devices": devices_of(self.plan)}
        return found | {
            "step_seconds": self.step_seconds,
            "images_per_second": self.images_per_second,
        }


def plans(network: Network, devices: int) -> list[Plan]:
    """Every way in which so many devices can share a network's work, the plain ones first."""
    if devices == 1:
        return [Plan()]
    found = [Plan(replicas=devices)]
    if network.columns > 1 and devices % network.columns == 0:
        found.append(Plan(devices // network.columns, network.columns))
    return [*found, Plan(replicas=devices, hybrid=True)]


def devices_of(plan: Plan) -> int:
    return plan.replicas * plan.columns


def crossings(
    network: str | Network,
    plan: Plan,
    batch_size: int,
    *,
    num_classes: int = 1000,
    activation_bytes: int = 4,
) -> list[Crossing]:
    """What one device receives in a step of `batch_size` images over all devices.

    Columns: before each layer where they meet, the other columns' activations of this replica's
    images, and on the way back the others' part of the gradient of one's own. Replicas: a ring
    sums the gradients of the parameters that one holds, 2 (R - 1) / R times their bytes. Hybrid:
    the ring for the convolutions; in each fully connected layer every device holds a slice of the
    units and sees every image, so it receives the other devices' part of the layer's input.

    Raises UserError for a batch or columns that the devices cannot share.
    """
    described = find_network(network) if isinstance(network, str) else network
    _check(described, plan, batch_size)
    shapes = trace(described, num_classes)
    if plan.hybrid:
        return _hybrid(described, shapes, plan, batch_size, activation_bytes)
    found = []
    columns, replicas = plan.columns, plan.replicas
    if columns > 1:
        images = batch_size / replicas
        meets = described.meets_before()
        crossing = [(shape.name, prod(shape.input)) for shape in shapes if shape.name in meets]
        for name, units in [*crossing, ("softmax", num_classes)]:
            received = images * units * activation_bytes * (columns - 1) / columns
            found.append(Crossing(f"{name}, forward", "gather", received, columns - 1))
            if name != "softmax":  # each device has the gradient of all logits already
                found.append(Crossing(f"{name}, backward", "return_sum", received, columns - 1))
    if replicas > 1:
        held = sum(-(-shape.parameters // columns) for shape in shapes)
        found.append(_ring("gradients", held, replicas))
    return found


def _hybrid(
    network: Network,
    shapes: list[LayerShape],
    plan: Plan,
    batch_size: int,
    activation_bytes: int,
) -> list[Crossing]:
    devices, others = devices_of(plan), (devices_of(plan) - 1) / devices_of(plan)
    full = {layer.name for layer in network.layers if isinstance(layer, Full)}
    conv_parameters = sum(shape.parameters for shape in shapes if shape.name not in full)
    found = []
    for shape in (shape for shape in shapes if shape.name in full):
        received = batch_size * prod(shape.input) * activation_bytes * others
        found.append(Crossing(f"{shape.name}, forward", "gather", received, devices - 1))
        found.append(Crossing(f"{shape.name}, backward", "return_sum", received, devices - 1))
    logits = batch_size * shapes[-1].output[0] * activation_bytes * others
    found.append(Crossing("softmax, forward", "gather", logits, devices - 1))
    labels = batch_size * LABEL_BYTES * others
    found.append(Crossing("labels", "gather", labels, devices - 1))
    return [*found, _ring("gradients of the convolutions", conv_parameters, devices)]


def _ring(what: str, parameters: int, devices: int) -> Crossing:
    received = 2 * (devices - 1) / devices * parameters * GRADIENT_BYTES
    return Crossing(what, "sum", received, 2 * (devices - 1))


def _check(network: Network, plan: Plan, batch_size: int) -> None:
    if plan.columns not in (1, network.columns):
        raise UserError(f"network {network.name} has {network.columns} columns, not {plan.columns}")
    if batch_size < plan.replicas:
        raise UserError(f"a batch of {batch_size} images is too small for {plan.replicas} ranks")


def predict_step(
    network: str | Network,
    plan: Plan,
    batch_size: int,
    speed: Speed,
    links: Links,
    *,
    num_classes: int = 1000,
    activation_bytes: int = 4,
    overlap: float = 0.0,
) -> Prediction:
    """One training step of `batch_size` images over all devices.

    `speed` is of one device with the whole network. A device computes its share of the images and
    updates its share of the parameters. `overlap` is the share of the backward pass behind which
    sums of gradients can hide: 1 where links work by themselves, 0 where the processor that
    computes also moves the bytes.
    """
    described = find_network(network) if isinstance(network, str) else network
    crossing = crossings(
        described,
        plan,
        batch_size,
        num_classes=num_classes,
        activation_bytes=activation_bytes,
    )
    per_image = speed.seconds_per_image * batch_size / devices_of(plan)
    per_step = speed.seconds_per_step * _share_held(described, plan, num_classes)
    hidden_room = overlap * per_image * _backward_share(described, num_classes)
    waiting = sum(links.seconds(c) for c in crossing if c.kind != "sum")
    hideable = sum(links.seconds(c) for c in crossing if c.kind == "sum")
    return Prediction(
        plan,
        batch_size,
        compute_seconds=per_image + per_step,
        communication_seconds=waiting + hideable,
        exposed_seconds=waiting + max(0.0, hideable - hidden_room),
        received_bytes=sum(c.received_bytes for c in crossing),
    )


def _share_held(network: Network, plan: Plan, num_classes: int) -> float:
    """The share of the parameters that a device holds and updates."""
    if not plan.hybrid:
        return 1 / plan.columns
    shapes = trace(network, num_classes)
    full = {layer.name for layer in network.layers if isinstance(layer, Full)}
    whole = sum(shape.parameters for shape in shapes)
    sliced = sum(shape.parameters for shape in shapes if shape.name in full)
    return (whole - sliced + sliced / devices_of(plan)) / whole


def _backward_share(network: Network, num_classes: int) -> float:
    """The share of a step's multiply-adds that is the backward pass."""
    macs = [shape.macs for shape in trace(network, num_classes)]
    passes = [FIRST_PASSES, *(PASSES for _ in macs[1:])]
    total = sum(count * mac for count, mac in zip(passes, macs, strict=True))
    return 1 - sum(macs) / total
