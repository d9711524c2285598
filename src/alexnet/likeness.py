"""Which pictures are the same picture: scaled, or compressed once more.

Each gets a fingerprint of 128 bits and a thumbnail of 8 x 8 colours, both of the central square
that is packed. Fingerprints that differ in at most NEAR_BITS are candidates; the thumbnails decide.
The bits are signs of the lowest frequencies of the cosine transform of a 32 x 32 grey picture
(Zauner 2010), which scaling and compression hardly touch.

A crop, a mirror image or another photograph of the same scene is not the same picture.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet.images import central_square

GRID_PX = 32
THUMBNAIL_PX = 8
BITS = 128
BANDS = 8

# Two fingerprints that differ in fewer bits than there are bands agree in one band at least, so
# all such pairs are found; of those that differ in up to NEAR_BITS, six in seven or more.
NEAR_BITS = 12

# Of thumbnails, in levels of 256: the mean and the largest difference.
MEAN_LEVELS = 4.0
LARGEST_LEVELS = 24

# Below this standard deviation of grey levels, the fingerprint says more about noise.
MIN_CONTRAST = 4.0

PAIRS_AT_A_TIME = 1 << 18

Bytes = npt.NDArray[np.uint8]


def _cosines() -> npt.NDArray[np.float64]:
    """(GRID_PX, GRID_PX): row k samples the cosine of frequency k (DCT-II)."""
    k, x = np.indices((GRID_PX, GRID_PX))
    return np.cos(np.pi * k * (x + 0.5) / GRID_PX)


def _lowest() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The BITS lowest frequencies but the mean, from the corner outwards."""
    rows, columns = np.indices((GRID_PX, GRID_PX)).reshape(2, -1)
    order = np.lexsort((rows, rows + columns))[1 : BITS + 1]
    return rows[order], columns[order]


_COSINES = _cosines()
_LOWEST = _lowest()
_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def fingerprint(image: Image.Image) -> tuple[bytes, bytes]:
    """(fingerprint, thumbnail) of an RGB picture; (b"", b"") for one with next to no contrast."""
    left, top, side = central_square(image.size)
    square = (left, top, left + side, top + side)
    grid = np.asarray(image.resize((GRID_PX, GRID_PX), Image.Resampling.BOX, box=square), np.int64)
    grey = grid @ np.array([299, 587, 114]) / 1000.0
    if grey.std() < MIN_CONTRAST:
        return b"", b""
    frequencies = (_COSINES @ grey @ _COSINES.T)[_LOWEST]
    bits = np.packbits(frequencies > np.median(frequencies))
    step = GRID_PX // THUMBNAIL_PX
    cells = grid.reshape(THUMBNAIL_PX, step, THUMBNAIL_PX, step, 3).mean(axis=(1, 3))
    return bits.tobytes(), cells.astype(np.uint8).tobytes()


def alike(one: bytes, other: bytes) -> bool:
    """Whether two thumbnails show the same picture."""
    first, second = (np.frombuffer(data, np.uint8).astype(np.int64) for data in (one, other))
    difference = np.abs(first - second)
    return bool(difference.mean() <= MEAN_LEVELS and difference.max() <= LARGEST_LEVELS)


def near_pairs(
    fingerprints: Bytes, max_bits: int = NEAR_BITS
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield (i, j), arrays with i < j, of the fingerprints (N, 16) that differ in few bits.

    All pairs that differ in fewer than BANDS bits are found, others where they agree in a band;
    some more than once. Memory is linear in N; time is that of comparing all that agree in one
    of the bands of 16 bits.
    """
    words = np.ascontiguousarray(fingerprints).view(np.uint16)  # (N, BANDS)
    for band in range(BANDS):
        order = np.argsort(words[:, band], kind="stable")
        keys = words[order, band]
        # One past the last of those with the same key, for each place in the order.
        ends = np.searchsorted(keys, keys, side="right")
        active = np.arange(len(keys))
        offset = 1
        while len(active := active[active + offset < ends[active]]):
            for start in range(0, len(active), PAIRS_AT_A_TIME):
                some = active[start : start + PAIRS_AT_A_TIME]
                i, j = order[some], order[some + offset]
                near = _ONES[words[i] ^ words[j]].sum(axis=1) <= max_bits
                if near.any():
                    yield np.minimum(i, j)[near], np.maximum(i, j)[near]
            offset += 1
