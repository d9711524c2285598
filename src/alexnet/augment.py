"""Crops, flips, mean subtraction, colour noise and views, in batches (Section 4.1).

Pure functions of (pictures, draws): pictures are uint8 (B, S, S, 3), what the network sees is
float (B, 3, crop, crop) on the 0..255 scale less the mean. Both conventions are here: the
paper's text, and the 2012 source (`convdata_jpeg.py`) where it differs.

Not here: how pictures get to size S (`images.py`), and in which order they come (`loader.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.errors import UserError
from alexnet.randomness import integers, uniform

VIEWS = (1, 10)

MeanAt = Literal["crop", "centre"]
ColourConvention = Literal["none", "paper", "source"]


@dataclass(frozen=True)
class Preprocessing:
    """How a uint8 picture becomes a network's input; saved with the weights.

    mean_image: (S, S, 3) float32, the mean of the training pictures, 0..255.
    crop_px: side of the square that the network sees.
    mean_at: which part of the mean image is subtracted: the `crop`'s own (the paper's text) or
        the `centre`, whatever the crop (the 2012 source).
    input_std: divides the result, per colour; 1 in every network but torchvision's.
    """

    mean_image: Tensor
    crop_px: int
    mean_at: MeanAt = "crop"
    input_std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def image_px(self) -> int:
        return int(self.mean_image.shape[0])

    @property
    def border_px(self) -> int:
        """Offset of the centre crop; 16 for the paper's 224 of 256."""
        return (self.image_px - self.crop_px) // 2

    def to(self, device: torch.device) -> "Preprocessing":
        return Preprocessing(self.mean_image.to(device), self.crop_px, self.mean_at, self.input_std)


@dataclass(frozen=True)
class CropDraws:
    """Where each picture of a batch is cut, and whether it is mirrored: arrays of (B,)."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    flip: NDArray[np.bool_]


def draw_crops(
    seed: int, epoch: int, units: NDArray[np.int64], *, num_offsets: int, flip: bool
) -> CropDraws:
    """Draw offsets 0..num_offsets-1 and flips, a pure function of its arguments.

    units: (B,) what shares a draw: the picture itself (the paper), or its run of 32 consecutive
    pictures (the 2012 source). 33 offsets for 224 of 256 pixels, as in the source; the paper's
    factor of 2048 counts 32.
    """
    top = integers(seed, "crop-top", epoch, units, num_offsets)[:, 0]
    left = integers(seed, "crop-left", epoch, units, num_offsets)[:, 0]
    mirrored = uniform(seed, "flip", epoch, units)[:, 0] < 0.5
    return CropDraws(top, left, mirrored & flip)


def crop(images: Tensor, top: Tensor, left: Tensor, size_px: int) -> Tensor:
    """Cut one window from each picture: (B, S, S, 3) -> (B, size, size, 3), any type.

    top, left: int64 (B,). A single picture (1, S, S, 3) is cut at every (top, left).
    """
    windows = images.unfold(1, size_px, 1).unfold(2, size_px, 1)  # (B, offsets, offsets, 3, s, s)
    batch = torch.arange(len(images), device=images.device)
    return windows.permute(0, 1, 2, 4, 5, 3)[batch, top, left]


def flip_where(images: Tensor, flip: Tensor, *, dim: int = 2) -> Tensor:
    """Mirror the pictures where flip (B,) is true, left to right along `dim`."""
    if images.device.type == "cpu":
        chosen = flip.nonzero()[:, 0]  # elsewhere this would wait for the device
        return images.index_copy(0, chosen, images[chosen].flip(dim))
    where = flip.view(-1, *(1,) * (images.ndim - 1))
    return torch.where(where, images.flip(dim), images)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, size_px: int) -> Tensor:
    """One window of each picture, some mirrored: (B, S, S, 3) -> (B, size, size, 3)."""
    return flip_where(crop(images, top, left, size_px), flip)


def subtract_mean(
    crops: Tensor, top: Tensor, left: Tensor, flip: Tensor, preprocessing: Preprocessing
) -> Tensor:
    """Crops already mirrored, uint8 (B, s, s, 3) -> float32 (B, 3, s, s), less the mean.

    The paper subtracts the mean image from each pixel, so what is taken from a crop is the mean
    image's own window at its offset, mirrored with it. The source takes the centre window from
    every crop. The result is in channels-last memory order.
    """
    mean = preprocessing.mean_image
    if preprocessing.mean_at == "crop":
        size_px = preprocessing.crop_px
        window = flip_where(crop(mean[None], top, left, size_px), flip)  # (B, s, s, 3)
    else:
        window = _centre(mean[None], preprocessing)
    return _scaled(crops.float().sub_(window), preprocessing)


def centre_view(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The view of one-view evaluation: (B, S, S, 3) uint8 -> (B, 3, crop, crop) float32."""
    mean = _centre(preprocessing.mean_image[None], preprocessing)
    return _scaled(_centre(images, preprocessing).float() - mean, preprocessing)


def ten_views(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The ten patches of Section 4.1: (B, S, S, 3) uint8 -> (B, 10, 3, crop, crop) float32.

    In the 2012 source's order: top left, top right, centre, bottom left, bottom right, then the
    mirror images of the same five (`convdata_jpeg.py`).
    """
    size_px, far = preprocessing.crop_px, preprocessing.image_px - preprocessing.crop_px
    border = preprocessing.border_px
    mean = preprocessing.mean_image
    plain, mirrored = [], []
    for top, left in ((0, 0), (0, far), (border, border), (far, 0), (far, far)):
        window = images[:, top : top + size_px, left : left + size_px].float()
        if preprocessing.mean_at == "crop":
            taken = mean[top : top + size_px, left : left + size_px]
            plain.append(window - taken)
            mirrored.append(plain[-1].flip(2))
        else:
            taken = _centre(mean[None], preprocessing)
            plain.append(window - taken)
            mirrored.append(window.flip(2) - taken)
    return _scaled(torch.stack(plain + mirrored, dim=1), preprocessing)


def check_views(views: int) -> None:
    if views not in VIEWS:
        raise UserError(
            f"{views} views: choose 1 (the centre crop) or 10 (the paper's ten patches)"
        )


def mean_of_views(
    vectors_of: Callable[[Tensor], Tensor],
    pictures: Tensor,
    preprocessing: Preprocessing,
    *,
    views: int,
    batch_size: int,
) -> Tensor:
    """`vectors_of`, averaged over the views of each picture: uint8 (B, S, S, 3) -> (B, K) float32.

    `vectors_of` maps crops (N, 3, crop, crop) to (N, K) and never sees more than `batch_size`.
    """
    make_views = centre_view if views == 1 else ten_views
    crops = make_views(pictures, preprocessing)  # (B, 3, c, c) or (B, 10, 3, c, c)
    parts = torch.split(crops.flatten(0, -4), batch_size)
    vectors = torch.cat([vectors_of(part) for part in parts]).float()  # (B * views, K)
    return vectors.view(len(pictures), views, -1).mean(1)


def crop_mean(preprocessing: Preprocessing) -> Tensor:
    """What one-view evaluation subtracts: the centre of the mean image, (3, crop, crop)."""
    return _centre(preprocessing.mean_image[None], preprocessing)[0].movedim(-1, 0).contiguous()


def _centre(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    border, size_px = preprocessing.border_px, preprocessing.crop_px
    return images[:, border : border + size_px, border : border + size_px]


def _scaled(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(..., s, s, 3) -> (..., 3, s, s), divided by the network's input_std; no copy else."""
    if preprocessing.input_std != (1.0, 1.0, 1.0):
        images = images / images.new_tensor(preprocessing.input_std)
    return images.movedim(-1, -3)


def colour_basis(eigenvalues: Tensor, eigenvectors: Tensor, convention: ColourConvention) -> Tensor:
    """The (3, 3) matrix that turns standard normal draws into a shift of R, G and B.

    eigenvalues (3,) and eigenvectors (3, 3), in columns, of the covariance of the training
    pixels on the 0..255 scale. The paper multiplies a component by its eigenvalue; that makes
    sense only for pixels in 0..1 (eigenvalues / 255^2), and the shift is scaled back by 255. The
    source multiplies by the standard deviation, the root of the eigenvalue, in 0..255.
    """
    lengths = eigenvalues / 255.0 if convention == "paper" else eigenvalues.clamp(min=0).sqrt()
    return eigenvectors * lengths


def add_colour_noise(
    images: Tensor,
    normals: Tensor,
    basis: Tensor,
    convention: ColourConvention,
    strength: float = 0.1,
) -> Tensor:
    """Shift the colours of each picture along the principal components (Section 4.1).

    images: float (B, 3, H, W), mean-subtracted 0..255; normals: (B, 3) standard normal, one
    draw per picture each time it is used; basis: from `colour_basis`. The source then divides
    the whole picture by 1 + strength. Changes `images` in place and returns it.
    """
    images += colour_shift(normals, basis, strength).to(images)[:, :, None, None]
    divisor = colour_divisor(convention, strength)
    return images if divisor == 1.0 else images.div_(divisor)


def colour_shift(normals: Tensor, basis: Tensor, strength: float) -> Tensor:
    """What is added to R, G and B of each picture: (B, 3)."""
    return strength * normals.to(basis) @ basis.T


def colour_divisor(convention: ColourConvention, strength: float) -> float:
    """What a picture is divided by after its colours were shifted: the source does so."""
    return 1.0 + strength if convention == "source" else 1.0
