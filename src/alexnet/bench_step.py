"""How fast a network trains and evaluates, beside others that do the same, in one run.

`alexnet bench step` times whole training steps of the exact network, response norms included, from
uint8 crops in memory to moved weights; `alexnet bench evaluate` ten-view predictions from uint8
pictures; `alexnet bench train` steps with a loader before them. The peers (`benchmarks/peers/`) of
the first two begin with float pictures that are ready. Every row has the share of the floor: the
least time that the machine's arithmetic allows.

    python -m alexnet.bench_step step --precision bf16      (one of the rivals, see `turns.py`)

Not here: single layers (`bench_layers.py`), norms and pools alone, loaders (`bench.py`).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.augment import Preprocessing
from alexnet.config import diff
from alexnet.dataset import PackedDataset, Split
from alexnet.errors import UserError, suggest
from alexnet.evaluate import evaluator
from alexnet.loader import Batch, batches
from alexnet.model import AlexNet, build
from alexnet.networks import find_network, trace
from alexnet.predictions import predict
from alexnet.recipes import find_recipe
from alexnet.statistics import Moments, statistics_of
from alexnet.step import network_input, start, train_step
from alexnet.turns import Rival, Say, machine, measure, module, script, serve

PEERS_FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"
PICTURES = 32  # that one turn of evaluation predicts, with ten views each
ENDLESS = 1 << 40
SIDE_PX = 3840  # of the matrices whose product tells the machine's arithmetic

STEP_PEERS = {
    "stock-eager": ("steps.py", "step --net paper"),
    "stock-compiled": ("steps.py", "step --net paper --compile"),
    "stock-sliced-compiled": ("steps.py", "step --net paper-sliced --compile"),
    "torchvision-eager": ("steps.py", "step --net torchvision"),
    "torchvision-compiled": ("steps.py", "step --net torchvision --compile"),
    "keras-torch": ("keras_step.py", ""),
    "keras-jax": ("keras_step.py", ""),
    "lightning": ("lightning_step.py", ""),
    "stock-eager-kept-memory": ("steps.py", "step --net paper --kept-memory"),
    "torchvision-eager-kept-memory": ("steps.py", "step --net torchvision --kept-memory"),
}
EVALUATE_PEERS = {
    "stock-eager": ("steps.py", "evaluate --net paper"),
    "stock-sliced-compiled": ("steps.py", "evaluate --net paper-sliced --compile"),
    "torchvision-eager": ("steps.py", "evaluate --net torchvision"),
}
TRAIN_PEERS = {
    "plain-loop": ("steps.py", "train --net paper"),
    "plain-loop-sliced-compiled": ("steps.py", "train --net paper-sliced --compile"),
    "lightning": ("lightning_step.py", ""),
}
PEERS = {"step": STEP_PEERS, "evaluate": EVALUATE_PEERS, "train": TRAIN_PEERS}
PRECISIONS = ("fp32", "bf16")


def bench(
    what: str,
    *,
    network: str = "paper",
    batch_size: int = 128,
    rounds: int = 5,
    repeats: int = 4,
    device: str = "cpu",
    precisions: Sequence[str] = PRECISIONS,
    peers: Sequence[str] | None = None,
    peers_folder: Path = PEERS_FOLDER,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure `what` ("step", "evaluate" or "train") of ours and of the peers named (None: all).

    A row is called NAME-PRECISION; so can be a peer that is wanted in one precision only. Raises
    UserError for an unknown peer.
    """
    known = PEERS[what]
    rows = [f"{name}-{precision}" for name in known for precision in PRECISIONS]
    for name in peers or ():
        if name not in known and name not in rows:
            raise UserError(f"no peer {name!r}{suggest(name, known)}")
    rivals, missing = {}, {}
    for precision in precisions:
        common = ["--precision", precision, "--batch-size", str(batch_size), "--device", device]
        ours = [what, "--network", network, *common]
        rivals[f"alexnet-{precision}"] = Rival(module("alexnet.bench_step", *ours))
        for name, (file, arguments) in known.items():
            if peers is not None and not {name, f"{name}-{precision}"} & set(peers):
                continue
            if not (peers_folder / file).exists():
                missing[name] = f"{peers_folder / file} is not there: it comes with the repository"
                continue
            rivals[f"{name}-{precision}"] = _peer(name, peers_folder, file, arguments, common)
    images = PICTURES if what == "evaluate" else batch_size
    found = measure(rivals, rounds=rounds, repeats=repeats, images=images, say=say)
    peaks = {precision: peak_flops(device, precision) for precision in precisions}
    for name, row in found["rows"].items():
        net = "torchvision" if name.startswith("torchvision") else network
        flop = 10 * forward_flop(net) if what == "evaluate" else training_flop(net)
        floor = peaks[name.rpartition("-")[2]] / flop
        row |= {"floor": floor, "share_of_floor": row["images_per_second"] / floor}
    return {
        "what": what,
        "network": network,
        "batch_size": batch_size,
        "images": images,
        "rounds": rounds,
        "repeats": repeats,
        "device": device,
        "measured_flops": peaks,
        "rows": found["rows"],
        "missing": {**missing, **found["missing"]},
        "machine": machine(),
    }


def _peer(name: str, folder: Path, file: str, arguments: str, common: Sequence[str]) -> Rival:
    if name.startswith("keras"):
        backend = name.removeprefix("keras-")
        options = script(folder, file, *common[:4])
        return Rival(options, slow=True, environment=(("KERAS_BACKEND", backend),))
    return Rival(script(folder, file, *arguments.split(), *common), slow=name == "lightning")


def training_flop(network: str) -> int:
    """Operations of one picture in a step: thrice the forward pass, less conv1's input gradient."""
    shapes = trace(find_network(network), 1000)
    return 3 * forward_flop(network) - 2 * shapes[0].macs


def forward_flop(network: str) -> int:
    return 2 * sum(shape.macs for shape in trace(find_network(network), 1000))


def peak_flops(device: str, precision: str, *, seconds: float = 1.5) -> float:
    """Operations per second of the fastest product found: of matrices, or a 3x3 convolution."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(SIDE_PX, SIDE_PX, device=device).to(dtype)
    x = torch.randn(64, 256, 13, 13, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3, device=device).to(dtype)
    works: list[tuple[Callable[[], Any], int]] = [
        (lambda: a @ a, 2 * SIDE_PX**3),
        (lambda: torch.conv2d(x, kernel, padding=1), 2 * x.numel() * 256 * 9),
    ]
    best = 0.0
    for work, flop in works:
        work()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, flop / (time.perf_counter() - began))
    return best


# --- Our side ----------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=list(PEERS))
    parser.add_argument("--network", default="paper")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _ours() -> tuple[Callable[[], float], dict[str, Any]]:
    args = _arguments()
    torch.manual_seed(0)
    if args.what == "step":
        return training_step(args.network, args.precision, args.batch_size, args.device), {}
    if args.what == "train":
        return training_loop(args.network, args.precision, args.batch_size, args.device), {}
    model = build(args.network)
    return ten_views(model, args.precision, args.batch_size, args.device), {}


def training_step(
    network: str, precision: str, batch_size: int, device: str
) -> Callable[[], float]:
    """A step of the recipe paper-2012 on random crops: from uint8 to moved weights; its loss."""
    recipe = diff(
        find_recipe("paper-2012"),
        network={"name": network},
        optimizer={"batch_size": batch_size},
        system={"precision": precision, "device": device},
    )
    training = start(recipe, random_dataset())
    training.model.train()
    batch = random_batch(batch_size, recipe.augment.crop_px)

    def step() -> float:
        return train_step(training, *network_input(training, batch)).item()

    return step


def training_loop(
    network: str, precision: str, batch_size: int, device: str
) -> Callable[[], float]:
    """A step as above with the loader before it: crops cut from pictures in memory, shuffled."""
    recipe = diff(
        find_recipe("paper-2012"),
        network={"name": network},
        optimizer={"batch_size": batch_size},
        system={"precision": precision, "device": device},
    )
    dataset = random_dataset(pictures=4 * batch_size)
    training = start(recipe, dataset)
    training.model.train()
    split = dataset.splits["train"]
    feed = batches(split, recipe, step=0, stop=ENDLESS, device=training.device)

    def step() -> float:
        return train_step(training, *network_input(training, next(feed))).item()

    return step


def ten_views(model: AlexNet, precision: str, batch_size: int, device: str) -> Callable[[], float]:
    """Ten-view predictions of PICTURES random pictures; the largest probability."""
    dataset = random_dataset()
    logits_of = evaluator(model.eval(), torch.device(device), precision)
    known = Preprocessing(torch.from_numpy(dataset.statistics.mean_image), model.network.input_px)
    split = dataset.splits["train"]

    def evaluate() -> float:
        found = predict(logits_of, split, known, views=10, batch_size=batch_size, device=device)
        return float(found.probabilities.max())

    return evaluate


def random_batch(count: int, crop_px: int) -> Batch:
    """Crops of random pixels, with draws as the loader's."""
    generator = np.random.default_rng(0)
    return Batch(
        crops=torch.from_numpy(generator.integers(0, 256, (count, crop_px, crop_px, 3), np.uint8)),
        labels=torch.from_numpy(generator.integers(0, 1000, count)),
        top=torch.from_numpy(generator.integers(0, 33, count)),
        left=torch.from_numpy(generator.integers(0, 33, count)),
        flip=torch.from_numpy(generator.random(count) < 0.5),
        colour=torch.from_numpy(generator.standard_normal((count, 3), np.float32)),
    )


def random_dataset(
    classes: int = 1000, image_px: int = 256, pictures: int = PICTURES
) -> PackedDataset:
    """Pictures of random pixels, in memory."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (pictures, image_px, image_px, 3), np.uint8)
    names = tuple(f"class {number}" for number in range(classes))
    labels = generator.integers(0, classes, pictures)
    split = Split("train", pixels, labels, [f"{number}" for number in range(pictures)])
    found = statistics_of(Moments.of(pixels))
    splits = {"train": split}
    return PackedDataset(Path(), "random", image_px, names, names, splits, found, pictures, [])


if __name__ == "__main__":
    serve(_ours)
