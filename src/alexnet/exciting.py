"""Which pictures excite a unit most: one pass over pictures, with a running choice for every unit.

Of a convolutional map the most active place counts, and is kept. Memory holds the best of each
unit and one batch, whatever the number of pictures. Not here: which pixels a place sees
(`receptive.py`) and how the pictures are shown (`inside.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.augment import Preprocessing, centre_view
from alexnet.dataset import Split
from alexnet.model import AlexNet
from alexnet.networks import Conv, Full, Network
from alexnet.pictures import check_size

DRAWS = 2000  # of random pictures, for what chance alone gives


@dataclass(frozen=True, eq=False)
class Best:
    """For each of U units its K strongest responses, strongest first; ties as the pictures come.

    values float (U, K); pictures int64 (U, K), rows of the split; places int64 (U, K), the most
    active place of a map, counted row by row of `width` (0 in a fully connected layer).
    """

    values: Tensor
    pictures: Tensor
    places: Tensor
    width: int = 1

    def alive(self) -> NDArray[np.int64]:
        """The units that answered to any picture."""
        return np.flatnonzero((self.values[:, 0] > 0).numpy())


def merged(best: Best | None, more: Best, count: int) -> Best:
    """The `count` strongest of both, `best` being of the earlier pictures."""
    parts = [more] if best is None else [best, more]
    values = torch.cat([part.values for part in parts], dim=1)
    pictures = torch.cat([part.pictures for part in parts], dim=1)
    places = torch.cat([part.places for part in parts], dim=1)
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return Best(
        values.gather(1, order), pictures.gather(1, order), places.gather(1, order), more.width
    )


@torch.inference_mode()
def most_exciting(
    model: AlexNet,
    split: Split,
    preprocessing: Preprocessing,
    layers: Sequence[str],
    *,
    count: int,
    batch_size: int,
    device: torch.device | str,
) -> dict[str, Best]:
    """For each unit of the layers the `count` pictures of the split that excite it most.

    By the centre view, right after the nonlinearity. A response that is not a number counts as
    none. The model is used as it stands: put it on `device` and in evaluation mode before.
    """
    on_device = preprocessing.to(torch.device(device))
    found: dict[str, Best] = {}
    for start in range(0, len(split), batch_size):
        check_size(split.images)
        pictures = torch.from_numpy(np.array(split.images[start : start + batch_size]))
        responses = model.activations(centre_view(pictures.to(device), on_device))
        rows = torch.arange(start, start + len(pictures))
        for name in layers:
            found[name] = merged(found.get(name), _of_batch(responses[name], rows), count)
    return found


def _of_batch(responses: Tensor, rows: Tensor) -> Best:
    """(B, C, H, W) or (B, N), and the number of each picture, (B,)."""
    maps = responses if responses.ndim == 4 else responses[:, :, None, None]
    known = maps.flatten(2).float().nan_to_num(nan=-torch.inf)  # (B, U, places)
    values, places = (found.cpu() for found in known.max(2))
    return Best(values.T, rows.expand(values.shape[1], -1), places.T, maps.shape[3])


def layers_shown(network: Network) -> tuple[str, ...]:
    """A layer of small parts, the last of the convolutions, and the last hidden layer.

    The first layer is left out: its kernels can be seen themselves.
    """
    convolutions = [layer.name for layer in network.layers if isinstance(layer, Conv)]
    hidden = [layer.name for layer in network.layers[:-1] if isinstance(layer, Full)]
    return tuple(dict.fromkeys((*convolutions[1:2], *convolutions[-1:], *hidden[-1:])))


def evenly(units: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the units, evenly spaced by number, so that each column has its share."""
    places = (np.arange(count) + 0.5) * len(units) / count
    return np.unique(units[places.astype(np.int64)]) if len(units) else units


def of_one_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of a unit's pictures are of the class that it has most often: (U, K) -> (U,)."""
    same = labels[:, :, None] == labels[:, None, :]
    commonest: NDArray[np.int64] = same.sum(axis=2).max(axis=1)
    return commonest


def of_one_class_by_chance(labels: NDArray[np.int64], count: int, seed: int) -> float:
    """The mean of `of_one_class` for `count` pictures drawn at random among labels (N,)."""
    chance = np.random.default_rng(seed)
    drawn = [chance.choice(len(labels), count, replace=False) for _ in range(DRAWS)]
    return float(of_one_class(labels[np.array(drawn)]).mean())
