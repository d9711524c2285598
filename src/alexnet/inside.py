"""The parts of a report that look inside the network: colours, what excites units, occlusion.

Each function makes one section of the page and leaves its figure in RUN/figures, as in
`exhibits.py`. They look at a stated number of pictures at most. Not here: the numbers
(`findings.py`, `exciting.py`, `seeing.py`) and how they are drawn (`inside_figures.py`).
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from alexnet import inside_figures as figures
from alexnet import page
from alexnet.augment import centre_view
from alexnet.dataset import Split
from alexnet.drawing import inline_svg, save
from alexnet.errors import UserError
from alexnet.exciting import (
    Best,
    evenly,
    layers_shown,
    most_exciting,
    of_one_class,
    of_one_class_by_chance,
)
from alexnet.exhibits import NUMBERS, conv1_weights, no_pictures
from alexnet.figures import first_name, share, thumbnail
from alexnet.findings import (
    SPLITS_DRAWN,
    ColourIndex,
    choose_right_and_wrong,
    colour_index,
    colour_share,
    guessed_classes,
)
from alexnet.inside_figures import Occluded, Unit
from alexnet.material import Material
from alexnet.page import text
from alexnet.receptive import field_px, pixels_seen
from alexnet.seeing import SQUARE, occlusion, seen_part
from alexnet.trained import TrainedAlexNet

UNITS_SHOWN = 4  # of each layer
EXCITING_SHOWN = 8  # pictures for each unit
PICTURES_LOOKED_AT = 2000  # at most ...
LOOKING_MACS = 10**12  # ... and no more multiply-adds: 1,400 pictures through the paper's net
BATCH = 64
OCCLUDED_SHOWN = 6
PATCH_PX = 96
OCCLUDED_PX = 176
PARTED_P = 0.05


# Colours


def colours(material: Material) -> str:
    """How much of each kernel of conv1 is colour, and whether the two columns part by it."""
    kicker = "Light and dark, or colour"
    if material.model is None:
        return page.section(kicker, "", page.missing(material.why["model"]))
    weights = conv1_weights(material.model)
    halved = material.model.network.columns == 2
    index = colour_index(weights, material.run.seed)
    groups = np.array_split(np.array(index.kernels), 2 if halved else 1)
    means = index.halves if halved else colour_share(weights, 1)
    statement = _colour_statement(index, halved)
    drawn = partial(figures.colour_strips, [group.tolist() for group in groups], means)
    save(drawn(title=statement), material.figures, "conv1-colours")
    wide = inline_svg(drawn(), "colours", statement)
    narrow = inline_svg(drawn(narrow=True), "colours-narrow", statement)
    words = (
        "Each dot is a kernel. What it has alike in red, green and blue sees light and dark, the "
        "rest sees colour: a grey kernel stands at 0 %, one of opponent colours at 100 %. The line "
        f"is the share of {'the column' if halved else 'all'}, in which strong kernels count more."
    )
    if halved:
        words += (
            f" p is the share of {SPLITS_DRAWN:,} random halves of the kernels that differ from "
            "the rest at least as much as the columns do."
        )
    dead = int(np.isnan(index.kernels).sum())
    if dead:
        words += f" {page.counted(dead, 'kernel')} without any weight {_is(dead)} left out."
    return page.section(kicker, statement, page.about(words), page.chart(wide, narrow))


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _colour_statement(index: ColourIndex, halved: bool) -> str:
    if not halved:
        return "The network has one column: there are no two that could part by colour"
    first, second = (f"{100 * half:.0f} %" for half in index.halves)
    p = f"{index.parted_p:.3f}"
    if index.parted_p < PARTED_P:
        return (
            f"The columns differ in colour, {first} and {second}, more than random halves: p = {p}"
        )
    return f"The columns differ in colour no more than random halves: {first} and {second}, p = {p}"


# What excites a unit


def excitement(material: Material) -> str:
    """For some units of three layers, the pictures that excite each of them most."""
    kicker = "What excites its units"
    model, dataset = material.model, material.dataset
    if model is None or dataset is None:
        why = material.why["model" if model is None else "data"]
        return page.section(kicker, "", page.missing(why))
    splits, names = dataset.splits, dataset.class_names
    split = material.split or splits.get("test") or splits.get("val") or splits["train"]
    pool = _some_of(split.readable(), model)
    try:
        found = _most_exciting(model, pool)
        units = {
            layer: [_unit(layer, int(number), best, pool, model, names) for number in chosen]
            for layer, best in found.items()
            if len(chosen := evenly(best.alive(), UNITS_SHOWN))
        }
    except UserError as error:
        return page.section(kicker, "", page.missing(f"No picture can be looked at: {error}."))
    if not units:
        return page.section(kicker, "", page.missing("No unit answers to any picture."))
    alike = {layer: _alike(found[layer], pool) for layer in units}
    last, count = list(units)[-1], min(EXCITING_SHOWN, len(pool))
    statement = (
        f"Of the {NUMBERS[count]} pictures that excite a unit of {last} most, "
        f"{alike[last]:.1f} are of one class"
    )
    shown = [unit for group in units.values() for unit in group]
    save(figures.exciting(shown, title=statement), material.figures, "exciting-pictures")
    chance = of_one_class_by_chance(pool.labels, count, material.run.seed)
    many = f"{len(pool):,}" if len(pool) < len(split) else f"all {len(pool):,}"
    words = (
        f"Of {many} pictures of {split.name}, centre view, those with the highest activation, "
        "which stands below each. The units are evenly spaced by number among those that answer at "
        "all, not chosen by what they show. The means are over all that answer; of pictures drawn "
        f"at random, {chance:.1f} would be of one class."
    )
    blocks = [_layer_block(units[layer], found[layer], alike[layer], model) for layer in units]
    return page.section(kicker, statement, page.about(words), *blocks)


def _most_exciting(model: TrainedAlexNet, pool: Split) -> dict[str, Best]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return most_exciting(
        model.to(device),
        pool,
        model.card.preprocessing,
        layers_shown(model.network),
        count=EXCITING_SHOWN,
        batch_size=BATCH,
        device=device,
    )


def _some_of(split: Split, model: TrainedAlexNet) -> Split:
    """Evenly many of the pictures, no more than are looked at."""
    macs_per_picture = sum(shape.macs for shape in model.shapes.values())
    most = max(1, min(PICTURES_LOOKED_AT, LOOKING_MACS // macs_per_picture))
    every = -(-len(split) // most)
    return Split(split.name, split.images[::every], split.labels[::every], split.sources[::every])


def _unit(
    layer: str,
    number: int,
    best: Best,
    pool: Split,
    model: TrainedAlexNet,
    names: tuple[str, ...],
) -> Unit:
    rows, crop_px = best.pictures[number].tolist(), model.card.preprocessing.crop_px
    patches = []
    for row, at in zip(rows, best.places[number].tolist(), strict=True):
        seen = pixels_seen(model.network, layer, divmod(at, best.width), crop_px)
        patches.append(seen_part(model, np.asarray(pool.images[row]))[seen])
    return Unit(
        layer,
        number,
        tuple(patches),
        tuple(best.values[number].tolist()),
        tuple(names[pool.labels[row]] for row in rows),
    )


def _alike(best: Best, pool: Split) -> float:
    """Over all units that answer: the mean number of their pictures that are of one class."""
    return float(of_one_class(pool.labels[best.pictures[best.alive()].numpy()]).mean())


def _layer_block(units: list[Unit], best: Best, alike: float, model: TrainedAlexNet) -> str:
    layer, total, alive = units[0].layer, len(best.values), len(best.alive())
    field, side = field_px(model.network, layer), model.card.preprocessing.crop_px
    if not field:
        seen = "each sees the whole crop"
    elif field >= side:
        seen = f"each sees up to {field} \u00d7 {field} pixels, cut off where the crop ends"
    else:
        seen = (
            f"each sees {field} \u00d7 {field} of the crop's {side} \u00d7 {side} pixels, fewer at "
            "its border"
        )
    words = (
        f"{page.counted(total, 'unit')}; {seen}. Of a unit's {best.values.shape[1]} pictures, "
        f"{alike:.1f} are of one class."
    )
    if alive < total:
        words += f" {total - alive:,} answer to none of the pictures."
    rows = "\n".join(_unit_row(unit) for unit in units)
    return f'<h3>{text(layer)}</h3>{page.about(words)}<div class="exciting">\n{rows}\n</div>'


def _unit_row(unit: Unit) -> str:
    labels = np.array(unit.labels)
    commonest = max(unit.labels, key=unit.labels.count)
    times = int((labels == commonest).sum())
    cells = "".join(
        _patch(*one) for one in zip(unit.pictures, unit.values, unit.labels, strict=True)
    )
    name = f"unit {unit.number}"
    if times > 1:
        name += f": {times} of {len(labels)} are {first_name(commonest, 40)}"
    return f'<div class="unit"><p>{text(name)}</p><div class="row">{cells}</div></div>'


def _patch(picture: np.ndarray, value: float, label: str) -> str:
    return (
        f"<figure>{page.picture(thumbnail(picture, PATCH_PX), label)}"
        f'<figcaption title="{text(label)}">'
        f'<span class="value">{figures.three_digits(value)}</span> '
        f"{text(first_name(label, 40))}</figcaption></figure>"
    )


# Occlusion


def occlusions(material: Material) -> str:
    """Where a grey square changes the probability of the right label, over a few pictures."""
    kicker = "Where the label lies"
    predictions, split, model = material.predictions, material.split, material.model
    if predictions is None or split is None:
        return page.section(kicker, "", page.missing(no_pictures(material)))
    if model is None:
        return page.section(kicker, "", page.missing(material.why["model"]))
    right = guessed_classes(predictions) == predictions.labels
    chosen = choose_right_and_wrong(
        predictions.labels, right, count=OCCLUDED_SHOWN, seed=material.run.seed
    )
    try:
        shown = [_occluded(model, material.class_names, split, int(index)) for index in chosen]
    except UserError as error:
        return page.section(kicker, "", page.missing(f"No picture can be looked at: {error}."))
    if not all(np.isfinite(one.with_square).all() for one in shown):
        return page.section(kicker, "", page.missing("Its probabilities are not finite."))
    statement = _occlusion_statement(shown)
    save(figures.occlusion(shown, title=statement), material.figures, "occlusion")
    side = round(SQUARE * model.card.preprocessing.crop_px)
    words = (
        f"A square of {side} \u00d7 {side} pixels of the mean image is moved over the crop (Zeiler "
        "and Fergus, 2014). Below each: the probability of the right label, and its lowest and "
        "highest with a square somewhere. Full colour is a picture's largest change, of ten points "
        "at least. Drawn at random, half of them mistakes if there are as many; centre view. "
    )
    key = (
        '<span class="whole"><span class="key falls"></span>covering this lowers it</span> '
        '<span class="whole"><span class="key rises"></span>covering this raises it</span>'
    )
    cards = "\n".join(_occluded_card(one) for one in shown)
    body = f'<div class="occluded">\n{cards}\n</div>'
    return page.section(kicker, statement, page.about(words, markup=key), body)


def _occluded(model: TrainedAlexNet, names: tuple[str, ...], split: Split, index: int) -> Occluded:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.inference_mode()
    def probabilities_of(crops: Tensor) -> Tensor:
        logits: Tensor = model(crops.to(device))
        return logits.float().softmax(1).cpu()

    pixels, label = np.array(split.images[index]), int(split.labels[index])
    crop = centre_view(torch.from_numpy(pixels[None]), model.card.preprocessing)
    plain = probabilities_of(crop)[0]
    return Occluded(
        seen_part(model, pixels),
        names[label],
        names[int(plain.argmax())],
        float(plain[label]),
        occlusion(model, pixels, label, probabilities_of=probabilities_of),
    )


def _occlusion_statement(shown: list[Occluded]) -> str:
    right = [one for one in shown if one.guess == one.label]
    if not right:
        helped = sum(one.with_square.max() > 0.5 for one in shown)
        of = f"{NUMBERS[helped]} of {NUMBERS[len(shown)]} mistakes"
        return f"A square brings the right label above 50 % in {of}"
    before = float(np.mean([one.probability for one in right]))
    after = float(np.mean([one.with_square.min() for one in right]))
    return (
        f"One square in the worst place takes the right label from {share(before)} to "
        f"{share(after)}, where it was the first guess"
    )


def _occluded_card(one: Occluded) -> str:
    name = text(first_name(one.label, 40))
    if one.guess != one.label:
        name += f' <span class="missed">taken for {text(first_name(one.guess, 40))}</span>'
    heat = f"what {one.label} depends on"
    images = page.picture(thumbnail(one.picture, OCCLUDED_PX), one.label) + page.picture(
        thumbnail(one.heat, OCCLUDED_PX), heat
    )
    return (
        f'<figure><div class="pair">{images}</div><figcaption title="{text(one.label)}">'
        f"<strong>{name}</strong>{text(figures.in_words(one))}</figcaption></figure>"
    )
