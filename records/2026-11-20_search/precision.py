"""How many of the six nearest training pictures are of the right class, for each validation picture.

    python precision.py RUN DATA > precision.jsonl

fc7 of a trained network against the pixels that it sees, its last convolution, and the same network
with fresh weights; and fc7's binary codes: the auto-encoder's, the rotation that it starts from, and
random planes.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

import alexnet
from alexnet.codes import hamming_nearest, random_planes, rotation, train_encoder
from alexnet.dataset import open_packed
from alexnet.retrieval import features, nearest

TOP = 6
SEEDS = (0, 1, 2)


def main(run: str, data: str) -> None:
    torch.set_num_threads(2)
    model = alexnet.load(run)
    splits = open_packed(Path(data)).splits
    labels = {name: splits[name].labels for name in ("train", "val")}
    preprocessing = model.card.preprocessing

    def tell(what: str, found: np.ndarray, size: float, **more: object) -> None:
        right = labels["train"][found] == labels["val"][:, None]
        per_query = right.mean(1)
        line = {
            "what": what,
            "precision_at_6": float(right.mean()),
            "standard_error": float(per_query.std() / len(per_query) ** 0.5),
            "queries": len(per_query),
            "searched": len(labels["train"]),
            "bytes": size,
        }
        print(json.dumps(line | more), flush=True)

    def exact(what: str, of: dict[str, np.ndarray]) -> None:
        found, _ = nearest(of["train"], of["val"], TOP)
        tell(what, found, of["train"].itemsize * of["train"].shape[1])

    def of_network(network: torch.nn.Module, layer: str) -> dict[str, np.ndarray]:
        return {
            name: features(
                network, splits[name], preprocessing, layer=layer, batch_size=128, device="cpu"
            )
            for name in ("train", "val")
        }

    fc7 = of_network(model, "fc7")
    exact("fc7", fc7)
    for bits in (256, 128):
        for way in (train_encoder, rotation, random_planes):
            for seed in SEEDS:
                begun = time.perf_counter()
                encoder = way(fc7["train"], bits, seed=seed)
                seconds = time.perf_counter() - begun
                codes = {name: encoder.encode(of) for name, of in fc7.items()}
                found, _ = hamming_nearest(codes["train"], codes["val"], TOP)
                tell(way.__name__, found, bits / 8, bits=bits, seed=seed, seconds=seconds)
    fresh = alexnet.build(model.network, 10, torch.Generator().manual_seed(0)).eval()
    exact("fc7, fresh weights", of_network(fresh, "fc7"))
    exact("conv5", of_network(model, "conv5"))
    border, size = preprocessing.border_px, preprocessing.crop_px
    inner = slice(border, border + size)
    exact(
        "pixels",
        {
            name: splits[name].images[:, inner, inner].reshape(len(splits[name]), -1).astype("f4")
            for name in ("train", "val")
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
