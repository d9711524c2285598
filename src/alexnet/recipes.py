"""The named recipes: each is a diff from another one, and its docstring says what it is for.

`paper-2012` is the text of the paper, `source-2012` the run behind its figures (145 of the 2012
source). Both exist for ILSVRC-2010 too: the same training, another hand-made table.
"""

from collections.abc import Callable
from dataclasses import replace

from alexnet.config import Recipe, diff
from alexnet.errors import UserError, suggest


def paper_2012() -> Recipe:
    """Sections 2 to 5 as printed, on ILSVRC-2012. 40.7 / 18.2 % with ten views (validation).

    The rate is divided by 10 when the validation error stops improving, three times in all.
    """
    return Recipe(name="paper-2012")


def paper_2010() -> Recipe:
    """Sections 2 to 5 as printed, on ILSVRC-2010. 37.5 / 17.0 % with ten views (test)."""
    return replace(paper_2012(), name="paper-2010", base="paper-2012")


def source_2012() -> Recipe:
    """Run 145 on ILSVRC-2012: its network, crops, colours, bias rates and hand-made table.

    40.66 / 18.21 % with ten views on validation, as logged.
    """
    recipe = diff(
        paper_2012(),
        network={"name": "source"},
        data={"order": "fixed"},
        augment={"crop_chunk": 32, "mean": "centre", "colour": "source"},
        optimizer={"bias_lr": 0.02, "bias_weight_decay": 0.0},
        schedule={"kind": "epochs", "table": "source-2012", "epochs": 91.0},
    )
    return replace(recipe, name="source-2012", base="paper-2012")


def source_2010() -> Recipe:
    """Run 145 on LSVRC-2010: 37.47 / 17.00 % with ten views on test, as logged."""
    recipe = diff(source_2012(), schedule={"table": "source-2010", "epochs": 93.0})
    return replace(recipe, name="source-2010", base="source-2012")


def pictures() -> Recipe:
    """The full-size net for a folder of one's own: run 145's, shuffled anew in every epoch.

    The rates fall when the validation error stops improving.
    """
    recipe = diff(
        source_2012(),
        data={"order": "shuffled"},
        schedule={"kind": "plateau", "epochs": 90.0},
    )
    return replace(recipe, name="pictures", base="source-2012")


def finetune() -> Recipe:
    """Another network's weights, for pictures of one's own: `alexnet train DATA --from MODEL`.

    The rates of run 146-2012-2011, which took a network of 22,000 classes to 1,000 (the paper's
    "1 CNN*"): a tenth of a fresh training's, conv1 slower and soon frozen, new layers faster.
    """
    recipe = diff(
        pictures(),
        optimizer={"lr": 0.001, "bias_lr": 0.002},
        schedule={"kind": "epochs", "table": "source-finetune", "epochs": 20.0},
    )
    return replace(recipe, name="finetune", base="pictures")


def imagenette() -> Recipe:
    """`pictures` for Imagenette's 9,469 pictures: a shorter training, on a linear schedule."""
    recipe = diff(pictures(), schedule={"kind": "linear", "epochs": 40.0, "factor": 100.0})
    return replace(recipe, name="imagenette", base="pictures")


def shapes() -> Recipe:
    """The built-in pictures and the `small` network: minutes on two CPU cores, offline."""
    recipe = diff(
        paper_2012(),
        network={"name": "small"},
        data={
            "dataset": "shapes",
            "image_px": 64,
            "num_train": 12_000,
            "num_val": 2_000,
            "num_classes": 16,
        },
        augment={"crop_px": 56},
        optimizer={"batch_size": 64},
        schedule={"kind": "linear", "epochs": 12.0, "factor": 100.0},
    )
    return replace(recipe, name="shapes", base="paper-2012")


def _cifar10(name: str, source: str, epochs: float) -> Recipe:
    recipe = diff(
        paper_2012(),
        network={"name": source},
        data={"dataset": "cifar10", "image_px": 32},
        augment={
            "crop_px": 32,
            "flip": False,
            "random_crop": False,
            "mean": "centre",
            "colour": "none",
        },
        optimizer={"lr": 0.001, "bias_lr": 0.002, "bias_weight_decay": 0.0},
        schedule={"kind": "constant", "epochs": epochs},
        evaluate={"views": "1"},
    )
    return replace(recipe, name=name, base="paper-2012")


def cifar10_80sec() -> Recipe:
    """26 % error in 80 seconds of 2012: 20 epochs of whole pictures, the rate / 10 at 16 and 18."""
    return diff(
        _cifar10("cifar10-80sec", "cifar10-80sec", 20.0),
        optimizer={"layer_weight_decay": "conv:0.004,fc:0.03"},
        schedule={"kind": "epochs", "table": "cifar10-80sec"},
    )


def cifar10_18pct() -> Recipe:
    """18 % error in 20 minutes of 2012: 140 epochs, the rate / 10 at 120 and 130."""
    recipe = _cifar10("cifar10-18pct", "cifar10-18pct", 140.0)
    return diff(
        recipe,
        optimizer={"layer_weight_decay": "conv:0.004,fc:1"},
        schedule={"kind": "epochs", "table": "cifar10-18pct"},
    )


def _cifar10_crops(name: str, decay: str) -> Recipe:
    recipe = diff(
        _cifar10(name, name, 520.0),
        augment={"crop_px": 24, "flip": True, "random_crop": True},
        optimizer={"layer_weight_decay": decay},
        schedule={"kind": "epochs", "table": "cifar10-11pct"},
        evaluate={"views": "1,10"},
    )
    return recipe


def cifar10_13pct() -> Recipe:
    """13 % error with unshared convolutions, on 24-pixel crops."""
    return _cifar10_crops("cifar10-13pct", "conv:0,local:0.004,fc:0.004")


def cifar10_11pct() -> Recipe:
    """11 % error: `cifar10-13pct` with response norms (Section 3.3's aside)."""
    return _cifar10_crops("cifar10-11pct", "conv:0,local:0.004,fc:0.01")


def cifar10_figure1() -> Recipe:
    """Figure 1, solid line: ReLU, no regularisation of any kind."""
    return diff(
        _cifar10("cifar10-figure1", "cifar10-figure1", 40.0),
        optimizer={"weight_decay": 0.0},
    )


def cifar10_figure1_tanh() -> Recipe:
    """Figure 1, dashed line: the same with tanh."""
    recipe = diff(cifar10_figure1(), network={"name": "cifar10-figure1-tanh"})
    return replace(recipe, name="cifar10-figure1-tanh", base="cifar10-figure1")


RECIPES: dict[str, Callable[[], Recipe]] = {
    "paper-2012": paper_2012,
    "paper-2010": paper_2010,
    "source-2012": source_2012,
    "source-2010": source_2010,
    "pictures": pictures,
    "finetune": finetune,
    "imagenette": imagenette,
    "shapes": shapes,
    "cifar10-80sec": cifar10_80sec,
    "cifar10-18pct": cifar10_18pct,
    "cifar10-13pct": cifar10_13pct,
    "cifar10-11pct": cifar10_11pct,
    "cifar10-figure1": cifar10_figure1,
    "cifar10-figure1-tanh": cifar10_figure1_tanh,
}


def find_recipe(name: str) -> Recipe:
    """Raises UserError, naming the nearest, for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}{suggest(name, RECIPES)}")
    return RECIPES[name]()
