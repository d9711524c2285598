"""What every operation of the paper and of the 2012 source computes, as float64 NumPy loops.

Written from the printed formulas (Sections 3.1-3.5, 4.1, 4.2 and 5) and from the facts of the
released source, one index at a time, so that each line can be held against the text. An oracle
shares no code with the package, is slow on purpose, and is the judge when the two disagree.

Pictures are (H, W, 3), feature maps (C, H, W), batches have one axis more in front.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def response_norm(
    x: Array, *, size: int, alpha: float, beta: float, k: float, columns: int = 1
) -> Array:
    """Across maps (Section 3.3): x[c] / (k + alpha * sum x[j]^2)^beta, alpha times the *sum*.

    j runs over `size` maps from c - size // 2, clipped to the maps of c's own column. The 2012
    source has the same form with alpha / size in the place of alpha.
    """
    maps, height, width = x.shape[-3:]
    maps_per_column = maps // columns
    result = np.empty_like(x)
    for index in np.ndindex(*x.shape[:-3], maps, height, width):
        *image, c, row, column = index
        first = (c // maps_per_column) * maps_per_column
        total = 0.0
        for j in range(c - size // 2, c - size // 2 + size):
            if first <= j < first + maps_per_column:
                total += x[(*image, j, row, column)] ** 2
        result[index] = x[index] / (k + alpha * total) ** beta
    return result


def spatial_norm(x: Array, *, size: int, alpha: float, beta: float, k: float) -> Array:
    """The source's `rnorm`: as above, over a size x size window in the same map.

    The window starts size // 2 above and to the left, and is clipped at the border.
    """
    height, width = x.shape[-2:]
    result = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        *plane, row, column = index
        total = 0.0
        for i in range(row - size // 2, row - size // 2 + size):
            for j in range(column - size // 2, column - size // 2 + size):
                if 0 <= i < height and 0 <= j < width:
                    total += x[(*plane, i, j)] ** 2
        result[index] = x[index] * (k + alpha * total) ** -beta
    return result


def covering_size(in_px: int, kernel: int, stride: int, padding: int) -> int:
    """Output size of a source convolution: 1 + ceil((2 * padding + in - kernel) / stride)."""
    return 1 + math.ceil((2 * padding + in_px - kernel) / stride)


def convolve(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Array:
    """A source convolution of maps (C, H, W): the last filter may overhang; outside reads zero.

    weight is (out, C / groups, kernel, kernel). The first filter starts at -padding; filter n of
    a column sees only the input maps of its own column.
    """
    maps, height, width = x.shape
    filters, maps_seen, kernel, _ = weight.shape
    assert maps_seen * groups == maps
    rows = covering_size(height, kernel, stride, padding)
    columns = covering_size(width, kernel, stride, padding)
    result = np.empty((filters, rows, columns))
    for n, row, column in np.ndindex(filters, rows, columns):
        group = n // (filters // groups)
        total = bias[n]
        for i in range(kernel):
            for j in range(kernel):
                y, z = row * stride - padding + i, column * stride - padding + j
                if 0 <= y < height and 0 <= z < width:
                    seen = x[group * maps_seen : (group + 1) * maps_seen, y, z]
                    total += float(weight[n, :, i, j] @ seen)
        result[n, row, column] = total
    return result


def locally_connected(x: Array, weight: Array, bias: Array, *, padding: int) -> Array:
    """The source's `local`: a convolution of stride 1 whose filters and biases are not shared.

    weight is (out, C, kernel, kernel, rows, columns), bias (out, rows, columns).
    """
    _, height, width = x.shape
    filters, _, kernel, _, rows, columns = weight.shape
    result = np.empty((filters, rows, columns))
    for n, row, column in np.ndindex(filters, rows, columns):
        total = bias[n, row, column]
        for i in range(kernel):
            for j in range(kernel):
                y, z = row - padding + i, column - padding + j
                if 0 <= y < height and 0 <= z < width:
                    total += float(weight[n, :, i, j, row, column] @ x[:, y, z])
        result[n, row, column] = total
    return result


def pool(x: Array, *, size: int, stride: int, kind: Literal["max", "avg"]) -> Array:
    """Overlapping pooling (Section 3.4) with the source's windows.

    out = ceil((in - size) / stride) + 1; an overhanging window is clipped to the picture, and an
    average divides by the area that is left.
    """
    *planes, height, width = x.shape
    rows = math.ceil((height - size) / stride) + 1
    columns = math.ceil((width - size) / stride) + 1
    result = np.empty((*planes, rows, columns))
    for index in np.ndindex(*planes, rows, columns):
        *plane, row, column = index
        pixels = [
            float(x[(*plane, i, j)])
            for i in range(row * stride, min(row * stride + size, height))
            for j in range(column * stride, min(column * stride + size, width))
        ]
        result[index] = max(pixels) if kind == "max" else sum(pixels) / len(pixels)
    return result


def relu(x: Array) -> Array:
    """max(0, x), Section 3.1."""
    return np.where(x > 0, x, 0.0)


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """A fully connected layer: weight (out, in), bias (out,), x (in,)."""
    return np.array([bias[n] + float(weight[n] @ x) for n in range(weight.shape[0])])


def dropout(x: Array, kept: NDArray[np.bool_], rate: float, *, inverted: bool) -> Array:
    """Section 4.2 in training: zero what is not kept. Only the inverted form rescales the rest."""
    result = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        if kept[index]:
            result[index] = x[index] / (1.0 - rate) if inverted else x[index]
    return result


def dropout_at_test(x: Array, rate: float, *, inverted: bool) -> Array:
    """Section 4.2 at test: every unit, times the share that was kept; inverted: untouched."""
    return x.copy() if inverted else x * (1.0 - rate)


def colour_offset(
    normals: Array,
    eigenvalues: Array,
    eigenvectors: Array,
    convention: Literal["paper", "source"],
    strength: float = 0.1,
) -> Array:
    """The RGB triple added to a picture, in 0..255 units.

    eigenvalues are those of the covariance of 0..255 pixels, eigenvectors stand in columns.
    paper (4.1): sum_i p_i a_i l_i, a_i = strength * normal_i, with the eigenvalues of pixels in
    0..1 (a covariance is 255^2 times smaller there), and the sum scaled back by 255.
    source: strength times the standard deviation along each component.
    """
    offset = np.zeros(3)
    for channel in range(3):
        for i in range(3):
            if convention == "paper":
                l_unit = eigenvalues[i] / 255.0**2
                a = strength * normals[i]
                offset[channel] += 255.0 * eigenvectors[channel, i] * a * l_unit
            else:
                s = math.sqrt(eigenvalues[i])
                offset[channel] += strength * eigenvectors[channel, i] * s * normals[i]
    return offset


def add_colour_noise(
    picture: Array,
    normals: Array,
    eigenvalues: Array,
    eigenvectors: Array,
    convention: Literal["paper", "source"],
    strength: float = 0.1,
) -> Array:
    """A picture (H, W, 3) without its mean, plus one triple; the source then divides by 1.1."""
    offset = colour_offset(normals, eigenvalues, eigenvectors, convention, strength)
    divisor = 1.0 + strength if convention == "source" else 1.0
    result = np.empty(picture.shape)
    for index in np.ndindex(*picture.shape):
        result[index] = (float(picture[index]) + offset[index[-1]]) / divisor
    return result


def crop_and_flip(
    picture: NDArray[np.generic], top: int, left: int, flip: bool, size_px: int
) -> NDArray[np.generic]:
    """The size_px square whose first pixel is (top, left), mirrored left to right if flip."""
    result = np.empty((size_px, size_px, picture.shape[2]), picture.dtype)
    for row in range(size_px):
        for column in range(size_px):
            seen = size_px - 1 - column if flip else column
            result[row, column] = picture[top + row, left + seen]
    return result


def prepared_crop(
    picture: NDArray[np.uint8],
    mean_image: NDArray[np.float32],
    top: int,
    left: int,
    flip: bool,
    size_px: int,
    mean_at: Literal["crop", "centre"],
) -> Array:
    """A crop without its mean, (size, size, 3).

    paper ("crop"): the mean is taken from each pixel of the picture, so that it is cropped and
    mirrored with it. source ("centre"): whatever the offset and the flip, the centre of the mean
    image is taken away after the crop and the flip.
    """
    crop = crop_and_flip(picture, top, left, flip, size_px).astype(np.float64)
    if mean_at == "crop":
        mean = crop_and_flip(mean_image, top, left, flip, size_px)
    else:
        border = (mean_image.shape[0] - size_px) // 2
        mean = crop_and_flip(mean_image, border, border, False, size_px)
    return crop - mean.astype(np.float64)


def ten_view_places(image_px: int, crop_px: int) -> list[tuple[int, int, bool]]:
    """(top, left, flip) of Section 4.1's ten patches in the order of the source.

    Top-left, top-right, centre, bottom-left, bottom-right, then their mirror images.
    """
    far = image_px - crop_px
    middle = far // 2
    places = [(0, 0), (0, far), (middle, middle), (far, 0), (far, far)]
    return [(top, left, False) for top, left in places] + [
        (top, left, True) for top, left in places
    ]


def update(
    weight: Array,
    velocity: Array,
    gradient: Array,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Array, Array]:
    """Section 5: v <- m v - wd * lr * w - lr * g; w <- w + v, with the w before the step.

    A rate of 0 freezes the weight: no motion, no decay, and the velocity stays (weights.cu).
    """
    if lr == 0:
        return weight.copy(), velocity.copy()
    new_velocity = np.empty_like(velocity)
    new_weight = np.empty_like(weight)
    for i in np.ndindex(*weight.shape):
        new_velocity[i] = momentum * velocity[i] - weight_decay * lr * weight[i] - lr * gradient[i]
        new_weight[i] = weight[i] + new_velocity[i]
    return new_weight, new_velocity


Weights = Mapping[str, tuple[Array, Array]]  # layer -> (weight, bias)


def paper_logits(image: Array, weights: Weights) -> Array:
    """Section 3.5 at test time for one picture (3, H, W), at any width: two columns throughout."""
    norm = partial(response_norm, size=5, alpha=1e-4, beta=0.75, k=2.0, columns=2)
    x = relu(convolve(image, *weights["conv1"], stride=4))
    x = pool(norm(x), size=3, stride=2, kind="max")
    x = relu(convolve(x, *weights["conv2"], padding=2, groups=2))
    x = pool(norm(x), size=3, stride=2, kind="max")
    x = relu(convolve(x, *weights["conv3"], padding=1))
    x = relu(convolve(x, *weights["conv4"], padding=1, groups=2))
    x = relu(convolve(x, *weights["conv5"], padding=1, groups=2))
    x = pool(x, size=3, stride=2, kind="max").reshape(-1)
    x = dropout_at_test(relu(linear(x, *weights["fc6"])), 0.5, inverted=False)
    x = dropout_at_test(relu(linear(x, *weights["fc7"])), 0.5, inverted=False)
    return linear(x, *weights["fc8"])


def source_logits(image: Array, weights: Weights) -> Array:
    """Run 145 at test time: the norm of the linear conv1, and a spatial norm in stage 2."""
    norm = partial(response_norm, size=5, alpha=1e-4 / 5, beta=0.75, k=2.0, columns=2)
    x = norm(convolve(image, *weights["conv1"], stride=4))
    x = relu(pool(x, size=3, stride=2, kind="max"))
    x = relu(convolve(x, *weights["conv2"], padding=2, groups=2))
    x = spatial_norm(norm(x), size=5, alpha=0.001 / 25, beta=0.75, k=1.0)
    x = pool(x, size=3, stride=2, kind="max")
    x = relu(convolve(x, *weights["conv3"], padding=1))
    x = relu(convolve(x, *weights["conv4"], padding=1, groups=2))
    x = convolve(x, *weights["conv5"], padding=1, groups=2)
    x = relu(pool(x, size=3, stride=2, kind="max")).reshape(-1)
    x = dropout_at_test(relu(linear(x, *weights["fc6"])), 0.5, inverted=False)
    x = dropout_at_test(relu(linear(x, *weights["fc7"])), 0.5, inverted=False)
    return linear(x, *weights["fc8"])
