"""Stock training steps and evaluations, one peer per process, for `alexnet bench`.

    python benchmarks/peers/steps.py step --net paper --precision bf16 --compile

Serves as `alexnet.turns.serve` says. Pictures are random, already on the device and normalised;
ours begin as uint8. Each peer is a best stock setting: channels last, SGD with momentum in one
kernel per tensor list, autocast for bf16.
"""

import argparse
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from net import BandedAlexNet, StockAlexNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from alexnet.turns import serve

VIEWS = 10


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["step", "evaluate", "train"])
    parser.add_argument("--net", choices=["paper", "paper-sliced", "torchvision"], default="paper")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--layout", choices=["nchw", "channels-last"], default="channels-last")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--autotune", action="store_true")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--kept-memory", action="store_true", help="our allocator settings")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=32, help="of ten views each, to evaluate")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def network(args: argparse.Namespace) -> nn.Module:
    if args.net == "torchvision":
        net: nn.Module = torchvision.models.alexnet()
    else:
        net = StockAlexNet() if args.net == "paper" else BandedAlexNet()
    layout = torch.contiguous_format if args.layout == "nchw" else torch.channels_last
    return net.to(args.device, memory_format=layout)


def forward_of(net: nn.Module, args: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    if args.autotune:
        return torch.compile(net, mode="max-autotune")
    return torch.compile(net) if args.compile else net


def pictures(args: argparse.Namespace, count: int) -> Tensor:
    layout = torch.contiguous_format if args.layout == "nchw" else torch.channels_last
    return torch.randn(count, 3, 224, 224, device=args.device).contiguous(memory_format=layout)


def prepare() -> tuple[Callable[[], float], dict[str, Any]]:
    args = arguments()
    if args.kept_memory:
        from alexnet import memory

        memory.keep()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    versions = {"torch": torch.__version__, "torchvision": version("torchvision")}
    works = {"step": training_step, "evaluate": ten_views, "train": training_loop}
    return works[args.what](args), {"versions": versions}


def training_step(args: argparse.Namespace) -> Callable[[], float]:
    update = update_of(args)
    images = pictures(args, args.batch_size)
    labels = torch.randint(1000, (args.batch_size,), device=args.device)
    return lambda: update(images, labels)


def training_loop(args: argparse.Namespace) -> Callable[[], float]:
    """Uint8 pictures in memory, cropped and mirrored at random by workers, as one would write."""
    update = update_of(args)
    crop = v2.Compose([v2.RandomCrop(224), v2.RandomHorizontalFlip()])
    raw = torch.randint(256, (4 * args.batch_size, 3, 256, 256), dtype=torch.uint8)

    class Pictures(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return len(raw)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return crop(raw[index]), index % 1000

    loader = DataLoader(
        Pictures(), args.batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )

    def endless() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def step() -> float:
        images, labels = next(batches)
        images = images.to(args.device).float().sub_(120)
        return update(images.contiguous(memory_format=torch.channels_last), labels.to(args.device))

    return step


def update_of(args: argparse.Namespace) -> Callable[[Tensor, Tensor], float]:
    net = network(args).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=5e-4, foreach=True)
    forward = forward_of(net, args)

    def update(images: Tensor, labels: Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return update


def ten_views(args: argparse.Namespace) -> Callable[[], float]:
    net = network(args).eval()
    images = pictures(args, args.images * VIEWS)
    forward = forward_of(net, args)

    @torch.inference_mode()
    def evaluate() -> float:
        means = []
        for part in images.split(args.batch_size):
            with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
                means.append(forward(part).float().softmax(1))
        return torch.cat(means).view(args.images, VIEWS, -1).mean(1).max().item()

    return evaluate


if __name__ == "__main__":
    serve(prepare)
