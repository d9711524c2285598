"""The page about a run: what it tells, that it stands alone, and what it does with what is missing.

One real training of two steps, on pictures whose class names are hard on a page, serves all tests.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import inside, page
from alexnet.errors import UserError
from alexnet.files import write_json
from alexnet.findings import (
    choose_queries,
    choose_right_and_wrong,
    confusion,
    guessed_classes,
    headline_result,
    results,
)
from alexnet.inside import colours, excitement
from alexnet.material import gather, read_run
from alexnet.metrics import count_errors
from alexnet.predictions import Predictions
from alexnet.report import write_report
from fabricate import FOLDER, alexnet, flip_bit, pictures

NAMES = ("<b>bold</b>", 'a "b" & c', "it's, also this", "plain", "r\u00e9sum\u00e9", "x" * 60)
FIGURES = {
    "learning-curves",
    "conv1-kernels",
    "conv1-colours",
    "exciting-pictures",
    "guesses",
    "occlusion",
    "neighbours",
    "reliability",
    "class-errors",
    "confusion-matrix",
}
STORY = (
    "Results",
    "Learning",
    "What the first layer looks for",
    "Light and dark, or colour",
    "What excites its units",
    "What it says of pictures that it has not seen",
    "Where the label lies",
    "What it finds alike",
    "How sure it is",
    "Errors by class",
    "What it takes for what",
    "Settings",
    "How it was made",
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page taken apart: its elements, its words, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += " ".join(data.split("\n")) if self.open[-1:] == ["text"] else data

    def attributes(self, name: str) -> Iterator[str]:
        return (values[name] for _, values in self.elements if name in values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    source = folder / "source"
    for label, name in enumerate(pictures(source, tuple("abcdef"), per_class=10).iterdir()):
        name.rename(source / f"class {label}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_CACHE", str(folder / "cache"))
        run = folder / "run"
        finished = alexnet(*FOLDER, str(source), "--run", str(run))
        assert finished.code == 0, finished
    rename_classes(run)
    return run


def rename_classes(run: Path) -> None:
    """Give the classes NAMES in the predictions and in the packed data set."""
    packed = Path(json.loads((run / "environment.json").read_text())["data_path"])
    described = json.loads((packed / "dataset.json").read_text())
    write_json(packed / "dataset.json", {**described, "class_names": NAMES})
    for file in run.glob("predictions_*.npz"):
        replace(Predictions.load(file), class_names=NAMES).save(file)


@pytest.fixture(scope="module")
def reported(trained: Path) -> Path:
    assert write_report(trained) == trained / "report.html"
    return trained


@pytest.fixture(scope="module")
def whole(reported: Path) -> Page:
    return Page(reported / "report.html")


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The run without its report, to be spoilt."""
    ignored = shutil.ignore_patterns("report.html", "figures", "checkpoints", "tensorboard")
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=ignored))


def bare(folder: Path, **files: Any) -> Path:
    """A run of the JSON files given."""
    folder.mkdir(exist_ok=True)
    for name, content in {"recipe": {}, **files}.items():
        write_json(folder / f"{name}.json", content)
    return folder


# The whole page


def test_the_page_tells_its_story_in_order(whole: Page) -> None:
    places = [whole.text.index(kicker) for kicker in STORY]
    assert places == sorted(places)
    assert [tag for tag, _ in whole.elements].count("h1") == 1


def test_the_headline_names_network_data_error_views_and_pictures(
    reported: Path, whole: Page
) -> None:
    predictions = read_run(reported).predictions["val", 10]
    count = count_errors(predictions.probabilities, predictions.labels)
    error = f"{100 * count.top1_wrong / count.images:.1f} %"
    headline = f"{error} top-1 error, ten views, on {count.images} unseen pictures"
    assert f"small on {read_run(reported).dataset}: {headline}" in whole.text


def test_the_page_loads_nothing_and_runs_nothing(reported: Path, whole: Page) -> None:
    tags = {tag for tag, _ in whole.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed"}
    assert all(source.startswith("data:image/") for source in whole.attributes("src"))
    references = [*whole.attributes("href"), *whole.attributes("xlink:href")]
    assert all(reference.startswith("#") for reference in references), references
    text = (reported / "report.html").read_text()
    assert "@import" not in text
    assert "default-src 'none'" in text
    urls = [word for word in text.split('"') if urlparse(word).scheme in ("http", "https")]
    assert {url for url in urls if not url.startswith("http://www.w3.org/")} == set()


def test_no_two_elements_share_an_id(whole: Page) -> None:
    repeated = [name for name, count in Counter(whole.attributes("id")).items() if count > 1]
    assert not repeated


def test_every_picture_says_what_it_shows(whole: Page) -> None:
    images = [values for tag, values in whole.elements if tag == "img"]
    assert len(images) > 30
    assert all(values["alt"] for values in images)


def test_class_names_stand_on_the_page_as_they_are(reported: Path, whole: Page) -> None:
    assert "<b>" not in (reported / "report.html").read_text()
    assert set(NAMES) <= set(whole.attributes("title"))  # the whole name of what may be cut
    for name in ("<b>bold</b>", 'a "b" & c', "it's", "r\u00e9sum\u00e9"):
        assert name in whole.text


def test_the_page_and_its_figures_are_small_files(reported: Path) -> None:
    assert (reported / "report.html").stat().st_size < 4_000_000
    figures = {path.name: path.stat().st_size for path in (reported / "figures").iterdir()}
    assert set(figures) == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    assert max(figures.values()) < 3_000_000


def test_a_second_report_is_the_same_and_tells_how_far_the_search_is(reported: Path) -> None:
    first = (reported / "report.html").read_text()
    told: list[tuple[int, int]] = []
    write_report(reported, progress=lambda done, total: told.append((done, total)))
    assert (reported / "report.html").read_text() == first
    assert told[-1] == (54, 54)  # the training pictures


def test_settings_are_told_as_differences(whole: Page) -> None:
    assert "settings changed" in whole.text
    cells = [*whole.text.split("\n")]
    assert any("optimizer.batch_size" in cell and "16" in cell for cell in cells)


# What is missing


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as refused:
        write_report(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "empty" / "report.html").exists()


def test_a_run_of_nothing_but_a_recipe_has_a_page_that_says_what_is_missing(
    tmp_path: Path,
) -> None:
    text = Page(write_report(bare(tmp_path / "run"))).text
    for line in (
        "Training has not ended: the log stops at step 0.",
        "No predictions are saved",
        "The log holds no training steps.",
        "There is no model.safetensors yet",
        "environment.json is not there",
    ):
        assert line in text
    assert not (tmp_path / "run" / "figures").exists()


def test_a_log_whose_last_line_was_cut_short_is_read_up_to_it(tmp_path: Path) -> None:
    run = bare(tmp_path / "run")
    step = json.dumps({"event": "step", "step": 3, "epoch": 0.5, "loss": 2.0, "lr": 0.01})
    (run / "log.jsonl").write_text(f'{step}\n["no event"]\n{{"event": "st')
    assert [event["step"] for event in read_run(run).events] == [3]


@pytest.mark.parametrize(
    ("file", "key", "line"),
    [
        ("model.safetensors", "model", "There is no model.safetensors yet"),
        ("environment.json", "data", "environment.json does not say where the data set is"),
    ],
)
def test_a_missing_file_leaves_a_line(copied: Path, file: str, key: str, line: str) -> None:
    (copied / file).unlink()
    assert gather(read_run(copied), None).why[key].startswith(line)


@pytest.mark.parametrize("file", ["recipe.json", "environment.json", "summary.json"])
def test_a_damaged_file_is_named_and_the_rest_is_read(copied: Path, file: str) -> None:
    (copied / file).write_text("{broken")
    run = read_run(copied)
    assert [note for note in run.notes if file in note]
    assert run.events
    assert run.predictions


def test_damaged_weights_and_predictions_are_named(copied: Path) -> None:
    flip_bit(copied / "model.safetensors", 0.0, 6)
    flip_bit(copied / "predictions_val_1.npz", 0.5)
    run = read_run(copied)
    assert [note for note in run.notes if "predictions_val_1.npz" in note]
    assert gather(run, None).why["model"].startswith("The weights cannot be read")


def test_predictions_of_other_weights_are_left_out(copied: Path) -> None:
    path = copied / "predictions_val_10.npz"
    replace(Predictions.load(path), weights_sha256="0" * 64).save(path)
    run = read_run(copied)
    assert list(run.predictions) == [("val", 1)]
    assert any("of other weights" in note for note in run.notes)


def test_predictions_of_other_pictures_are_not_shown_beside_these(copied: Path) -> None:
    for path in copied.glob("predictions_*.npz"):
        replace(Predictions.load(path), pictures_sha256="0" * 64).save(path)
    material = gather(read_run(copied), None)
    assert material.split is None
    assert "not of the pictures" in material.why["data"]


def test_a_data_set_that_is_gone_leaves_the_figures_that_need_no_pictures(copied: Path) -> None:
    environment = json.loads((copied / "environment.json").read_text())
    write_json(copied / "environment.json", {**environment, "data_path": "gone"})
    text = Page(write_report(copied)).text
    assert "The data set cannot be opened: gone is not there" in text
    figures = {path.stem for path in (copied / "figures").iterdir()}
    assert figures == FIGURES - {"exciting-pictures", "guesses", "occlusion", "neighbours"}


def test_without_a_network_the_page_has_what_the_predictions_say(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    for path in copied.glob("predictions_*.npz"):
        replace(Predictions.load(path), weights_sha256="").save(path)
    text = Page(write_report(copied)).text
    assert text.count("There is no model.safetensors yet") == 5
    figures = {path.stem for path in (copied / "figures").iterdir()}
    assert {"guesses", "reliability", "class-errors"} <= figures
    assert not {"conv1-colours", "exciting-pictures", "occlusion"} & figures


def test_without_predictions_the_page_has_what_the_network_says(copied: Path) -> None:
    for path in copied.glob("predictions_*.npz"):
        path.unlink()
    text = Page(write_report(copied)).text
    assert "No predictions are saved" in text
    figures = {path.stem for path in (copied / "figures").iterdir()}
    assert {"conv1-colours", "exciting-pictures", "neighbours"} <= figures
    assert not {"occlusion", "reliability"} & figures


def test_data_that_cannot_be_opened_are_an_error_when_they_were_asked_for(copied: Path) -> None:
    with pytest.raises(UserError, match="no-such-folder"):
        write_report(copied, data="no-such-folder")


# What it says


def test_a_stall_stands_at_the_top_in_plain_words(tmp_path: Path) -> None:
    run = bare(tmp_path / "run")
    layer = {"name": "fc6", "activation_std": 1.0, "dead_share": 0.97, "gradient_norm": None}
    stall = {
        "event": "stall",
        "step": 40,
        "message": "The loss <stays> at ln 10.",
        "layers": [layer],
    }
    (run / "log.jsonl").write_text(json.dumps(stall))
    text = Page(write_report(run)).text
    assert "At step 40 the training did not learn" in text
    assert "The loss <stays> at ln 10." in text
    assert text.index("The loss <stays>") < text.index("Results")
    assert "97 %" in text
    assert "not finite" in text


def test_the_papers_numbers_stand_beside_results_on_the_same_pictures(tmp_path: Path) -> None:
    found = [
        {"split": "val", "views": views, "images": 50_000, "top1_wrong": wrong, "top5_wrong": 9_100}
        for views, wrong in ((1, 21_000), (10, 20_350))
    ]
    environment = {"dataset": {"name": "imagenet", "classes": 1000}}
    recipe = {"network": {"name": "source"}}
    run = bare(
        tmp_path / "run", recipe=recipe, environment=environment, summary={"evaluations": found}
    )
    text = Page(write_report(run)).text
    assert "source on imagenet: 40.70 % top-1 error, ten views, on 50,000 unseen pictures" in text
    assert "Ten views bring the error from 42.00 % down to 40.70 %" in text
    paper = text[text.index("The paper, on the same pictures") :]
    assert "1 CNN" in paper
    assert "18.2 %" in paper


def test_results_come_from_the_predictions_before_the_summary_before_the_log(copied: Path) -> None:
    wrong = {"split": "val", "views": 1, "images": 9, "top1_wrong": 9, "top5_wrong": 9}
    summary = json.loads((copied / "summary.json").read_text())
    write_json(copied / "summary.json", {**summary, "evaluations": [wrong, {**wrong, "views": 10}]})
    predictions = read_run(copied).predictions["val", 1]
    found = results(read_run(copied))
    expected = count_errors(predictions.probabilities, predictions.labels)
    assert [result.count for result in found if result.views == 1] == [expected]
    (copied / "predictions_val_1.npz").unlink()
    assert results(read_run(copied))[0].count.images == 9


def test_the_test_split_stands_for_the_run_before_the_validation_split(tmp_path: Path) -> None:
    counts = {"images": 10, "top1_wrong": 5, "top5_wrong": 1}
    evaluations = [
        {"split": split, "views": views, **counts}
        for split, views in (("test", 1), ("val", 10), ("val", 1))
    ]
    run = bare(tmp_path / "run", summary={"evaluations": evaluations})
    best = headline_result(results(read_run(run)))
    assert best is not None
    assert (best.split, best.views) == ("test", 1)


def test_with_five_classes_or_fewer_the_page_says_that_top5_says_nothing(tmp_path: Path) -> None:
    found = {"split": "val", "views": 1, "images": 20, "top1_wrong": 4, "top5_wrong": 0}
    environment = {"dataset": {"name": "mine", "classes": 4}}
    run = bare(tmp_path / "run", environment=environment, summary={"evaluations": [found]})
    assert "Five guesses cover all 4 classes" in Page(write_report(run)).text


def test_the_page_says_how_sure_the_network_is(reported: Path, whole: Page) -> None:
    predictions = read_run(reported).predictions["val", 10]
    sure = f"{100 * predictions.probabilities.max(1).mean():.1f} % sure on average"
    assert sure in whole.text
    own = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels]
    assert f"{-np.log(own.astype(float)).mean():.3f}" in whole.text  # the log loss


def test_a_network_of_one_column_says_that_none_can_part_by_colour(copied: Path) -> None:
    material = gather(read_run(copied), None)
    assert material.model is not None
    assert "The columns differ in colour" in colours(material)
    material.model.network = replace(material.model.network, columns=1)
    markup = colours(material)
    assert "The network has one column" in markup
    assert "column 1" not in markup


def test_a_large_network_looks_at_fewer_pictures(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = gather(read_run(copied), None)
    assert material.model is not None
    assert "Of all 6 pictures of val" in excitement(material)
    macs = sum(shape.macs for shape in material.model.shapes.values())
    monkeypatch.setattr(inside, "LOOKING_MACS", 4 * macs)
    assert "Of 3 pictures of val" in excitement(material)


# The choice of pictures


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60))
def test_half_of_the_pictures_shown_are_wrong_if_there_are_so_many(
    pictures_: list[tuple[int, bool]],
) -> None:
    labels, right = (np.array(column) for column in zip(*pictures_, strict=True))
    chosen = choose_right_and_wrong(labels, right, count=8, seed=0)
    again = choose_right_and_wrong(labels, right, count=8, seed=0)
    assert chosen.tolist() == again.tolist()
    assert len(set(chosen.tolist())) == len(chosen) == min(8, len(labels))
    num_wrong = int((~right[chosen]).sum())
    all_wrong = int((~right).sum())
    assert num_wrong == min(all_wrong, max(4, 8 - (len(labels) - all_wrong)))
    assert right[chosen].tolist() == sorted(right[chosen].tolist(), reverse=True)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(0, 3))
def test_queries_come_from_as_many_classes_as_there_are(values: list[int], seed: int) -> None:
    labels = np.array(values)
    chosen = choose_queries(labels, count=5, seed=seed)
    assert len(set(chosen.tolist())) == min(5, len(labels))
    assert len(set(labels[chosen].tolist())) == min(5, len(set(values)))


def test_a_tie_with_the_label_is_a_mistake_for_the_other_class() -> None:
    probabilities = np.array([[0.5, 0.5, 0], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], np.float32)
    predictions = Predictions(probabilities, np.array([0, 1, 0]), "val", 1)
    guessed = guessed_classes(predictions)
    assert guessed.tolist() == [1, 1, 2]
    assert confusion(predictions.labels, guessed, 3).tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0]]


# Words and numbers


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (41.2, "41 s"),
        (59.7, "1 min 0 s"),
        (161, "2 min 41 s"),
        (11_100, "3 h 5 min"),
        (86_400, "1 day 0 h"),
        (446_400, "5 days 4 h"),
    ],
)
def test_a_duration_has_two_units(seconds: float, words: str) -> None:
    assert page.duration(seconds) == words


def test_numbers_are_rounded_by_what_stands_behind_them() -> None:
    assert page.percent(0.04234) == "4.2 %"
    assert page.percent(0.04234, 10_000) == "4.23 %"
    assert page.interval(0.034, 0.052, 300) == "3.4\u20135.2 %"
    assert [page.short(n) for n in (60_965_224, 369_034, 12_345, 812)] == [
        "61.0 M",
        "369 k",
        "12.3 k",
        "812",
    ]
    assert [page.counted(n, "picture") for n in (1, 2_000)] == ["1 picture", "2,000 pictures"]
    assert [page.plain(rate) for rate in (0.01, 1e-5, 0.000125)] == ["0.01", "0.00001", "0.000125"]


def test_prose_escapes_words_sets_commands_as_code_and_keeps_numbers_whole() -> None:
    assert page.prose("<x> & `a <b>`") == "&lt;x&gt; &amp; <code>a &lt;b&gt;</code>"
    assert page.prose("a 4.2 % error") == 'a <span class="whole">4.2 %</span> error'


@pytest.mark.parametrize(("size_px", "kind"), [(96, "png"), (97, "jpeg")])
def test_small_pictures_are_exact_and_large_ones_are_jpeg(size_px: int, kind: str) -> None:
    image = page.picture(np.zeros((size_px, size_px, 3), np.uint8), 'a "b"')
    assert f"data:image/{kind};base64," in image
    assert 'alt="a &quot;b&quot;"' in image
