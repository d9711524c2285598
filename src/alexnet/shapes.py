"""The built-in data set `shapes`: pictures drawn here, a pure function of (seed, index).

Needs no download, and gives any number of pictures of any size. A class is a shape; beyond 20
classes also a texture, beyond 200 also an arrangement, up to 1000. Place, size, rotation, colours,
ground, light, clutter and noise are random, and so are texture and arrangement where they are not
part of the class.

Figures are signed distance functions, smoothed over one pixel. Drawing uses only operations that
IEEE 754 rounds correctly (+ - * / sqrt floor min max), so a picture has the same bytes alone and
in any batch, with any number of threads, on any machine. Not from the paper, and no substitute
for photographs: it shows in minutes, on two cores, that a network learns.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from alexnet.errors import UserError
from alexnet.randomness import integers, uniform

Reals = NDArray[np.float64]  # parameters, one row per picture
Plane = NDArray[np.float32]  # (n, px, px), or what broadcasts to it

MAX_CLASSES = 1000
MIN_IMAGE_PX = 16

# Shapes. The signed distance, negative inside, to a figure within the unit circle, in units of
# its radius. `vary` in [0, 1), one number per picture, makes no two rings or stars alike.


def _length(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y)


def _box(x: Plane, y: Plane, half_width: Plane | float, half_height: Plane | float) -> Plane:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _side(x: Plane, y: Plane, start: tuple[float, float], end: tuple[float, float]) -> Plane:
    """Distance to the line through start and end, negative on its left."""
    length = math.hypot(end[0] - start[0], end[1] - start[1])
    nx, ny = (end[1] - start[1]) / length, (start[0] - end[0]) / length
    return x * nx + (y * ny - (start[0] * nx + start[1] * ny))


def _fold(x: Plane, y: Plane, order: int) -> tuple[Plane, Plane]:
    """Mirror the plane into the sector 0 <= angle <= pi / order, measured from the y axis."""
    x, reach = np.abs(x), order
    while reach > 1:
        reach = (reach + 1) // 2
        nx, ny = math.cos(math.pi * reach / order), -math.sin(math.pi * reach / order)
        beyond = 2 * np.maximum(x * nx + y * ny, 0)
        x, y = x - beyond * nx, y - beyond * ny
    return x, y


def _disc(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _length(x, y) - 1


def _ring(x: Plane, y: Plane, vary: Plane) -> Plane:
    half = 0.17 + 0.09 * vary
    return np.abs(_length(x, y) - (1 - half)) - half


def _triangle(x: Plane, y: Plane, vary: Plane) -> Plane:
    return np.maximum(_side(np.abs(x), y, (0.866, -0.5), (0, 1)), -0.5 - y)


def _square(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _box(x, y, 0.7071, 0.7071)


def _pentagon(x: Plane, y: Plane, vary: Plane) -> Plane:
    x, y = _fold(x, y, 5)
    half = math.cos(math.pi / 5)
    return _side(x, y, (half * math.sin(math.pi / 5), half * math.cos(math.pi / 5)), (0, 1))


def _star(x: Plane, y: Plane, vary: Plane) -> Plane:
    x, y = _fold(x, y, 5)
    return _side(x, y, (0.46 * math.sin(math.pi / 5), 0.46 * math.cos(math.pi / 5)), (0, 1))


def _cross(x: Plane, y: Plane, vary: Plane) -> Plane:
    half = 0.22 + 0.08 * vary
    return np.minimum(_box(x, y, 0.95, half), _box(x, y, half, 0.95))


def _crescent(x: Plane, y: Plane, vary: Plane) -> Plane:
    return np.maximum(_length(x, y) - 1, 0.8 - _length(x - 0.4 - 0.12 * vary, y))


def _heart(x: Plane, y: Plane, vary: Plane) -> Plane:
    x, y = np.abs(x), y + 0.12
    point = (x + y - 0.85) * math.sqrt(0.5)
    tip = np.maximum(point, (x - y - 0.85) * math.sqrt(0.5))
    return np.minimum(tip, _length(x - 0.425, y - 0.425) - 0.425 * math.sqrt(2))


def _arrow(x: Plane, y: Plane, vary: Plane) -> Plane:
    head = np.maximum(_side(np.abs(x), y, (0.68, 0.05), (0, 1)), 0.05 - y)
    return np.minimum(head, _box(x, y + 0.4, 0.16 + 0.1 * vary, 0.55))


def _drop(x: Plane, y: Plane, vary: Plane) -> Plane:
    belly, height = 0.6, 1.38  # the cone touches the circle where its sides are tangents
    sine = belly / height
    x, y = np.abs(x), y + 0.4
    cone = np.maximum(x * math.sqrt(1 - sine * sine) + y * sine - belly, belly * sine - y)
    return np.minimum(_length(x, y) - belly, cone)


def _semicircle(x: Plane, y: Plane, vary: Plane) -> Plane:
    y = y + 0.45
    return np.maximum(_length(x, y) - 1, -y)


def _diamond(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _side(np.abs(x), np.abs(y), (0.55, 0), (0, 1))


def _flower(x: Plane, y: Plane, vary: Plane) -> Plane:
    x, y = _fold(x, y, 6)
    petal = _length(x, y - 0.7) - 0.3
    return np.minimum(petal, _length(x, y) - 0.55)


def _horseshoe(x: Plane, y: Plane, vary: Plane) -> Plane:
    half = 0.16 + 0.06 * vary
    y = y - 0.2
    bend = np.abs(_length(x, np.maximum(y, 0)) - (0.8 - half)) - half
    return np.maximum(bend, -1 - y)


def _bolt(x: Plane, y: Plane, vary: Plane) -> Plane:
    def half(x: Plane, y: Plane) -> Plane:
        top, corner, heel = (0.34, 0.94), (-0.62, -0.2), (0.24, -0.2)
        sides = [_side(x, y, top, corner), _side(x, y, corner, heel), _side(x, y, heel, top)]
        return np.maximum.reduce(sides)

    return np.minimum(half(x, y), half(-x, -y))


def _gear(x: Plane, y: Plane, vary: Plane) -> Plane:
    radius = _length(x, y)
    x, y = _fold(x, y, 8)
    teeth = np.maximum(x - 0.16, y - 1)
    return np.maximum(np.minimum(radius - 0.76, teeth), 0.28 + 0.1 * vary - radius)


def _hourglass(x: Plane, y: Plane, vary: Plane) -> Plane:
    y = np.abs(y)
    return np.maximum(_side(np.abs(x), y, (0.1, 0), (0.6, 0.8)), y - 0.8)


def _key(x: Plane, y: Plane, vary: Plane) -> Plane:
    bow = np.abs(_length(x, y - 0.56) - 0.3) - 0.14
    stem = _box(x, y + 0.35, 0.12, 0.65)
    bits = np.minimum(_box(x - 0.2, y + 0.87, 0.22, 0.11), _box(x - 0.2, y + 0.52, 0.22, 0.11))
    return np.minimum(np.minimum(bow, stem), bits)


def _leaf(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _length(np.abs(x) + 0.75, y) - 1.25


@dataclass(frozen=True)
class Shape:
    name: str
    distance: Callable[[Plane, Plane, Plane], Plane]
    radius: float  # relative; evens out the areas, so that size does not betray the class
    depth: float  # largest distance from inside to the edge


SHAPES = (
    Shape("disc", _disc, 0.80, 1.0),
    Shape("ring", _ring, 0.92, 0.2),
    Shape("triangle", _triangle, 1.05, 0.5),
    Shape("square", _square, 0.95, 0.7),
    Shape("pentagon", _pentagon, 0.90, 0.8),
    Shape("star", _star, 1.05, 0.4),
    Shape("cross", _cross, 1.0, 0.3),
    Shape("crescent", _crescent, 1.0, 0.3),
    Shape("heart", _heart, 0.90, 0.6),
    Shape("arrow", _arrow, 1.08, 0.3),
    Shape("drop", _drop, 1.0, 0.6),
    Shape("semicircle", _semicircle, 1.0, 0.5),
    Shape("diamond", _diamond, 1.08, 0.45),
    Shape("flower", _flower, 0.90, 0.5),
    Shape("horseshoe", _horseshoe, 1.0, 0.2),
    Shape("lightning bolt", _bolt, 1.10, 0.25),
    Shape("gear", _gear, 0.95, 0.3),
    Shape("hourglass", _hourglass, 1.0, 0.4),
    Shape("key", _key, 1.05, 0.14),
    Shape("leaf", _leaf, 1.05, 0.5),
)

# Textures. Negative where the second colour lies. u and v are figure coordinates, turned, in units
# of the period; `inner` is negative in the inner part of the figure, away from its edge.


def _wave(t: Plane) -> Plane:
    """Distance to the nearest boundary of stripes of width 1/2; the sign changes across it."""
    return np.abs(t - np.floor(t) - 0.5) - 0.25


def _either(a: Plane, b: Plane) -> Plane:
    """Negative where exactly one of a and b is."""
    return np.maximum(np.minimum(a, b), -np.maximum(a, b))


def _solid(u: Plane, v: Plane, inner: Plane) -> Plane:
    return np.ones((1, 1, 1), np.float32)


def _striped(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _wave(u)


def _checked(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _either(_wave(u), _wave(v))


def _dotted(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _length(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5) - 0.3


def _bordered(u: Plane, v: Plane, inner: Plane) -> Plane:
    return inner


def _concentric(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _wave(_length(u, v))


def _halved(u: Plane, v: Plane, inner: Plane) -> Plane:
    return u


def _quartered(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _either(u, v)


def _rayed(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _either(_either(u, v), _either(u + v, u - v) * math.sqrt(0.5))


def _zigzag(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _wave(u + 1.2 * _wave(v)) * 0.64  # 0.64: the stripes run at a slope of 1.2


@dataclass(frozen=True)
class Texture:
    name: str
    boundary: Callable[[Plane, Plane, Plane], Plane]


TEXTURES = (
    Texture("solid", _solid),
    Texture("striped", _striped),
    Texture("checked", _checked),
    Texture("dotted", _dotted),
    Texture("bordered", _bordered),
    Texture("concentric", _concentric),
    Texture("halved", _halved),
    Texture("quartered", _quartered),
    Texture("rayed", _rayed),
    Texture("zigzag", _zigzag),
)


@dataclass(frozen=True)
class Arrangement:
    """Where the copies of a figure stand, in units of their radius, and how much room they take."""

    name: str
    places: tuple[tuple[float, float], ...]
    extent: tuple[float, float]  # radius of the whole, in half picture sides: from, to


ARRANGEMENTS = (
    Arrangement("alone", ((0, 0),), (0.55, 0.92)),
    Arrangement("a pair", ((-1.08, 0), (1.08, 0)), (0.70, 0.96)),
    Arrangement("three in a row", ((-2.1, 0), (0, 0), (2.1, 0)), (0.80, 1.0)),
    Arrangement("three in a triangle", ((0, 1.24), (1.074, -0.62), (-1.074, -0.62)), (0.75, 0.96)),
    Arrangement(
        "four in a square",
        ((1.06, 1.06), (1.06, -1.06), (-1.06, 1.06), (-1.06, -1.06)),
        (0.75, 0.96),
    ),
)
MAX_COPIES = 4
NUM_PIECES = 6  # of clutter: two colours behind the figure, the last piece in front of it


@dataclass(frozen=True)
class Scenes:
    """What N pictures show, at any size. Lengths are in half picture sides, colours in 0..255."""

    shape: NDArray[np.int64]  # (N,)
    texture: NDArray[np.int64]  # (N,)
    arrangement: NDArray[np.int64]  # (N,)
    vary: Plane  # (N,)
    radius: Plane  # (N,)
    figure: Plane  # (N, copies, 2, 3): figure coordinates are affine in those of the picture
    weave: Plane  # (N, 2, 2): texture coordinates are linear in those of the figure
    ground: Plane  # (N, 2, 3): waves across the ground, affine in the picture
    pieces: Plane  # (N, pieces, 2, 3): coordinates along and across each piece of clutter
    piece_sizes: Plane  # (N, pieces, 2): its half length and half width
    light: Plane  # (N, 3): affine in the picture
    colours: Plane  # (N, 7, 3): ground, ground, figure, figure, clutter behind, behind, in front
    noise: Plane  # (N,)
    noise_start: NDArray[np.int64]  # (N, 3): where in the table of noise each channel begins

    def take(self, rows: NDArray[np.int64]) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def _between(draw: Reals, low: float, high: float) -> Reals:
    return low + (high - low) * draw


def _direction(draw: Reals) -> tuple[Reals, Reals]:
    """Cosine and sine of an angle that is uniform to 8 %; rational, so the same everywhere."""
    quarter = np.floor(4 * draw)
    t = (2 * (4 * draw - quarter) - 1) * (math.sqrt(2) - 1)  # tan of half of -45..45 degrees
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    c, s = np.where(quarter % 2 == 0, c, -s), np.where(quarter % 2 == 0, s, c)
    return np.where(quarter < 2, c, -c), np.where(quarter < 2, s, -s)


TILT = 0.27


def _tilt(draw: Reals, limit: float) -> tuple[Reals, Reals]:
    t = limit * (2 * draw - 1)
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def _classes(labels: NDArray[np.int64], num_classes: int, draws: Reals) -> list[NDArray[np.int64]]:
    """Shape, texture and arrangement (N,) of each label; what the label leaves open is drawn."""
    # half of the figures are solid and four in five alone where that is free to vary
    texture = np.maximum(np.floor(20 * draws[:, 0]) - 10, 0).astype(np.int64)
    arrangement = np.maximum(np.floor(40 * draws[:, 1]) - 35, 0).astype(np.int64)
    shape, kind = labels % len(SHAPES), labels // len(SHAPES)
    if num_classes > len(SHAPES):
        texture = kind % len(TEXTURES)
    if num_classes > len(SHAPES) * len(TEXTURES):
        arrangement = kind // len(TEXTURES)
    return [shape, texture, arrangement]


def _figures(
    shape: NDArray[np.int64], arrangement: NDArray[np.int64], draws: Reals
) -> tuple[Reals, Reals]:
    """Radius (N,) of the figures and coordinates (N, copies, 2, 3) of each copy."""
    low, high = np.array([a.extent for a in ARRANGEMENTS])[arrangement].T
    extent = _between(draws[:, 0], low, high)
    places = np.zeros((len(ARRANGEMENTS), MAX_COPIES, 2))
    for row, kind in zip(places, ARRANGEMENTS, strict=True):
        row[: len(kind.places)] = kind.places
    reach = 1 + np.sqrt((places**2).sum(axis=2).max(axis=1))
    radius = extent / reach[arrangement]
    turn_c, turn_s = _direction(draws[:, 1:2])
    x, y = (places[arrangement] * radius[:, None, None]).transpose(2, 0, 1)  # (N, copies) each
    room = 1 - extent
    x, y = (
        turn_c * x - turn_s * y + (room * (2 * draws[:, 2] - 1))[:, None],
        turn_s * x + turn_c * y + (room * (2 * draws[:, 3] - 1))[:, None],
    )
    c, s = _tilt(draws[:, 4:5], TILT)
    t = 0.12 * (2 * draws[:, 5 : 5 + MAX_COPIES] - 1)  # tan of half the angle of each copy
    tilt_c, tilt_s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    c, s = c * tilt_c - s * tilt_s, s * tilt_c + c * tilt_s
    radius = radius * np.array([s.radius for s in SHAPES])[shape]
    stretch = _between(draws[:, 9], 0.92, 1.08)[:, None]
    mirror = np.where(draws[:, 10] < 0.5, -1, 1)[:, None]
    across, up = mirror * stretch / radius[:, None], 1 / (stretch * radius[:, None])
    rows = [
        np.stack([c * across, s * across, -(c * x + s * y) * across], axis=-1),
        np.stack([-s * up, c * up, (s * x - c * y) * up], axis=-1),
    ]
    return radius, np.stack(rows, axis=2)


def _colours(draws: Reals) -> Reals:
    """Colours (N, 7, 3) in 0..255 that stand out from each other in lightness."""
    count = len(draws)
    ground = _between(draws[:, 0], 0.12, 0.88)
    contrast = _between(draws[:, 1], 0.32, 0.50)
    free = np.abs(ground - 0.5) < 0.5 - contrast  # the figure may be lighter or darker
    sign = np.where(np.where(free, draws[:, 2] < 0.5, ground < 0.5), 1, -1)
    figure = ground + sign * contrast
    # the second colour keeps away from both: on the other side, or beyond, or halfway
    far, halfway = ground + 1.7 * sign * contrast, ground + 0.5 * sign * contrast
    second = np.where(free, ground - sign * contrast, np.where(abs(far - 0.5) < 0.47, far, halfway))
    ground_2 = ground + _between(draws[:, 3], -0.10, 0.10)
    clutter = ground[:, None] + np.where(draws[:, 4:7] < 0.5, -1, 1) * _between(
        draws[:, 7:10], 0.10, 0.35
    )
    lightness = np.column_stack([ground, ground_2, figure, second, clutter])  # (N, 7)
    hue = _between(draws[:, 10:24].reshape(count, 7, 2), -1, 1)
    # two directions of colour that hardly change the lightness
    chroma = hue[..., :1] * [0.28, -0.10, -0.10] + hue[..., 1:] * [0.06, 0.06, -0.34]
    chroma[:, 1] = 0.6 * chroma[:, 0] + 0.4 * chroma[:, 1]
    return 255 * np.clip(lightness[..., None] + chroma, 0, 1)


def _clutter(draws: Reals) -> tuple[Reals, Reals]:
    """Bars and specks: coordinates (N, pieces, 2, 3) and half sizes (N, pieces, 2)."""
    x, y = _between(draws[0], -1, 1), _between(draws[1], -1, 1)
    c, s = _direction(draws[2])
    length = _between(draws[3] * draws[3], 0.04, 0.55)
    width = _between(draws[4], 0.015, 0.05)
    width[:, -1] *= 0.6  # in front of the figure: thin
    absent = draws[5] < 0.35
    rows = [
        np.stack([c, s, -(c * x + s * y)], axis=-1),
        np.stack([-s, c, s * x - c * y], axis=-1),
    ]
    return np.stack(rows, axis=2), np.stack([length, np.where(absent, -9, width)], axis=-1)


def _scenes(
    seed: int, indices: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int
) -> Scenes:
    def draw(purpose: str, *size: int) -> Reals:
        count = math.prod(size)
        return uniform(seed, f"shapes {purpose}", 0, indices, count).reshape(-1, *size)

    shape, texture, arrangement = _classes(labels, num_classes, draw("class", 2))
    radius, figure = _figures(shape, arrangement, draw("figure", 11))
    pieces, piece_sizes = _clutter(draw("clutter", 6, NUM_PIECES).transpose(1, 0, 2))
    weave_draws, ground_draws, light_draws = draw("weave", 2), draw("ground", 6), draw("light", 3)
    c, s = _direction(weave_draws[:, 0])
    frequency = 1 / _between(weave_draws[:, 1], 0.42, 0.62)
    weave = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], 1) * frequency[:, None, None]
    c, s = _direction(ground_draws[:, 0])
    frequency = _between(ground_draws[:, 1:3] ** 2, 0.1, 2.5)
    ground = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], 1) * frequency[..., None]
    c, s = _direction(light_draws[:, 0])
    slope = _between(light_draws[:, 1], 0.0, 0.25)
    single = np.float32
    return Scenes(
        shape=shape,
        texture=texture,
        arrangement=arrangement,
        vary=draw("vary", 1)[:, 0].astype(single),
        radius=radius.astype(single),
        figure=figure.astype(single),
        weave=weave.astype(single),
        ground=np.concatenate([ground, ground_draws[:, 3:5, None]], axis=2).astype(single),
        pieces=pieces.astype(single),
        piece_sizes=piece_sizes.astype(single),
        light=np.stack([c * slope, s * slope, 1 - 0.1 * light_draws[:, 2]], -1).astype(single),
        colours=_colours(draw("colours", 24)).astype(single),
        noise=_between(draw("noise", 1)[:, 0], 1, 10).astype(single),
        noise_start=integers(seed, "shapes noise start", 0, indices, NOISE_VALUES, 3),
    )


NOISE_VALUES = 2**18


@lru_cache(maxsize=2)
def _noise_table(seed: int, window: int) -> Plane:
    """A table of noise of unit deviation; each channel of each picture is a window of it."""
    draws = uniform(seed, "shapes noise table", 0, np.arange(NOISE_VALUES + window), 3)
    return (2 * (draws[:, 0] + draws[:, 1] + draws[:, 2]) - 3).astype(np.float32)


def _affine(coefficients: Plane, axis: Plane) -> Plane:
    """(n, 3) coefficients of x, y and 1 -> (n, px, px), x along the columns."""
    a, b, c = coefficients.T[:, :, None, None]
    return a * axis[None, None, :] + (b * axis[None, :, None] + c)


def _cover(distance_px: Plane) -> Plane:
    """Share of a pixel inside an edge: 1 half a pixel inside it, 0 half a pixel outside."""
    t = np.clip(0.5 - distance_px, 0, 1)
    return t * t * (3 - 2 * t)


def _blend(canvas: Plane, cover: Plane, colour: Plane) -> None:
    layer = colour - canvas
    layer *= cover
    canvas += layer


def _each(kinds: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The kinds that occur, each with the rows where it does."""
    for kind in np.unique(kinds):
        yield int(kind), np.flatnonzero(kinds == kind)


def _ground(scenes: Scenes, axis: Plane) -> Plane:
    waves = _wave(_affine(scenes.ground[:, 0], axis))
    waves *= _wave(_affine(scenes.ground[:, 1], axis))
    waves *= 8
    waves += 0.5
    first, second = scenes.colours.transpose(1, 2, 0)[:2, ..., None, None]  # (3, n, 1, 1)
    return waves * (second - first) + first


def _pieces(scenes: Scenes, pieces: range, axis: Plane, scale: float) -> Plane:
    """Cover (n, px, px) of some pieces of clutter: bars."""
    inside: Plane | None = None
    for k in pieces:
        for side in range(2):
            depth = _affine(scenes.pieces[:, k, side], axis)
            np.abs(depth, out=depth)
            np.subtract(scenes.piece_sizes[:, k, side, None, None], depth, out=depth)
            bar = depth if side == 0 else np.minimum(bar, depth, out=bar)
        inside = bar if inside is None else np.maximum(inside, bar, out=inside)
    inside *= scale
    inside += 0.5
    return np.clip(inside, 0, 1, out=inside)


def _nearest_copy(scenes: Scenes, axis: Plane) -> tuple[Plane, Plane]:
    """Coordinates in the figure of the nearest copy, (n, px, px) each."""
    x, y = _affine(scenes.figure[:, 0, 0], axis), _affine(scenes.figure[:, 0, 1], axis)
    for kind, rows in _each(scenes.arrangement):
        if kind == 0:
            continue
        bx, by = x[rows], y[rows]
        best = bx * bx + by * by
        for copy in range(1, len(ARRANGEMENTS[kind].places)):
            u = _affine(scenes.figure[rows, copy, 0], axis)
            v = _affine(scenes.figure[rows, copy, 1], axis)
            square = u * u + v * v
            nearer = square < best
            np.copyto(bx, u, where=nearer)
            np.copyto(by, v, where=nearer)
            np.copyto(best, square, where=nearer)
        x[rows], y[rows] = bx, by
    return x, y


def _wide(values: Plane) -> Plane:
    return values[:, None, None]


def _figure(scenes: Scenes, axis: Plane, scale: float) -> tuple[Plane, Plane]:
    """Cover (n, px, px) of the figure, and of the second colour of its texture."""
    x, y = _nearest_copy(scenes, axis)
    distance = np.empty_like(x)
    for kind, rows in _each(scenes.shape):
        distance[rows] = SHAPES[kind].distance(x[rows], y[rows], _wide(scenes.vary[rows]))
    second = np.zeros_like(x)
    for kind, rows in _each(scenes.texture):
        if kind == 0:
            continue
        depth = np.array([s.depth for s in SHAPES], np.float32)[scenes.shape[rows]]
        a, b, c, d = (_wide(w) for w in scenes.weave[rows].reshape(-1, 4).T)
        frequency = np.sqrt(a * a + b * b)
        tx, ty = x[rows], y[rows]
        inner = (distance[rows] + 0.4 * _wide(depth)) * frequency
        boundary = TEXTURES[kind].boundary(a * tx + b * ty, c * tx + d * ty, inner)
        second[rows] = _cover(boundary * (_wide(scenes.radius[rows]) * scale / frequency))
    return _cover(distance * (_wide(scenes.radius) * scale)), second


def _draw(scenes: Scenes, seed: int, image_px: int) -> NDArray[np.uint8]:
    """Draw scenes: (n, px, px, 3). Fastest where neighbours are of one kind."""
    scale = image_px / 2  # pixels in a unit of length
    axis = ((np.arange(image_px) + 0.5) / scale - 1).astype(np.float32)
    colours = scenes.colours.transpose(1, 2, 0)[..., None, None]  # (7, 3, n, 1, 1)
    canvas = _ground(scenes, axis)
    _blend(canvas, _pieces(scenes, range(0, 3), axis, scale), colours[4])
    _blend(canvas, _pieces(scenes, range(3, 5), axis, scale), colours[5])
    cover, second = _figure(scenes, axis, scale)
    paint = second * (colours[3] - colours[2])
    paint += colours[2]
    _blend(canvas, cover, paint)
    _blend(canvas, _pieces(scenes, range(5, 6), axis, scale), colours[6])
    canvas *= _affine(scenes.light, axis)
    windows = sliding_window_view(_noise_table(seed, image_px * image_px), image_px * image_px)
    noise = windows[scenes.noise_start.T].reshape(canvas.shape)
    noise *= _wide(scenes.noise)
    canvas += noise
    canvas += 0.5
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 3, 0)


BLOCK = 2048
CHUNK_PIXELS = 32 * 64 * 64


def shapes(
    seed: int,
    indices: ArrayLike,
    *,
    image_px: int = 64,
    num_classes: int = 16,
    threads: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    index = np.asarray(indices, dtype=np.int64).reshape(-1)
    labels = index % num_classes
    images = np.empty((len(index), image_px, image_px, 3), np.uint8)
    chunk = max(1, CHUNK_PIXELS // image_px**2)
    _noise_table(seed, image_px * image_px)

    def draw(task: tuple[NDArray[np.int64], Scenes]) -> None:
        rows, scenes = task
        images[rows] = _draw(scenes, seed, image_px)

    def tasks(start: int):
        rows = np.arange(start, min(start + BLOCK, len(index)))
        scenes = _scenes(seed, index[rows], labels[rows], num_classes)
        order = np.lexsort((scenes.texture, scenes.shape))
        for i in range(0, len(order), chunk):
            part = order[i : i + chunk]
            yield rows[part], scenes.take(part)

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(index), BLOCK):
            list(pool.map(draw, tasks(start)))
    return images, labels


def class_names(num_classes: int) -> tuple[str, ...]:
    names = []
    for label in range(num_classes):
        kind, shape = divmod(label, len(SHAPES))
        name = SHAPES[shape].name
        if num_classes > len(SHAPES):
            name = f"{TEXTURES[kind % len(TEXTURES)].name} {name}"
        if num_classes > len(SHAPES) * len(TEXTURES):
            name = f"{name}, {ARRANGEMENTS[kind // len(TEXTURES)].name}"
        names.append(name)
    return tuple(names)
