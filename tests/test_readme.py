"""The README's own command lines, as they are written there, on a small net trained here."""

import contextlib
import io
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import caffe_files
import fabricate
from alexnet.extract import read_features
from alexnet.files import read_json
from alexnet.weights import load
from fabricate import Finished, alexnet
from test_convert import CAFFE, weights_of
from test_docs import REPOSITORY, commands
from zoo import photograph

README = REPOSITORY / "README.md"


def lines_of(command: str, containing: str = "") -> list[str]:
    """The README's lines of a command, without their comments."""
    found = [line.partition("#")[0].strip() for line in commands(README)]
    return [line for line in found if line.startswith(f"alexnet {command}") and containing in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("readme") / "run"
    with fabricate.shared_cache(tmp_path_factory):
        flags = ("--max-steps", "20", "--set", "evaluate.views=1")
        assert alexnet(*fabricate.SHAPES, "--run", run, *flags).code == 0
    return run


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the README's lines name."""
    for name in ("a", "pictures"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    fabricate.pictures(tmp_path / "DATA", per_class=4)
    (tmp_path / "holidays").mkdir()
    for seed, name in enumerate(("cat.jpg", "holidays/sea.jpg", "holidays/hills.png")):
        photograph(seed=seed).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, *more: str) -> Finished:
    finished = alexnet(*shlex.split(line)[1:], *more)
    assert finished.code == 0, (line, finished)
    return finished


def test_predict(home: Path) -> None:
    (line,) = lines_of("predict")
    said = run(line).out
    for name in ("cat.jpg", "holidays/hills.png", "holidays/sea.jpg"):
        assert name in said
    found = json.loads(run(line, "--json", "--views", "10").out)
    assert [len(entry["top5"]) for entry in found] == [4, 4, 4]  # of four shapes
    assert run(line, "--csv").out.startswith("path,class_1,")


def test_extract(home: Path) -> None:
    pytest.importorskip("pyarrow")
    (line,) = lines_of("extract")
    run(line)
    found = read_features(home / "features.parquet")
    assert found.vectors.shape == (16, 256)
    assert set(found.class_names) == set(fabricate.CLASSES)


def test_index_and_search(home: Path) -> None:
    (index,), (search,) = lines_of("index"), lines_of("search")
    run(index)
    found = json.loads(run(search, "--json").out)
    assert len(found[0]["nearest"]) == 6
    known = sorted((home / "DATA" / "blue").iterdir())[0]
    again = json.loads(run(search.replace("cat.jpg", str(known)), "--json").out)
    nearest = again[0]["nearest"][0]
    assert (nearest["class"], nearest["distance"]) == ("blue", pytest.approx(0.0, abs=1e-3))


def test_evaluate(home: Path) -> None:
    shutil.copytree(home / "runs" / "a", home / "runs" / "b")
    (line,) = lines_of("evaluate")
    found = json.loads(run(line, "--json").out)
    counts = ("images", "top1_wrong", "top5_wrong")
    one, other, average = ([e[n] for n in counts] for e in (*found["runs"], found["ensemble"]))
    assert one == other == average  # of a network and itself
    assert one[0] == 24
    assert found["views"] == 10


@pytest.mark.slow
def test_all_of_it_on_a_network_that_knows_imagenette(
    data_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained for three epochs on 64 pixels; fine-tuned to four of CIFAR-10's classes."""
    with tarfile.open(data_file("imagenette.tar")) as tar:
        tar.extractall(tmp_path / "imagenette", filter="data")
    chosen = ("airplane", "cat", "frog", "ship")
    with tarfile.open(data_file("cifar10.tar.gz")) as tar:
        files = [m for m in tar if m.isfile() and Path(m.name).parent.name in chosen]
        for member in files[::10]:
            tar.extract(member, tmp_path / "cifar", filter="data")
    monkeypatch.chdir(tmp_path)
    run(f"alexnet prepare {tmp_path / 'imagenette'} nette --image-px 64")
    run(
        "alexnet train nette --recipe shapes --run runs/a --epochs 3 --set data.image_px=64"
        " --set evaluate.views=1 --device cpu"
    )
    held_out = sorted((tmp_path / "imagenette" / "val").rglob("*.JPEG"))
    pictures = held_out[:: len(held_out) // 100]
    (tmp_path / "holidays").mkdir()
    for number, path in enumerate(pictures):
        shutil.copy(path, tmp_path / "holidays" / f"{path.parent.name}_{number}.jpg")
    shutil.copy(pictures[0], tmp_path / "cat.jpg")

    card = load("runs/a").card
    name_of = dict(zip(card.class_ids, card.class_names, strict=True))
    (line,) = lines_of("predict")
    right = []
    for views in ("1", "10"):
        found = json.loads(run(line, "--json", "--views", views).out)
        own = [entry for entry in found if "holidays" in entry["path"]]
        right.append(sum(e["top5"][0]["class"] == name_of[Path(e["path"]).name[:9]] for e in own))
    assert min(right) > len(pictures) / 3, right  # one in ten by chance

    (line,) = lines_of("extract")
    run(line.replace("DATA", "nette/val"))
    assert read_features(tmp_path / "features.parquet").vectors.shape == (len(held_out), 256)

    (index,), (search,) = lines_of("index"), lines_of("search")
    run(index.replace("DATA", "nette/train"))
    folder = search.replace("cat.jpg", "holidays")
    same = [
        near["class"] == name_of[Path(entry["path"]).name[:9]]
        for entry in json.loads(run(folder, "--json").out)
        for near in entry["nearest"]
    ]
    assert np.mean(same) > 0.25  # one in ten by chance

    (line,) = lines_of("train", "--from")
    line = line.replace("DATA", str(tmp_path / "cifar")).replace("runs/pictures", "runs/a")
    run(line, "--epochs", "2", "--batch-size", "32", "--no-report", "--device", "cpu")
    tuned = read_json(tmp_path / "runs" / "finetune" / "summary.json")
    (error,) = {e["top1_error"] for e in tuned["evaluations"] if e["views"] == 1}
    assert error < 0.6  # three in four by chance


def test_fine_tune(home: Path) -> None:
    (line,) = lines_of("train", "--from")
    run(line, "--epochs", "1", "--batch-size", "4", "--no-report", "--device", "cpu")
    model = load(home / "runs" / "finetune")
    assert model.card.class_ids == fabricate.CLASSES
    assert model.card.origin["new"] == ["fc8"]
    assert read_json(home / "runs" / "finetune" / "recipe.json")["name"] == "finetune"


def test_export(home: Path) -> None:
    pytest.importorskip("onnxruntime")
    (line,) = lines_of("export", "net.onnx")
    assert "differ from the network's by at most" in run(line).out
    assert (home / "net.onnx").stat().st_size > 1e6


@pytest.mark.slow
def test_convert(home: Path) -> None:
    (line,) = lines_of("convert")
    weights = weights_of(CAFFE, 1000)
    layers = caffe_files.alexnet_layers(weights, pool_first=False)
    (home / "bvlc_alexnet.caffemodel").write_bytes(caffe_files.net(layers))
    mean = np.full((1, 3, 256, 256), 110, np.float32)
    (home / "imagenet_mean.binaryproto").write_bytes(caffe_files.blob(mean, old=True))
    assert "network caffe, 1,000 classes" in run(line).out
    assert load(home / "caffe.safetensors").num_classes == 1000


def test_the_python_of_the_readme_runs(home: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, str(README), "exec"), {})
    assert said.getvalue().count("%") == 4
