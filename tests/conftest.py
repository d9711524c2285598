"""Fixtures and markers that every test file may use.

Tests marked `slow` or `gpu` run when asked for (-m slow, -m gpu), the latter where there is CUDA.
Real pictures are found through ALEXNET_TEST_DATA, a folder with imagenette.tar and cifar10.tar.gz;
a test that needs one which is not there is skipped, and says so.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from ranks import Crew

REPOSITORY = Path(__file__).resolve().parents[1]

# The same examples in every run, and no limit on their time: a test suite asserts no time.
settings.register_profile("alexnet", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("alexnet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """Path of a file of real pictures by its name, e.g. data_file("imagenette.tar")."""
    folder = Path(os.environ.get("ALEXNET_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"{path} is not there; ALEXNET_TEST_DATA names the folder of {name}")
        return path

    return find


@pytest.fixture(scope="session")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Four processes that work as ranks."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    crew = Crew(4)
    yield crew
    crew.stop()


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or writes the cache of whoever runs it."""
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def fixed_global_seed() -> Iterator[None]:
    """Whatever a test leaves to torch's global generator is the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
