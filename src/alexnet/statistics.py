"""The statistics of a data set: mean image and principal components of RGB (Sections 2 and 4.1).

Over the training pictures only, in one pass, as exact sums of integers: they come out the same
for any number of workers and however the pictures were divided among them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Pixels whose products are summed at a time: three planes of them fit into a core's cache.
MOMENT_PIXELS = 2**16

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Statistics:
    """Over all pixels of the training pictures, in units of 0..255 (Section 4.1).

    The covariance is the population's (divided by the number of pixels). `eigenvectors` holds
    one component per column, in the order of `eigenvalues`, largest first; the entry of
    greatest magnitude in each component is positive.
    """

    mean_image: npt.NDArray[np.float32]  # (S, S, 3)
    rgb_mean: npt.NDArray[np.float64]  # (3,)
    rgb_covariance: npt.NDArray[np.float64]  # (3, 3)
    eigenvalues: npt.NDArray[np.float64]  # (3,)
    eigenvectors: npt.NDArray[np.float64]  # (3, 3)


@dataclass(frozen=True)
class Moments:
    """Exact integer sums over pictures, from which the statistics follow.

    Integers add up to the same in any order: the statistics depend on neither the number of
    workers nor how the pictures were divided among them.
    """

    images: int
    pixel_sum: npt.NDArray[Any]  # (S, S, 3) of an integer type, over pictures
    product_sum: npt.NDArray[np.int64]  # (3, 3), of r*r, r*g, ... over pictures and positions

    @classmethod
    def zero(cls, image_px: int) -> "Moments":
        pixel_sum = np.zeros((image_px, image_px, 3), np.int64)
        return cls(0, pixel_sum, np.zeros((3, 3), np.int64))

    @classmethod
    def of(cls, images: Pixels) -> "Moments":
        """Moments of pictures (N, S, S, 3) uint8."""
        products = np.zeros((3, 3), np.int64)
        step = max(MOMENT_PIXELS // (images.shape[1] * images.shape[2]), 1)
        for start in range(0, len(images), step):
            part = images[start : start + step]
            planes = [part[..., channel].ravel().astype(np.int64) for channel in range(3)]
            products += np.array([[np.einsum("i,i", a, b) for b in planes] for a in planes])
        # Half the bytes to hand from one process to another; room for 16 million pictures.
        kind = np.uint32 if len(images) < 2**24 else np.int64
        return cls(len(images), images.sum(axis=0, dtype=kind), products)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.images + other.images,
            self.pixel_sum.astype(np.int64) + other.pixel_sum,
            self.product_sum + other.product_sum,
        )


def statistics_of(moments: Moments) -> Statistics:
    """Mean image, colour mean, covariance and its eigen-decomposition, in float64."""
    assert moments.images > 0
    pixels = moments.images * moments.pixel_sum.shape[0] * moments.pixel_sum.shape[1]
    # Python integers: the difference of two nearly equal products is exact.
    sums = [int(total) for total in moments.pixel_sum.sum(axis=(0, 1), dtype=np.int64)]
    products = moments.product_sum.tolist()
    covariance = np.array(
        [
            [(pixels * products[i][j] - sums[i] * sums[j]) / pixels**2 for j in range(3)]
            for i in range(3)
        ]
    )
    ascending, components = np.linalg.eigh(covariance)
    eigenvectors = components[:, ::-1]
    largest = np.abs(eigenvectors).argmax(axis=0)
    return Statistics(
        mean_image=(moments.pixel_sum / moments.images).astype(np.float32),
        rgb_mean=np.array([total / pixels for total in sums]),
        rgb_covariance=covariance,
        eigenvalues=ascending[::-1].clip(min=0.0),
        eigenvectors=eigenvectors * np.sign(eigenvectors[largest, range(3)]),
    )
