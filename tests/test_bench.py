"""The benchmark of the loader: the same pictures for all, and peers that are missing are said."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fabricate
from alexnet.bench import OURS, PEERS, PEERS_FOLDER, bench_loader, wait_share
from alexnet.config import diff
from alexnet.dataset import PackedDataset
from alexnet.errors import UserError
from alexnet.files import cache_folder
from alexnet.pictures import encode_jpeg
from alexnet.recipes import find_recipe

QUICK = {"seconds": 0.05, "rounds": 2, "batch_size": 16, "workers": 1, "wait_seconds": 0.0}

# A peer that needs no package: it says what it was asked for, and counts as fast as it is told.
ANSWERS = """
import json, sys
print(json.dumps({"bytes_on_disk": 123, "versions": {"answers": sys.argv[1]}}), flush=True)
for line in sys.stdin:
    print(json.dumps({"crops": 700 * float(line), "seconds": float(line)}), flush=True)
"""
DIES_AT_ONCE = "raise ImportError('no module named nonesuch')"
DIES_WHEN_ASKED = """
print('{"bytes_on_disk": 1, "versions": {}}', flush=True)
input()
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    with fabricate.shared_cache(tmp_path_factory):
        return fabricate.shapes()


def scripts(folder: Path, **sources: str) -> Path:
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def test_every_loader_gets_a_rate_and_missing_peers_a_reason(
    dataset: PackedDataset, tmp_path: Path
) -> None:
    folder = scripts(
        tmp_path, imagefolder=ANSWERS, webdataset_peer=DIES_AT_ONCE, litdata_peer=DIES_WHEN_ASKED
    )
    peers = ("imagefolder", "webdataset", "litdata", "huggingface")
    result = bench_loader(dataset.path, peers=peers, peers_folder=folder, **QUICK)
    assert set(result["rates"]) == {*OURS, "imagefolder"}
    assert result["rates"]["imagefolder"] == pytest.approx(700)
    assert all(rate > 0 for rate in result["rates"].values()), result["rates"]
    for name, (low, high) in result["spread"].items():
        assert low <= result["rates"][name] <= high
    assert "no module named nonesuch" in result["missing"]["webdataset"]
    assert "ended while it was measured" in result["missing"]["litdata"]
    assert "is not there" in result["missing"]["huggingface"]
    assert result["bytes_on_disk"]["imagefolder"] == 123
    assert result["bytes_on_disk"]["alexnet-packed"] == 96 * 64 * 64 * 3
    assert Path(result["versions"]["answers"]).parent == cache_folder() / "bench"
    assert (result["pictures"], result["crop_px"], result["wait_share"]) == (96, 56, None)


def test_the_peers_jpegs_are_ours_by_class(
    dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path))
    bench_loader(dataset.path, peers=(), num_pictures=50, **QUICK)
    bench_loader(dataset.path, peers=("imagefolder-500x375",), num_pictures=50, **QUICK)
    split = dataset.splits["train"]
    [folder] = (tmp_path / "bench").iterdir()
    files = sorted((folder / "jpeg-256").rglob("*.jpg"), key=lambda path: path.stem)
    assert [int(path.parent.name) for path in files] == split.labels[:50].tolist()
    assert [path.read_bytes() for path in files] == [
        encode_jpeg(picture) for picture in np.asarray(split.images[:50])
    ]
    large = list((folder / "jpeg-500x375").rglob("*.jpg"))
    assert len(large) == 50
    assert {Image.open(path).size for path in large} == {(500, 375)}


def test_an_unknown_peer_is_named_and_too_few_pictures_are_refused(dataset: PackedDataset) -> None:
    with pytest.raises(UserError, match="no peer 'imagefoldr'; did you mean 'imagefolder'"):
        bench_loader(dataset.path, peers=("imagefoldr",))
    with pytest.raises(UserError, match="96 pictures are fewer than one batch of 128"):
        bench_loader(dataset.path, peers=())


def test_the_share_of_waiting_is_a_share(dataset: PackedDataset) -> None:
    recipe = diff(find_recipe("shapes"), optimizer={"batch_size": 8}, system={"device": "cpu"})
    assert 0 < wait_share(dataset, recipe, seconds=0.0) < 1


def test_every_peer_has_its_script() -> None:
    for script, _ in PEERS.values():
        assert (PEERS_FOLDER / script).is_file(), script


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_installed_can_be_measured(dataset: PackedDataset, name: str) -> None:
    result = bench_loader(dataset.path, peers=(name,), **QUICK)
    if name in result["missing"]:
        assert "No module named" in result["missing"][name], result["missing"]
        pytest.skip(f"{result['missing'][name]} ({sys.prefix})")
    assert result["rates"][name] > 0
    assert result["bytes_on_disk"][name] > 0
