"""The chains of `fused.py` in Triton, for CUDA: one kernel forward and one backward.

A program takes some windows (forward) or pixels (backward) and one column's maps, as pairs of an
even and an odd map, so that it reads its maps once and gets a window's other maps from its
registers. The scale is computed again in the backward pass, and a unit's gradient is gathered from
the windows that it is in: there are no atomics, and the result is the same to the bit every time.
The spatial norm reads its window from memory and takes two kernels backward.

Tested on a CPU by Triton's interpreter. Not here: autograd (`chain_op.py`).
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from alexnet.chain_op import Described

ELEMENTS = 2048  # of a program's tile: 16 for each of 128 threads
NOWHERE = tl.constexpr(255)  # the position of a largest unit that the last ReLU has cut off


@triton.jit
def _read(pointer, pixel, valid, C, column, pair, PER: tl.constexpr):
    """The even and the odd maps (P, M) of some pixels (P,) in one column."""
    both = tl.arange(0, 2)
    at = column * PER + 2 * pair[None, :, None] + both[None, None, :]
    mask = valid[:, None, None] & (pair[None, :, None] < PER // 2) & (both >= 0)[None, None, :]
    return tl.split(
        tl.load(pointer + pixel.to(tl.int64)[:, None, None] * C + at, mask=mask, other=0)
    )


@triton.jit
def _write(pointer, pixel, valid, C, column, pair, even, odd, PER: tl.constexpr):
    both = tl.arange(0, 2)
    at = column * PER + 2 * pair[None, :, None] + both[None, None, :]
    mask = valid[:, None, None] & (pair[None, :, None] < PER // 2) & (both >= 0)[None, None, :]
    value = tl.join(even, odd).to(pointer.dtype.element_ty)
    tl.store(pointer + pixel.to(tl.int64)[:, None, None] * C + at, value, mask=mask)


@triton.jit
def _rectified(x, RELU: tl.constexpr):
    x = x.to(tl.float32)
    if RELU:
        x = tl.where(x <= 0, 0.0, x)  # what is no number stays so
    return x


@triton.jit
def _moved(values, pair, by: tl.constexpr, M: tl.constexpr):
    """values[:, pair + by], zero outside."""
    if by == 0:
        return values
    source = pair + by
    inside = (source >= 0) & (source < M)
    index = tl.where(inside, source, 0)[None, :] + tl.zeros(values.shape, tl.int32)
    return tl.where(inside[None, :], tl.gather(values, index, 1), 0.0)


@triton.jit
def _window(even, odd, pair, BELOW: tl.constexpr, ABOVE: tl.constexpr, M: tl.constexpr):
    """Sums over maps c - BELOW ... c + ABOVE, for the even and for the odd c."""
    sum_even, sum_odd = tl.zeros_like(even), tl.zeros_like(odd)
    for by in tl.static_range(-((BELOW + 1) // 2), (ABOVE + 1) // 2 + 1):
        moved_even, moved_odd = _moved(even, pair, by, M), _moved(odd, pair, by, M)
        if (2 * by >= -BELOW) and (2 * by <= ABOVE):
            sum_even += moved_even
        if (2 * by + 1 >= -BELOW) and (2 * by + 1 <= ABOVE):
            sum_even += moved_odd
        if (2 * by - 1 >= -BELOW) and (2 * by - 1 <= ABOVE):
            sum_odd += moved_even
        if (2 * by >= -BELOW) and (2 * by <= ABOVE):
            sum_odd += moved_odd
    return sum_even, sum_odd


@triton.jit
def _power(s, beta, THREE_QUARTERS: tl.constexpr):
    """s^-beta and 1 / s."""
    if THREE_QUARTERS:
        root = tl.math.rsqrt(s)
        return root * tl.sqrt(root), root * root
    return tl.exp2(-beta * tl.log2(s)), 1 / s


@triton.jit
def forward_kernel(
    x, y, index, num_windows, alpha, beta, k, H: tl.constexpr, W: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PER: tl.constexpr, M: tl.constexpr, P: tl.constexpr,
    NORM: tl.constexpr, SIZE: tl.constexpr, THREE_QUARTERS: tl.constexpr,
    POOL: tl.constexpr, STRIDE: tl.constexpr,
    RELU_BEFORE: tl.constexpr, RELU_AFTER: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    window = tl.program_id(0) * P + tl.arange(0, P)
    column, pair = tl.program_id(1), tl.arange(0, M)
    valid = window < num_windows
    image, left = window // (ROWS * COLUMNS), window % (ROWS * COLUMNS)
    top, left = left // COLUMNS * STRIDE, left % COLUMNS * STRIDE
    best_even = tl.full((P, M), float("-inf"), tl.float32)
    best_odd = tl.full((P, M), float("-inf"), tl.float32)
    where_even, where_odd = tl.zeros((P, M), tl.int32), tl.zeros((P, M), tl.int32)
    for position in tl.static_range(POOL * POOL):
        row, across = top + position // POOL, left + position % POOL
        inside = valid & (row < H) & (across < W)
        pixel = (image * H + row) * W + across
        even, odd = _read(x, pixel, inside, C, column, pair, PER)
        even, odd = _rectified(even, RELU_BEFORE), _rectified(odd, RELU_BEFORE)
        if NORM:
            sum_even, sum_odd = _window(
                even * even, odd * odd, pair, SIZE // 2, SIZE - 1 - SIZE // 2, M
            )
            even *= _power(k + alpha * sum_even, beta, THREE_QUARTERS)[0]
            odd *= _power(k + alpha * sum_odd, beta, THREE_QUARTERS)[0]
        better = ((even > best_even) | (even != even)) & inside[:, None]
        best_even = tl.where(better, even, best_even)
        where_even = tl.where(better, position, where_even)
        better = ((odd > best_odd) | (odd != odd)) & inside[:, None]
        best_odd = tl.where(better, odd, best_odd)
        where_odd = tl.where(better, position, where_odd)
    if RELU_AFTER:
        where_even = tl.where(best_even <= 0, NOWHERE, where_even)
        where_odd = tl.where(best_odd <= 0, NOWHERE, where_odd)
        best_even, best_odd = _rectified(best_even, True), _rectified(best_odd, True)
    _write(y, window, valid, C, column, pair, best_even, best_odd, PER)
    if HAS_INDEX:
        _write(index, window, valid, C, column, pair, where_even, where_odd, PER)


@triton.jit
def backward_kernel(
    dy, x, index, dx, num_pixels, alpha, beta, k, H: tl.constexpr, W: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PER: tl.constexpr, M: tl.constexpr, P: tl.constexpr,
    NORM: tl.constexpr, SIZE: tl.constexpr, THREE_QUARTERS: tl.constexpr,
    POOL: tl.constexpr, STRIDE: tl.constexpr,
    RELU_BEFORE: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * P + tl.arange(0, P)
    column, pair = tl.program_id(1), tl.arange(0, M)
    valid = pixel < num_pixels
    if HAS_INDEX:
        image, row, across = pixel // (H * W), pixel // W % H, pixel % W
        even, odd = tl.zeros((P, M), tl.float32), tl.zeros((P, M), tl.float32)
        for a in tl.static_range((POOL - 1) // STRIDE + 1):
            for b in tl.static_range((POOL - 1) // STRIDE + 1):
                i, j = row // STRIDE - a, across // STRIDE - b
                down, right = row - i * STRIDE, across - j * STRIDE
                inside = valid & (i >= 0) & (i < ROWS) & (down < POOL)
                inside = inside & (j >= 0) & (j < COLUMNS) & (right < POOL)
                window = (image * ROWS + i) * COLUMNS + j
                where_even, where_odd = _read(index, window, inside, C, column, pair, PER)
                dy_even, dy_odd = _read(dy, window, inside, C, column, pair, PER)
                here = (down * POOL + right)[:, None]
                even += tl.where(where_even.to(tl.int32) == here, dy_even.to(tl.float32), 0.0)
                odd += tl.where(where_odd.to(tl.int32) == here, dy_odd.to(tl.float32), 0.0)
    else:
        even, odd = _read(dy, pixel, valid, C, column, pair, PER)
        even, odd = even.to(tl.float32), odd.to(tl.float32)
    x_even, x_odd = _read(x, pixel, valid, C, column, pair, PER)
    x_even, x_odd = _rectified(x_even, RELU_BEFORE), _rectified(x_odd, RELU_BEFORE)
    if NORM:
        below: tl.constexpr = SIZE // 2
        above: tl.constexpr = SIZE - 1 - SIZE // 2
        s_even, s_odd = _window(x_even * x_even, x_odd * x_odd, pair, below, above, M)
        power_even, inverse_even = _power(k + alpha * s_even, beta, THREE_QUARTERS)
        power_odd, inverse_odd = _power(k + alpha * s_odd, beta, THREE_QUARTERS)
        even *= power_even
        odd *= power_odd
        part_even, part_odd = _window(
            even * x_even * inverse_even, odd * x_odd * inverse_odd, pair, above, below, M
        )
        even -= 2 * alpha * beta * x_even * part_even
        odd -= 2 * alpha * beta * x_odd * part_odd
    if RELU_BEFORE:
        even = tl.where(x_even <= 0, 0.0, even)
        odd = tl.where(x_odd <= 0, 0.0, odd)
    _write(dx, pixel, valid, C, column, pair, even, odd, PER)


@triton.jit
def spatial_kernel(
    x, dy, out, direct, parts, num_pixels, alpha, beta, k,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, MODE: tl.constexpr,
    SIZE: tl.constexpr, THREE_QUARTERS: tl.constexpr, RELU: tl.constexpr,
    P: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """MODE 0: out = y. 1: direct = dy s^-beta, parts = dy x s^-beta / s. 2: out = dx of these."""
    pixel = tl.program_id(0) * P + tl.arange(0, P)
    unit = tl.program_id(1) * M + tl.arange(0, M)
    image, row, across = pixel // (H * W), pixel // W % H, pixel % W
    valid = (pixel < num_pixels)[:, None] & (unit < C)[None, :]
    total = tl.zeros((P, M), tl.float32)
    low: tl.constexpr = SIZE // 2 if MODE < 2 else SIZE - 1 - SIZE // 2
    for step in tl.static_range(SIZE * SIZE):
        i, j = row - low + step // SIZE, across - low + step % SIZE
        inside = ((i >= 0) & (i < H) & (j >= 0) & (j < W))[:, None] & valid
        at = ((image * H + i) * W + j).to(tl.int64)[:, None] * C + unit[None, :]
        if MODE < 2:
            value = _rectified(tl.load(x + at, mask=inside, other=0), RELU)
            total += value * value
        else:
            total += tl.load(parts + at, mask=inside, other=0)
    at = pixel.to(tl.int64)[:, None] * C + unit[None, :]
    here = _rectified(tl.load(x + at, mask=valid, other=0), RELU)
    if MODE == 2:
        result = tl.load(direct + at, mask=valid, other=0) - 2 * alpha * beta * here * total
        if RELU:
            result = tl.where(here <= 0, 0.0, result)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=valid)
    else:
        s = k + alpha * total
        power, inverse = _power(s, beta, THREE_QUARTERS)
        if MODE == 0:
            tl.store(out + at, (here * power).to(out.dtype.element_ty), mask=valid)
        else:
            straight = tl.load(dy + at, mask=valid, other=0).to(tl.float32) * power
            tl.store(direct + at, straight, mask=valid)
            tl.store(parts + at, straight * here * inverse, mask=valid)


# --- Calls --------------------------------------------------------------------------------------


def forward(d: "Described", x: Tensor, y: Tensor, index: Tensor) -> None:
    """y and, unless it is empty, index of a chain; all channels last."""
    if d.norm == 2:
        assert not d.pool_size, "a spatial norm and its pool are two chains here"
        return _spatial(d, x, x, y, y, y, mode=0)
    windows = y.numel() // d.maps
    grid, tile = _tiles(d, windows)
    if windows:
        forward_kernel[grid](
            x, y, index, windows, d.alpha, d.beta, d.k,
            ROWS=y.shape[2], COLUMNS=y.shape[3], **tile, **_constants(d),
            RELU_AFTER=bool(d.relu_after), HAS_INDEX=index.numel() > 0,
        )  # fmt: skip
    return None


def backward(d: "Described", dy: Tensor, x: Tensor, index: Tensor, dx: Tensor) -> None:
    """dx of a chain from the gradient, the input and the positions; all channels last."""
    if d.norm == 2:
        direct, parts = (torch.empty_like(x, dtype=torch.float32) for _ in range(2))
        _spatial(d, x, dy, dx, direct, parts, mode=1)
        return _spatial(d, x, dy, dx, direct, parts, mode=2)
    pixels = x.numel() // d.maps
    grid, tile = _tiles(d, pixels)
    if pixels:
        backward_kernel[grid](
            dy, x, index, dx, pixels, d.alpha, d.beta, d.k, ROWS=dy.shape[2],
            COLUMNS=dy.shape[3], **tile, **_constants(d), HAS_INDEX=index.numel() > 0,
        )  # fmt: skip
    return None


def _tiles(d: "Described", count: int) -> tuple[tuple[int, int], dict[str, int]]:
    per_column = d.maps // d.columns
    pairs = triton.next_power_of_2(per_column // 2)
    tile = max(1, ELEMENTS // (2 * pairs))
    return (triton.cdiv(count, tile), d.columns), {"PER": per_column, "M": pairs, "P": tile}


def _constants(d: "Described") -> dict[str, int | bool]:
    return {
        "H": d.height,
        "W": d.width,
        "C": d.maps,
        "NORM": bool(d.norm),
        "SIZE": d.size,
        "THREE_QUARTERS": d.beta == 0.75,
        "POOL": d.pool_size or 1,
        "STRIDE": d.pool_stride or 1,
        "RELU_BEFORE": bool(d.relu_before),
    }


def _spatial(
    d: "Described", x: Tensor, dy: Tensor, out: Tensor, direct: Tensor, parts: Tensor, *, mode: int
) -> None:
    pixels = x.numel() // d.maps
    maps = min(64, triton.next_power_of_2(d.maps))
    tile = ELEMENTS // maps
    if pixels:
        spatial_kernel[(triton.cdiv(pixels, tile), triton.cdiv(d.maps, maps))](
            x, dy, out, direct, parts, pixels, d.alpha, d.beta, d.k,
            H=d.height, W=d.width, C=d.maps, MODE=mode, SIZE=d.size,
            THREE_QUARTERS=d.beta == 0.75, RELU=bool(d.relu_before), P=tile, M=maps,
        )  # fmt: skip
