"""Pictures that are near in meaning: features and exact nearest neighbours (Section 6.1, Figure 4).

The paper compares the 4096 activations of the last hidden layer by Euclidean distance. The 2012
source (`findsimilar.py`) lets only the nearest picture of each file of 1024 compete; here every
picture does. Not here: features kept on the disk (`index.py`), approximate search
(`approximate.py`) and binary codes (`codes.py`).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alexnet.augment import Preprocessing
from alexnet.dataset import Split
from alexnet.errors import UserError, suggest
from alexnet.model import AlexNet
from alexnet.predictions import mean_over_views

BLOCK_BYTES = 1 << 26
QUERY_BLOCK = 256

# |f|^2 between which float32 neither overflows in a sum nor loses bits to underflow.
SAFE_SQUARES = (1e-20, 1e30)


def features(
    model: AlexNet,
    split: Split,
    preprocessing: Preprocessing,
    *,
    layer: str | None = None,
    batch_size: int,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """One vector per picture, float32 (N, D): the layer's output right after its nonlinearity.

    From the central view. `layer` is the network's last hidden layer unless named; the maps of a
    convolutional layer are flattened, channels first. The model is used as it stands: put it on
    `device` and in evaluation mode before. Raises UserError for a layer that it does not have.
    """
    name = model.network.feature_layer if layer is None else layer
    if name not in model.layer_names:
        raise UserError(
            f"network {model.network.name} has no layer {name!r}{suggest(name, model.layer_names)}"
        )

    def vectors(crops: Tensor) -> Tensor:
        return model.features(crops, layer=name).flatten(1)

    return mean_over_views(
        vectors,
        split,
        preprocessing,
        views=1,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )


def nearest(
    features: np.ndarray,
    queries: np.ndarray,
    count: int,
    *,
    squares: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest rows of features (N, D) to each row of queries (Q, D), nearest first.

    Returns indices int64 (Q, count) and Euclidean distances float32 (Q, count): the same as
    sorting every float64 distance, equal distances in the order of the rows. A query that is
    itself among the features finds itself; ask for one more. The features are float32 or float16
    and may be a memory map: they are read block by block. `squares` (N,), where they are known,
    are those of the rows: np.float64 sums that spare every search from making them.

    |f - q|^2 = |f|^2 + |q|^2 - 2 f.q turns the search into a matrix product, which cancels badly
    for near pairs. So the product only rules out what the bound on its rounding lets it rule out;
    what is left is measured again, directly, in float64. On a CPU the product is NumPy's in
    float32 where the features are neither huge nor tiny, else in float64: no global precision
    setting of torch (TF32, bfloat16) reaches either.

    Raises UserError when count is not within 1..N, the widths differ or a value is not finite.
    """
    if features.ndim != 2 or queries.ndim != 2 or features.shape[1] != queries.shape[1]:
        raise UserError(
            f"features {features.shape} and queries {queries.shape} are not rows of one width"
        )
    if not 1 <= count <= len(features):
        raise UserError(f"{count} neighbours asked of {len(features)} pictures")
    if not np.isfinite(queries).all():
        raise UserError("a query holds a value that is not finite")
    indices = np.empty((len(queries), count), np.int64)
    distances = np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = queries[start : start + QUERY_BLOCK]
        candidates = _candidates(features, block, count, squares, torch.device(device))
        for row, rows in enumerate(candidates, start):
            exact = distances_to(features, rows, queries[row])
            first = np.argsort(exact, kind="stable")[:count]  # rows ascend: so do ties
            indices[row], distances[row] = rows[first], exact[first]
    return indices, distances


def squares_of(features: np.ndarray) -> np.ndarray:
    """|f|^2 of each row, float64 (N,), block by block."""
    squares = np.empty(len(features))
    block_rows = max(1, BLOCK_BYTES // (8 * max(features.shape[1], 1)))
    for start in range(0, len(features), block_rows):
        block = features[start : start + block_rows].astype(np.float64)
        squares[start : start + len(block)] = np.einsum("nd,nd->n", block, block)
    return squares


def distances_to(features: np.ndarray, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Float64 (len(rows),), in blocks: every row may be a candidate when many are the same."""
    block_rows = max(1, BLOCK_BYTES // (8 * max(features.shape[1], 1)))
    blocks = np.split(rows, range(block_rows, len(rows), block_rows))
    return np.concatenate(
        [np.linalg.norm(features[block] - query.astype(np.float64), axis=1) for block in blocks]
    )


def _candidates(
    features: np.ndarray,
    queries: np.ndarray,
    count: int,
    squares: np.ndarray | None,
    device: torch.device,
) -> list[np.ndarray]:
    """For each query the rows, ascending, that may be among its nearest: at least `count`."""
    width = features.shape[1]
    block_rows = max(1, BLOCK_BYTES // (8 * max(width, QUERY_BLOCK)))
    wide = queries.astype(np.float64)
    q_square = torch.from_numpy(np.einsum("qd,qd->q", wide, wide)).to(device)  # (Q,)
    limit = q_square.new_full((len(wide), count), float("inf"))  # the smallest upper bounds so far
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(features), block_rows):
        block = features[start : start + block_rows]
        own = squares_of(block) if squares is None else squares[start : start + block_rows]
        if not np.isfinite(own).all():
            raise UserError(
                f"features {start}..{start + len(block) - 1} hold a value that is not finite"
            )
        f_square = torch.from_numpy(np.array(own)).to(device)  # (block,)
        single = device.type == "cpu" and _fits_float32(q_square, f_square)
        products = _products(wide, block, single, device)
        # Bound on the relative rounding error of a sum of `width` products, and of the operands.
        eps = torch.finfo(torch.float32 if single else torch.float64).eps
        total = q_square[:, None] + f_square  # (Q, block), at least 2 |f| |q|
        slack = total * ((width + 8) * eps + 2 * (width + 8) * torch.finfo(torch.float64).eps)
        squared = total.sub_(products, alpha=2)
        lower = squared - slack
        upper = squared.add_(slack)
        best = upper.topk(min(count, len(block)), dim=1, largest=False).values
        limit = torch.cat([limit, best], 1).topk(count, dim=1, largest=False).values
        query, row = torch.nonzero(lower <= limit[:, -1:], as_tuple=True)
        kept.append((query, row + start, lower[query, row]))
    query, row, lower = (torch.cat(parts) for parts in zip(*kept, strict=True))
    near = lower <= limit[query, -1]
    query, row = query[near], row[near]
    order = torch.argsort(query, stable=True)  # rows stay ascending within a query
    per_query = torch.bincount(query, minlength=len(wide)).tolist()
    return [part.cpu().numpy() for part in torch.split(row[order], per_query)]


def _fits_float32(q_square: Tensor, f_square: Tensor) -> bool:
    low, high = SAFE_SQUARES
    if len(q_square) == 0:
        return True
    # A row of zeros multiplies exactly.
    return all(
        bool((((square >= low) & (square <= high)) | (square == 0)).all())
        for square in (q_square, f_square)
    )


def _products(queries: np.ndarray, block: np.ndarray, single: bool, device: torch.device) -> Tensor:
    """q.f as float64 (Q, block): computed in float32 if `single`, else in float64 on `device`."""
    if single:
        return torch.from_numpy(
            queries.astype(np.float32) @ np.asarray(block, np.float32).T
        ).double()
    wide = torch.from_numpy(block.astype(np.float64)).to(device)
    return torch.from_numpy(queries).to(device) @ wide.T
