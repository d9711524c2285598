"""A run that was begun before: its recipe and its pictures, to go on with it or to repeat it.

Not here: checkpoints (`checkpoint.py`), and who took the run up when (`sessions.py`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alexnet.config import Recipe, diff, differences, from_dict
from alexnet.dataset import PackedDataset, is_packed, open_packed
from alexnet.errors import UserError
from alexnet.files import read_json, sha256_of
from alexnet.sessions import sessions_of
from alexnet.weights import load

OpenData = Callable[[Recipe], PackedDataset]


def begun_recipe(run: Path, data: str | None) -> Recipe:
    """The recipe of a run. Raises UserError if it is no run, or was begun with other `data`."""
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is no run to resume: recipe.json is not there")
    recipe = from_dict(read_json(run / "recipe.json"))
    if data is not None and Path(data) != Path(recipe.data.dataset):
        raise UserError(f"the run was begun with the pictures {recipe.data.dataset}, not {data}")
    return recipe


def begun_data(run: Path, recipe: Recipe, open_data: OpenData) -> PackedDataset:
    """The very pictures that the run was begun with, packed again where the cache was emptied."""
    if not (run / "environment.json").exists() and not any(run.glob("checkpoints/*.pt")):
        return open_data(recipe)  # killed before it had begun
    environment = read_environment(run)
    begun_with = Path(environment["data_path"])
    found = is_packed(begun_with)
    dataset = open_packed(begun_with) if found else open_data(_as_begun(recipe, environment))
    sha256 = environment.get("dataset", {}).get("sha256")
    if sha256 is not None:
        same = sha256_of(dataset.path / "dataset.json") == sha256
    else:
        same = dataset.path.resolve() == begun_with
    if not same:
        if found:
            raise UserError(
                f"the pictures in {begun_with} are others than {run} was begun with; bring them "
                "back, or start a new run"
            )
        raise UserError(
            f"the pictures that {run} was begun with are gone from {begun_with}, and "
            f"{recipe.data.dataset} has others now; start a new run"
        )
    return dataset


def _as_begun(recipe: Recipe, environment: dict[str, Any]) -> Recipe:
    """With a path to the pictures that leads there from this folder too."""
    there = Path(environment.get("folder", "")) / recipe.data.dataset
    if Path(recipe.data.dataset).exists() or not there.exists():
        return recipe
    return diff(recipe, data={"dataset": str(there)})


def read_environment(run: Path) -> dict[str, Any]:
    """RUN/environment.json. Raises UserError when it is damaged."""
    environment = read_json(run / "environment.json")
    if not isinstance(environment, dict) or not isinstance(environment.get("data_path"), str):
        raise UserError(f"{run / 'environment.json'} is damaged: it names no data set")
    return environment


def check_resumable(begun: Recipe, chosen: Recipe, name: str | None) -> None:
    """A resumed training may run longer or elsewhere, but stays the same training."""
    if name and name != begun.name:
        raise UserError(f"the run was begun with recipe {begun.name}, not {name}")
    free = ("schedule.epochs", "system.")
    changed = [path for path in differences(begun, chosen) if not path.startswith(free)]
    changed += ["system.seed"] if begun.system.seed != chosen.system.seed else []
    if changed:
        raise UserError(f"a resumed run keeps its {', '.join(changed)}; start a new run instead")


def new_run_folder(run: Path | None, recipe_name: str) -> Path:
    """`run` if nothing was saved there yet, or else, without one, the next number in runs/."""
    if run is not None:
        if run.exists() and not (run.is_dir() and _is_barely_begun(run)):
            raise UserError(
                f"{run} exists already: choose another --run, or go on with it by --resume"
            )
        return run
    number = 1
    while True:
        run = Path("runs") / (recipe_name if number == 1 else f"{recipe_name}-{number}")
        if not run.exists():
            return run
        number += 1


def _is_barely_begun(run: Path) -> bool:
    """Whether the training was killed before it could be resumed: there is a recipe at most."""
    names = {path.name for path in run.iterdir()} - {"recipe.json"}
    return all(name.startswith(".") and name.endswith(".tmp") for name in names)


# --- Repeating ------------------------------------------------------------------------------------

# What may change the last bits of a result.
CIRCUMSTANCES = (
    *("alexnet", "commit", "python", "torch", "torchvision", "numpy", "pillow"),
    *("platform", "device", "cpu", "threads", "kernels", "parallel"),
)


def recipe_to_repeat(run: Path) -> Recipe:
    """The recipe of a run, with the number of threads that PyTorch chose for it."""
    recipe = begun_recipe(run, None)
    threads = read_environment(run).get("threads")
    if recipe.system.threads == 0 and isinstance(threads, int):
        recipe = diff(recipe, system={"threads": threads})
    return recipe


def other_circumstances(run: Path, here: dict[str, Any]) -> Iterator[str]:
    """In a line each, what makes a repetition on this machine another training than `run`."""
    environment = read_environment(run)
    names = [name for name in CIRCUMSTANCES if environment.get(name) != here.get(name)]
    if names:
        told = (f"{name} {environment.get(name)!s} -> {here.get(name)!s}" for name in names)
        yield f"not as in {run}: {', '.join(told)}; the last bits may differ"
    for entry in sessions_of(environment):
        if changed := entry.get("changed"):
            told = (f"{name} {before} -> {after}" for name, (before, after) in changed.items())
            yield (
                f"{run} was gone on with at step {entry.get('step')} with {', '.join(told)}; "
                "the repetition has the later values from the beginning"
            )


def compared(run: Path, repeated: Path) -> str:
    """In a line, whether two runs ended with the same weights."""
    before, after = (folder / "model.safetensors" for folder in (run, repeated))
    if not before.is_file():
        return f"{run} has no model.safetensors to compare with"
    if before.read_bytes() == after.read_bytes():
        return f"the weights are those of {run}, bit for bit"
    try:
        theirs, ours = load(before).state_dict(), load(after).state_dict()
        largest = max(float((theirs[name] - ours[name]).abs().max()) for name in ours)
    except (KeyError, RuntimeError):
        return f"the weights are not those of {run}: the networks have other layers"
    return f"the weights are not those of {run}: they differ by up to {largest:.2g}"
