"""The built-in data set `shapes`: pictures drawn here, a pure function of (seed, index).

Needs no download, and gives any number of pictures of any size. A class is a shape; beyond 20
classes also a texture, beyond 200 also an arrangement, up to 1000. Place, size, tilt, colours,
ground, light, clutter and noise are random, and so are texture and arrangement where they are not
part of the class; no class is the mirror image of another.

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

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]  # draws and parameters, one row per picture
Plane = NDArray[np.float32]  # (n, px, px), or what broadcasts to it

MIN_CLASSES, MAX_CLASSES = 2, 1000
MIN_IMAGE_PX = 16


def shapes(
    seed: int,
    indices: ArrayLike,
    *,
    image_px: int = 64,
    num_classes: int = 16,
    threads: int = 0,
) -> tuple[NDArray[np.uint8], Integers]:
    """Pictures (N, image_px, image_px, 3) uint8 and labels (N,) int64 of N indices.

    The label of index i is i modulo num_classes, so any run of consecutive indices is balanced.
    The same (seed, index, num_classes) shows the same scene at every size. `threads` changes the
    time and nothing else; 0 takes one per core, at most four. Raises UserError for num_classes
    outside 2..1000 and for image_px below 16.
    """
    _check_num_classes(num_classes)
    if image_px < MIN_IMAGE_PX:
        raise UserError(f"shapes of {image_px} px cannot be told apart; use {MIN_IMAGE_PX} or more")
    index = np.asarray(indices, dtype=np.int64).reshape(-1)
    labels = index % num_classes
    images = np.empty((len(index), image_px, image_px, 3), dtype=np.uint8)
    table = _noise_table(seed, image_px * image_px)
    chunk = max(1, CHUNK_PIXELS // image_px**2)

    def parts(rows: Integers) -> Iterator[tuple[Integers, Scenes]]:
        scenes = _scenes(seed, index[rows], labels[rows], num_classes)
        order = np.lexsort((scenes.texture, scenes.shape))  # few kinds per chunk: few, long arrays
        for start in range(0, len(order), chunk):
            part = order[start : start + chunk]
            yield rows[part], scenes.take(part)

    def draw(part: tuple[Integers, Scenes]) -> None:
        images[part[0]] = _draw(part[1], table, image_px)

    # NumPy frees the interpreter for most of the drawing, not for all: more threads gain nothing
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(index), BLOCK_IMAGES):
            rows = np.arange(start, min(start + BLOCK_IMAGES, len(index)))
            for _ in pool.map(draw, parts(rows)):
                pass
    return images, labels


def class_names(num_classes: int) -> tuple[str, ...]:
    """Names of the classes, in order of their labels: "star", "striped star", or "striped star,
    three in a row", as much as the number of classes tells apart.

    Raises UserError for num_classes outside 2..1000.
    """
    _check_num_classes(num_classes)
    return tuple(_class_name(label, num_classes) for label in range(num_classes))


def _check_num_classes(num_classes: int) -> None:
    if not MIN_CLASSES <= num_classes <= MAX_CLASSES:
        raise UserError(
            f"shapes has no set of {num_classes} classes; "
            f"choose num_classes from {MIN_CLASSES} to {MAX_CLASSES}"
        )


def _class_name(label: int, num_classes: int) -> str:
    kind, shape = divmod(label, len(SHAPES))
    name = SHAPES[shape].name
    if num_classes > len(SHAPES):
        name = f"{TEXTURES[kind % len(TEXTURES)].name} {name}"
    if num_classes > len(SHAPES) * len(TEXTURES):
        name = f"{name}, {ARRANGEMENTS[kind // len(TEXTURES)].name}"
    return name


# Shapes. The signed distance, negative inside, to a figure within the unit circle, y pointing up;
# where a corner is the nearest point it may be too small. `vary` in [0, 1), one number per
# picture, makes no two rings alike.


def _length(x: Plane, y: Plane) -> Plane:
    length: Plane = np.sqrt(x * x + y * y)
    return length


def _union(figure: Plane, *others: Plane) -> Plane:
    for other in others:
        figure = np.minimum(figure, other)
    return figure


def _overlap(figure: Plane, *others: Plane) -> Plane:
    for other in others:
        figure = np.maximum(figure, other)
    return figure


def _box(x: Plane, y: Plane, half_width: Plane | float, half_height: Plane | float) -> Plane:
    return _overlap(abs(x) - half_width, abs(y) - half_height)


def _left_of(x: Plane, y: Plane, start: tuple[float, float], end: tuple[float, float]) -> Plane:
    """The half plane to the left of the line from start to end."""
    length = math.hypot(end[0] - start[0], end[1] - start[1])
    nx, ny = (end[1] - start[1]) / length, (start[0] - end[0]) / length
    return x * nx + (y * ny - (start[0] * nx + start[1] * ny))


def _fold(x: Plane, y: Plane, order: int) -> tuple[Plane, Plane]:
    """Mirror the plane into the sector from the y axis to pi / order clockwise of it."""
    x, reach = abs(x), order
    while reach > 1:
        reach = (reach + 1) // 2
        nx, ny = math.cos(math.pi * reach / order), -math.sin(math.pi * reach / order)
        beyond: Plane = 2 * np.maximum(x * nx + y * ny, 0)
        x, y = x - beyond * nx, y - beyond * ny
    return x, y


def _disc(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _length(x, y) - 1


def _ring(x: Plane, y: Plane, vary: Plane) -> Plane:
    half = 0.17 + 0.09 * vary
    return abs(_length(x, y) - (1 - half)) - half


def _triangle(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _overlap(_left_of(abs(x), y, (0.866, -0.5), (0, 1)), -0.5 - y)


def _square(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _box(x, y, 0.7071, 0.7071)


def _hourglass(x: Plane, y: Plane, vary: Plane) -> Plane:
    y = abs(y)
    return _overlap(_left_of(abs(x), y, (0.1, 0), (0.6, 0.8)), y - 0.8)


def _star(x: Plane, y: Plane, vary: Plane) -> Plane:
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    return _left_of(*_fold(x, y, 5), (0.46 * s, 0.46 * c), (0, 1))


def _cross(x: Plane, y: Plane, vary: Plane) -> Plane:
    half = 0.22 + 0.08 * vary
    return _union(_box(x, y, 0.95, half), _box(x, y, half, 0.95))


def _crescent(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _overlap(_length(x, y) - 1, 0.8 - _length(x - 0.4 - 0.12 * vary, y))


def _heart(x: Plane, y: Plane, vary: Plane) -> Plane:
    x, y = abs(x), y + 0.2
    point = (_overlap(x + y, x - y) - 0.8) * math.sqrt(0.5)
    return _union(point, _length(x - 0.4, y - 0.4) - 0.4 * math.sqrt(2))


def _arrow(x: Plane, y: Plane, vary: Plane) -> Plane:
    head = _overlap(_left_of(abs(x), y, (0.68, 0.05), (0, 1)), 0.05 - y)
    return _union(head, _box(x, y + 0.4, 0.16 + 0.1 * vary, 0.55))


def _drop(x: Plane, y: Plane, vary: Plane) -> Plane:
    belly, height = 0.6, 1.38
    sine = belly / height  # of half the angle at the tip
    touch = (belly * math.sqrt(1 - sine * sine), belly * sine)  # the sides are tangents here
    x, y = abs(x), y + 0.4
    cone = _overlap(_left_of(x, y, touch, (0, height)), touch[1] - y)
    return _union(_length(x, y) - belly, cone)


def _semicircle(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _overlap(_length(x, y + 0.4) - 0.95, -0.4 - y)


def _diamond(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _left_of(abs(x), abs(y), (0.55, 0), (0, 1))


def _flower(x: Plane, y: Plane, vary: Plane) -> Plane:
    x, y = _fold(x, y, 5)
    return _union(_length(x, y - 0.64) - 0.36, _length(x, y) - 0.4)


def _horseshoe(x: Plane, y: Plane, vary: Plane) -> Plane:
    half = 0.16 + 0.06 * vary
    y = y - 0.25
    upper: Plane = np.maximum(y, 0)  # below, the bend goes straight on
    return _overlap(abs(_length(x, upper) - (0.75 - half)) - half, -0.9 - y)


def _bolt(x: Plane, y: Plane, vary: Plane) -> Plane:
    def half(x: Plane, y: Plane) -> Plane:
        top, corner, heel = (0.34, 0.94), (-0.62, -0.2), (0.24, -0.2)
        sides = ((top, corner), (corner, heel), (heel, top))
        return _overlap(*(_left_of(x, y, *side) for side in sides))

    return _union(half(x, y), half(-x, -y))


def _pentagon(x: Plane, y: Plane, vary: Plane) -> Plane:
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    return _left_of(*_fold(x, y, 5), (c * s, c * c), (0, 1))


def _gear(x: Plane, y: Plane, vary: Plane) -> Plane:
    radius = _length(x, y)
    x, y = _fold(x, y, 8)
    return _overlap(_union(radius - 0.76, _overlap(x - 0.16, y - 1)), 0.28 + 0.1 * vary - radius)


def _key(x: Plane, y: Plane, vary: Plane) -> Plane:
    bow = abs(_length(x, y - 0.56) - 0.3) - 0.14
    stem = _box(x, y + 0.35, 0.12, 0.65)
    return _union(bow, stem, _box(x - 0.2, abs(y + 0.695) - 0.175, 0.22, 0.11))


def _leaf(x: Plane, y: Plane, vary: Plane) -> Plane:
    return _length(abs(x) + 0.75, y) - 1.25


@dataclass(frozen=True)
class Shape:
    name: str
    distance: Callable[[Plane, Plane, Plane], Plane]
    radius: float  # relative; evens out the areas, so that size does not betray the class
    depth: float  # largest distance from inside to the edge


SHAPES = (
    Shape("disc", _disc, 0.80, 1.0),
    Shape("ring", _ring, 0.92, 0.21),
    Shape("triangle", _triangle, 1.05, 0.5),
    Shape("square", _square, 0.95, 0.71),
    Shape("hourglass", _hourglass, 1.05, 0.33),
    Shape("star", _star, 1.05, 0.39),
    Shape("cross", _cross, 1.0, 0.26),
    Shape("crescent", _crescent, 1.0, 0.33),
    Shape("heart", _heart, 0.95, 0.56),
    Shape("arrow", _arrow, 1.08, 0.35),
    Shape("drop", _drop, 1.0, 0.6),
    Shape("semicircle", _semicircle, 1.05, 0.47),
    Shape("diamond", _diamond, 1.08, 0.48),
    Shape("flower", _flower, 0.90, 0.40),
    Shape("horseshoe", _horseshoe, 1.08, 0.19),
    Shape("lightning bolt", _bolt, 1.10, 0.28),
    Shape("pentagon", _pentagon, 0.90, 0.81),
    Shape("gear", _gear, 0.95, 0.21),
    Shape("key", _key, 1.05, 0.14),
    Shape("leaf", _leaf, 1.05, 0.5),
)

# Textures. Negative where the second colour lies. u and v are figure coordinates, turned, in units
# of the period; `inner` is negative in the inner part of the figure, away from its edge.


def _wave(t: Plane) -> Plane:
    """Distance to the nearest boundary of stripes of width 1/2; the sign changes across it."""
    phase: Plane = t - np.floor(t)
    return abs(phase - 0.5) - 0.25


def _either(a: Plane, b: Plane) -> Plane:
    """Negative where exactly one of a and b is."""
    return _overlap(_union(a, b), -_overlap(a, b))


def _solid(u: Plane, v: Plane, inner: Plane) -> Plane:
    return np.ones((1, 1, 1), np.float32)


def _striped(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _wave(u)


def _checked(u: Plane, v: Plane, inner: Plane) -> Plane:
    return _either(_wave(u), _wave(v))


def _dotted(u: Plane, v: Plane, inner: Plane) -> Plane:
    du: Plane = u - np.floor(u) - 0.5
    dv: Plane = v - np.floor(v) - 0.5
    return _length(du, dv) - 0.3


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
    Arrangement("alone", ((0, 0),), (0.60, 0.94)),
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


# Scenes. Everything random about a picture, as numbers, before anything is drawn. Figures stay near
# upright, and are mostly solid and alone, so that sixteen classes are learnt in minutes on a CPU.

MAX_TILT = 0.27  # of a figure from upright: the tangent of half the angle, 30 degrees
MAX_EXTRA_TILT = 0.09  # of each copy: 10 degrees
NUM_PIECES = 6  # of clutter
PIECES_BEHIND, PIECES_BEFORE = (range(0, 3), range(3, 5)), range(5, 6)  # a colour for each range
NOISE_VALUES = 2**16


@dataclass(frozen=True)
class Scenes:
    """What N pictures show, at any size.

    Positions are in half picture sides from the centre, x to the right and y up; colours are in
    0..255. Coefficients (..., 3) multiply x, y and 1.
    """

    shape: Integers  # (N,)
    texture: Integers  # (N,)
    arrangement: Integers  # (N,)
    vary: Plane  # (N,)
    radius: Plane  # (N,) of the figure
    figure: Plane  # (N, copies, 2, 3) from the picture to the figure, in units of its radius
    weave: Plane  # (N, 2) cosine and sine by which the texture is turned on the figure
    period: Plane  # (N,) of the texture, in units of the figure's radius
    ground: Plane  # (N, 2, 3) two waves whose product mixes the colours of the ground
    pieces: Plane  # (N, pieces, 2, 3) along and across each piece of clutter
    piece_sizes: Plane  # (N, pieces, 2) its half length and half width
    light: Plane  # (N, 3) what multiplies the colours
    colours: Plane  # (N, 7, 3) ground and its second, figure and its second, three of clutter
    noise: Plane  # (N,) standard deviation
    noise_start: Integers  # (N, 3) where in the table the noise of each channel begins

    def take(self, rows: Integers) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def _scenes(seed: int, indices: Integers, labels: Integers, num_classes: int) -> Scenes:
    def draw(purpose: str, *size: int) -> Reals:
        draws = uniform(seed, f"shapes {purpose}", 0, indices, math.prod(size))
        return draws.reshape(-1, *size)

    shape, texture, arrangement = _kinds(labels, num_classes, draw("kinds", 2))
    unit, x, y = _centres(arrangement, draw("place", 4))
    unit = unit * np.array([s.radius for s in SHAPES])[shape]
    figure = _figures(unit, x, y, draw("figure", 3), draw("copies", MAX_COPIES))
    pieces, piece_sizes = _clutter(draw("clutter", 6, NUM_PIECES).transpose(1, 0, 2))
    vary, period, noise, dim = draw("measures", 4).T
    turn, slope = draw("light", 2).T
    return Scenes(
        shape=shape,
        texture=texture,
        arrangement=arrangement,
        vary=vary.astype(np.float32),
        radius=unit.astype(np.float32),
        figure=figure.astype(np.float32),
        weave=np.concatenate(_direction(draw("weave", 1)), axis=1).astype(np.float32),
        period=_between(period, 0.42, 0.62).astype(np.float32),
        ground=_ground_waves(draw("ground", 5)).astype(np.float32),
        pieces=pieces.astype(np.float32),
        piece_sizes=piece_sizes.astype(np.float32),
        light=_light(turn, slope, dim).astype(np.float32),
        colours=_colours(draw("colours", 24)).astype(np.float32),
        noise=_between(noise, 1, 10).astype(np.float32),
        noise_start=integers(seed, "shapes noise start", 0, indices, NOISE_VALUES, 3),
    )


def _between(draw: Reals, low: float | Reals, high: float | Reals) -> Reals:
    return low + (high - low) * draw


def _tilt(tangent: Reals) -> tuple[Reals, Reals]:
    """Cosine and sine from the tangent of half the angle: rational, so the same everywhere."""
    square = tangent * tangent
    return (1 - square) / (1 + square), 2 * tangent / (1 + square)


def _direction(draw: Reals) -> tuple[Reals, Reals]:
    """Cosine and sine of an angle that is uniform over the full turn, to 8 %."""
    quarter = np.floor(4 * draw)
    c, s = _tilt((2 * (4 * draw - quarter) - 1) * (math.sqrt(2) - 1))  # -45..45 degrees
    c, s = np.where(quarter % 2 == 0, c, -s), np.where(quarter % 2 == 0, s, c)
    return np.where(quarter < 2, c, -c), np.where(quarter < 2, s, -s)


def _turn(c: Reals, s: Reals) -> Reals:
    """(...,) -> (..., 2, 2): the rows take a point to its coordinates in a turned frame."""
    return np.stack([np.stack([c, s], axis=-1), np.stack([-s, c], axis=-1)], axis=-2)


def _frame(c: Reals, s: Reals, x: Reals, y: Reals) -> Reals:
    """(...,) -> (..., 2, 3): coefficients of the coordinates in a frame turned about (x, y)."""
    shift = np.stack([-(c * x + s * y), s * x - c * y], axis=-1)
    return np.concatenate([_turn(c, s), shift[..., None]], axis=-1)


def _kinds(labels: Integers, num_classes: int, draws: Reals) -> tuple[Integers, Integers, Integers]:
    """Shape, texture and arrangement (N,); what the label leaves open is drawn."""
    # left open, three figures in four are solid, and 39 pictures in 40 show one figure
    texture = np.maximum(np.floor(36 * draws[:, 0]) - 26, 0).astype(np.int64)
    arrangement = np.maximum(np.floor(160 * draws[:, 1]) - 155, 0).astype(np.int64)
    shape, kind = labels % len(SHAPES), labels // len(SHAPES)
    if num_classes > len(SHAPES):
        texture = kind % len(TEXTURES)
    if num_classes > len(SHAPES) * len(TEXTURES):
        arrangement = kind // len(TEXTURES)
    return shape, texture, arrangement


def _centres(arrangement: Integers, draws: Reals) -> tuple[Reals, Reals, Reals]:
    """Radius (N,) of the circle given to each copy, and the copies' centres x, y (N, copies)."""
    size, turn, right, up = draws.T
    low, high = np.array([a.extent for a in ARRANGEMENTS])[arrangement].T
    extent = _between(size, low, high)
    places = np.zeros((len(ARRANGEMENTS), MAX_COPIES, 2))
    for row, kind in zip(places, ARRANGEMENTS, strict=True):
        row[: len(kind.places)] = kind.places
    reach = 1 + np.sqrt((places * places).sum(axis=2).max(axis=1))
    unit = extent / reach[arrangement]
    x, y = (places[arrangement] * unit[:, None, None]).transpose(2, 0, 1)
    c, s = (part[:, None] for part in _direction(turn))
    middle_x, middle_y = (1 - extent) * _between(right, -1, 1), (1 - extent) * _between(up, -1, 1)
    return unit, c * x - s * y + middle_x[:, None], s * x + c * y + middle_y[:, None]


def _figures(unit: Reals, x: Reals, y: Reals, draws: Reals, copy_draws: Reals) -> Reals:
    """Coefficients (N, copies, 2, 3) from the picture to each copy, in units of `unit` (N,)."""
    tilt, stretch, mirror = draws.T
    c, s = _tilt(MAX_TILT * _between(tilt, -1, 1))
    extra_c, extra_s = _tilt(MAX_EXTRA_TILT * _between(copy_draws, -1, 1))
    c, s = c[:, None], s[:, None]
    c, s = c * extra_c - s * extra_s, s * extra_c + c * extra_s
    stretch = _between(stretch, 0.95, 1.05)
    across = np.where(mirror < 0.5, -stretch, stretch) / unit
    scale = np.stack([across, 1 / (stretch * unit)], axis=-1)  # (N, 2)
    return _frame(c, s, x, y) * scale[:, None, :, None]


def _ground_waves(draws: Reals) -> Reals:
    """Coefficients (N, 2, 3), in periods, along two directions at right angles."""
    frequency = _between(draws[:, 1:3] * draws[:, 1:3], 0.1, 2.5)
    turn = _turn(*_direction(draws[:, 0])) * frequency[..., None]
    return np.concatenate([turn, draws[:, 3:5, None]], axis=2)


def _light(turn: Reals, slope: Reals, dim: Reals) -> Reals:
    """Coefficients (N, 3): brighter to one side, by up to a quarter, and dimmer as a whole."""
    c, s = _direction(turn)
    return np.stack([0.25 * slope * c, 0.25 * slope * s, 1 - 0.1 * dim], axis=-1)


def _clutter(draws: Reals) -> tuple[Reals, Reals]:
    """Bars: coefficients (N, pieces, 2, 3) and half sizes (N, pieces, 2) from (6, N, pieces)."""
    x, y, turn, length, width, absent = draws
    c, s = _direction(turn)
    half_length = _between(length * length, 0.04, 0.55)
    half_width = _between(width, 0.015, 0.05)
    half_width[:, PIECES_BEFORE] *= 0.6  # they hide little of the figure
    sizes = np.stack([half_length, np.where(absent < 0.35, -9, half_width)], axis=-1)
    return _frame(c, s, _between(x, -1, 1), _between(y, -1, 1)), sizes


def _colours(draws: Reals) -> Reals:
    """Colours (N, 7, 3) whose lightness keeps figure and ground apart, either one the lighter."""
    ground = _between(draws[:, 0], 0.12, 0.88)
    contrast = _between(draws[:, 1], 0.34, 0.50)
    free = np.abs(ground - 0.5) < 0.5 - contrast  # lighter and darker are both possible
    sign = np.where(np.where(free, draws[:, 2] < 0.5, ground < 0.5), 1, -1)
    # the figure's second colour is on the same side of the ground, so that outlines stay whole
    room = np.where(sign > 0, 1 - ground, ground)
    second_contrast = contrast + np.where(contrast + 0.25 < room, 0.25, -0.20)
    ground_second = ground + _between(draws[:, 3], -0.10, 0.10)
    away = np.where(draws[:, 4:7] < 0.5, -1, 1) * _between(draws[:, 7:10], 0.10, 0.35)
    lightness = np.column_stack(
        [
            ground,
            ground_second,
            ground + sign * contrast,
            ground + sign * second_contrast,
            ground[:, None] + away,
        ]
    )
    red, blue = _between(draws[:, 10:24], -1, 1).reshape(-1, 2, 7, 1).transpose(1, 0, 2, 3)
    # two directions of colour along which lightness hardly changes
    chroma = red * [0.28, -0.10, -0.10] + blue * [0.06, 0.06, -0.34]
    chroma[:, 1] = 0.6 * chroma[:, 0] + 0.4 * chroma[:, 1]  # one ground in two shades
    return 255 * np.clip(lightness[..., None] + chroma, 0, 1)


# Drawing. float32 planes, a few dozen pictures at a time.

BLOCK_IMAGES = 2048  # their scenes are made, and sorted by kind, at once
CHUNK_PIXELS = 32 * 64 * 64  # drawn at once: half a megabyte per plane, near the core's cache


def _draw(scenes: Scenes, noise_table: Plane, image_px: int) -> NDArray[np.uint8]:
    """The pictures (n, image_px, image_px, 3) of n scenes."""
    scale = image_px / 2  # pixels in a unit of length
    axis = ((np.arange(image_px) + 0.5) / scale - 1).astype(np.float32)
    colours = scenes.colours.transpose(1, 2, 0)[..., None, None]  # (7, 3, n, 1, 1)
    canvas = _ground(scenes, axis)  # (3, n, px, px)
    for pieces, colour in zip(PIECES_BEHIND, colours[4:6], strict=True):
        _blend(canvas, _pieces(scenes, pieces, axis, scale), colour)
    cover, second = _figure(scenes, axis, scale)
    paint = second * (colours[3] - colours[2])
    paint += colours[2]
    _blend(canvas, cover, paint)
    _blend(canvas, _pieces(scenes, PIECES_BEFORE, axis, scale), colours[6])
    canvas *= _affine(scenes.light, axis)
    noise = sliding_window_view(noise_table, image_px**2)[scenes.noise_start.T]
    noise = noise.reshape(canvas.shape)
    noise *= _wide(scenes.noise)
    canvas += noise
    canvas += 0.5  # the cast rounds down
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 3, 0)


def _wide(values: Plane) -> Plane:
    return values[:, None, None]


def _affine(coefficients: Plane, axis: Plane) -> Plane:
    """(n, 3) coefficients of x, y and 1 -> (n, px, px); y points up."""
    a, b, c = coefficients.T[:, :, None, None]
    row: Plane = a * axis
    column: Plane = b * axis[::-1, None] + c
    return row + column


def _cover(distance_px: Plane) -> Plane:
    """Smoothstep over one pixel: 1 half a pixel inside the edge, 0 half a pixel outside."""
    t: Plane = np.clip(0.5 - distance_px, 0, 1)
    return t * t * (3 - 2 * t)


def _blend(canvas: Plane, cover: Plane, colour: Plane) -> None:
    layer = colour - canvas
    layer *= cover
    canvas += layer


def _each(kinds: Integers) -> Iterator[tuple[int, Integers]]:
    """The kinds that occur, each with the rows where it does."""
    for kind in np.unique(kinds):
        yield int(kind), np.flatnonzero(kinds == kind)


def _ground(scenes: Scenes, axis: Plane) -> Plane:
    """Colours (3, n, px, px): one mixed into another by the product of two waves."""
    mix = _wave(_affine(scenes.ground[:, 0], axis))
    mix *= _wave(_affine(scenes.ground[:, 1], axis))
    mix *= 8  # a wave is within a quarter
    mix += 0.5
    first, second = scenes.colours.transpose(1, 2, 0)[:2, ..., None, None]  # (3, n, 1, 1)
    canvas: Plane = mix * (second - first)
    canvas += first
    return canvas


def _pieces(scenes: Scenes, pieces: range, axis: Plane, scale: float) -> Plane:
    """Cover (n, px, px) of some pieces of clutter."""
    inside = np.full((1, 1, 1), -np.inf, np.float32)
    for piece in pieces:
        bar = np.full((1, 1, 1), np.inf, np.float32)
        for side in range(2):
            depth = np.abs(_affine(scenes.pieces[:, piece, side], axis))
            np.subtract(_wide(scenes.piece_sizes[:, piece, side]), depth, out=depth)
            bar = np.minimum(bar, depth)
        inside = np.maximum(inside, bar)
    inside *= scale
    inside += 0.5
    return np.clip(inside, 0, 1, out=inside)


def _nearest_copy(scenes: Scenes, axis: Plane) -> tuple[Plane, Plane]:
    """Coordinates (n, px, px) in the figure, of whichever copy is nearest."""
    x, y = (_affine(scenes.figure[:, 0, side], axis) for side in range(2))
    for kind, rows in _each(scenes.arrangement):
        copies = len(ARRANGEMENTS[kind].places)
        if copies == 1:
            continue
        near_x, near_y = x[rows], y[rows]
        least = near_x * near_x + near_y * near_y
        for copy in range(1, copies):
            u, v = (_affine(scenes.figure[rows, copy, side], axis) for side in range(2))
            square = u * u + v * v
            nearer = square < least
            np.copyto(near_x, u, where=nearer)
            np.copyto(near_y, v, where=nearer)
            np.minimum(least, square, out=least)
        x[rows], y[rows] = near_x, near_y
    return x, y


def _figure(scenes: Scenes, axis: Plane, scale: float) -> tuple[Plane, Plane]:
    """Cover (n, px, px) of the figure, and of the second colour on it."""
    x, y = _nearest_copy(scenes, axis)
    radius_px = _wide(scenes.radius) * scale
    distance = np.empty_like(x)
    for kind, rows in _each(scenes.shape):
        distance[rows] = SHAPES[kind].distance(x[rows], y[rows], _wide(scenes.vary[rows]))
    second = np.zeros_like(x)
    rim = np.array([0.4 * shape.depth for shape in SHAPES], np.float32)[scenes.shape]
    for kind, rows in _each(scenes.texture):
        if TEXTURES[kind].boundary is _solid:
            continue  # three figures in four: no need to find out that they have no second colour
        c, s = (_wide(part) for part in scenes.weave[rows].T)
        period = _wide(scenes.period[rows])
        along, up = x[rows] / period, y[rows] / period
        inner = (distance[rows] + _wide(rim[rows])) / period
        boundary = TEXTURES[kind].boundary(c * along + s * up, c * up - s * along, inner)
        second[rows] = _cover(boundary * (period * radius_px[rows]))
    return _cover(distance * radius_px), second


@lru_cache(maxsize=2)
def _noise_table(seed: int, window: int) -> Plane:
    """Noise of unit deviation, (NOISE_VALUES + window,); a channel of a picture is a window of it.

    A sum of three uniform numbers, near enough to a normal one, and exact.
    """
    draws = uniform(seed, "shapes noise", 0, np.arange(NOISE_VALUES + window), 3)
    return (2 * (draws[:, 0] + draws[:, 1] + draws[:, 2]) - 3).astype(np.float32)
