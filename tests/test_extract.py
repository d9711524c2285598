"""`alexnet extract`: a layer's output for every picture, in a file that says what it is."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import alexnet as package
import fabricate
from alexnet.dataset import PackedDataset, open_packed
from alexnet.errors import UserError
from alexnet.extract import extract, read_features
from alexnet.files import sha256_of
from alexnet.model import build
from alexnet.networks import find_network
from alexnet.parallel import Ranks
from alexnet.retrieval import features
from alexnet.trained import feature_point
from alexnet.weights import save_model
from fabricate import CLASSES, alexnet, refusal
from ranks import Crew
from test_weights import card_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pets"
    model = build("small", 3, torch.Generator().manual_seed(3))
    save_model(folder / "model.safetensors", model, card_of())
    return folder


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate.pictures(tmp_path_factory.mktemp("loose") / "pictures", per_class=5)


@pytest.fixture(scope="module")
def packed(loose: Path) -> PackedDataset:
    target = loose.parent / "packed"
    assert alexnet("prepare", loose, target, "--image-px", "64", "--processes", "1").code == 0
    return open_packed(target)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_the_features_of_the_pictures_that_they_name(
    run: Path, packed: PackedDataset, tmp_path: Path, suffix: str, dtype: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"features{suffix}"
    flags = ("--out", out, "--layer", "conv5", "--dtype", dtype, "--batch-size", "3")
    finished = alexnet("extract", run, packed.path, *flags, "--json", "--device", "cpu")
    assert finished.code == 0, finished
    found = read_features(out)
    assert found.about == json.loads(finished.out) | {
        key: value for key, value in found.about.items() if key.endswith("_sha256")
    }
    splits = [packed.splits[name] for name in ("train", "val")]
    assert found.paths == tuple(name for split in splits for name in split.sources)
    assert found.splits == tuple(split.name for split in splits for _ in split.labels)
    np.testing.assert_array_equal(found.labels, np.concatenate([s.labels for s in splits]))
    assert found.class_names == packed.class_names
    model = package.load(run)
    expected = np.concatenate(
        [
            features(
                model,
                split,
                model.card.preprocessing,
                layer="conv5",
                batch_size=8,
                device="cpu",
            )
            for split in splits
        ]
    )
    assert found.vectors.dtype == dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-3
    np.testing.assert_allclose(
        found.vectors, expected, rtol=tolerance, atol=tolerance * expected.max()
    )
    assert found.about["model_sha256"] == sha256_of(run / "model.safetensors")
    maps = model.features(torch.zeros(1, 3, 56, 56), "conv5")
    assert found.about["shape"] == list(maps.shape[1:])


def extract_as_rank(ranks: Ranks, run: Path, data: Path, out: Path) -> None:
    model, weights = package.load(run), run / "model.safetensors"
    extract(model, str(data), out, model_path=weights, batch_size=4, group=ranks.everyone)


@pytest.mark.parametrize("source", ["packed", "loose"])
def test_ranks_write_the_file_that_one_writes(
    crew: Crew, run: Path, packed: PackedDataset, loose: Path, tmp_path: Path, source: str
) -> None:
    data = packed.path if source == "packed" else loose
    extract_as_rank(Ranks(), run, data, tmp_path / "one.npy")
    crew.run(extract_as_rank, run, data, tmp_path / "four.npy", size=4)
    one, four = (read_features(tmp_path / f"{name}.npy") for name in ("one", "four"))
    np.testing.assert_array_equal(four.vectors, one.vectors)
    assert (four.paths, four.about["rows"]) == (one.paths, one.about["rows"])


def test_a_folder_of_pictures_needs_no_preparation(
    run: Path, loose: Path, packed: PackedDataset, tmp_path: Path
) -> None:
    (loose / "red" / "broken.png").write_bytes(b"nothing")
    for data, out in ((str(loose), "loose.npy"), (str(packed.path), "packed.npy")):
        assert alexnet("extract", run, data, "--out", tmp_path / out).code == 0
    found, other = read_features(tmp_path / "loose.npy"), read_features(tmp_path / "packed.npy")
    assert found.class_names == CLASSES
    left_out = found.about["left_out"]
    assert [entry["path"] for entry in left_out] == [str(loose / "red" / "broken.png")]
    (loose / "red" / "broken.png").unlink()
    by_name = {path: row for row, path in enumerate(other.paths)}
    for row, path in enumerate(found.paths):
        class_name, name = Path(path).parts[-2:]
        assert found.class_names[found.labels[row]] == class_name
        expected = other.vectors[by_name[f"{class_name}/{name}"]]
        np.testing.assert_allclose(found.vectors[row], expected, rtol=1e-4, atol=1e-4)


def test_a_split_and_pictures_without_classes_can_be_named(
    run: Path, packed: PackedDataset, loose: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.npy"
    for command in ((packed.path / "val",), (packed.path, "--split", "val")):
        assert alexnet("extract", run, *command, "--out", out).code == 0
        assert read_features(out).paths == tuple(packed.splits["val"].sources)
    assert alexnet("extract", run, f"{loose}/*/*.png", "--out", out).code == 0
    found = read_features(out)
    assert (found.labels == -1).all()
    assert found.class_names == ()
    with open(tmp_path / "a.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(found.paths)


def test_the_file_says_where_in_the_layer_its_numbers_were_taken(
    run: Path, packed: PackedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "a.npy"
    said = {}
    for flags in ((), ("--before-relu",), ("--layer", "fc8")):
        assert alexnet("extract", run, packed.path, "--out", out, *flags).code == 0
        found = read_features(out)
        said[flags] = found.about["taken"]
        if not flags:
            assert found.about["layer"] == "fc7"
            assert found.vectors.min() == 0
        else:
            assert found.vectors.min() < 0
    assert said == {
        (): "after the relu",
        ("--before-relu",): "before the relu: linear output",
        ("--layer", "fc8"): "linear output; no nonlinearity follows",
    }


def test_in_source_the_relu_of_conv1_comes_after_norm_and_pool() -> None:
    network = find_network("source")
    assert feature_point(network.layer("conv1"), False) == {
        "taken": "after the relu",
        "steps": ["ResponseNorm", "Pool", "relu"],
    }
    assert feature_point(network.layer("conv2"), False)["steps"] == ["relu"]


def test_what_cannot_be_extracted_is_a_line_and_leaves_no_file(
    run: Path, packed: PackedDataset, loose: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "a.npy")
    assert "no layer 'fc9'; did you mean 'fc" in refusal(
        "extract", run, loose, *out, "--layer", "fc9"
    )
    assert ".npy or a .parquet" in refusal("extract", run, loose, "--out", tmp_path / "a.csv")
    assert "no split 'test'" in refusal("extract", run, packed.path, *out, "--split", "test")
    assert "no data set, folder or picture" in refusal("extract", run, "nowhere", *out)
    assert "did you mean 'shapes'" in refusal("extract", run, "shape", *out)
    assert "is a run" in refusal("extract", run, fabricated_run(tmp_path), *out)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"x")
    assert "none of the pictures" in refusal("extract", run, tmp_path / "bad", *out)
    other = tmp_path / "packed-40"
    assert alexnet("prepare", loose, other, "--image-px", "40", "--processes", "1").code == 0
    assert "is packed at 40 px" in refusal("extract", run, other, *out)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"bad", "packed-40", "run"}


def fabricated_run(folder: Path) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "recipe.json").write_text("{}")
    return folder / "run"


def test_stopped_extraction_leaves_what_was_there(
    run: Path, packed: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.npy"
    assert alexnet("extract", run, packed.path, "--out", out).code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def stop(self: object, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("alexnet.extract.NpyWriter.add", stop)
    finished = alexnet("extract", run, packed.path, "--out", out, "--batch-size", "4")
    assert finished.code == 130
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_that_do_not_belong_together_are_told_apart(
    run: Path, packed: PackedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "a.npy"
    assert alexnet("extract", run, packed.path, "--out", out).code == 0
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("a.csv", "a.json", "a.npy"):
        path = tmp_path / name
        path.write_bytes(whole[path][: len(whole[path]) // 2])
        with pytest.raises(UserError, match="damaged"):
            read_features(out)
        path.write_bytes(whole[path])
    assert len(read_features(out).paths) == 20
    with pytest.raises(UserError, match="is not there"):
        read_features(tmp_path / "b.npy")


def test_features_too_large_for_half_precision_are_not_written(
    packed: PackedDataset, tmp_path: Path
) -> None:
    model = build("small", 3)
    with torch.no_grad():
        model.get_parameter("fc7.bias").fill_(1e6)
    save_model(tmp_path / "model.safetensors", model, card_of())
    flags = ("--out", tmp_path / "a.npy", "--dtype", "float16")
    assert "too large for float16" in refusal("extract", tmp_path, packed.path, *flags)
    assert not (tmp_path / "a.npy").exists()
