"""Trained networks on the Hugging Face Hub: push one, with a card written from its run; load one.

    alexnet export runs/pictures hf:OWNER/NAME
    model = alexnet.from_hub("OWNER/NAME")

The repository holds model.safetensors, which is enough to predict, and README.md. Nothing is
pickled. The network is used only when a name with hf: is typed; the token is huggingface_hub's own.

Not here: files of other formats (`export.py`, `convert.py`).
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

from alexnet.errors import UserError
from alexnet.files import read_json, sha256_of
from alexnet.trained import TrainedAlexNet
from alexnet.weights import ModelCard, load, weights_file

PREFIX = "hf:"
WEIGHTS = "model.safetensors"


def from_hub(
    repo: str, *, revision: str | None = None, endpoint: str | None = None
) -> TrainedAlexNet:
    """Load OWNER/NAME, through huggingface_hub's cache. Raises UserError where that fails."""
    return load(download(repo, revision=revision, endpoint=endpoint))


def download(repo: str, *, revision: str | None = None, endpoint: str | None = None) -> Path:
    """The weights file of OWNER/NAME in huggingface_hub's cache."""
    hub, repo = _hub(), _checked(repo)
    try:
        found = hub.hf_hub_download(
            repo, WEIGHTS, revision=revision, endpoint=endpoint or _mirror()
        )
    # Of the network, the server, or the cache: each library has its own.
    except Exception as error:
        raise UserError(f"cannot fetch {WEIGHTS} of {repo}: {_reason(error)}") from None
    return Path(found)


def push(model: Path, repo: str, *, private: bool = False, endpoint: str | None = None) -> str:
    """Upload a run's weights and a card about them; returns the page. Raises UserError."""
    hub, repo = _hub(), _checked(repo)
    path = weights_file(model)
    card = load(path).card
    text = card_text(card, repo, sha256_of(path), _summary(path.parent))
    api = hub.HfApi(endpoint=endpoint or _mirror())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(WEIGHTS, str(path)),
            hub.CommitOperationAdd("README.md", text.encode()),
        ]
        done = api.create_commit(
            repo, operations, commit_message=f"{card.network}, trained on {card.dataset}"
        )
    except Exception as error:
        raise UserError(f"cannot push to {repo}: {_reason(error)}") from None
    return str(getattr(done, "repo_url", "") or f"https://huggingface.co/{repo}")


def _mirror() -> str | None:
    """HF_ENDPOINT, as it is now: huggingface_hub reads it when it is imported."""
    return os.environ.get("HF_ENDPOINT")


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError("the hub needs huggingface_hub: pip install 'alexnet[hub]'") from None


def _checked(repo: str) -> str:
    name = repo.removeprefix(PREFIX)
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{repo!r} is no name on the hub; it is OWNER/NAME")
    return name


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _summary(folder: Path) -> dict[str, Any]:
    """summary.json of the run, where there is one."""
    path = folder / "summary.json"
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def card_text(card: ModelCard, repo: str, sha256: str, summary: dict[str, Any]) -> str:
    """README.md for the hub: what it is, how well it does, how to use it, where it comes from."""
    front = {
        "library_name": "alexnet",
        "pipeline_tag": "image-classification",
        "tags": ["alexnet", f"network:{card.network}"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"]
    lines += [
        f"# {repo}",
        "",
        f"AlexNet (Krizhevsky, Sutskever and Hinton, 2012), network `{card.network}`, trained on "
        f"{card.dataset}: {card.num_classes:,} classes.",
        "",
        "```python",
        "import alexnet",
        "",
        f'model = alexnet.from_hub("{repo}")',
        'model.predict("cat.jpg").name',
        "```",
        "",
        f"The file holds the mean image, the class names and the protocol: pictures are scaled to "
        f"{card.preprocessing.image_px} pixels, the crop is {card.preprocessing.crop_px}.",
        "",
        *_results(summary),
        *_origin(card.origin),
        f"sha256 of {WEIGHTS}: `{sha256}`",
        "",
    ]
    return "\n".join(lines)


def _results(summary: dict[str, Any]) -> list[str]:
    rows = [
        f"| {e['split']} | {e['views']} | {e['top1_error']:.2%} | {e['top5_error']:.2%} | "
        f"{e['images']:,} |"
        for e in summary.get("evaluations", [])
    ]
    if not rows:
        return ["No evaluation of these weights is recorded.", ""]
    head = ["| split | views | top-1 error | top-5 error | pictures |", "|---|---:|---:|---:|---:|"]
    recipe, seed, steps = (summary.get(name) for name in ("recipe", "seed", "steps"))
    how = f"Recipe `{recipe}`, seed {seed}, {steps} steps."
    return [*head, *rows, "", how, ""]


def _origin(origin: dict[str, Any]) -> list[str]:
    if "fine_tuned_from" in origin:
        before = f"`{Path(origin['fine_tuned_from']).name}` (sha256 `{origin['sha256']}`)"
        return [f"Fine-tuned from {before}, trained on {origin['dataset']}.", ""]
    if "converted_from" in origin:
        before = f"`{origin['converted_from']}` (sha256 `{origin['sha256']}`)"
        return [f"Converted from {before}, {origin['form']}.", ""]
    return []
