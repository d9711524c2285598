"""One step of learning (Section 5): everything that changes, and how a minibatch changes it.

`start` makes the network, its optimiser and its schedule as a recipe says; `network_input` turns
a batch of uint8 crops into what the network sees, on its device; `train_step` is the update.

Not here: the order of a whole training (`train.py`).
"""

import math
import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from alexnet import fused, memory, passes
from alexnet.augment import (
    Preprocessing,
    add_colour_noise,
    colour_basis,
    colour_divisor,
    colour_shift,
    flip_where,
    subtract_mean,
)
from alexnet.columns import PartAlexNet, cut, cut_optimizer
from alexnet.config import Recipe
from alexnet.dataset import PackedDataset
from alexnet.errors import UserError
from alexnet.fused import has_kernels
from alexnet.graph import Replay, cuda_recorder
from alexnet.hybrid import Hybrid, cut_hybrid
from alexnet.large_batch import Lars, rate_factor
from alexnet.loader import Batch
from alexnet.model import AlexNet, build
from alexnet.networks import find_network, with_dropout
from alexnet.optim import PaperSGD, parameter_groups
from alexnet.parallel import ALONE, Ranks
from alexnet.replicas import Replicas
from alexnet.schedule import Schedule, make_schedule
from alexnet.stall import StallDetector


@dataclass
class Training:
    """Everything that changes while a network learns, and what it learns with."""

    recipe: Recipe
    device: torch.device
    model: AlexNet
    optimizer: PaperSGD
    schedule: Schedule
    detector: StallDetector
    preprocessing: Preprocessing
    colour_basis: Tensor | None
    dropout_generator: torch.Generator
    noise_generator: torch.Generator
    copies: dict[str, Tensor]  # bfloat16 ones of the weights, by name; none in fp32
    ranks: Ranks = ALONE
    parts: Replicas | Hybrid | None = None  # how several ranks find a gradient together
    batch_images: int = 0  # of the whole batch, on all ranks
    replay: Replay | None = None  # a CUDA graph of the step
    step: int = 0
    colour_noise: bool = True
    reason: str = "start"
    seconds: float = 0.0
    wait_seconds: float = 0.0
    origin: dict[str, Any] = field(default_factory=dict)  # of the weights, for the model card
    rates: list[float] = field(default_factory=list)  # images per second, each step
    best_error: float = math.inf  # of the validation pictures, one view, and where it was
    best_step: int = 0
    owes_evaluation: bool = False  # the one of `step` was stopped
    has_ended: bool = False  # before its last step, as the recipe asks for

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.model.network.name,
            "num_classes": self.model.num_classes,
            "step": self.step,
            "reason": self.reason,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "detector": self.detector.state_dict(),
            "dropout": self.dropout_generator.get_state(),
            "noise": self.noise_generator.get_state(),
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "rates": torch.tensor(self.rates, dtype=torch.float64),
            "best_error": self.best_error,
            "best_step": self.best_step,
            "owes_evaluation": self.owes_evaluation,
            "has_ended": self.has_ended,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError for a checkpoint of another network or version of alexnet."""
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise UserError(
                f"the checkpoint was written by another version of alexnet: it has no "
                f"{', '.join(sorted(missing))}; start a new run"
            )
        here = (self.model.network.name, self.model.num_classes)
        there = (state["network"], state["num_classes"])
        if here != there:
            raise UserError(
                f"the checkpoint is of network {there[0]} with {there[1]} classes, the recipe "
                f"says {here[0]} with {here[1]}; resume with the recipe that the run began with"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.write_copies()
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.detector.load_state_dict(state["detector"])
        self.dropout_generator.set_state(state["dropout"])
        self.noise_generator.set_state(state["noise"])
        self.step, self.reason = state["step"], state["reason"]
        self.seconds, self.wait_seconds = state["seconds"], state["wait_seconds"]
        self.rates = torch.as_tensor(state["rates"], dtype=torch.float64).tolist()
        self.best_error, self.best_step = state["best_error"], state["best_step"]
        self.owes_evaluation, self.has_ended = state["owes_evaluation"], state["has_ended"]


def start(recipe: Recipe, dataset: PackedDataset, ranks: Ranks = ALONE) -> Training:
    """Fresh weights, optimiser and schedule, as the recipe says; the seed decides the weights.

    Of several ranks, each takes its part of what one would have: the same weights, cut.
    Raises UserError for a network or setting that does not fit the pictures or the ranks.
    """
    repeat_bits(always=recipe.system.deterministic)
    device = ranks.device(find_device(recipe.system.device))
    fast = fused.choice(recipe.system.kernels) != "plain"
    if fast and device.type == "cpu":
        memory.keep()
    if recipe.system.threads:
        torch.set_num_threads(recipe.system.threads)
    network = with_dropout(find_network(recipe.network.name), recipe.network.dropout)
    seed = recipe.system.seed
    model = build(network, len(dataset.class_names), torch.Generator().manual_seed(seed))
    model.to(torch.float64 if recipe.system.precision == "fp64" else torch.float32)
    parts: Replicas | Hybrid | None = None
    if ranks.plan.hybrid:
        model = cut_hybrid(model, ranks.everyone)
        parts = Hybrid(model)
    elif ranks.size > 1:
        model = cut(model, ranks.columns, ranks.replicas)
        parts = Replicas(model, ranks.replicas)
    model.to(device).to(memory_format=torch.channels_last)
    dropout_generator = torch.Generator(device).manual_seed(seed + 1)
    model.dropout_generator = dropout_generator
    model.kernels = recipe.system.kernels
    has_kernels(device.type, model.kernels)  # compiles them now, or says why not
    settings, found = recipe.optimizer, dataset.statistics
    groups = parameter_groups(
        model,
        lr=settings.lr * rate_factor(recipe),
        bias_lr=settings.bias_lr * rate_factor(recipe),
        weight_decay=settings.weight_decay,
        bias_decay=settings.bias_weight_decay,
        layer_weight_decay=recipe.layer_weight_decay,
        layer_lr=recipe.layer_lr,
    )
    part = model if isinstance(model, PartAlexNet) else None
    optimizer = PaperSGD(groups, momentum=settings.momentum)
    if settings.lars_trust:
        sum_parts = part.sum_parts if part is not None else None
        optimizer = Lars(groups, settings.momentum, settings.lars_trust, sum_parts)
    if part is not None:
        cut_optimizer(optimizer, part)
    basis = None
    if recipe.augment.colour != "none":
        basis = colour_basis(
            torch.from_numpy(found.eigenvalues),
            torch.from_numpy(found.eigenvectors),
            recipe.augment.colour,
        ).to(device, torch.float32)
    copies = {}
    if fast and recipe.system.precision == "bf16" and parts is None:
        copies = _bfloat16_copies(model, optimizer)
    training = Training(
        recipe=recipe,
        device=device,
        model=model,
        optimizer=optimizer,
        schedule=make_schedule(recipe.schedule),
        detector=StallDetector(
            len(dataset.class_names),
            recipe.system.stall_steps,
            recipe.system.stall_margin,
            label_counts=np.bincount(dataset.splits["train"].labels).tolist(),
        ),
        preprocessing=Preprocessing(
            torch.from_numpy(found.mean_image),
            recipe.augment.crop_px,
            recipe.augment.mean,
            network.input_std,
        ).to(device),
        colour_basis=basis,
        dropout_generator=dropout_generator,
        noise_generator=torch.Generator().manual_seed(seed + 2),
        ranks=ranks,
        parts=parts,
        copies=copies,
    )
    if replays(recipe.system.graph, device) and parts is None:
        training.replay = Replay(
            partial(update, training),
            partial(_held_fast, training),
            cuda_recorder([dropout_generator]),
        )
    return training


def replays(graph: str, device: torch.device) -> bool:
    """Whether steps are replayed. Raises UserError where that is asked for and cannot be."""
    if graph == "on" and device.type != "cuda":
        raise UserError(f"system.graph=on needs a CUDA device, not {device.type}; leave it at auto")
    return graph != "off" and device.type == "cuda"


def way(training: Training) -> dict[str, str]:
    """How a step is computed here, for environment.json and the line that training begins with."""
    system, device = training.recipe.system, training.device
    chosen = fused.choice(system.kernels)
    has_kernels = fused.has_kernels(device.type, system.kernels)
    fast = chosen != "plain"
    on_cpu = fast and device.type == "cpu"
    weights = "bfloat16 copies of float32" if training.copies else "float32"
    return {
        "kernels": "fused" if has_kernels else "plain",
        "products": "oneDNN's, fused" if on_cpu else "PyTorch's",
        "weights": "float64" if system.precision == "fp64" else weights,
        "memory": "kept" if on_cpu and memory.keep() else "the allocator's",
        "graph": "replayed" if training.replay is not None else "none",
    }


def _held_fast(training: Training) -> tuple[object, ...]:
    """What a recorded step cannot change: rates, and what is frozen."""
    groups = training.optimizer.param_groups
    settings = ((group["lr"], group["momentum"], group["weight_decay"]) for group in groups)
    frozen = (weight.requires_grad for group in groups for weight in group["params"])
    return (*settings, *frozen, training.model.training)


def _bfloat16_copies(model: AlexNet, optimizer: PaperSGD) -> dict[str, Tensor]:
    """What the network computes with in bf16: cast once a step, where its weights are moved.

    Autocast would cast every weight to bfloat16 and every gradient back, a third of the traffic.
    """
    weights = dict(model.named_parameters())
    copies = {
        name: weight.detach().to(torch.bfloat16, memory_format=torch.preserve_format)
        for name, weight in weights.items()
    }
    for copy in copies.values():
        copy.requires_grad_()
    optimizer.use_copies({weights[name]: copy for name, copy in copies.items()})
    return copies


def repeat_bits(*, always: bool) -> None:
    """Choose kernels that give the same bits each time, or leave the choice to their speed.

    For this process: PyTorch has no smaller switch.
    """
    if always:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # Ours is never read before it is written, so filling it with NaN first finds nothing.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(always)
    torch.backends.cudnn.deterministic = always


def find_device(name: str) -> torch.device:
    """ "auto" takes a GPU where there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda", "mps", "xpu"):
        known = "it is auto, cpu, cuda, or cuda:1 for the second GPU"
        raise UserError(f"device {name!r} cannot be used: {known}; try --device cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason}; try --device cpu") from None
    return device


def network_input(training: Training, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mirror, subtract the mean and shift colours on the device: (B, 3, s, s) and labels.

    float32, or bfloat16 where the weights are; where conv1 would add zeros on the right and at the
    bottom they are there already.
    """
    device, recipe = training.device, training.recipe
    shifts = training.colour_basis is not None and training.colour_noise
    takes_any = training.parts is None and recipe.system.precision != "fp64"
    if takes_any and device.type == "cpu" and fused.has_kernels("cpu", recipe.system.kernels):
        return _input_in_one_pass(training, batch, shifts=shifts), batch.labels
    top, left, flip = (part.to(device) for part in (batch.top, batch.left, batch.flip))
    crops = flip_where(batch.crops.to(device, non_blocking=True), flip)
    images = subtract_mean(crops, top, left, flip, training.preprocessing)
    if shifts:
        assert training.colour_basis is not None
        images = add_colour_noise(
            images,
            batch.colour.to(device),
            training.colour_basis,
            recipe.augment.colour,
            recipe.augment.colour_strength,
        )
    return in_precision(training, images), batch.labels.to(device)


def in_precision(training: Training, images: Tensor) -> Tensor:
    """Float images as the weights take them."""
    return images.double() if training.recipe.system.precision == "fp64" else images


def take_share(training: Training, counts: list[int]) -> None:
    """Say how many images of the next whole batch each replica has, this one its own."""
    training.batch_images = sum(counts)
    if isinstance(training.model, PartAlexNet):
        training.model.take_share(training.batch_images, counts)


def _input_in_one_pass(training: Training, batch: Batch, *, shifts: bool) -> Tensor:
    augment, preprocessing = training.recipe.augment, training.preprocessing
    at_crop = preprocessing.mean_at == "crop"
    border = torch.full_like(batch.top, preprocessing.border_px)
    shift, divisor = None, 1.0
    if shifts:
        assert training.colour_basis is not None
        shift = colour_shift(batch.colour, training.colour_basis, augment.colour_strength)
        divisor = colour_divisor(augment.colour, augment.colour_strength)
    return passes.prepare(
        batch.crops,
        batch.top if at_crop else border,
        batch.left if at_crop else border,
        batch.flip,
        preprocessing.mean_image,
        shift,
        mirror_mean=at_crop,
        input_std=preprocessing.input_std,
        divisor=divisor,
        out_px=training.model.network.picture_sizes()[-1],
        dtype=torch.bfloat16 if training.copies else torch.float32,
    )


def train_step(training: Training, images: Tensor, labels: Tensor) -> Tensor:
    """One update on a minibatch, replayed from a recording where there is one; see `update`."""
    if training.replay is not None:
        return training.replay(images, labels)
    return update(training, images, labels)


def update(training: Training, images: Tensor, labels: Tensor) -> Tensor:
    """One update on the mean cross-entropy of a minibatch; its loss, still on the device.

    Of replicas, each returns its own images' share of the loss.
    """
    training.optimizer.zero_grad(set_to_none=True)
    for weight, copy in training.optimizer.copies.items():
        copy.requires_grad_(weight.requires_grad)  # a frozen layer has no gradient
    if training.parts is not None:
        loss = training.parts.gradients(images, labels, lambda: autocast(training))
    else:
        found = logits(training, images)
        loss = F.cross_entropy(found if found.dtype == torch.float64 else found.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
    training.optimizer.step()
    return loss.detach()


def logits(training: Training, images: Tensor) -> Tensor:
    """What the network says, in the precision of the recipe: (B, 3, s, s) -> (B, num_classes)."""
    if training.copies:
        images = images.to(torch.bfloat16)
        return functional_call(training.model, training.copies, (images,))  # type: ignore[no-any-return]
    with autocast(training):
        return training.model(in_precision(training, images))  # type: ignore[no-any-return]


def autocast(training: Training) -> torch.autocast:
    enabled = training.recipe.system.precision == "bf16"
    return torch.autocast(training.device.type, torch.bfloat16, enabled=enabled)
