"""AlexNet, whole: the networks, the recipe and the experiments of the 2012 paper and its source.

    model = alexnet.build("paper", num_classes=1000)
    model = alexnet.load("RUN/model.safetensors")

Imports of torch happen on first use, so that the command line stays instant.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["NETWORKS", "AlexNet", "PaperSGD", "UserError", "build", "from_hub", "load"]

if TYPE_CHECKING:
    from alexnet.errors import UserError
    from alexnet.hub import from_hub
    from alexnet.model import AlexNet, build
    from alexnet.networks import NETWORKS
    from alexnet.optim import PaperSGD
    from alexnet.weights import load

_HOMES = {
    "NETWORKS": "networks",
    "AlexNet": "model",
    "build": "model",
    "PaperSGD": "optim",
    "UserError": "errors",
    "from_hub": "hub",
    "load": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'alexnet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"alexnet.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
