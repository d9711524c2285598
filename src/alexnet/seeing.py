"""What a trained network sees in one picture: conv1's responses, and where the label depends on it.

Occlusion (Zeiler and Fergus 2013, Figure 7): a grey square is moved over the picture, and each
place is coloured by how much of the label's probability is lost. Not here: reports over many
pictures.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.augment import centre_view
from alexnet.trained import TrainedAlexNet

PLACES = 13  # to a side
SQUARE = 0.28  # of the crop's side
BATCH = 16
MAPS_SHOWN = 48
MAP_PX = 56
GAP_PX = 2

Pixels = NDArray[np.uint8]


def seen_part(model: TrainedAlexNet, pixels: Pixels) -> Pixels:
    """The central crop (crop, crop, 3) of a prepared square, all that the network sees."""
    border, size = model.card.preprocessing.border_px, model.card.preprocessing.crop_px
    return pixels[border : border + size, border : border + size]


@torch.inference_mode()
def conv1_responses(model: TrainedAlexNet, pixels: Pixels) -> Pixels:
    """The strongest maps of conv1 after its nonlinearity as one picture, each in its own range.

    pixels: a prepared square (S, S, 3). Bright is a strong response; at most 48 maps, in the
    order of the kernels.
    """
    crops = centre_view(torch.from_numpy(pixels[None].copy()), model.card.preprocessing)
    maps = model.features(crops, "conv1")[0].clamp(min=0)  # (O, h, w)
    strongest = maps.amax((1, 2)).topk(min(MAPS_SHOWN, len(maps))).indices.sort().values
    chosen = maps[strongest]
    chosen = chosen / chosen.amax((1, 2), keepdim=True).clamp(min=1e-9)
    sized = torch.nn.functional.interpolate(
        chosen[None], (MAP_PX, MAP_PX), mode="bilinear", antialias=True
    )[0]
    levels = (255 * sized.clamp(0, 1)).round().to(torch.uint8).numpy()
    per_row = 8
    rows = -(-len(levels) // per_row)
    step = MAP_PX + GAP_PX
    grid = np.zeros((rows * step - GAP_PX, per_row * step - GAP_PX, 3), np.uint8)
    for number, level in enumerate(levels):
        top, left = number // per_row * step, number % per_row * step
        grid[top : top + MAP_PX, left : left + MAP_PX] = level[:, :, None]
    return grid


@torch.inference_mode()
def occlusion(
    model: TrainedAlexNet,
    pixels: Pixels,
    label: int,
    *,
    places: int = PLACES,
    probabilities_of: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """The label's probability with a grey square at each of places x places, float32.

    Grey is the mean image: the square is where the network is told nothing. `probabilities_of`
    stands for the network where batches take turns with others'. `progress` hears of each batch,
    and may raise to stop.
    """
    answer = probabilities_of or (lambda crops: model(crops).float().softmax(1))
    preprocessing = model.card.preprocessing
    crop = centre_view(torch.from_numpy(pixels[None].copy()), preprocessing)  # (1, 3, c, c)
    size = crop.shape[-1]
    side = max(1, round(SQUARE * size))
    starts = np.rint(np.linspace(-side / 2, size - side / 2, places)).astype(int)
    corners = [(top, left) for top in starts for left in starts]
    found = np.empty(len(corners), np.float32)
    for begin in range(0, len(corners), BATCH):
        some = corners[begin : begin + BATCH]
        crops = crop.repeat(len(some), 1, 1, 1)
        for one, (top, left) in zip(crops, some, strict=True):
            one[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        found[begin : begin + len(some)] = answer(crops)[:, label].numpy()
        if progress is not None:
            progress(begin + len(some), len(corners))
    return found.reshape(places, places)


def occlusion_picture(
    model: TrainedAlexNet, pixels: Pixels, probability: float, map: NDArray[np.float32]
) -> Pixels:
    """The crop with what the label depends on in full colour, the rest faded: uint8 (c, c, 3).

    `map` from `occlusion`; `probability` is that of the label without a square.
    """
    crop = seen_part(model, pixels).astype(np.float32)
    lost = np.clip(probability - map, 0, None)
    share = torch.from_numpy(lost / max(float(lost.max()), 1e-9))[None, None]
    weight = torch.nn.functional.interpolate(
        share, crop.shape[:2], mode="bicubic", align_corners=True
    )[0, 0]  # the outermost squares are centred on the border
    shown = weight.clamp(0, 1).numpy()[:, :, None]
    grey = crop.mean(axis=2, keepdims=True) * 0.35 + 150
    warm = np.array([230, 97, 1], np.float32)  # where it matters most, tinted
    mixed = grey * (1 - shown) + (0.62 * crop + 0.38 * warm) * shown
    levels: Pixels = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return levels
