"""`alexnet predict` and `model.predict`: any pictures in, labels out, prepared in the one way."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet as package
from alexnet.augment import centre_view, ten_views
from alexnet.errors import UserError
from alexnet.gather import picture_paths, read_pictures
from alexnet.images import read_image, resize_and_crop
from alexnet.model import build
from alexnet.trained import TrainedAlexNet
from alexnet.weights import save_model
from fabricate import Finished, alexnet, refusal
from test_weights import card_of
from zoo import encoded, photograph


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pets"
    model = build("small", 3, torch.Generator().manual_seed(3))
    save_model(folder / "model.safetensors", model, card_of())
    return folder


@pytest.fixture
def model(run: Path) -> TrainedAlexNet:
    return package.load(run)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep" / "er").mkdir(parents=True)
    names = ("a.jpg", "b.png", "deep/c.JPG", "deep/er/d.webp", "e.bmp")
    for seed, name in enumerate(names):
        photograph(90 + 20 * seed, 80, seed).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


def said(finished: Finished) -> list[dict[str, object]]:
    assert finished.code == 0, finished
    found: list[dict[str, object]] = json.loads(finished.out)
    return found


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_are_those_of_the_parts_called_by_hand(
    model: TrainedAlexNet, pictures: Path, views: int
) -> None:
    preprocessing = model.card.preprocessing
    pixels = resize_and_crop(read_image(pictures / "a.jpg"), preprocessing.image_px)
    make_views = centre_view if views == 1 else ten_views
    crops = make_views(torch.from_numpy(pixels)[None], preprocessing).flatten(0, -4)
    with torch.inference_mode():
        expected = model(crops).softmax(1).mean(0).numpy()
    found = model.predict(pictures / "a.jpg", views=views)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-6)
    order = np.argsort(-expected, kind="stable")
    assert [guess.label for guess in found.top] == order.tolist()
    assert found.name == model.card.class_names[order[0]]
    assert found.top[0].class_id == model.card.class_ids[order[0]]
    assert found.probability == pytest.approx(expected.max())


def test_a_picture_is_the_same_as_path_text_bytes_pillow_and_pixels(
    model: TrainedAlexNet, pictures: Path
) -> None:
    path = pictures / "b.png"
    expected = model.predict(path).probabilities
    image = Image.open(path)
    for picture in (str(path), path.read_bytes(), image, np.asarray(image)):
        np.testing.assert_array_equal(model.predict(picture).probabilities, expected)
    several = model.predict([path, pictures / "a.jpg", path])
    assert isinstance(several, list)
    for found in (several[0], several[2]):
        np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    assert model.predict([]) == []


def test_the_top_is_as_long_as_asked_or_as_there_are_classes(
    model: TrainedAlexNet, pictures: Path
) -> None:
    assert len(model.predict(pictures / "a.jpg").top) == 3
    assert len(model.predict(pictures / "a.jpg", top=2).top) == 2
    with pytest.raises(UserError, match="top is 0"):
        model.predict(pictures / "a.jpg", top=0)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "the picture cannot be read: empty file"),
        (b"hello", "not a picture in a known format"),
        ("nowhere.jpg", "nowhere.jpg cannot be read: No such file"),
        (np.zeros((4, 4, 4), np.uint8), r"pixels are uint8 \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "not float32"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(
    model: TrainedAlexNet, picture: object, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        model.predict(picture)  # type: ignore[call-overload]


def test_a_network_in_training_mode_does_not_predict(model: TrainedAlexNet, pictures: Path) -> None:
    with pytest.raises(UserError, match="training mode"):
        model.train().predict(pictures / "a.jpg")


def test_features_of_a_picture_are_those_of_its_centre_view(
    model: TrainedAlexNet, pictures: Path
) -> None:
    pixels = torch.from_numpy(model.prepared(pictures / "a.jpg"))[None]
    with torch.inference_mode():
        crops = centre_view(pixels, model.card.preprocessing)
        for layer in (None, "conv2"):
            for before in (False, True):
                expected = model.features(crops, layer, before_relu=before).flatten()
                found = model.extract(pictures / "a.jpg", layer, before_relu=before)
                np.testing.assert_array_equal(found, expected.numpy())
    assert model.extract([pictures / "a.jpg"] * 2).shape == (2, 256)


# --- Which files are meant ------------------------------------------------------------------------


def test_files_folders_patterns_and_a_pipe_name_pictures(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    below = ["a.jpg", "b.png", "e.bmp", "deep/c.JPG", "deep/er/d.webp"]
    assert list(picture_paths(["pictures"])) == [f"pictures/{name}" for name in below]
    assert list(picture_paths(["pictures/*"])) == [f"pictures/{n}" for n in below[:3]]
    assert list(picture_paths(["pictures/**/*.JPG"])) == ["pictures/deep/c.JPG"]
    assert list(picture_paths(["pictures/*.txt"])) == ["pictures/notes.txt"]
    assert list(picture_paths(["nowhere.jpg", "pictures/notes.txt"])) == [
        "nowhere.jpg",
        "pictures/notes.txt",
    ]
    piped = io.BytesIO(b"a b.jpg\r\n\ncaf\xe9.jpg\nlast.png")
    assert list(picture_paths(["-"], piped)) == ["a b.jpg", os.fsdecode(b"caf\xe9.jpg"), "last.png"]


def test_a_name_with_a_star_in_it_is_a_name_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a*.jpg", "ab.jpg"):
        photograph().save(name)
    assert list(picture_paths(["a*.jpg"])) == ["a*.jpg"]


def test_nothing_where_something_was_named_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures in"):
        list(picture_paths([str(tmp_path)]))
    with pytest.raises(UserError, match="no file matches"):
        list(picture_paths([str(tmp_path / "*.jpg")]))


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_pictures_come_in_order_whatever_the_batch(pictures: Path, batch_size: int) -> None:
    paths = [*picture_paths([str(pictures)]), "nowhere", "zero\0byte", str(pictures / "notes.txt")]
    blocks = list(read_pictures(paths, 32, batch_size=batch_size, threads=3))
    assert [path for block in blocks for path in block.paths] == paths
    assert [path for block in blocks for path in block.readable] == paths[:5]
    assert [path for block in blocks for path, _ in block.refused] == paths[5:]
    pixels = np.concatenate([block.pixels for block in blocks])
    expected = [resize_and_crop(read_image(Path(path)), 32) for path in paths[:5]]
    np.testing.assert_array_equal(pixels, np.stack(expected))


# --- The command ----------------------------------------------------------------------------------


def test_the_json_is_what_the_issue_asks_for(
    run: Path, model: TrainedAlexNet, pictures: Path
) -> None:
    found = said(alexnet("predict", run, pictures, "--json", "--device", "cpu"))
    assert [entry["path"] for entry in found] == list(picture_paths([str(pictures)]))
    for entry in found:
        assert entry.keys() == {"path", "top5"}
        guesses = model.predict(str(entry["path"])).top
        assert [guess["class"] for guess in entry["top5"]] == [g.name for g in guesses]  # type: ignore[index, attr-defined]
        probabilities = [guess["probability"] for guess in entry["top5"]]  # type: ignore[index, attr-defined]
        np.testing.assert_allclose(probabilities, [g.probability for g in guesses], rtol=1e-4)


def test_batches_views_and_the_form_of_the_output_change_no_guess(
    run: Path, pictures: Path
) -> None:
    weights = run / "model.safetensors"
    flags = ("--views", "10", "--top", "2", "--device", "cpu")
    found = said(alexnet("predict", weights, pictures, *flags, "--batch-size", "7", "--json"))
    other = said(alexnet("predict", weights, pictures, *flags, "--json"))
    table = alexnet("predict", weights, pictures, *flags, "--csv")
    rows = list(csv.DictReader(io.StringIO(table.out)))
    assert table.out.splitlines()[0] == "path,class_1,probability_1,class_2,probability_2,error"
    for entry, same, row in zip(found, other, rows, strict=True):
        assert entry["path"] == same["path"] == row["path"]
        for rank, (guess, again) in enumerate(zip(entry["top2"], same["top2"], strict=True), 1):  # type: ignore[call-overload]
            assert guess["class"] == again["class"] == row[f"class_{rank}"]
            assert guess["probability"] == pytest.approx(again["probability"], rel=1e-4)
            assert float(row[f"probability_{rank}"]) == pytest.approx(
                guess["probability"], rel=1e-4
            )
    text = alexnet("predict", weights, pictures, *flags).out
    assert text.count("%") == 2 * len(rows)
    assert str(pictures / "a.jpg") in text


def test_what_cannot_be_read_is_named_and_the_rest_predicted(run: Path, pictures: Path) -> None:
    (pictures / "a.jpg").write_bytes(encoded(photograph(), "JPEG")[:3000])
    names = (str(pictures), "nowhere.jpg", str(pictures / "notes.txt"))
    finished = alexnet("predict", run, *names, "--json")
    found = said(finished)
    assert len(found) == 7
    broken = {entry["path"]: entry["error"] for entry in found if "error" in entry}
    assert list(broken) == [str(pictures / "a.jpg"), *names[1:]]
    assert broken["nowhere.jpg"] == "it is not there"
    assert finished.err.count("\n") == 1
    assert "3 of 7 pictures could not be read" in finished.err
    assert "3 of 7" in refusal("predict", run, *names, "--strict")
    assert "cannot be read" in alexnet("predict", run, *names).out
    rows = list(csv.DictReader(io.StringIO(alexnet("predict", run, *names, "--csv").out)))
    assert [row["path"] for row in rows if row["error"]] == list(broken)


def test_it_is_a_mistake_when_nothing_could_be_read(run: Path, pictures: Path) -> None:
    text = pictures / "notes.txt"
    assert f"1 of 1 pictures could not be read: {text}: not a picture" in refusal(
        "predict", run, text
    )
    assert "name pictures" in refusal("predict", run)
    assert "--json or --csv" in refusal("predict", run, text, "--json", "--csv")
    assert "11 views" in refusal("predict", run, text, "--views", "11")
    assert "top is 0" in refusal("predict", run, text, "--top", "0")
    assert "batch size is 0" in refusal("predict", run, text, "--batch-size", "0")
    assert "is not there" in refusal("predict", pictures / "none", text)
    assert "is damaged" in refusal("predict", text, text)


def test_paths_come_from_a_pipe(run: Path, pictures: Path) -> None:
    paths = list(picture_paths([str(pictures)]))
    piped = io.TextIOWrapper(io.BytesIO("\n".join(paths).encode()))
    with mock.patch.object(sys, "stdin", piped):
        found = said(alexnet("predict", run, "-", "--json"))
    assert [entry["path"] for entry in found] == paths
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""))):
        assert said(alexnet("predict", run, "-", "--json")) == []


def test_names_that_are_not_utf_8_leave_as_they_came(run: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        photograph().save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    for form in ("--csv", "--json"):
        command = [sys.executable, "-m", "alexnet", "predict", str(run), str(tmp_path), form]
        out = subprocess.run(command, capture_output=True, check=True).stdout
        if form == "--json":
            assert json.loads(out)[0]["path"] == str(tmp_path / name)
        else:
            assert os.fsencode(tmp_path / name) in out
