"""The command line: `alexnet COMMAND --help` explains each one.

Every command talks to the others through files. A user's mistake is one line on standard error
and exit code 2; a training that was asked to stop, and saved, exits with 75, one that diverged
with 1. Imports of torch happen inside the commands, so that `--help` is instant.
"""

import contextlib
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

from alexnet.cli_bench import bench
from alexnet.errors import UserError
from alexnet.progress import Progress
from alexnet.reproducing import reproduce
from alexnet.similar import index, search, serve
from alexnet.using import convert, export, extract, predict

if TYPE_CHECKING:
    from alexnet.audit import Audit
    from alexnet.config import Recipe
    from alexnet.dataset import PackedDataset
    from alexnet.listing import Listing
    from alexnet.parallel import Ranks
    from alexnet.prepare import Form

Settings = Annotated[
    UseAppendAction[tuple[str, ...]], arg(name="set", metavar="SECTION.FIELD=VALUE")
]
Precision = Literal["fp32", "bf16", "fp64"]

CHECKING = "computing checksums, in bytes"

LEFT_OUT_SHOWN = 50  # pictures that `prepare` names; dataset.json names all


def main() -> None:
    """Run the command that the user typed."""
    commands: dict[str, Callable[..., None]] = {
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "extract": extract,
        "index": index,
        "search": search,
        "serve": serve,
        "convert": convert,
        "export": export,
        "reproduce": reproduce,
        "report": report,
        "describe": describe,
        "prepare": prepare,
        "check": check,
        "bench": bench,
    }
    try:
        with _one_line_mistakes():
            command = tyro.extras.subcommand_cli_from_dict(
                {name: _later(function) for name, function in commands.items()},
                prog="alexnet",
                description="AlexNet, whole: the network, the recipe and the experiments of 2012.",
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
        command()
    except UserError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        _leave(str(error), 2)


def _later(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The function with the same arguments, to be called once they are known to be right."""

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(function, *args, **kwargs)

    return bind


@contextlib.contextmanager
def _one_line_mistakes() -> Iterator[None]:
    """Turn what the parser draws about a wrong command line into one line."""
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip(" │") for line in drawn.getvalue().splitlines() if "│" in line]
        said = [line if line.strip("─") else ";" for line in lines]
        raise UserError(" ".join(said).replace(" ;", ";") or drawn.getvalue()) from None


def _leave(message: str, code: int) -> None:
    """End with one line. Of several ranks on a machine, who find the same, the first speaks."""
    rank = os.environ.get("RANK", "0")
    if os.environ.get("LOCAL_RANK", rank) != "0":
        sys.exit(code)
    message = message if rank == "0" else f"rank {rank}: {message}"
    print(f"alexnet: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def train(
    data: Positional[str | None] = None,
    /,
    *,
    recipe: str | None = None,
    set_: Settings = (),
    run: Path | None = None,
    resume: bool = False,
    repeat: Path | None = None,
    from_: Annotated[Path | None, arg(name="from")] = None,
    epochs: float | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    deterministic: bool = False,
    parallel: str | None = None,
    no_prepare: bool = False,
    no_report: bool = False,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Train a network, evaluate it, and leave a report.

    Args:
        data: shapes, cifar10, imagenette, a folder with one folder of pictures per class, or a
            packed data set. Without it, what the recipe names.
        recipe: name of a recipe. Default: shapes without DATA, pictures for a folder.
        set_: one setting of the recipe, e.g. optimizer.lr=0.005; may be repeated.
        run: folder for everything about this training. Default: runs/<recipe>, numbered.
        from_: a weights file or run to fine-tune: layers are copied by name and shape, the last one
            is new where the classes differ. Default recipe: finetune, with that network.
        resume: go on where the training in --run was stopped.
        repeat: a run, to do again from the beginning: with its recipe, pictures, seed, threads.
        epochs: passes through the training pictures.
        max_steps: stop after so many minibatches.
        batch_size: pictures in a minibatch.
        lr: learning rate of the weights to start with; the biases keep their ratio to it.
        seed: of weights, order, crops, colours and dropout.
        device: cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.
        precision: fp32, bf16 with fp32 weights, or fp64 for checks.
        deterministic: the same bits in each repetition on a GPU too, where that is slower.
        parallel: what torchrun's processes are for: columns=2, data=4, columns=2,data=2, hybrid.
            Default: data, all of them.
        no_prepare: begin at once: pack nothing, but decode pictures each time they are used.
        no_report: leave out report.html; `alexnet report RUN` writes it later.
        json_: print the summary as one JSON object at the end.
    """
    from alexnet import begun
    from alexnet.config import check
    from alexnet.sessions import own_run

    if resume and run is None:
        raise UserError("--resume needs the run to go on with: --resume --run DIR")
    if resume and from_:
        raise UserError("--from begins a training, --resume goes on with one: not both")
    if repeat and (resume or from_ or data or recipe):
        raise UserError("--repeat has all from its run: leave out DATA, --recipe, --from, --resume")
    if not (resume or repeat) and (own := own_run(run)) is not None:
        run, resume = own, True
    if repeat:
        asked = begun.recipe_to_repeat(repeat)
    elif resume and run:
        asked = begun.begun_recipe(run, data)
    elif from_:
        asked = _finetuning_recipe(data, recipe, from_)
    else:
        asked = _chosen_recipe(data, recipe)
    flags = {
        "schedule.epochs": epochs,
        "system.max_steps": max_steps,
        "optimizer.batch_size": batch_size,
        "system.seed": seed,
        "system.device": device,
        "system.precision": precision,
        "data.prepare": False if no_prepare else None,
        "system.deterministic": deterministic or None,
    }
    chosen = check(_with_flags(asked, flags, lr, set_))
    if resume:
        begun.check_resumable(asked, chosen, recipe)
    asked_alike = {"resume": resume, "repeat": str(repeat), "run": str(run)}
    with _ranks(parallel, chosen, **asked_alike) as ranks:
        summary = _train_and_report(asked, chosen, run, resume, repeat, no_report, json_, ranks)
        if json_ and ranks.speaks:
            print(json.dumps(summary))


@contextlib.contextmanager
def _ranks(parallel: str | None, recipe: "Recipe", **asked: Any) -> "Iterator[Ranks]":
    from alexnet.parallel import joined, parse, world_size

    plan = parse(parallel, world_size())
    with joined(plan, seconds=recipe.system.collective_seconds, **asked) as ranks:
        yield ranks


def _train_and_report(
    asked: "Recipe",
    recipe: "Recipe",
    run: Path | None,
    resume: bool,
    repeat: Path | None,
    no_report: bool,
    json_: bool,
    ranks: "Ranks",
) -> dict[str, Any]:
    from alexnet.begun import begun_data, compared, new_run_folder

    _check_before_data(recipe, ranks)
    if resume and run:
        folder = run
    else:
        folder = ranks.of_first(new_run_folder(run, recipe.name) if ranks.speaks else Path())
    console = Console(stderr=json_, quiet=not ranks.speaks)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    open_data = functools.partial(_open_data, console=console)
    before = repeat or (run if resume else None)
    dataset = ranks.one_after_another(
        lambda: begun_data(before, recipe, open_data) if before else open_data(recipe)
    )
    _check_data(dataset, console)
    if repeat:
        _tell_differences(repeat, recipe, asked, ranks, say)
    summary = _train(recipe, dataset, folder, resume=resume, console=console, ranks=ranks)
    if not no_report and ranks.speaks:
        from alexnet.report import write_report

        with Progress(console, "looking for neighbours") as advance:
            page = write_report(folder, progress=advance)
        console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
    if repeat and ranks.speaks:
        say(compared(repeat, folder))
    return summary


def _tell_differences(
    run: Path, chosen: "Recipe", asked: "Recipe", ranks: "Ranks", say: Callable[[str], None]
) -> None:
    import torch

    from alexnet.begun import other_circumstances
    from alexnet.config import differences
    from alexnet.log import environment
    from alexnet.step import find_device

    if chosen.system.threads:
        torch.set_num_threads(chosen.system.threads)
    here = environment(find_device(chosen.system.device)) | {"parallel": str(ranks.plan)}
    for line in other_circumstances(run, here):
        say(line)
    if changed := differences(asked, chosen):
        told = (f"{name} {before} -> {after}" for name, (before, after) in changed.items())
        say(f"other settings than {run}: {', '.join(told)}")


def _train(
    recipe: "Recipe",
    dataset: "PackedDataset",
    run: Path,
    *,
    resume: bool,
    console: Console,
    ranks: "Ranks",
) -> dict[str, Any]:
    from alexnet.stopping import EXIT_STOPPED, Interrupted
    from alexnet.train import Diverged
    from alexnet.train import train as run_training

    try:
        summary = run_training(recipe, dataset, run, resume=resume, console=console, ranks=ranks)
    except Interrupted as stop:
        _leave(str(stop), EXIT_STOPPED)
    except Diverged as stop:
        _leave(str(stop), 1)
    for found in summary["evaluations"]:
        console.print(
            f"{found['split']}, {found['views']} view{'s' if found['views'] > 1 else ''}: "
            f"{found['top1_error']:.2%} top-1, {found['top5_error']:.2%} top-5 error "
            f"of {found['images']:,} pictures",
            highlight=False,
        )
    return summary


def _chosen_recipe(data: str | None, name: str | None) -> "Recipe":
    from alexnet.config import DataConfig, diff
    from alexnet.recipes import find_recipe

    defaults = {None: "shapes", "shapes": "shapes", "cifar10": "cifar10-80sec"}
    defaults["imagenette"] = "imagenette"
    recipe = find_recipe(name or defaults.get(data, "pictures"))
    if data:
        sizes = find_recipe("shapes").data if data == "shapes" else DataConfig()
        if data != "shapes" or not recipe.data.num_train:
            names = ("num_train", "num_val", "num_classes")
            recipe = diff(recipe, data={name: getattr(sizes, name) for name in names})
        recipe = diff(recipe, data={"dataset": data})
    if not recipe.data.dataset:
        raise UserError(
            f"recipe {recipe.name} needs pictures: alexnet train DATA --recipe {recipe.name}"
        )
    return recipe


def _finetuning_recipe(data: str | None, name: str | None, weights: Path) -> "Recipe":
    """That of the name, else `finetune` with the network and the sizes of the weights."""
    from alexnet.config import diff
    from alexnet.weights import load

    card = load(weights).card
    recipe = diff(_chosen_recipe(data, name or "finetune"), network={"weights": str(weights)})
    if name:
        return recipe
    found = card.preprocessing
    return diff(
        recipe,
        network={"name": card.network, "dropout": card.dropout},
        data={"image_px": found.image_px},
        augment={"crop_px": found.crop_px, "mean": found.mean_at},
        evaluate={"views": ",".join(map(str, card.views))},
    )


def _with_flags(
    recipe: "Recipe", flags: dict[str, Any], lr: float | None, settings: tuple[str, ...]
) -> "Recipe":
    from alexnet.config import diff, override

    for path, value in flags.items():
        if value is not None:
            section, _, name = path.partition(".")
            recipe = diff(recipe, **{section: {name: value}})
    if lr is not None:
        ratio = recipe.optimizer.bias_lr / recipe.optimizer.lr
        recipe = diff(recipe, optimizer={"lr": lr, "bias_lr": lr * ratio})
    for assignment in settings:
        recipe = override(recipe, assignment)
    return recipe


def _open_data(recipe: "Recipe", console: Console) -> "PackedDataset":
    from alexnet.opening import open_dataset

    data = recipe.data
    title = "preparing pictures" if data.prepare else "looking at pictures"
    with Progress(console, title) as advance:
        dataset = open_dataset(
            data.dataset,
            image_px=data.image_px,
            num_train=data.num_train or None,
            num_val=data.num_val or None,
            num_classes=data.num_classes or None,
            val_fraction=data.val_fraction,
            prepare=data.prepare,
            sample=data.sample,
            progress=advance,
        )
    train = len(dataset.splits.get("train", ()))
    if dataset.statistics_images < train:
        console.print(
            f"nothing is packed: mean and colours are those of {dataset.statistics_images:,} of "
            f"{train:,} training pictures, and each epoch decodes all of them",
            highlight=False,
            soft_wrap=True,
        )
    return dataset


def _check_before_data(recipe: "Recipe", ranks: "Ranks") -> None:
    """Find what cannot be before pictures are prepared, which may take long."""
    from alexnet.columns import check_cut
    from alexnet.networks import find_network
    from alexnet.schedule import make_schedule
    from alexnet.step import find_device

    network = find_network(recipe.network.name)
    if network.input_px != recipe.augment.crop_px:
        raise UserError(
            f"network {network.name} takes crops of {network.input_px} pixels: "
            f"--set augment.crop_px={network.input_px}"
        )
    if ranks.size > 1 and not recipe.data.prepare:
        raise UserError("--no-prepare is for one process; leave it out, and pictures are packed")
    make_schedule(recipe.schedule)
    ranks.device(find_device(recipe.system.device))
    # How many classes there are is known later.
    check_cut(network, ranks.plan.columns, ranks.plan.columns, ranks.plan.replicas)


def _check_data(dataset: "PackedDataset", console: Console) -> None:
    """Name what was left out. Raises UserError without pictures to train on or to validate with."""
    for split in ("train", "val"):
        if split not in dataset.splits:
            raise UserError(f"data set {dataset.path} has no {split} split to train with")
    _print_left_out(dataset, console, at_most=10)


def _print_left_out(dataset: "PackedDataset", console: Console, *, at_most: int) -> None:
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for picture in dataset.left_out[:at_most]:
        say(f"left out: {picture['path']}: {picture['reason']}")
    if len(dataset.left_out) > at_most:
        say(f"left out: {len(dataset.left_out):,} in all; see {dataset.path / 'dataset.json'}")


def evaluate(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    data: str | None = None,
    split: str = "val",
    views: int = 10,
    weights: tuple[float, ...] = (),
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 256,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Count the errors of trained networks over a whole split; several are averaged.

    Args:
        runs: run folders.
        data: another data set than the run's own.
        split: val, test or train.
        views: 1 (centre crop) or 10 (the paper's patches, softmax averaged).
        weights: one per run, for a weighted average.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        precision: fp32 or bf16.
        batch_size: crops that are evaluated at a time.
        json_: print one JSON object instead of the table.
    """
    from alexnet.config import SystemConfig
    from alexnet.evaluate import evaluate_runs
    from alexnet.parallel import joined, parse, world_size
    from alexnet.results import print_results
    from alexnet.step import find_device

    with joined(parse(None, world_size()), seconds=SystemConfig().collective_seconds) as ranks:
        console = Console(stderr=json_, quiet=not ranks.speaks)
        with Progress(console, "evaluating") as advance:
            result = evaluate_runs(
                runs,
                data=data,
                split=split,
                views=views,
                weights=weights or None,
                device=ranks.device(find_device(device)),
                precision=precision,
                batch_size=batch_size,
                progress=lambda run, done, total: advance(done, total),
                ranks=ranks,
            )
    if not ranks.speaks:
        return
    if json_:
        print(json.dumps(result.as_json()))
    else:
        print_results(result.table(), f"{result.dataset}, {split}", console)


def report(run: Positional[Path], /, *, data: str | None = None) -> None:
    """Write RUN/report.html and RUN/figures: what was learned, seen and confused.

    Args:
        run: a run folder.
        data: another data set than the run's own.
    """
    from alexnet.report import write_report

    console = Console()
    with Progress(console, "looking for neighbours") as advance:
        page = write_report(run, data=data, progress=advance)
    console.print(str(page), highlight=False, markup=False, soft_wrap=True)


def prepare(
    source: Positional[Path],
    target: Positional[Path],
    /,
    *,
    kind: str | None = None,
    classes: Path | None = None,
    name: str | None = None,
    image_px: int = 256,
    resampling: str = "bicubic",
    store: Literal["pixels", "jpeg"] = "pixels",
    quality: int = 90,
    val_fraction: float | None = None,
    seed: int = 0,
    processes: int | None = None,
    shard: str | None = None,
    merge: bool = False,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Pack pictures: shorter side 256, central 256 x 256, with the statistics of the training set.

    Stopped at any moment, the same command goes on where it was.

    Args:
        source: folders of pictures, ImageNet's archives, tables, shards; - is a tar from a pipe.
        target: a new folder for the packed data set.
        kind: what the source is, where looking does not tell: folder, ilsvrc, synsets, kaggle,
            parquet, webdataset, cifar10 or csv.
        classes: a file with one class a line, in the order of the labels.
        name: of the data set, by default the source's.
        image_px: side of the packed pictures.
        resampling: filter that scales: bicubic, bilinear, lanczos, hamming, box or nearest.
        store: pixels (fastest to train from), or jpeg (a tenth of the space).
        quality: of the JPEG store.
        val_fraction: share of each class to keep for validation, where there is no val: 0.1.
        seed: of that split.
        processes: that decode, by default one per core.
        shard: i/n: prepare only this share, so that several machines can do the work.
        merge: put the finished shares beside TARGET together.
        json_: print one JSON object.
    """
    from alexnet import prepare as preparation
    from alexnet.sources import find_source, name_of_source

    console = Console(stderr=json_)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    form = preparation.Form(image_px, resampling, store, quality)
    share = None if shard is None else _read_shard(shard)
    if share is not None and (merge or str(source) == "-"):
        raise UserError("--shard goes with neither --merge nor a pipe")
    chosen: dict[str, Any] = {
        "kind": kind,
        "classes": classes,
        "val_fraction": val_fraction,
        "seed": seed,
    }
    if str(source) == "-":
        packed = _prepare_pipe(target, name, form, chosen, processes, console)
    else:
        with console.status(f"looking at {source}"):
            listing = find_source(source, **chosen)
        for remark in listing.remarks:
            say(remark)
        title = name or name_of_source(source)
        if merge:
            with Progress(console, "putting the shares together") as advance:
                packed = preparation.merge(
                    listing,
                    target,
                    name=title,
                    form=form,
                    progress=advance,
                    checking=functools.partial(advance, title=CHECKING),
                )
        else:
            say(preparation.forecast(len(listing), form))
            with Progress(console, "preparing pictures") as advance:
                made = preparation.prepare(
                    listing,
                    target,
                    name=title,
                    form=form,
                    processes=processes,
                    shard=share,
                    progress=advance,
                    checking=functools.partial(advance, title=CHECKING),
                )
            if made is None:
                say(f"{target}: share {shard} is ready; when all are, take --merge for --shard")
                return
            packed = made
    counts = {name: len(split) for name, split in packed.splits.items()}
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"{target}: {listed}, {len(packed.class_names)} classes")
    _print_left_out(packed, console, at_most=LEFT_OUT_SHOWN)
    if json_:
        facts = {
            "data": str(target),
            "images": counts,
            "classes": len(packed.class_names),
            "left_out": len(packed.left_out),
        }
        print(json.dumps(facts))


def check(
    source: Positional[Path],
    /,
    *,
    kind: str | None = None,
    classes: Path | None = None,
    image_px: int = 256,
    processes: int | None = None,
    examples: int = 3,
    lines: Path | None = None,
    sheet: Path | None = None,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Look at every picture of a source: what is broken, odd or twice there, and what prepare does.

    Args:
        source: anything that prepare takes, but a pipe.
        kind: what the source is, where looking does not tell: folder, ilsvrc, synsets, kaggle,
            parquet, webdataset, cifar10 or csv.
        classes: a file with one class a line, in the order of the labels.
        image_px: side of the packed pictures; smaller ones are found.
        processes: that decode, by default one per core.
        examples: how many pictures of each kind the table names.
        lines: write all findings to this file, one JSON object a line.
        sheet: write a contact sheet to this PNG or JPEG file.
        json_: print one JSON object with the counts instead of the table.
    """
    from alexnet import audit
    from alexnet.sources import find_source

    console = Console(stderr=json_)
    with console.status(f"looking for pictures in {source}"):
        listing = find_source(source, kind=kind, classes=classes)
    with Progress(console, "looking at pictures") as advance:
        found = audit.check(listing, image_px=image_px, workers=processes, progress=advance)
    if lines is not None:
        found.write_json_lines(lines)
    if sheet is not None:
        _write_sheet(sheet, found, listing)
    if json_:
        print(json.dumps(found.to_json()))
        return
    console.print(audit.findings_by_kind(found, examples))
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    left_out = found.num_left_out()
    say(f"{len(listing):,} pictures as {listing.kind}; prepare leaves out {left_out:,}")
    for path in (lines, sheet):
        if path is not None:
            say(f"written: {path}")


def _write_sheet(path: Path, found: "Audit", listing: "Listing") -> None:
    from alexnet.contact import sheet_of
    from alexnet.files import write_bytes

    form = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
    if form is None:
        raise UserError(f"{path}: a contact sheet is a .png or a .jpg")
    buffer = io.BytesIO()
    sheet_of(found, listing).save(buffer, form)
    write_bytes(path, buffer.getvalue())


def _prepare_pipe(
    target: Path,
    name: str | None,
    form: "Form",
    chosen: dict[str, Any],
    processes: int | None,
    console: Console,
) -> "PackedDataset":
    from alexnet.stream import prepare_stream

    if sys.stdin.isatty():
        raise UserError("- is a tar from a pipe: cat train.tar | alexnet prepare - DATA")
    with Progress(console, "preparing pictures") as advance:
        return prepare_stream(
            sys.stdin.buffer,
            target,
            name=name or "stream",
            form=form,
            processes=processes,
            progress=advance,
            checking=functools.partial(advance, title=CHECKING),
            **chosen,
        )


def _read_shard(text: str) -> tuple[int, int]:
    share, slash, shares = text.partition("/")
    if not slash or not (share.isdecimal() and shares.isdecimal()):
        raise UserError(f"--shard is {text!r}; it is written i/n, as 2/4 for the second of four")
    if not 1 <= int(share) <= int(shares):
        raise UserError(f"--shard is {text}; the first number goes from 1 to the second")
    return int(share), int(shares)


def describe(
    network: Positional[str],
    /,
    *,
    diff: str | None = None,
    num_classes: int = 1000,
    batch_size: int = 128,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Show a network's layers, counts and memory, or how it differs from another.

    Args:
        network: its name, e.g. paper.
        diff: another network to explain the differences to.
        num_classes: units of the last layer.
        batch_size: for the memory of training.
        json_: print one JSON object instead of the table.
    """
    from alexnet.describe import describe_network, print_description, print_differences

    description = describe_network(network, num_classes=num_classes, batch_size=batch_size)
    if json_:
        print(json.dumps(description.as_json(diff)))
        return
    console = Console()
    if diff:
        print_differences(network, diff, console)
    else:
        print_description(description, console)


if __name__ == "__main__":
    main()
