"""Training that begins with another network's weights (Section 6, "1 CNN*"; initw.py of 2012).

Layers are copied by name and shape, up to the first that the other network has not, or in another
shape: what stands behind a new layer is new too, as when run 146 got the conv1 to conv5 of run
145, and a conv6 and fully connected layers of its own. The last layer is new where the classes
differ. Velocities begin at zero. The mean image and the colour
components are those of the new training pictures, as in the 2012 source, where they came with
the data set and not with the weights.

Not here: the rates (recipe `finetune`, table `source-finetune`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alexnet.errors import UserError
from alexnet.files import sha256_of
from alexnet.model import AlexNet
from alexnet.step import Training
from alexnet.trained import TrainedAlexNet
from alexnet.weights import load, weights_file


def begin_from(training: Training, weights: str, class_ids: Sequence[str]) -> None:
    """Give a fresh training the layers of a weights file, and note them in `training.origin`.

    The optimizer's groups of the layers that stay fresh are marked "new". Raises UserError where
    not one layer fits.
    """
    path = weights_file(weights)
    source = load(path)
    copied = copy_layers(training.model, source, class_ids)
    new = [name for name in training.model.layer_names if name not in copied]
    if not copied:
        there, here = source.network.name, training.model.network.name
        raise UserError(
            f"{path} is network {there}, and none of its layers fits network {here}; leave out "
            f"--recipe, or take --set network.name={there}"
        )
    for group in training.optimizer.param_groups:
        group["new"] = group["layer"] in new
    training.origin = {
        "fine_tuned_from": str(path),
        "sha256": sha256_of(path),
        "network": source.network.name,
        "dataset": source.card.dataset,
        "copied": copied,
        "new": new,
        "network_here": training.model.network.name,
    }


@torch.no_grad()
def copy_layers(model: AlexNet, source: TrainedAlexNet, class_ids: Sequence[str]) -> list[str]:
    """Copy the layers up to the first that does not fit, and return their names.

    The last layer fits only if it is for the same classes; in another order, its rows are moved.
    """
    own, other = model.state_dict(), source.state_dict()
    copied = []
    for layer in model.layer_names:
        names = [name for name in own if name.rpartition(".")[0] == layer]
        if any(name not in other or other[name].shape != own[name].shape for name in names):
            break
        rows = None
        if layer == model.layer_names[-1]:
            if set(class_ids) != set(source.card.class_ids):
                break
            rows = torch.tensor([source.card.class_ids.index(name) for name in class_ids])
        for name in names:
            own[name].copy_(other[name] if rows is None else other[name][rows])
        copied.append(layer)
    model.load_state_dict(own)  # a column's `own` is the whole network's, which it cuts
    return copied


def told(origin: dict[str, Any]) -> str:
    """A line for people."""
    name = Path(origin["fine_tuned_from"])
    new = f"; new: {' '.join(origin['new'])}" if origin["new"] else ""
    line = f"from {name} (trained on {origin['dataset']}): {' '.join(origin['copied'])}{new}"
    if origin["network"] != origin["network_here"]:
        line += f"; that was network {origin['network']}, this is {origin['network_here']}"
    return line
