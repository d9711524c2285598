"""The scales at which the paper's claims are tested: which pictures, which network, how long.

`imagenet` is the paper's own: the full-size network on pictures of 224 pixels. The others train in
minutes on a CPU: the layout of `small` on pictures of 56 of 64 pixels, or of 28 of CIFAR-10's 32.
With `full`, Imagenette and folders get the full-size network too. `toy` shows only that every path
works: some seconds, and figures that mean nothing.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from alexnet.config import Recipe, diff
from alexnet.errors import UserError, suggest
from alexnet.recipes import find_recipe

NAMES = ("toy", "shapes", "cifar10", "imagenette", "imagenet")
# Training pictures that are evaluated after each epoch; what is measured at the end takes more.
WATCHED_PICTURES = 1024
EPOCHS = {"toy": 1.0, "shapes": 6.0, "cifar10": 6.0, "imagenette": 15.0}
FOLDER_EPOCHS = 15.0
TOY = {"num_train": 96, "num_val": 48, "num_classes": 6}
# Where a claim needs other pictures than those it is tested on (Section 6, pre-training).
PRETRAIN = {"toy": "shapes", "shapes": "cifar10", "cifar10": "imagenette", "imagenette": "cifar10"}


@dataclass(frozen=True)
class Scale:
    """`name`: one of NAMES, or that of a folder; `epochs` and `steps` 0: as many as is usual."""

    name: str
    full: bool = False
    epochs: float = 0.0
    steps: int = 0
    precision: str = "fp32"
    pretrain: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_full(self) -> bool:
        return self.full or self.name == "imagenet"

    @property
    def title(self) -> str:
        """E.g. "imagenette, full size, 5 epochs, bf16"."""
        parts = [
            self.name,
            "full size" if self.full and self.name != "imagenet" else "",
            f"{self.epochs:g} epoch{'s' * (self.epochs != 1)}" if self.epochs else "",
            f"{self.steps} steps" if self.steps else "",
            self.precision if self.precision != "fp32" else "",
        ]
        return ", ".join(filter(None, parts))

    @property
    def pretraining(self) -> str:
        """The pictures to pre-train on. Raises UserError where none are named."""
        found = self.pretrain or PRETRAIN.get(self.name, "")
        if not found:
            raise UserError(f"pre-training for scale {self.name} needs pictures: --pretrain DATA")
        return found

    def control(self) -> Recipe:
        """The recipe that every arm of a comparison differs from."""
        recipe = self._full() if self.is_full else self._reduced()
        recipe = diff(
            recipe,
            system={"precision": self.precision, "max_steps": self.steps},
            evaluate={"train_pictures": WATCHED_PICTURES},
        )
        return replace(recipe, name=f"{self.name}-control", base=recipe.name)

    def _full(self) -> Recipe:
        if self.name in ("toy", "shapes", "cifar10"):
            raise UserError(f"--full is for pictures of 224 pixels, not for scale {self.name}")
        recipe = find_recipe("source-2012" if self.name == "imagenet" else "imagenette")
        epochs = self.epochs or recipe.schedule.epochs
        return diff(recipe, data={"dataset": self.name}, schedule={"epochs": epochs})

    def _reduced(self) -> Recipe:
        sizes = dict.fromkeys(TOY, 0)
        recipe = find_recipe("shapes")
        if self.name == "cifar10":
            recipe = diff(
                recipe,
                network={"name": "small/28px"},
                data={"image_px": 32},
                augment={"crop_px": 28},
                optimizer={"batch_size": 128},
            )
        if self.name == "toy":
            sizes = TOY
            recipe = diff(recipe, optimizer={"batch_size": 32})
        elif self.name == "shapes":
            sizes = {size: getattr(recipe.data, size) for size in TOY}
        epochs = self.epochs or EPOCHS.get(self.name, FOLDER_EPOCHS)
        data = {"dataset": "shapes" if self.name == "toy" else self.name, **sizes}
        return diff(recipe, data=data, schedule={"epochs": epochs})


def scale_of(name: str, **settings: Any) -> tuple[Scale, dict[str, str]]:
    """The scale that a user names, and {name in recipes: DATA} where they differ.

    A folder is a scale by its own name. Raises UserError for a name that is neither.
    """
    data = settings.pop("data", None)
    places: dict[str, str] = {}
    if (pretrain := settings.get("pretrain", "")) and pretrain not in PRETRAIN.values():
        folder = Path(pretrain).expanduser()
        if not folder.exists():
            raise UserError(f"no data set or folder {pretrain!r}{suggest(pretrain, NAMES)}")
        settings["pretrain"] = folder.resolve().name
        places[settings["pretrain"]] = str(folder)
    if name in NAMES:
        if name == "imagenet" and data is None:
            raise UserError(
                "scale imagenet needs ImageNet: pack it with alexnet prepare, then --data PACKED"
            )
        return Scale(name, **settings), places | ({} if data is None else {name: str(data)})
    path = Path(name).expanduser()
    if data is not None or not path.exists():
        raise UserError(f"no scale or folder {name!r}{suggest(name, NAMES)}")
    if path.resolve().name in NAMES:
        raise UserError(
            f"the folder {name} has the name of another scale: rename it, or give it as --data"
        )
    scale = Scale(path.resolve().name, **settings)
    return scale, places | {scale.name: str(path)}
