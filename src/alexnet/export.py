"""Taking a trained network elsewhere: ONNX, torch.export, torchvision's state dict (T3, T17).

    model.onnx          for ONNX Runtime and what else reads ONNX
    model.pt2           a torch.export program, for torch.export.load
    model.pth           torchvision's names, where the network is torchvision's

ONNX and .pt2 take the pixels of a centre crop, 0..255, and subtract the mean image themselves.
What was written is read again and compared with the network before it gets its name.

Not here: the graph (`onnx_graph.py`), the way in (`convert.py`), the hub (`hub.py`).
"""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.augment import crop_mean
from alexnet.errors import UserError
from alexnet.files import write_bytes
from alexnet.model import TORCHVISION_LAYERS
from alexnet.onnx_graph import to_onnx
from alexnet.trained import TrainedAlexNet

TOLERANCE = 1e-5  # of the largest logit
CHECKED_BATCHES = (1, 3)


@dataclass(frozen=True)
class Exported:
    """What was written; how far its logits were from the network's, as a share of the largest."""

    path: Path
    form: str
    difference: float
    pictures: int

    def told(self) -> str:
        return (
            f"{self.path}: {self.form}; on {self.pictures} pictures its logits differ from the "
            f"network's by at most {self.difference:.1e} of the largest"
        )


class Deployed(nn.Module):
    """A network with its preprocessing: pixels of a centre crop (B, 3, c, c), 0..255 -> logits."""

    def __init__(self, model: TrainedAlexNet) -> None:
        super().__init__()
        self.model = model
        self.mean_image: Tensor
        self.input_std: Tensor
        self.register_buffer("mean_image", crop_mean(model.card.preprocessing)[None])
        std = torch.tensor(model.network.input_std)
        self.register_buffer("input_std", std[None, :, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean_image) / self.input_std)  # type: ignore[no-any-return]


def export(model: TrainedAlexNet, target: Path) -> Exported:
    """Write the network in the form that the suffix names, checked.

    Raises UserError for another suffix, a network that has no such form, a missing package, or
    logits that are not the network's.
    """
    writers: dict[str, Callable[[TrainedAlexNet, Path], Exported]] = {
        ".onnx": _export_onnx,
        ".pt2": _export_program,
        ".pth": _export_torchvision,
    }
    if target.suffix not in writers:
        raise UserError(
            f"{target}: a network is exported to .onnx, .pt2 (torch.export), .pth (torchvision's "
            "state dict) or hf:OWNER/NAME"
        )
    model = model.cpu().eval()
    kernels, model.kernels = model.kernels, "plain"
    try:
        return writers[target.suffix](model, target)
    finally:
        model.kernels = kernels


def sample_pixels(model: TrainedAlexNet, count: int) -> Tensor:
    """Pictures to check with, by a fixed seed: noise at several scales, 0..255."""
    px = model.network.input_px
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(px, px), mode="bilinear")
    noise = torch.rand(count, 3, px, px, generator=generator)
    return 255 * (0.8 * smooth + 0.2 * noise)


def _export_onnx(model: TrainedAlexNet, target: Path) -> Exported:
    data = to_onnx(model).SerializeToString()
    difference = _check(model, lambda pixels: run_onnx(data, pixels.numpy()), target)
    write_bytes(target, data)
    return Exported(target, f"ONNX, {len(data) / 1e6:.0f} MB", difference, sum(CHECKED_BATCHES))


def run_onnx(data: bytes, pixels: np.ndarray) -> np.ndarray:
    """Logits by ONNX Runtime on the CPU."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise UserError(
            "the check of an ONNX file needs onnxruntime: pip install 'alexnet[onnx]'"
        ) from None
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.asarray(session.run(None, {name: pixels})[0])


def _export_program(model: TrainedAlexNet, target: Path) -> Exported:
    deployed = Deployed(model).eval()
    batch = torch.export.Dim("batch", min=1)
    example = (sample_pixels(model, 2),)
    with torch.no_grad():
        program = torch.export.export(deployed, example, dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = buffer.getvalue()
    read = torch.export.load(io.BytesIO(data)).module()
    difference = _check(model, lambda pixels: read(pixels).detach().numpy(), target)
    write_bytes(target, data)
    return Exported(target, "a torch.export program", difference, sum(CHECKED_BATCHES))


def _export_torchvision(model: TrainedAlexNet, target: Path) -> Exported:
    state = torchvision_state(model)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    read = torch.load(io.BytesIO(data), weights_only=True)
    other = importlib.import_module("torchvision.models").alexnet(num_classes=model.num_classes)
    other.load_state_dict(read)
    deployed = Deployed(model)
    deployed.model = other.eval()
    difference = _check(model, lambda pixels: deployed(pixels).numpy(), target)
    write_bytes(target, data)
    return Exported(target, "torchvision's state dict", difference, sum(CHECKED_BATCHES))


def torchvision_state(model: TrainedAlexNet) -> dict[str, Tensor]:
    """The weights under torchvision's names. Raises UserError for another network."""
    if model.network.name != "torchvision":
        raise UserError(
            f"network {model.network.name} is not torchvision's alexnet, which has other layers "
            "and no response norms (alexnet describe torchvision --diff paper); take .onnx or .pt2"
        )
    state = model.state_dict()
    return {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"].contiguous()
        for theirs, ours in TORCHVISION_LAYERS.items()
        for kind in ("weight", "bias")
    }


@torch.no_grad()
def _check(model: TrainedAlexNet, logits_of: Callable[[Tensor], Any], target: Path) -> float:
    deployed = Deployed(model)
    worst = 0.0
    for count in CHECKED_BATCHES:
        pixels = sample_pixels(model, count)
        expected = deployed(pixels).numpy()
        worst = max(worst, relative_difference(logits_of(pixels), expected))
    if not worst <= TOLERANCE:
        raise UserError(
            f"{target} was not written: its logits would differ from the network's by {worst:.1e} "
            f"of the largest, and {TOLERANCE:.0e} is allowed; please report this"
        )
    return worst


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest expected number."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())
