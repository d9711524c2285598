"""Learning curves, kernels, guesses, neighbours and errors, as numbers and as figures."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from alexnet.curves import Curves, curves, learning_curves, smooth, spread, thin
from alexnet.drawing import COLOURS, chart, inline_svg, save
from alexnet.figures import (
    class_errors,
    confusion_matrix,
    conv1_kernels,
    first_name,
    guesses,
    kernel_grid,
    neighbours,
    share,
    thumbnail,
)
from alexnet.findings import Guess, Neighbours, colour_share, worst_first
from alexnet.material import Run
from alexnet.metrics import ErrorCount
from alexnet.predictions import ClassErrors

RANDOM = np.random.default_rng(0)


def picture(size_px: int = 8) -> np.ndarray:
    return RANDOM.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def run_of(*events: dict[str, Any]) -> Run:
    return Run(Path("run"), {}, {}, {}, events, {}, ())


def some_curves(steps: int = 60, **changed: Any) -> Curves:
    """A training that goes well: loss from 3 down, an evaluation every 10 steps."""
    at = np.arange(1, steps + 1, dtype=float)
    checks = at[9::10]
    values = {
        "steps": at,
        "epochs": at / 20,
        "losses": 3 * np.exp(-at / 20),
        "rates": np.full(steps, 0.01),
        "images_per_second": np.full(steps, 500.0),
        "wait_share": np.full(steps, 0.02),
        "check_steps": checks,
        "check_epochs": checks / 20,
        "check_losses": 3 * np.exp(-checks / 20) + 0.1,
        "top1_errors": np.exp(-checks / 20),
        "top5_errors": np.exp(-checks / 10),
    }
    return Curves(**{**values, **changed})


def words(figure: Figure) -> set[str]:
    """Everything that a figure says."""
    import matplotlib.text

    texts = figure.findobj(matplotlib.text.Text)
    return {text.get_text() for text in texts if text.get_visible() and text.get_text()}


# The log as curves


def test_the_last_check_keeps_its_loss_although_it_is_logged_again_without() -> None:
    check = {"event": "evaluation", "step": 20, "epoch": 1.0, "views": 1, "split": "val"}
    found = curves(run_of({**check, "loss": 0.5, "top1_error": 0.2}, {**check, "top1_error": 0.2}))
    assert found.check_steps.tolist() == [20]
    assert found.check_losses.tolist() == [0.5]


def test_ten_views_and_the_test_split_are_no_part_of_the_validation_curve() -> None:
    check = {"event": "evaluation", "step": 20, "epoch": 1.0, "top1_error": 0.2}
    others = ({**check, "split": "val", "views": 10}, {**check, "split": "test", "views": 1})
    assert not len(curves(run_of(*others)).check_steps)


def test_a_loss_that_was_not_finite_is_a_gap() -> None:
    step = {"event": "step", "step": 1, "epoch": 0.1, "lr": 0.01}
    found = curves(run_of({**step, "loss": 2.5}, {**step, "step": 2, "loss": None}))
    assert found.losses[0] == 2.5
    assert math.isnan(found.losses[1])


def test_the_rate_of_the_first_step_is_no_change() -> None:
    rates = ({"event": "rate", "step": step, "epoch": step / 10, "lr": 0.01} for step in (0, 30))
    assert curves(run_of(*rates)).drops == ((30, 3.0, 0.01),)


@given(
    st.lists(st.one_of(st.floats(-5, 5), st.just(math.nan)), min_size=1, max_size=40),
    st.integers(1, 9),
)
def test_smoothing_is_the_mean_of_a_window_that_narrows_at_the_start(
    values: list[float], width: int
) -> None:
    expected = []
    for place in range(len(values)):
        reach = min(place, width // 2)
        window = [v for v in values[place - reach : place + reach + 1] if not math.isnan(v)]
        expected.append(math.fsum(window) / len(window) if window else math.nan)
    np.testing.assert_allclose(smooth(np.array(values), width), expected, atol=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(2, 50))
def test_a_thinned_line_keeps_its_ends_and_its_extremes(values: list[float], most: int) -> None:
    line = np.array(values)
    at = thin(line, most)
    assert len(at) <= most + 2
    assert {at[0], at[-1]} == {0, len(line) - 1}
    assert (line[at].min(), line[at].max()) == (line.min(), line.max())


@given(st.lists(st.floats(0, 10), min_size=1, max_size=4), st.floats(0.01, 2))
def test_labels_keep_their_order_and_their_distance(places: list[float], gap: float) -> None:
    moved = spread(places, gap)
    upwards = [moved[index] for index in sorted(range(len(places)), key=lambda i: places[i])]
    assert (np.diff(upwards) > gap - 1e-9).all(), upwards
    assert sum(moved) == pytest.approx(sum(places))


def test_labels_that_are_far_apart_stay_where_they_are() -> None:
    assert spread([8.0, 1.0, 4.0], 2.5) == [8.0, 1.0, 4.0]
    assert spread([1.0, 1.0, 9.0], 2.0) == [0.0, 2.0, 9.0]


# Learning curves


@pytest.mark.parametrize("narrow", [False, True])
def test_learning_curves_mark_the_loss_of_a_guess(narrow: bool) -> None:
    figure = learning_curves(some_curves(), 16, narrow=narrow)
    said = words(figure)
    assert "a guess: ln 16 = 2.77" in said
    assert {"Loss", "Validation error, centre view", "Pictures per second"} <= said
    assert len(figure.axes) == 3
    dashed = [line.get_ydata()[0] for line in figure.axes[0].lines if len(line.get_ydata()) == 2]
    assert math.log(16) in dashed


def test_each_change_of_the_learning_rate_is_marked_with_the_new_rate() -> None:
    drops = ((30, 1.5, 0.001), (50, 2.5, 0.00001))
    said = words(learning_curves(some_curves(drops=drops), 16))
    assert {"rate 0.001", "rate 0.00001"} <= said


def test_a_top5_error_that_is_always_zero_is_not_drawn() -> None:
    never = np.zeros(6)
    said = " ".join(words(learning_curves(some_curves(top5_errors=never), 4)))
    assert "top-1" in said
    assert "top-5" not in said


def test_the_lower_of_two_close_lines_has_the_lower_label() -> None:
    close = {"top1_errors": np.full(6, 0.02), "top5_errors": np.full(6, 0.01)}
    close["top1_errors"][0] = 1.0
    figure = learning_curves(some_curves(**close), 16)
    places = {text.get_text()[:5]: text.xy[1] for text in figure.axes[1].texts}
    assert places["top-5"] < places["top-1"]


def test_a_run_without_finite_losses_or_evaluations_still_has_its_curves() -> None:
    nothing = np.full(60, math.nan)
    none = np.array([])
    data = some_curves(
        losses=nothing, images_per_second=nothing, top1_errors=none, top5_errors=none
    )
    said = words(learning_curves(data, None))
    assert {"no finite loss in the log", "not evaluated during training", "not in the log"} <= said


# Kernels


@pytest.mark.parametrize(("count", "size"), [(48, 11), (32, 5), (5, 3)])
def test_each_kernel_fills_its_own_range_and_its_own_place(count: int, size: int) -> None:
    kernels = RANDOM.normal(size=(count, 3, size, size)) * 10.0 ** RANDOM.integers(
        -4, 4, (count, 1, 1, 1)
    )
    grid = kernel_grid(kernels, per_row=16)
    for index, kernel in enumerate(kernels):
        top, left = index // 16 * (size + 1), index % 16 * (size + 1)
        cell = grid[top : top + size, left : left + size]
        assert (cell[..., :3].min(), cell[..., :3].max()) == (0, 255)
        assert (cell[..., 3] == 255).all()
        strongest = np.unravel_index(kernel.argmax(), kernel.shape)
        assert cell[strongest[1], strongest[2], strongest[0]] == 255
    assert (grid[..., 3] == 255).sum() == count * size * size  # all between them is transparent


def test_a_kernel_of_zeros_is_drawn_without_a_warning() -> None:
    assert kernel_grid(np.zeros((2, 3, 5, 5))).shape == (5, 11, 4)


def test_the_kernels_of_column_0_stand_above_those_of_column_1() -> None:
    kernels = np.zeros((4, 3, 5, 5))
    kernels[:2, 0], kernels[2:, 2] = RANDOM.random((2, 2, 5, 5))  # red, then blue
    figure = conv1_kernels(kernels, 2)
    first, second = figure.axes[0].images
    assert first.get_extent()[3] < second.get_extent()[3]  # distances from the top
    assert first.get_array()[..., 0].any()
    assert not first.get_array()[..., 2].any()
    assert second.get_array()[..., 2].any()
    assert {"column 0", "column 1"} <= words(figure)


def test_a_network_of_one_column_has_one_block_of_kernels() -> None:
    figure = conv1_kernels(RANDOM.normal(size=(32, 3, 5, 5)), 1)
    assert len(figure.axes[0].images) == 1
    assert not words(figure)


def test_the_share_of_colour_is_0_for_grey_1_for_pure_colour_and_two_thirds_by_chance() -> None:
    grey = np.repeat(RANDOM.normal(size=(8, 1, 5, 5)), 3, axis=1)
    colour = RANDOM.normal(size=(8, 3, 5, 5))
    colour -= colour.mean(axis=1, keepdims=True)
    assert colour_share(np.concatenate([grey, colour]), 2) == pytest.approx([0, 1], abs=1e-12)
    assert colour_share(RANDOM.normal(size=(200, 3, 11, 11)), 1) == pytest.approx([2 / 3], abs=0.01)


# Pictures


def test_the_bar_of_the_right_label_has_another_colour() -> None:
    guess = Guess(picture(), "cat", ("dog", "cat"), (0.7, 0.3), (False, True))
    bars = guesses([guess]).axes[0].patches
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [COLOURS["sky"], COLOURS["orange"]]
    assert bars[0].get_width() / bars[1].get_width() == pytest.approx(7 / 3)


def test_guesses_show_each_picture_with_its_right_label() -> None:
    shown = [Guess(picture(), f"class {i}", ("other",), (1.0,), (False,)) for i in range(8)]
    figure = guesses(shown, title="eight")
    assert len(figure.axes[0].images) == 8
    assert {f"class {i}" for i in range(8)} | {"eight", "100 %"} <= words(figure)


def test_a_neighbour_of_another_class_is_set_apart() -> None:
    row = Neighbours(picture(), "cat", (picture(), picture()), ("cat", "dog"))
    figure = neighbours([row, row])
    assert len(figure.axes[0].images) == 6
    styles = {(text.get_text(), text.get_fontstyle()) for text in figure.axes[0].texts}
    assert styles == {("cat", "normal"), ("dog", "italic")}


def test_a_class_is_called_by_its_first_synonym() -> None:
    assert first_name("tench, Tinca tinca") == "tench"
    assert first_name("a very long name of a class", 10) == "a very lo\u2026"


def test_a_small_probability_is_less_than_one_percent() -> None:
    assert [share(p) for p in (1.0, 0.006, 0.004, 0.0)] == ["100 %", "1 %", "<1 %", "<1 %"]


def test_a_thumbnail_is_never_larger_than_the_picture() -> None:
    assert thumbnail(picture(64), 16).shape == (16, 16, 3)
    small = picture(8)
    assert thumbnail(small, 16) is small


# Errors by class


def errors_of(*wrong_of: tuple[int, int]) -> list[ClassErrors]:
    return [
        ClassErrors(label, f"class {label}", ErrorCount(wrong, 0, images))
        for label, (wrong, images) in enumerate(wrong_of)
    ]


def test_classes_are_shown_worst_first_with_their_counts() -> None:
    figure = class_errors(errors_of((1, 50), (0, 0), (30, 60), (2, 40)))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["class 2", "class 3", "class 0"]  # class 1 has no pictures
    assert {"30 of 60", "2 of 40", "1 of 50"} <= words(figure)
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == pytest.approx([50, 5, 2])


def test_of_many_classes_the_twenty_worst_and_the_twenty_best_are_shown() -> None:
    entries = errors_of(*((label, 100) for label in range(100)))
    figure = class_errors(entries, narrow=True)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    expected = [*range(99, 79, -1), *range(19, -1, -1)]
    assert names == [f"class {label}" for label in expected]
    assert "\u2026 60 classes between \u2026" in words(figure)
    assert [entry.label for entry in worst_first(entries)] == list(range(99, -1, -1))


def test_a_confusion_matrix_shows_what_happened_and_leaves_the_rest_empty() -> None:
    figure = confusion_matrix(np.array([[7, 3], [0, 9]]), ["cat", "dog"])
    numbers = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert numbers == {(0, 0): "7", (1, 0): "3", (1, 1): "9"}


# How figures are saved


def test_the_same_figure_is_the_same_files(tmp_path: Path) -> None:
    first, second = (
        save(confusion_matrix(np.eye(2, dtype=int), "ab", title="A title"), tmp_path / name, "it")
        for name in ("a", "b")
    )
    assert [path.name for path in first] == ["it.svg", "it.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert "A title" in first[0].read_text()  # text stays text


def test_a_page_gives_a_figure_its_colours_and_keeps_its_ids_apart() -> None:
    svg = inline_svg(learning_curves(some_curves(), 16), "curves", 'what "it" shows')
    assert svg.startswith("<svg viewBox=")
    assert 'aria-label="what &quot;it&quot; shows"' in svg
    assert "var(--blue)" in svg
    assert not [name for name, value in COLOURS.items() if value in svg]
    assert all(part.startswith("curves-") for part in svg.split(' id="')[1:])
    assert all(part.startswith("curves-") for part in svg.split("url(#")[1:])


def test_a_long_title_is_set_in_lines_and_adds_to_the_height() -> None:
    plain, titled = chart(4, 2, ""), chart(4, 2, "word " * 30)
    assert plain.get_figheight() == 2
    assert titled.get_figheight() > 2.6
    assert "\n" in next(iter(words(titled)))


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save(chart(1, 1, ""), tmp_path, "empty")
    assert dict(matplotlib.rcParams) == before
