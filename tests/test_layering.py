"""Imports between the modules point one way: each level imports from those above it alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import alexnet

PACKAGE = Path(alexnet.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("[a-z]*.py"))

LEVELS = [
    {"errors", "images", "layers", "metrics", "oddities", "page", "progress", "randomness"}
    | {"stall", "statistics", "stopping", "verdicts"}
    | {"collectives", "rendezvous"},
    {
        "augment",
        "decoding",
        "files",
        "likeness",
        "networks",
        "schedule",
        "shapes",
        "tables",
    }
    | {"workers"}
    | {"parallel"}
    | {"graph", "memory", "products"},
    {"native", "triton_kernels"},
    {"chain_op"} | {"passes"},
    {"fused"},
    {"optim", "receptive"},
    {"checkpoint", "config", "differences", "drawing", "listing", "log", "model", "packing"},
    {"archives", "describe", "examine", "pictures", "recipes", "saving", "sessions", "trained"}
    | {"columns"}
    | {"scaling"},
    {"replicas"},
    {"hybrid", "large_batch"},
    {"audit", "dataset", "gather", "imagenet", "nvjpeg", "weights"},
    {"begun", "contact", "kinds", "loader", "predictions"},
    {"results", "retrieval", "sources", "step"} | {"bench_scaling", "scaling_ranks"},
    {"finetune"} | {"turns"},
    {"prepare"},
    {"builtin", "straight", "stream"},
    {"opening"},
    {"bench", "bench_norm", "evaluate", "extract", "labelling", "material"},
    {"codes", "index"},
    {"approximate"},
    {"indexing", "searching", "seeing"} | {"exciting"},
    {"service"},
    {"serving"},
    {"curves", "findings", "train"},
    {"bench_step"} | {"calibration"},
    {"bench_layers"},
    {"cli_norm", "cli_scaling", "figures"},
    {"exhibits", "inside_figures"},
    {"inside"},
    {"averaging", "baselines", "scales"},
    {"trials"},
    {"apart"},
    {"plans"},
    {"stall_claim"},
    {"claims", "costs"},
    {"campaign", "judging"},
    {"reproduction"},
    {"reproducing"},
    {"report"},
    {"convnet", "onnx_graph", "wire"},
    {"caffe", "export", "hub"},
    {"convert"},
    {"similar", "using"},
    {"cli_bench"},
    {"cli"},
]

# What these import from torch, and how long that takes, nobody waits for who asks for help.
INSTANT = (
    "__init__",
    "__main__",
    "cli",
    "cli_bench",
    "cli_norm",
    "cli_scaling",
    "errors",
    "progress",
    "similar",
    "using",
)
INSTANT += ("reproducing",)


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at the top of the file) for each import that happens at run time."""
    tree = ast.parse(path.read_text())
    type_checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in type_checking:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield str(node.module), id(node) in top
            if node.module == "alexnet":
                yield from ((f"alexnet.{alias.name}", id(node) in top) for alias in node.names)


def own_imports(module: str) -> set[str]:
    names = {name for name, _ in imported(PACKAGE / f"{module}.py")}
    return {name.partition(".")[2] for name in names if name.startswith("alexnet.")}


def test_each_module_has_a_level() -> None:
    assert sorted(module for level in LEVELS for module in level) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    level = next(index for index, level in enumerate(LEVELS) if module in level)
    above = set().union(*LEVELS[:level])
    assert own_imports(module) <= above, f"{module} may import from {sorted(above)} only"


@pytest.mark.parametrize("module", INSTANT)
def test_nothing_slow_is_imported_before_a_command_runs(module: str) -> None:
    at_the_top = {name.partition(".")[0] for name, top in imported(PACKAGE / f"{module}.py") if top}
    assert not at_the_top & {"torch", "torchvision", "numpy", "matplotlib", "PIL"}


@pytest.mark.parametrize("module", MODULES)
def test_matplotlib_and_tensorboard_are_imported_inside_functions(module: str) -> None:
    at_the_top = [name for name, top in imported(PACKAGE / f"{module}.py") if top]
    assert not [name for name in at_the_top if name.startswith(("matplotlib", "torch.utils"))]
