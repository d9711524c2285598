"""The paper's network of stock operators in Lightning's own loop.

    python benchmarks/peers/lightning_step.py --precision bf16

Lightning drives: the loop runs in a thread of its own and stops at the end of each minibatch until
the next step is asked for.
"""

import argparse
import threading
from collections.abc import Callable
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from net import StockAlexNet
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from alexnet.turns import serve

ENDLESS = 10**9


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = StockAlexNet().to(memory_format=torch.channels_last)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        images = images.contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)


class Turns(lightning.Callback):
    """Hands the loss over and waits."""

    def __init__(self) -> None:
        self.asked, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.loss = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.asked.acquire()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.loss = float(outputs["loss"])
        self.done.release()

    def step(self) -> float:
        self.asked.release()
        self.done.acquire()
        return self.loss


def prepare() -> tuple[Callable[[], float], dict[str, Any]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    count = 4 * args.batch_size
    data = TensorDataset(torch.randn(count, 3, 224, 224), torch.randint(1000, (count,)))
    turns = Turns()
    trainer = lightning.Trainer(
        accelerator=args.device,
        precision="bf16-mixed" if args.precision == "bf16" else "32-true",
        max_steps=ENDLESS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[turns],
    )
    loop = threading.Thread(
        target=trainer.fit, args=(Module(), DataLoader(data, args.batch_size)), daemon=True
    )
    loop.start()
    return turns.step, {"versions": {"lightning": lightning.__version__}}


if __name__ == "__main__":
    serve(prepare)
