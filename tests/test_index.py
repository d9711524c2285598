"""An index of pictures: made, stopped, added to, taken from, damaged, searched (Section 6.1)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet as package
import fabricate
from alexnet import approximate, indexing
from alexnet.errors import UserError
from alexnet.index import Index, open_index, verify_index
from alexnet.indexing import make_index, remove_pictures
from alexnet.model import build
from alexnet.retrieval import squares_of
from alexnet.searching import Pair, Searcher, Shelf, groups, near_duplicates
from alexnet.weights import save_model
from fabricate import alexnet, refusal
from test_extract import card_of
from test_retrieval import sorted_distances


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two models, loose and packed pictures, and an index of the packed training ones."""
    folder = tmp_path_factory.mktemp("index")
    for name, seed in (("run", 0), ("other", 1)):
        model = build("small", 3, torch.Generator().manual_seed(seed))
        save_model(folder / name / "model.safetensors", model, card_of())
    fabricate.pictures(folder / "pictures", per_class=12)
    done = alexnet(
        *("prepare", folder / "pictures", folder / "packed"),
        *("--image-px", "64", "--processes", "1"),
    )
    assert done.code == 0, done
    made = alexnet("index", folder / "run", folder / "packed" / "train", folder / "index")
    assert made.code == 0, made
    return folder


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "index", tmp_path / "index"))


def pixels_of(opened: Index) -> np.ndarray:
    shelf = Shelf(opened, 64)
    return np.stack([shelf.picture(row) for row in range(len(opened))])


def features_again(folder: Path, opened: Index) -> np.ndarray:
    """Of the pictures that the rows name, by the model itself."""
    return package.load(folder / "run").extract(list(pixels_of(opened)))


def test_rows_are_the_features_of_the_pictures_that_they_name(folder: Path) -> None:
    opened = open_index(folder / "index")
    split = package.dataset.open_packed(folder / "packed").splits["train"]
    assert list(opened.names()) == list(split.sources)
    np.testing.assert_array_equal(pixels_of(opened), split.images)
    np.testing.assert_allclose(
        np.asarray(opened.features[:]), features_again(folder, opened), rtol=1e-4, atol=1e-5
    )
    names = [fabricate.CLASSES[label] for label in split.labels]
    assert [opened.label(row) for row in range(len(opened))] == names
    np.testing.assert_allclose(opened.squares, squares_of(np.asarray(opened.features[:])))
    verify_index(opened)


def test_search_finds_a_picture_of_the_index_first(folder: Path, tmp_path: Path) -> None:
    path = sorted((folder / "pictures" / "red").iterdir())[0]
    alexnet("index", folder / "run", str(folder / "pictures"), tmp_path / "loose")
    said = alexnet("search", tmp_path / "loose", path, "--top", "3", "--json")
    assert said.code == 0, said
    (found,) = json.loads(said.out)
    assert found["path"] == str(path)
    assert found["nearest"][0]["name"] == str(path)
    assert found["nearest"][0]["class"] == "red"
    assert found["nearest"][0]["distance"] == pytest.approx(0, abs=1e-3)
    assert len(found["nearest"]) == 3


def test_a_figure_of_the_nearest_is_drawn(folder: Path, tmp_path: Path) -> None:
    query = sorted((folder / "pictures" / "red").iterdir())[0]
    said = alexnet(
        "search", folder / "index", query, "--top", "2", "--figure", tmp_path / "near.png"
    )
    assert said.code == 0, said
    assert Image.open(tmp_path / "near.png").width > 1000


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_exact_search_of_an_index_is_that_of_sorting_every_distance(
    folder: Path, tmp_path: Path, dtype: str
) -> None:
    made = alexnet("index", folder / "run", folder / "packed", tmp_path / "i", "--dtype", dtype)
    assert made.code == 0, made
    assert alexnet("index", folder / "run", folder / "packed", "x", "--remove").code == 2
    remove_pictures(tmp_path / "i", ["red"])
    opened = open_index(tmp_path / "i")
    everything = np.asarray(opened.features[:])
    assert everything.dtype == dtype
    queries = everything[::5].astype(np.float32) + 0.01
    found, distances = Searcher(opened).nearest(queries, 4)
    expected, away = sorted_distances(everything, queries, 4)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(distances, away)


def test_a_command_that_is_stopped_goes_on_to_the_same_index(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = package.load(folder / "run")
    arguments = (network, folder / "run" / "model.safetensors", str(folder / "packed" / "train"))
    whole = make_index(tmp_path / "whole", *arguments, batch_size=8).index
    monkeypatch.setattr(indexing, "NOTED_EVERY", 8)
    computed: list[int] = []

    def stop(_: str, done: int, __: int) -> None:
        computed.append(done)
        if len(computed) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_index(tmp_path / "index", *arguments, batch_size=8, progress=stop)
    with pytest.raises(UserError, match="no index"):
        open_index(tmp_path / "index")
    calls: list[int] = []
    vectors = network.vectors
    monkeypatch.setattr(network, "vectors", lambda *a, **k: calls.append(1) or vectors(*a, **k))
    again = make_index(tmp_path / "index", *arguments, batch_size=8).index
    assert len(calls) == -(-len(again) // 8) - 3
    for name in ("features.npy", "labels.npy", "names.txt", "places.npy", "squares.npy"):
        one, other = (i.path / "part-0" / name for i in (whole, again))
        assert one.read_bytes() == other.read_bytes(), name


def test_pictures_that_changed_meanwhile_are_not_mixed_with_older_ones(
    folder: Path, tmp_path: Path
) -> None:
    network = package.load(folder / "run")
    pictures = Path(shutil.copytree(folder / "pictures", tmp_path / "pictures"))
    arguments = (network, folder / "run" / "model.safetensors", str(pictures))

    def stop(_: str, done: int, __: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_index(tmp_path / "index", *arguments, batch_size=8, progress=stop)
    first = sorted((pictures / "blue").iterdir())[0]
    first.rename(first.with_name("renamed.png"))
    with pytest.raises(UserError, match="changed since"):
        make_index(tmp_path / "index", *arguments, batch_size=8)
    assert len(make_index(tmp_path / "index", *arguments, batch_size=8).index) == 48


def test_pictures_are_added_and_taken_away(folder: Path, index: Path) -> None:
    before = len(open_index(index))
    said = alexnet("index", folder / "run", folder / "packed" / "val", index, "--add", "--json")
    assert json.loads(said.out)["added"] == len(open_index(index)) - before > 0
    verify_index(open_index(index))
    added = open_index(index)
    np.testing.assert_allclose(
        np.asarray(added.features[:]), features_again(folder, added), rtol=1e-4, atol=1e-5
    )
    said = alexnet("index", folder / "run", "blue/*", index, "--remove", "--json")
    removed = json.loads(said.out)["removed"]
    after = open_index(index)
    assert len(after) == len(added) - removed
    assert removed > 0
    assert not [name for name in after.names() if name.startswith("blue/")]
    np.testing.assert_allclose(
        np.asarray(after.features[:]), features_again(folder, after), rtol=1e-4, atol=1e-5
    )


def test_pictures_that_are_there_are_not_added_twice(folder: Path, index: Path) -> None:
    said = alexnet("index", folder / "run", folder / "packed" / "train", index, "--add")
    assert said.code == 2
    assert f"are in {index} already" in said.err
    said = alexnet("index", folder / "run", folder / "packed", index, "--add", "--json")
    assert json.loads(said.out)["added"] == 4
    names = list(open_index(index).names())
    assert len(names) == len(set(names)) == 48


@pytest.mark.parametrize("name", ["codes-128", "ivfpq", "hnsw"])
def test_a_fast_search_follows_what_is_added_and_removed(
    folder: Path, index: Path, name: str
) -> None:
    if not name.startswith("codes"):
        pytest.importorskip("faiss")
    run, packed = folder / "run", folder / "packed"
    said = alexnet("index", run, packed / "train", index, "--fast", name, "--json")
    assert json.loads(said.out)["searches"] == ["exact", name]
    assert json.loads(said.out)["added"] == 0
    assert alexnet("index", run, packed / "val", index, "--add").code == 0
    assert alexnet("index", run, "grey", index, "--remove").code == 0
    opened = open_index(index)
    verify_index(opened)
    searcher = Searcher(opened, name)
    queries = np.asarray(opened.features[:], np.float32)
    found, _ = searcher.nearest(queries, 3)
    assert found.min() >= 0
    assert found.max() < len(opened)
    # Each picture of a colour of its own: neighbours are of the same, whichever way they are found.
    labels = np.array([opened.label(row) for row in range(len(opened))])
    assert (labels[found] == labels[:, None]).mean() > 0.9
    assert not [file for file in index.glob("*.faiss") if file.name != searcher.file.name]


def test_a_search_that_the_index_has_not_is_named(folder: Path) -> None:
    said = refusal("search", folder / "index", folder / "pictures", "--by", "hnsw")
    assert "has no search 'hnsw'" in said


def test_faiss_that_is_not_there_is_one_line(
    folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(approximate.importlib, "import_module", missing)
    said = refusal("index", folder / "run", folder / "packed/train", index, "--fast", "hnsw")
    assert "pip install 'alexnet[search]'" in said


def test_an_index_refuses_another_model(folder: Path, index: Path) -> None:
    query = sorted((folder / "pictures" / "red").iterdir())[0]
    said = refusal("search", index, query, "--model", folder / "other")
    assert "was made with another model" in said
    for flag in ("--add", "--remove"):
        said = refusal("index", folder / "other", folder / "packed" / "val", index, flag)
        assert "was made with another model" in said


def test_an_index_of_other_pictures_is_not_overwritten(folder: Path, index: Path) -> None:
    said = refusal("index", folder / "run", folder / "packed" / "val", index)
    assert "--add" in said
    (index.parent / "mine").mkdir()
    (index.parent / "mine" / "notes.txt").write_text("mine")
    said = refusal("index", folder / "run", folder / "packed/train", index.parent / "mine")
    assert "is no index" in said
    assert (index.parent / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "file", ["features.npy", "squares.npy", "labels.npy", "places.npy", "names.txt"]
)
def test_a_damaged_file_is_named(index: Path, file: str) -> None:
    path = index / "part-0" / file
    data = bytearray(path.read_bytes())
    data[-9] ^= 0x41
    path.write_bytes(bytes(data))
    assert f"{path} is damaged" in refusal("search", index, "--verify")
    path.write_bytes(bytes(data[: len(data) // 2]))
    assert f"{path} is damaged" in refusal("search", index, "--verify")


@pytest.mark.parametrize("text", ["", "[]", '{"format": "alexnet-index"}', "{" * 500])
def test_a_damaged_description_is_one_line(index: Path, text: str) -> None:
    (index / "index.json").write_text(text)
    assert "index.json" in refusal("search", index, "--verify") or "version" in refusal(
        "search", index, "--verify"
    )


def test_what_is_no_index_is_one_line(tmp_path: Path) -> None:
    assert "is no index" in refusal("search", tmp_path, "cat.jpg")
    assert "is no index" in refusal("search", tmp_path / "nothing", "cat.jpg")


def test_what_cannot_be_searched_for_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    said = refusal("search", folder / "index", tmp_path / "notes.jpg")
    assert "not a picture" in said
    assert "name pictures" in refusal("search", folder / "index")
    query = sorted((folder / "pictures" / "red").iterdir())[0]
    assert "neighbours asked of" in refusal("search", folder / "index", query, "--top", "1000")


def test_copies_are_found_as_duplicates(folder: Path, tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(folder / "pictures", tmp_path / "pictures"))
    original = sorted((pictures / "red").iterdir())[0]
    Image.open(original).save(pictures / "red" / "copy.bmp")
    alexnet("index", folder / "run", str(pictures), tmp_path / "index")
    said = alexnet("search", tmp_path / "index", "--duplicates", "--threshold", "1e-4", "--json")
    assert said.code == 0, said
    joined = json.loads(said.out)["groups"]
    assert sorted([str(original), str(pictures / "red" / "copy.bmp")]) in joined


def test_pairs_are_told_once_and_are_those_of_comparing_all(folder: Path) -> None:
    opened = open_index(folder / "index")
    everything = np.asarray(opened.features[:], np.float64)
    expected = set()
    for i, one in enumerate(everything):
        size = np.sqrt(np.square(one).sum() + np.square(everything).sum(1))
        away = np.linalg.norm(everything - one, axis=1) / size
        nearest = np.argsort(np.linalg.norm(everything - one, axis=1), kind="stable")[:9]
        expected |= {(min(i, j), max(i, j)) for j in nearest if j != i and away[j] <= 0.05}
    found = near_duplicates(Searcher(opened), 0.05)
    assert len(found) == len(expected)
    assert {(pair.first, pair.second) for pair in found} == expected
    assert [pair.distance for pair in found] == sorted(pair.distance for pair in found)


def test_pairs_join_into_groups() -> None:
    pairs = [Pair(1, 5, 0.0), Pair(2, 3, 0.0), Pair(5, 9, 0.1)]
    assert groups(pairs) == [[1, 5, 9], [2, 3]]


def test_two_commands_at_once_do_not_mix(folder: Path, index: Path) -> None:
    pytest.importorskip("fcntl")
    with indexing._locked(index):
        said = refusal("index", folder / "run", "*", index, "--remove")
    assert "another command is changing" in said
