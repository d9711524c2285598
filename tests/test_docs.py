"""What the documents say about the code is so: names, tests, links and commands exist."""

import ast
import functools
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import alexnet
import alexnet.cli
from alexnet.config import override
from alexnet.networks import NETWORKS, find_network
from alexnet.recipes import RECIPES, find_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = Path(alexnet.__file__).parent
LEDGER = REPOSITORY / "docs" / "fidelity.md"
DOCUMENTS = sorted(path for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")))

# E.g. `layers.py:response_norm` or `config.py:OptimizerConfig.lr`. A place in the 2012 source has
# a line number instead.
SYMBOL = re.compile(r"`(\w+\.py):([A-Za-z_][\w.]*)`")
TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes, constants, and what classes have, as "name" or "Class.name"."""
    return frozenset(_names(ast.parse(path.read_text()).body))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
                yield from (f"{name}.{inner}" for inner in _names(node.body))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def found(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    return sorted(set(pattern.findall(LEDGER.read_text())))


@pytest.mark.parametrize(("file", "symbol"), found(SYMBOL))
def test_each_symbol_that_the_ledger_names_is_in_its_file(file: str, symbol: str) -> None:
    assert (PACKAGE / file).is_file(), file
    assert symbol in names_in(PACKAGE / file)


@pytest.mark.parametrize(("file", "test"), found(TEST))
def test_each_test_that_the_ledger_names_is_in_its_file(file: str, test: str) -> None:
    assert (REPOSITORY / file).is_file(), file
    assert test in names_in(REPOSITORY / file)


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_rows_of_a_table_have_the_cells_of_its_header() -> None:
    tables = re.split(r"\n(?!\|)", LEDGER.read_text())
    checked = 0
    for header, _, *rows in (rows_of(text) for text in tables if text.count("\n|") >= 2):
        for row in rows:
            assert len(row) == len(header), row
            assert all(row), f"an empty cell: {row}"
            checked += 1
    assert checked > 60


def test_the_22_findings_are_numbered_in_order() -> None:
    numbers = [int(row[0]) for row in rows_of(LEDGER.read_text()) if row[0].isdigit()]
    assert numbers == list(range(1, 23))


def test_the_ledger_goes_through_the_paper_from_data_to_discussion() -> None:
    sections = re.findall(r"^### Section ([\d.]+):", LEDGER.read_text(), re.MULTILINE)
    expected = ["2", "3.1", "3.2", "3.3", "3.4", "3.5", "4.1", "4.2", "5", "6", "6.1", "7"]
    assert sections == expected


def test_findings_that_the_ledger_refers_to_are_there() -> None:
    referred = {int(number) for number in re.findall(r"finding\s+(\d+)", LEDGER.read_text())}
    assert referred <= set(range(1, 23))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "extract",
    "index",
    "search",
    "serve",
    "convert",
    "export",
    "reproduce",
    "report",
    "describe",
    "prepare",
    "check",
    "bench",
)

# --- Commands -------------------------------------------------------------------------------------


def commands(path: Path) -> list[str]:
    """Lines of the document's shell blocks, without comments."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", path.read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip()]


def own_commands() -> list[str]:
    """Those of ours, without a pipe before or a redirection after them."""
    lines = [line for path in DOCUMENTS for line in commands(path)]
    found = [line.rpartition(" | ")[2].partition(" > ")[0] for line in lines]
    wanted = re.compile(r"^(?:\S*/)?alexnet\s")
    return sorted({line for line in found if wanted.match(line)})


@pytest.mark.parametrize("line", own_commands())
def test_each_command_of_the_documents_is_understood(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[dict[str, object]] = []
    for name in COMMANDS:
        monkeypatch.setattr(alexnet.cli, name, _noted(getattr(alexnet.cli, name), called))
    monkeypatch.setattr(sys, "argv", ["alexnet", *shlex.split(line, comments=True)[1:]])
    alexnet.cli.main()  # exits with code 2 where it does not understand
    (arguments,) = called
    if recipe := arguments.get("recipe"):
        find_recipe(str(recipe))
    for network in (arguments.get("network"), arguments.get("diff")):
        if network:
            find_network(str(network))
    for assignment in arguments.get("set_", ()):  # type: ignore[attr-defined]
        changed = override(find_recipe(str(recipe or "pictures")), assignment)
        find_network(changed.network.name)


def _noted(function: object, called: list[dict[str, object]]) -> object:
    """A stand-in with the same signature that only notes its arguments."""

    @functools.wraps(function)  # type: ignore[arg-type]
    def note(*positional: object, **named: object) -> None:
        signature = inspect.signature(function)  # type: ignore[arg-type]
        called.append(dict(signature.bind(*positional, **named).arguments))

    return note


def test_the_readme_shows_each_command() -> None:
    lines = commands(REPOSITORY / "README.md")
    shown = {line.split()[1] for line in lines if line.startswith("alexnet ")}
    assert shown == set(COMMANDS)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for path in DOCUMENTS:
        used = set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.M))
        assert used <= targets, path.name


def test_networks_and_recipes_that_the_readme_lists_exist() -> None:
    text = (REPOSITORY / "README.md").read_text()
    lists = "\n".join(re.findall(r"\*\*(?:Networks|Recipes)\*\*.*?\n\n", text, re.S))
    named = set(re.findall(r"`([a-z0-9-]+)`", lists))
    assert {"paper", "source"} < named <= set(NETWORKS) | set(RECIPES)
