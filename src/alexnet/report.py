"""The page about one training: RUN/report.html, and RUN/figures (Figures 3 and 4 of the paper).

It tells the run in order: what came out, how it was learned, what the first layer looks for and
what excites later ones, what the network says of pictures, by what in them, and finds alike
(Section 6.1), how sure it is, where it goes wrong, and how all of it was made. What a run does not
have leaves a line that says so. Not here: the sections with pictures (`exhibits.py`, `inside.py`),
the numbers (`findings.py`, `calibration.py`) and the parts of a page (`page.py`).
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from alexnet import page
from alexnet.config import differences, from_dict
from alexnet.curves import Curves, curves, learning_curves
from alexnet.drawing import inline_svg, save
from alexnet.errors import UserError
from alexnet.exhibits import (
    Progress,
    classes,
    confusions,
    guesses,
    kernels,
    neighbours,
    sureness,
)
from alexnet.files import write_text
from alexnet.findings import Result, headline_result, results
from alexnet.inside import colours, excitement, occlusions
from alexnet.large_batch import departures
from alexnet.material import Material, Run, gather, read_run
from alexnet.metrics import TOP_K, wilson_interval
from alexnet.page import counted, duration, percent, prose, text, views_in_words
from alexnet.recipes import find_recipe
from alexnet.results import PaperResult, Score, results_table
from alexnet.sessions import sessions_of

# What `stall.py` measures of each layer, as the head of a column.
SCALES = {
    "name": "layer",
    "input_rms": "input, rms>",
    "activation_std": "activation, std>",
    "activation_mean_abs": "activation, mean size>",
    "image_spread": "between pictures>",
    "dead_share": "dead units>",
    "gradient_norm": "gradient, norm>",
    "weight_norm": "weights, norm>",
}


# Of a run that was gone on with, and perhaps killed very often.
SESSIONS_SHOWN = 20


def write_report(run: Path, *, data: str | None = None, progress: Progress | None = None) -> Path:
    """Write RUN/report.html and RUN/figures/*.{svg,png}; return the page's path.

    `data` is any data set; without it, the run's own. `progress` is called with the training
    pictures searched for neighbours, and their number. Raises UserError when `run` is no run
    folder, `data` cannot be opened or a file cannot be written.
    """
    material = gather(read_run(run), data)
    found = results(material.run)
    sections = [
        _results(material, found),
        _learning(material),
        kernels(material),
        colours(material),
        excitement(material),
        guesses(material),
        occlusions(material),
        neighbours(material, progress),
        sureness(material),
        classes(material),
        confusions(material),
        _settings(material),
        _circumstances(material),
    ]
    headline = _headline(material, found)
    target = run / "report.html"
    write_text(
        target,
        page.document(headline, _header(material, found, headline), sections, _footer(material)),
    )
    return target


# The top of the page


def _headline(material: Material, found: list[Result]) -> str:
    """'small on shapes: 4.2 % top-1 error, ten views, on 2,000 unseen pictures'."""
    name = f"{material.run.network} on {material.run.dataset}"
    best = headline_result(found)
    if best is None:
        steps = material.run.last_step
        trained = f"{counted(steps, 'step')} of training" if steps else "not trained yet"
        return f"{name}: {trained}, no evaluation yet"
    error = percent(best.count.top1_error, best.count.images)
    pictures = counted(best.count.images, "picture" if best.split == "train" else "unseen picture")
    return f"{name}: {error} top-1 error, {views_in_words(best.views)}, on {pictures}"


def _header(material: Material, found: list[Result], headline: str) -> str:
    run = material.run
    started = str(run.environment.get("started", ""))[:10]
    kicker = " \u00b7 ".join(part for part in (run.path.resolve().name, started) if part)
    notes = [*([] if run.finished else [_unfinished(run)]), *run.notes]
    parts = [
        f'<p class="kicker">{text(kicker)}</p>',
        f"<h1>{prose(headline)}</h1>",
        *(f'<p class="lede">{prose(words)}</p>' for words in _lede(material, found)),
        page.tiles(_tiles(material, found)),
        *(_stall(event) for event in run.of("stall")),
        *(page.callout("", note) for note in notes),
    ]
    return "\n".join(part for part in parts if part)


def _lede(material: Material, found: list[Result]) -> list[str]:
    best = headline_result(found)
    if best is None:
        return []
    wrong, images = best.count.top1_wrong, best.count.images
    span = page.interval(*wilson_interval(wrong, images), images)
    words = f"Of {counted(images, 'picture')} it names {images - wrong:,} right at its first guess"
    words += f" and {wrong:,} wrong; the 95 % interval of the error is {span}."
    if material.num_classes:
        chance = percent(1 - 1 / material.num_classes)
        words += (
            f" A blind guess among {material.num_classes:,} classes would be wrong for {chance}."
        )
    return [words]


def _tiles(material: Material, found: list[Result]) -> list[tuple[str, str]]:
    summary, tiles = material.run.summary, []
    best = headline_result(found)
    if best is not None:
        views, count = views_in_words(best.views), best.count
        tiles.append((f"top-1 error, {views}", percent(count.top1_error, count.images)))
        if not _few_classes(material):
            tiles.append((f"top-5 error, {views}", percent(count.top5_error, count.images)))
    if "seconds" in summary:
        tiles.append(("training", duration(summary["seconds"])))
    if "steps" in summary:
        tiles.append((_epochs(summary), f"{summary['steps']:,} steps"))
    if "images_per_second" in summary:
        tiles.append(("in training, median", f"{summary['images_per_second']:,.0f} pictures/s"))
    if material.model is not None:
        parameters = sum(parameter.numel() for parameter in material.model.parameters())
        tiles.append(("parameters", page.short(parameters)))
    return tiles


def _few_classes(material: Material) -> bool:
    """Whether five guesses cover every class, so that the top-5 error says nothing."""
    return (material.num_classes or TOP_K + 1) <= TOP_K


def _epochs(summary: dict[str, Any]) -> str:
    return f"{summary['epochs']:.3g} epochs" if "epochs" in summary else "steps"


def _unfinished(run: Run) -> str:
    return (
        f"Training has not ended: the log stops at step {run.last_step:,}. "
        f"`alexnet train --resume --run {run.path}` goes on."
    )


def _stall(event: dict[str, Any]) -> str:
    """What the stall detector found, in its own words, with the scales of each layer."""
    layers = [layer for layer in event.get("layers") or [] if isinstance(layer, dict)]
    shown = [key for key in SCALES if any(key in layer for layer in layers)]
    rows = [[_scale(key, layer.get(key)) for key in shown] for layer in layers]
    heads = [SCALES[key] for key in shown]
    message = event.get("message") or event.get("reason") or "The loss does not fall."
    return page.callout(
        f"At step {event['step']:,} the training did not learn",
        str(message),
        markup=page.table(heads, rows, kind="scales") if rows else "",
    )


def _scale(key: str, value: Any) -> str:
    if key == "name":
        return text(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "<strong>not finite</strong>"
    return f"{100 * value:.0f} %" if key in ("dead_share", "image_spread") else f"{value:.2g}"


# The story


def _results(material: Material, found: list[Result]) -> str:
    kicker = "Results"
    if not found:
        return page.section(kicker, "", page.missing(material.why["predictions"]))
    rows, theirs = [], []
    for split in dict.fromkeys(result.split for result in found):
        scores = [_score(result, material) for result in found if result.split == split]
        for row in results_table(scores, material.run.dataset):
            if row.ours is not None:
                rows.append([text(split), *_our_cells(row.ours)])
            if row.paper is not None:
                theirs.append(_paper_cells(row.paper))
    errors = ["top-1 error>", "top-5 error>"]
    parts = [page.table(["split", "views>", "pictures>", *errors], rows)]
    if theirs:
        table = page.table(["the paper's network", "views>", *errors], theirs, kind="theirs")
        parts.append(f"<h3>The paper, on the same pictures</h3>{table}")
    words = (
        "Ten views: the softmax is averaged over the centre, the four corners and their mirror "
        "images. The 95 % intervals answer for the choice of the pictures, not for the seed."
    )
    if _few_classes(material):
        words += f" Five guesses cover all {material.num_classes} classes: top-5 says nothing here."
    return page.section(kicker, _result_statement(found), *parts, page.about(words))


def _score(result: Result, material: Material) -> Score:
    return Score(
        name=material.run.path.name,
        networks=(material.run.network,),
        recipe=str(material.run.recipe.get("name", "")),
        seed=material.run.seed,
        split=result.split,
        views=result.views,
        num_classes=material.num_classes or 0,
        errors=result.count,
        mean_log_probability=math.nan,
    )


def _our_cells(score: Score) -> list[str]:
    cells, images = [str(score.views), f"{score.errors.images:,}"], score.errors.images
    for wrong in (score.errors.top1_wrong, score.errors.top5_wrong):
        span = page.interval(*wilson_interval(wrong, images), images)
        cells.append(f"{percent(wrong / images, images)}<small>{span}</small>")
    return cells


def _paper_cells(result: PaperResult) -> list[str]:
    errors = (result.top1_error, result.top5_error)
    cells = ["" if error is None else percent(error) for error in errors]
    return [text(result.method), str(result.views or ""), *cells]


def _result_statement(found: list[Result]) -> str:
    best = headline_result(found)
    assert best is not None
    count = best.count
    one = next((r.count for r in found if r.split == best.split and r.views == 1), None)
    if best.views != 10 or one is None or one.images != count.images:
        return f"{count.top1_wrong:,} of {count.images:,} pictures are missed"
    before, after = (percent(c.top1_error, c.images) for c in (one, count))
    if count.top1_error < one.top1_error:
        return f"Ten views bring the error from {before} down to {after}"
    if count.top1_error > one.top1_error:
        return f"Ten views do not help here: {after}, against {before} with the centre alone"
    return f"Ten views change nothing here: {after}"


def _learning(material: Material) -> str:
    kicker, data, num_classes = "Learning", curves(material.run), material.num_classes
    if not len(data.steps):
        return page.section(kicker, "", page.missing("The log holds no training steps."))
    statement = _learning_statement(data, num_classes)
    figure = learning_curves(data, num_classes, title=statement)
    save(figure, material.figures, "learning-curves")
    wide = inline_svg(learning_curves(data, num_classes), "curves", statement)
    narrow = inline_svg(learning_curves(data, num_classes, narrow=True), "curves-narrow", statement)
    words = "The light line is the loss of each logged step, the dark one its running mean."
    if num_classes:
        words += " The dashed line is what guessing costs."
    rates = data.rates[np.isfinite(data.rates)]
    if len(rates) and rates[0] != rates[-1]:
        words += f" The learning rate went from {page.plain(rates[0])} to {page.plain(rates[-1])}."
    return page.section(kicker, statement, page.chart(wide, narrow), page.about(words))


def _learning_statement(data: Curves, num_classes: int | None) -> str:
    known = np.flatnonzero(np.isfinite(data.losses))
    if not len(known):
        return "No finite loss was logged"
    if known[-1] != len(data.losses) - 1:
        return f"After step {int(data.steps[known[-1]]):,} the loss was not finite any more"
    first, last = data.losses[0], data.smoothed(data.losses)[-1]
    steps, epochs = int(data.steps[-1]), data.epochs[-1]
    time = f"{epochs:.3g} epochs" if epochs >= 2 else counted(steps, "step")
    guess = math.log(num_classes) if num_classes else math.inf
    if last > 1.05 * guess:
        return f"After {time} the loss is {last:.2f}, worse than a guess: {guess:.2f}"
    if last > 0.98 * guess:
        return f"After {time} the loss is {last:.2f}, no better than a guess: {guess:.2f}"
    return f"The loss went from {first:.2f} to {last:.2f} in {time}"


# How it was made


def _settings(material: Material) -> str:
    kicker, own = "Settings", material.run.recipe
    if not own:
        return page.section(kicker, "", page.missing("There is no readable recipe.json."))
    name = str(own.get("name", ""))
    everything = page.folded("All settings, as in recipe.json", _json(own))
    try:
        recipe, named = from_dict(own), find_recipe(name)
    except UserError as error:
        words = f"The settings cannot be compared: {error}."
        return page.section(kicker, f"Recipe {name}", page.missing(words), everything)
    changed = differences(named, recipe)
    parts = [_difference_table(name, "this run", changed)] if changed else []
    if other := departures(recipe):
        parts.insert(0, f"<p>A departure from the paper: {text(', '.join(other))}.</p>")
    if named.base:
        inherited = differences(find_recipe(named.base), named)
        parts.append(f"<h3>How {text(name)} differs from {text(named.base)}, its base</h3>")
        parts.append(_difference_table(named.base, name, inherited))
    many = counted(len(changed), "setting")
    statement = f"Recipe {name}, with {many} changed" if changed else f"Recipe {name} as it stands"
    return page.section(kicker, statement, *parts, everything)


def _difference_table(before: str, after: str, changes: dict[str, tuple[Any, Any]]) -> str:
    rows = [[text(setting), *map(_setting, values)] for setting, values in changes.items()]
    return page.table(["setting", before, after], rows, kind="changed")


def _setting(value: Any) -> str:
    return text(value if isinstance(value, str) and value else json.dumps(value))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _circumstances(material: Material) -> str:
    kicker, run, dataset = "How it was made", material.run, material.dataset
    environment = run.environment
    if not environment and not run.summary:
        words = "There is neither a readable environment.json nor a summary.json."
        return page.section(kicker, "", page.missing(words))
    command = environment.get("command") or []
    versions = [f"{key} {environment.get(key)}" for key in ("alexnet", "python", "torch")]
    rows = [
        ("command", page.code(" ".join(map(str, command)))),
        ("data set", text(_data_in_words(run))),
        ("training", text(_training_in_words(run.summary))),
        ("started", text(environment.get("started", ""))),
        ("device", text(environment.get("device", ""))),
        ("processor", text(_processor_in_words(environment))),
        ("versions", text(", ".join(versions)) if environment else ""),
        ("commit", page.code(environment.get("commit"))),
        ("packed data", page.code(environment.get("data_path"))),
    ]
    parts = [page.facts(rows), *_sessions(environment)]
    if dataset is not None and dataset.left_out:
        left_out = counted(len(dataset.left_out), "picture")
        words = f"{left_out} could not be read and took no part; dataset.json names them."
        parts.append(page.about(words))
    if environment:
        parts.append(page.folded("All of environment.json", _json(environment)))
    return page.section(kicker, "", *parts)


def _sessions(environment: dict[str, Any]) -> list[str]:
    """Of a run that was gone on with: each time that a process took it up."""
    sessions = sessions_of(environment)
    if len(sessions) < 2:
        return []
    rows = [
        [
            text(str(entry.get("started", "")).replace("T", " ")[:16]),
            f"{entry.get('step', 0):,}",
            page.code(" ".join(map(str, entry.get("command") or []))),
            page.code(str(entry.get("commit", ""))[:8]),
        ]
        for entry in sessions
    ]
    heads = ["started", "from step>", "command", "commit"]
    table = page.table(heads, rows[:SESSIONS_SHOWN])
    more = len(rows) - SESSIONS_SHOWN
    words = f"It was taken up {counted(len(rows), 'time')}" + (f"; {more:,} more." * (more > 0))
    return [f"<h3>{text(words)}</h3>{table}"]


def _data_in_words(run: Run) -> str:
    described = run.environment.get("dataset", {})
    sizes = (
        ("classes", "class", "classes"),
        ("train_images", "training picture", ""),
        ("val_images", "validation picture", ""),
    )
    counts = [
        counted(described[key], one, many)
        for key, one, many in sizes
        if isinstance(described.get(key), int)
    ]
    of = described.get("statistics_images")
    if isinstance(of, int) and of != described.get("train_images"):
        counts.append(f"mean and colours of {counted(of, 'training picture')}")
    return ", ".join([run.dataset, *counts])


def _processor_in_words(environment: dict[str, Any]) -> str:
    words = [str(environment["cpu"])] if environment.get("cpu") else []
    for key, one in (("cores", "core"), ("threads", "thread")):
        if isinstance(environment.get(key), int):
            words.append(counted(environment[key], one))
    return ", ".join(words)


def _training_in_words(summary: dict[str, Any]) -> str:
    words = []
    if "seconds" in summary:
        words.append(duration(summary["seconds"]))
    if "steps" in summary:
        words.append(f"{summary['steps']:,} steps, {_epochs(summary)}")
    if "images_per_second" in summary:
        words.append(f"{summary['images_per_second']:,.0f} pictures per second (median)")
    if "wait_share" in summary:
        words.append(f"{percent(summary['wait_share'])} of the time waiting for data")
    return ", ".join(words)


def _footer(material: Material) -> str:
    return (
        f"<p>Made by {page.code(f'alexnet report {material.run.path}')} from the files of the run. "
        "Its folder figures/ has the figures as SVG and PNG.</p>"
    )
