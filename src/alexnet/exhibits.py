"""The parts of a report that show pictures: Figures 3 and 4 of the paper, and the mistakes.

Each function makes one section of the page and leaves its figure in RUN/figures. What cannot be
shown leaves a line that says why. Not here: what looks inside the network (`inside.py`), the choice
of pictures (`findings.py`) and how a figure is drawn (`figures.py`).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from alexnet import figures, page
from alexnet.calibration import Calibration, calibration
from alexnet.dataset import Split
from alexnet.drawing import inline_svg, save
from alexnet.errors import UserError
from alexnet.figures import first_name, thumbnail
from alexnet.findings import (
    Guess,
    Neighbours,
    choose_queries,
    choose_right_and_wrong,
    colour_share,
    confusion,
    guessed_classes,
    worst_first,
)
from alexnet.material import Material
from alexnet.metrics import TOP_K, wilson_interval
from alexnet.model import AlexNet
from alexnet.page import percent, text, views_in_words
from alexnet.predictions import ClassErrors, Confusion, Predictions, most_confused, per_class_errors
from alexnet.retrieval import features, nearest

GUESSES_SHOWN = 8  # Figure 4, left
QUERIES_SHOWN = 5  # Figure 4, right: five test pictures ...
NEIGHBOURS_SHOWN = 6  # ... and six training pictures for each
SEARCH_MACS = 10**13  # multiply-adds: 14,000 pictures through the paper's net, minutes on a CPU
FEATURE_BATCH = 64
PAIRS_SHOWN = 12
EXAMPLES_PER_PAIR = 3
MAX_MATRIX_CLASSES = 20
PICTURE_PX = 240  # about what a page shows, or half of it on a dense screen
NEIGHBOUR_PX = 176
EXAMPLE_PX = 104
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")

Progress = Callable[[int, int], None]


# Figure 3


def kernels(material: Material) -> str:
    """The kernels of conv1, column by column, and how much of each column is colour."""
    kicker = "What the first layer looks for"
    if material.model is None:
        return page.section(kicker, "", page.missing(material.why["model"]))
    weights, columns = conv1_weights(material.model), material.model.network.columns
    shares = colour_share(weights, columns)
    statement = _kernel_statement(shares)
    figure = figures.conv1_kernels(weights, columns, title=statement)
    save(figure, material.figures, "conv1-kernels")
    blocks = [
        _kernel_block(part, f"Column {number}: " if columns > 1 else "", share)
        for number, (part, share) in enumerate(
            zip(np.array_split(weights, columns), shares, strict=True)
        )
    ]
    height, width = weights.shape[2:]
    words = (
        f"The {len(weights)} kernels of conv1, {height} \u00d7 {width} pixels each, scaled to "
        "their own range (Figure 3). Kernels drawn at random have 67 % of their energy in colour."
    )
    if columns > 1:
        words += (
            " In the paper the two columns always parted: one came to see light and dark, the "
            "other colour."
        )
    return page.section(kicker, statement, page.about(words), *blocks)


def conv1_weights(model: AlexNet) -> np.ndarray:
    """(O, 3, k, k) float32, wherever the model lies."""
    return model.get_parameter("conv1.weight").detach().float().cpu().numpy()


def _kernel_block(part: np.ndarray, name: str, share: float) -> str:
    caption = f"{name}{len(part)} kernels, {100 * share:.0f} % of their energy is colour"
    wide = page.picture(figures.kernel_grid(part), caption, kind="wide-screen")
    few_per_row = figures.kernel_grid(part, per_row=figures.KERNELS_PER_ROW // 2)
    narrow = page.picture(few_per_row, caption, kind="narrow-screen")
    return f"<figure><figcaption>{text(caption)}</figcaption>{wide}{narrow}</figure>"


def _kernel_statement(shares: list[float]) -> str:
    if len(shares) != 2:
        return f"{100 * shares[0]:.0f} % of what the first layer sees is colour"
    more = int(shares[1] > shares[0])
    high, low = shares[more], shares[1 - more]
    if high > 0.4 and low < 0.2:
        return f"Column {more} sees colour, column {1 - more} light and dark"
    if high > 1.25 * low:
        return f"Column {more} sees more colour than column {1 - more}"
    if high < 0.3:
        return "Both columns see light and dark rather than colour"
    return "Both columns see colour alike"


# Figure 4, left


def guesses(material: Material) -> str:
    """Eight pictures with their five most probable labels, half of them right if there are any."""
    kicker = "What it says of pictures that it has not seen"
    predictions, split = material.predictions, material.split
    if predictions is None or split is None:
        return page.section(kicker, "", page.missing(no_pictures(material)))
    right = guessed_classes(predictions) == predictions.labels
    chosen = choose_right_and_wrong(
        predictions.labels, right, count=GUESSES_SHOWN, seed=material.run.seed
    )
    shown = [_guess(material.class_names, predictions, split, int(index)) for index in chosen]
    statement = _guesses_statement(int(right[chosen].sum()), len(chosen))
    save(figures.guesses(shown, title=statement), material.figures, "guesses")
    words = (
        "Drawn at random among those it gets right and those it does not, whatever their share "
        f"(Figure 4, left); {views_in_words(predictions.views)}. "
    )
    key = (
        '<span class="whole"><span class="key right"></span>the right label</span> '
        '<span class="whole"><span class="key"></span>another of the five most probable</span>'
    )
    cards = "\n".join(_guess_card(guess) for guess in shown)
    body = f'<div class="guesses">\n{cards}\n</div>'
    return page.section(kicker, statement, page.about(words, markup=key), body)


def no_pictures(material: Material) -> str:
    """Why the predicted pictures cannot be shown."""
    return material.why.get("predictions") or material.why["data"]


def _guesses_statement(right: int, shown: int) -> str:
    if right in (0, shown):
        kind = "right" if right else "wrong"
        return f"{NUMBERS[shown].capitalize()} pictures that it gets {kind}"
    wrong = NUMBERS[shown - right]
    return f"{NUMBERS[right].capitalize()} that it gets right, and {wrong} that it does not"


def _guess(names: tuple[str, ...], predictions: Predictions, split: Split, index: int) -> Guess:
    probabilities = predictions.probabilities[index]
    label = int(predictions.labels[index])
    top = np.argsort(-probabilities, kind="stable")[:TOP_K]
    return Guess(
        picture=thumbnail(np.asarray(split.images[index]), PICTURE_PX),
        label=names[label],
        names=tuple(names[i] for i in top),
        probabilities=tuple(float(probabilities[i]) for i in top),
        is_right=tuple(int(i) == label for i in top),
    )


def _guess_card(guess: Guess) -> str:
    lines = []
    for name, probability, right in zip(
        guess.names, guess.probabilities, guess.is_right, strict=True
    ):
        mark = ' class="right"' if right else ""
        lines.append(
            f'<li{mark}><span class="bar" style="width:{100 * probability:.1f}%"></span>'
            f'<span class="name" title="{text(name)}">{text(first_name(name, 40))}</span>'
            f"<span>{text(figures.share(probability))}</span></li>"
        )
    if not any(guess.is_right):
        lines.append('<li class="missed">the right label is not among them</li>')
    return (
        f"<figure>{page.picture(guess.picture, guess.label)}"
        f'<figcaption title="{text(guess.label)}">{text(first_name(guess.label, 40))}</figcaption>'
        f"<ol>{''.join(lines)}</ol></figure>"
    )


# Figure 4, right


def neighbours(material: Material, progress: Progress | None) -> str:
    """Five new pictures, each with the six training pictures nearest in the last hidden layer."""
    kicker = "What it finds alike"
    model, dataset = material.model, material.dataset
    if model is None or dataset is None:
        return page.section(
            kicker, "", page.missing(material.why["model" if model is None else "data"])
        )
    splits, train = dataset.splits, dataset.splits["train"].readable()
    queries = material.split or splits.get("test") or splits.get("val") or train
    chosen = choose_queries(queries.labels, count=QUERIES_SHOWN, seed=material.run.seed)
    try:
        rows, searched = _search(
            model, _some(queries, chosen), train, dataset.class_names, progress
        )
    except UserError as error:
        return page.section(kicker, "", page.missing(f"The search cannot be made: {error}."))
    same = sum(label == row.label for row in rows for label in row.labels)
    near = sum(len(row.labels) for row in rows)
    statement = f"{same} of the {near} nearest training pictures are of the same class"
    save(figures.neighbours(rows, title=statement), material.figures, "neighbours")
    pool = f"{searched:,}" if searched < len(train) else f"all {searched:,}"
    words = (
        f"On the left a picture that it has not seen, then those {len(rows[0].pictures)} of {pool} "
        "training pictures whose features are nearest by Euclidean distance, in "
        f"{model.network.feature_layer}, the last hidden layer (Figure 4, right). "
        "Names in italics are of another class."
    )
    body = "\n".join(_neighbour_row(row) for row in rows)
    return page.section(
        kicker, statement, page.about(words), f'<div class="neighbours">\n{body}\n</div>'
    )


def _some(split: Split, indices: np.ndarray) -> Split:
    sources = tuple(split.sources[index] for index in indices)
    return Split(split.name, split.images[indices], split.labels[indices], sources)


def _search(
    model: AlexNet,
    queries: Split,
    train: Split,
    names: tuple[str, ...],
    progress: Progress | None,
) -> tuple[list[Neighbours], int]:
    """The neighbours of each query among evenly many of `train`, and how many were searched."""
    macs_per_picture = sum(shape.macs for shape in model.shapes.values())
    every = -(-len(train) * macs_per_picture // SEARCH_MACS)
    # Slices of a memory map: no picture is read before its turn.
    pool = Split(train.name, train.images[::every], train.labels[::every], train.sources[::every])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    of_pool = _features(model, pool, device, progress)
    of_queries = _features(model, queries, device, None)
    found, _ = nearest(of_pool, of_queries, min(NEIGHBOURS_SHOWN, len(pool)), device=device)
    rows = [
        Neighbours(
            picture=thumbnail(np.asarray(queries.images[row]), NEIGHBOUR_PX),
            label=names[queries.labels[row]],
            pictures=tuple(thumbnail(np.asarray(pool.images[i]), NEIGHBOUR_PX) for i in near),
            labels=tuple(names[pool.labels[i]] for i in near),
        )
        for row, near in enumerate(found)
    ]
    return rows, len(pool)


def _features(
    model: AlexNet, split: Split, device: torch.device, progress: Progress | None
) -> np.ndarray:
    return features(
        model,
        split,
        model.card.preprocessing,
        batch_size=FEATURE_BATCH,
        device=device,
        progress=progress,
    )


def _neighbour_row(row: Neighbours) -> str:
    near = "".join(
        _captioned(picture, label, "same" if label == row.label else "other")
        for picture, label in zip(row.pictures, row.labels, strict=True)
    )
    return f'<div class="row">{_captioned(row.picture, row.label, "query")}{near}</div>'


def _captioned(picture: np.ndarray, label: str, kind: str) -> str:
    return (
        f'<figure class="{kind}">{page.picture(picture, label)}'
        f'<figcaption title="{text(label)}">{text(first_name(label, 40))}</figcaption></figure>'
    )


# Mistakes


def sureness(material: Material) -> str:
    """Calibration: whether it is right as often as it is sure, in each bin of confidence."""
    kicker = "How sure it is"
    if material.predictions is None:
        return page.section(kicker, "", page.missing(material.why["predictions"]))
    found = calibration(material.predictions, seed=material.run.seed)
    if found is None:
        return page.section(kicker, "", page.missing("Its probabilities are not finite."))
    statement = _sureness_statement(found)
    save(figures.reliability(found, title=statement), material.figures, "reliability")
    wide = inline_svg(figures.reliability(found), "reliability", statement)
    narrow = inline_svg(figures.reliability(found, narrow=True), "reliability-narrow", statement)
    low, high = found.by_chance
    guess = math.log(len(material.class_names))
    words = (
        f"Pictures by the probability of their first guess, in {len(found.bins)} equal bins, each "
        f"with its 95 % interval; {views_in_words(material.predictions.views)}. The expected "
        f"calibration error, {percent(found.expected_error, found.images)}, is the gap between "
        "sure and right, averaged over the pictures; a network without any gap would show "
        f"{page.interval(low, high, found.images)} by chance, with so many. Log loss is the mean "
        f"of -ln of the right label's probability; a guess costs {guess:.3f}."
    )
    table = _sureness_table(material)
    return page.section(kicker, statement, page.about(words), page.chart(wide, narrow), table)


def _sureness_statement(found: Calibration) -> str:
    sure, right = (
        percent(value, found.images) for value in (found.confidence, found.right / found.images)
    )
    low, high = wilson_interval(found.right, found.images)
    if found.confidence > high:
        return f"It is surer than it is right: {sure} sure on average, {right} right"
    if found.confidence < low:
        return f"It is right more often than it is sure: {right} right, {sure} sure on average"
    return f"It is as sure as it is right: {sure} sure on average, {right} right"


def _sureness_table(material: Material) -> str:
    """One row for each evaluation whose predictions were saved."""
    rows = []
    for (split, views), predictions in sorted(material.run.predictions.items()):
        if (found := calibration(predictions, seed=material.run.seed)) is None:
            continue
        shares = (found.confidence, found.right / found.images, found.expected_error)
        numbers = [percent(value, found.images) for value in shares]
        rows.append(
            [text(split), str(views), f"{found.images:,}", *numbers, f"{found.log_loss:.3f}"]
        )
    heads = ["split", "views>", "pictures>", "sure>", "right>", "calibration error>", "log loss>"]
    return page.table(heads, rows, kind="sureness")


def classes(material: Material) -> str:
    """The error of each class, with its counts and interval."""
    kicker = "Errors by class"
    if material.predictions is None:
        return page.section(kicker, "", page.missing(material.why["predictions"]))
    names = material.class_names
    entries = [replace(e, name=names[e.label]) for e in per_class_errors(material.predictions)]
    ordered = worst_first(entries)
    statement = _class_statement(ordered)
    save(figures.class_errors(entries, title=statement), material.figures, "class-errors")
    wide = inline_svg(figures.class_errors(entries), "classes", statement)
    narrow = inline_svg(figures.class_errors(entries, narrow=True), "classes-narrow", statement)
    words = "Pictures of each class that are taken for another, with 95 % intervals."
    if len(ordered) > figures.MAX_CLASSES_SHOWN:
        half = figures.MAX_CLASSES_SHOWN // 2
        words += f" The {half} worst and the {half} best of {len(ordered):,} classes."
    chart = page.chart(wide, narrow)
    return page.section(kicker, statement, page.about(words), chart)


def _class_statement(ordered: list[ClassErrors]) -> str:
    worst, best = ordered[0], ordered[-1]
    if worst.errors.top1_wrong == 0:
        return "Not one picture of any class is missed"
    high, low = (percent(entry.errors.top1_error) for entry in (worst, best))
    if worst.errors.top1_error == best.errors.top1_error:
        return f"Every class is missed alike: {high}"
    tied = sum(entry.errors.top1_error == worst.errors.top1_error for entry in ordered)
    if tied > 1:
        return (
            f"{tied} of {len(ordered)} classes are hardest, with {high} missed; "
            f"easiest is {first_name(best.name)}, with {low}"
        )
    return (
        f"Hardest is {first_name(worst.name)}, where {high} are missed; "
        f"easiest is {first_name(best.name)}, with {low}"
    )


def confusions(material: Material) -> str:
    """The commonest mistakes with pictures of them, and all of them where classes are few."""
    kicker = "What it takes for what"
    predictions = material.predictions
    if predictions is None:
        return page.section(kicker, "", page.missing(material.why["predictions"]))
    guessed = guessed_classes(predictions)
    pairs = [pair for pair in most_confused(predictions, PAIRS_SHOWN) if pair.images > 1]
    names = material.class_names
    parts = [_pairs_table(pairs, guessed, material)] if pairs else []
    if len(names) <= MAX_MATRIX_CLASSES:
        counts = confusion(predictions.labels, guessed, len(names))
        title = "How often each class is taken for each other"
        figure = figures.confusion_matrix(counts, names, title=title)
        save(figure, material.figures, "confusion-matrix")
        matrix = inline_svg(figures.confusion_matrix(counts, names), "confusion", title)
        parts.append(f'<h3>{title}</h3><div class="scroll">{page.chart(matrix)}</div>')
    return page.section(kicker, _pairs_statement(pairs, names), *parts)


def _pairs_statement(pairs: list[Confusion], names: tuple[str, ...]) -> str:
    if not pairs:
        return "No mistake was made twice"
    label, guess = (first_name(names[index]) for index in (pairs[0].label, pairs[0].guess))
    times, of = pairs[0].images, pairs[0].label_images
    return f"Most often, {label} is taken for {guess}: {times:,} of {of:,} pictures"


def _pairs_table(pairs: list[Confusion], guessed: np.ndarray, material: Material) -> str:
    names, split = material.class_names, material.split
    heads = [
        "right label",
        "taken for",
        "times>",
        "share>",
        *([] if split is None else ["such as"]),
    ]
    rows = []
    for pair in pairs:
        label, guess = (text(first_name(names[index], 40)) for index in (pair.label, pair.guess))
        times = f"{pair.images:,} of {pair.label_images:,}"
        row = [label, guess, times, percent(pair.images / pair.label_images)]
        if split is not None:
            which = np.flatnonzero((split.labels == pair.label) & (guessed == pair.guess))
            row.append(_examples(split, which[:EXAMPLES_PER_PAIR], f"{label}, taken for {guess}"))
        rows.append(row)
    return page.table(heads, rows, kind="pairs")


def _examples(split: Split, which: np.ndarray, description: str) -> str:
    images = "".join(
        page.picture(
            thumbnail(np.asarray(split.images[i]), EXAMPLE_PX), description, kind="example"
        )
        for i in which
    )
    return f'<div class="examples">{images}</div>'
