"""Which pixels a unit of a convolutional layer sees: its receptive field, from the geometry alone.

Kernels, pools and the source's spatial norm each read a window along an axis; padding, zeros that
overhang and the last window of a pool are cut off where the maps end, step by step, so that the
span is exact at the borders too. Not here: what a unit makes of its pixels (`exciting.py`).
"""

from dataclasses import dataclass

from alexnet.networks import Conv, Full, Network, Pool, SpatialNorm, Step, pooled, trace


@dataclass(frozen=True)
class Window:
    """A step along one axis: unit p reads [p * stride - before, p * stride - before + size)."""

    size: int
    stride: int
    before: int
    in_px: int

    def span(self, low: int, high: int) -> tuple[int, int]:
        """What the units [low, high) read, as far as it is there."""
        first = low * self.stride - self.before
        end = (high - 1) * self.stride - self.before + self.size
        return max(0, first), min(self.in_px, end)


def windows(network: Network, layer_name: str, input_px: int | None = None) -> list[Window]:
    """The steps from the picture to a layer's output right after its nonlinearity, in order.

    Raises UserError for an unknown layer; there are none for a fully connected one.
    """
    wanted = network.layer(layer_name)
    found: list[Window] = []
    for layer, shape in zip(network.layers, trace(network, input_px=input_px), strict=True):
        if isinstance(layer, Full):
            return []
        found.append(Window(layer.kernel, layer.stride, layer.padding, shape.input[1]))
        px = shape.output[1]
        for step in _until_nonlinearity(layer) if layer is wanted else layer.then:
            if isinstance(step, Pool):
                found.append(Window(step.size, step.stride, 0, px))
                px = pooled(px, step, network)
            elif isinstance(step, SpatialNorm):
                found.append(Window(step.size, 1, step.size // 2, px))
        if layer is wanted:
            return found
    raise AssertionError(layer_name)


def _until_nonlinearity(layer: Conv) -> tuple[Step, ...]:
    """The steps up to the last nonlinearity: where `AlexNet.features` takes its features."""
    last = max((at for at, step in enumerate(layer.then) if isinstance(step, str)), default=-1)
    return layer.then[: last + 1]


def pixels_seen(
    network: Network, layer_name: str, place: tuple[int, int], input_px: int | None = None
) -> tuple[slice, slice]:
    """The rows and columns of the picture that the unit at (row, column) of a layer's maps sees.

    A fully connected layer sees the whole picture. `input_px` is the picture's side where it is
    not the network's own.
    """
    whole = input_px or network.input_px
    steps = windows(network, layer_name, input_px)
    spans = []
    for at in place:
        low, high = (at, at + 1) if steps else (0, whole)
        for window in reversed(steps):
            low, high = window.span(low, high)
        spans.append(slice(low, high))
    return spans[0], spans[1]


def field_px(network: Network, layer_name: str) -> int:
    """The side of the square that a unit far from the borders sees; 0 for fully connected ones."""
    size, found = 1, windows(network, layer_name)
    for window in reversed(found):
        size = (size - 1) * window.stride + window.size
    return size if found else 0
