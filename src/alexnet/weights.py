"""model.safetensors: weights, and everything that is needed to predict with them.

Beside the weights under their layer names, the file holds the mean image, the colour PCA, the
class names, the network, the input scale and the evaluation protocol: one file is enough, and
cannot be fed wrongly preprocessed pictures.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from alexnet.augment import Preprocessing
from alexnet.errors import UserError
from alexnet.files import write_bytes
from alexnet.model import AlexNet
from alexnet.networks import find_network, with_dropout
from alexnet.trained import TrainedAlexNet

FORMAT = "alexnet-model"
STATISTICS = ("mean_image", "eigenvalues", "eigenvectors")


@dataclass(frozen=True)
class ModelCard:
    """What a weights file says about itself.

    network: its name; dropout: the convention, where it was not the network's own.
    eigenvalues (3,) and eigenvectors (3, 3): the colour PCA of the training set, 0..255 units.
    views: the evaluation protocol of the run, e.g. (1, 10).
    origin: where the weights came from before: what they were fine-tuned or converted from, with
    its sha256; empty for a network trained from fresh weights.
    statistics_images: of how many pictures mean image and PCA are; None: it is not known.
    """

    network: str
    dropout: str
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    dataset: str
    preprocessing: Preprocessing
    eigenvalues: Tensor
    eigenvectors: Tensor
    views: tuple[int, ...]
    origin: dict[str, Any] = field(default_factory=dict)
    statistics_images: int | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def save_model(
    path: Path, model: AlexNet, card: ModelCard, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write the weights, the model's unless given, and the card, atomically."""
    preprocessing = card.preprocessing
    tensors = {
        "mean_image": preprocessing.mean_image,
        "eigenvalues": card.eigenvalues,
        "eigenvectors": card.eigenvectors,
        **{name: _float32(weight) for name, weight in (weights or model.state_dict()).items()},
    }
    described = {
        "format": FORMAT,
        "network": card.network,
        "dropout": card.dropout,
        "class_names": card.class_names,
        "class_ids": card.class_ids,
        "dataset": card.dataset,
        "crop_px": preprocessing.crop_px,
        "mean_at": preprocessing.mean_at,
        "input_std": preprocessing.input_std,
        "input_scale": "0..255, less the mean image",
        "views": card.views,
        "statistics_images": card.statistics_images,
    }
    if card.origin:
        described["origin"] = card.origin
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described["sha256"] = _checksum(described, tensors)
    # One text alone: several come in any order, and equal weights would not be equal files.
    write_bytes(path, save(tensors, {"card": json.dumps(described)}))


def _float32(weight: Tensor) -> Tensor:
    """What was trained in float64 is kept as everything else is; counts stay as they are."""
    return weight.float() if weight.is_floating_point() else weight


def _checksum(described: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Of all that the file says: safetensors has no checksum of its own."""
    digest = hashlib.sha256(json.dumps(described).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load(path: str | Path, device: torch.device | str = "cpu") -> TrainedAlexNet:
    """Make the network of a weights file, in evaluation mode, with its card as `model.card`.

    `path` is model.safetensors or the run folder that holds it. Raises UserError when it is not
    there, damaged, or not ours.
    """
    path = weights_file(path)
    described = _read_card(path)
    try:
        tensors = load_file(path)
        checksum = described.pop("sha256")
        if checksum != _checksum(described, tensors):
            raise ValueError("it does not match its checksum")
        statistics = {name: tensors.pop(name) for name in STATISTICS}
        card = _card(described, statistics)
        network = with_dropout(find_network(card.network), card.dropout)
        model = TrainedAlexNet(network, card.num_classes)
        model.load_state_dict(tensors)
    except UserError:
        raise
    # A damaged file fails in the parser, in our own look-ups or in `load_state_dict`.
    except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged or of another version: {reason}") from None
    model.card = card
    return model.eval().to(device)


def weights_file(path: str | Path) -> Path:
    """The model.safetensors that is meant. Raises UserError where there is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is not there; train a network first, or name its weights file")
    return path


def _card(described: dict[str, Any], statistics: dict[str, Tensor]) -> ModelCard:
    return ModelCard(
        network=described["network"],
        dropout=described["dropout"],
        class_names=tuple(described["class_names"]),
        class_ids=tuple(described["class_ids"]),
        dataset=described["dataset"],
        preprocessing=Preprocessing(
            statistics["mean_image"],
            described["crop_px"],
            described["mean_at"],
            tuple(described["input_std"]),
        ),
        eigenvalues=statistics["eigenvalues"],
        eigenvectors=statistics["eigenvectors"],
        views=tuple(described["views"]),
        origin=dict(described.get("origin", {})),
        statistics_images=described.get("statistics_images"),
    )


def _read_card(path: Path) -> dict[str, Any]:
    """The card of a weights file, from its header alone (safetensors: 8 bytes of size, JSON)."""
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(size))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    try:
        card = json.loads(header["__metadata__"]["card"])
    except (LookupError, TypeError, ValueError):
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{path} was not written by alexnet: it holds no network card")
    return card
