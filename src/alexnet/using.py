"""The commands that put a trained network to use: predict, extract, convert, export.

Not here: training and measuring (`cli.py`), what the commands do (`labelling.py`, `extract.py`).
"""

import contextlib
import json
import sys
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from alexnet.errors import UserError
from alexnet.progress import Progress

Precision = Literal["fp32", "bf16"]
REFUSED_SHOWN = 3  # unreadable pictures that the last line names


def predict(
    model: Positional[Path],
    pictures: Positional[tuple[str, ...]],
    /,
    *,
    views: int = 1,
    top: int = 5,
    strict: bool = False,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 128,
    json_: Annotated[bool, arg(name="json")] = False,
    csv: bool = False,
) -> None:
    """Say what is on pictures: the most probable classes, with their probabilities.

    A picture that cannot be read is named and passed over; the exit code is 2 only if none could
    be read, or with --strict.

    Args:
        model: model.safetensors, or the run folder that holds it.
        pictures: files, folders (with all below), patterns; - reads a path a line from a pipe.
        views: 1 (centre crop) or 10 (the paper's patches, softmax averaged).
        top: how many classes of each picture.
        strict: exit code 2 if any picture could not be read.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        precision: fp32 or bf16.
        batch_size: crops that the network sees at a time.
        json_: print a JSON array, [{path, top5: [{class, probability}]}].
        csv: print a row for each picture: path, class_1, probability_1, ..., error.
    """
    from alexnet import labelling
    from alexnet.config import SystemConfig
    from alexnet.gather import picture_paths
    from alexnet.parallel import joined, parse, world_size
    from alexnet.step import find_device
    from alexnet.weights import load

    if not pictures:
        raise UserError("name pictures: files, folders, patterns, or - for a pipe of paths")
    if json_ and csv:
        raise UserError("--json or --csv, not both")
    if world_size() > 1 and "-" in pictures:
        raise UserError("several processes cannot share a pipe of paths; name files or folders")
    refused: list[labelling.Labelled] = []
    count = 0
    with contextlib.ExitStack() as stack:
        limit = SystemConfig().collective_seconds
        ranks = stack.enter_context(joined(parse(None, world_size()), seconds=limit))
        network = load(model, ranks.device(find_device(device)))
        named = picture_paths(pictures, getattr(sys.stdin, "buffer", None))
        # Counting them first tells the time left; a pipe is not waited for.
        paths: Iterable[str] = named if "-" in pictures else list(named)[ranks.rank :: ranks.size]
        total = len(paths) if isinstance(paths, list) else 0
        console = Console(stderr=True)
        advance = None
        if console.is_terminal and not sys.stdout.isatty() and ranks.speaks:
            show = stack.enter_context(Progress(console, "looking at pictures"))
            advance = lambda done: show(done, total)  # noqa: E731
        found: Iterable[labelling.Labelled] = labelling.label_pictures(
            network,
            paths,
            views=views,
            top=top,
            batch_size=batch_size,
            precision=precision,
            progress=advance,
        )
        if ranks.size > 1:
            parts = ranks.everyone.objects(list(found), "labels")
            if not ranks.speaks:
                return
            found = filter(None, chain.from_iterable(zip_longest(*parts)))

        def noted() -> Iterable[labelling.Labelled]:
            nonlocal count
            for labelled in found:
                count += 1
                if labelled.reason is not None:
                    refused.append(labelled)
                yield labelled

        if json_:
            _write(labelling.json_lines(noted(), top))
        elif csv:
            _write(labelling.csv_lines(noted(), top))
        else:
            _write(map(labelling.as_text, noted()))
    if refused:
        _tell_refused([(one.path, one.reason) for one in refused], count, strict)


def _write(texts: Iterable[str]) -> None:
    """Each at once; names that are not UTF-8 leave as the bytes that they are."""
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    for text in texts:
        sys.stdout.write(text)
        sys.stdout.flush()


def _tell_refused(refused: list[tuple[str, str | None]], count: int, strict: bool) -> None:
    """Raises UserError where that is a failure; else one line."""
    shown = "; ".join(f"{path}: {reason}" for path, reason in refused[:REFUSED_SHOWN])
    if len(refused) > REFUSED_SHOWN:
        shown += f"; and {len(refused) - REFUSED_SHOWN:,} more"
    line = f"{len(refused):,} of {count:,} pictures could not be read: {shown}"
    line = line.encode(errors="backslashreplace").decode()
    if strict or len(refused) == count:
        raise UserError(line)
    print(f"alexnet: {' '.join(line.split())}", file=sys.stderr)


def extract(
    model: Positional[Path],
    data: Positional[str],
    /,
    *,
    out: Path,
    layer: str | None = None,
    before_relu: bool = False,
    split: str | None = None,
    views: int = 1,
    dtype: Literal["float32", "float16"] = "float32",
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 128,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Write a layer's output for every picture of a data set or folder, with paths and labels.

    Args:
        model: model.safetensors, or the run folder that holds it.
        data: a packed data set or one of its splits, a built-in one, a folder, a pattern.
        out: features.npy (a .csv and a .json are written beside it) or features.parquet.
        layer: conv1 ... fc8; by default the last hidden one, fc7.
        before_relu: the layer's linear output; else what comes out of its ReLU.
        split: train, val or test alone.
        views: 1 (centre crop) or 10 (the mean over the paper's patches).
        dtype: float32 or float16.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        precision: of the computation, fp32 or bf16.
        batch_size: crops that the network sees at a time.
        json_: print what the file says of itself as one JSON object.
    """
    from alexnet import extract as extraction
    from alexnet.config import SystemConfig
    from alexnet.parallel import joined, parse, world_size
    from alexnet.step import find_device
    from alexnet.weights import load, weights_file

    with joined(parse(None, world_size()), seconds=SystemConfig().collective_seconds) as ranks:
        network = load(model, ranks.device(find_device(device)))
        console = Console(stderr=json_, quiet=not ranks.speaks)
        with Progress(console, "extracting features") as advance:
            about: dict[str, Any] = extraction.extract(
                network,
                data,
                out,
                model_path=weights_file(model),
                layer=layer,
                before_relu=before_relu,
                split=split,
                views=views,
                dtype=dtype,
                precision=precision,
                batch_size=batch_size,
                progress=advance,
                group=ranks.everyone,
            )
    if not ranks.speaks:
        return
    for left_out in about["left_out"][:REFUSED_SHOWN]:
        line = f"left out: {left_out['path']}: {left_out['reason']}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    line = f"{out}: {extraction.summary(about)}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_:
        print(json.dumps(about))


def convert(
    source: Positional[str],
    target: Positional[Path],
    /,
    *,
    mean: str | None = None,
    classes: Path | None = None,
    network: str | None = None,
) -> None:
    """Make a model.safetensors of somebody else's weights, checked against the file itself.

    Args:
        source: Caffe's .caffemodel, torchvision's .pth, the ONNX zoo's bvlcalexnet, or a checkpoint
            of cuda-convnet; or hf:OWNER/NAME, which was pushed by export.
        target: the model.safetensors to write.
        mean: the mean image (.binaryproto, .npy, batches.meta), or 123,117,104 (red, green, blue).
        classes: a file with a class a line, in the order of the labels.
        network: which network a checkpoint of cuda-convnet is.
    """
    from alexnet import convert as converting
    from alexnet import hub
    from alexnet.files import write_bytes
    from alexnet.weights import load

    if source.startswith(hub.PREFIX):
        path = hub.download(source)
        said = f"{target}: network {load(path).name} from {source}, checksum right"
        write_bytes(target, path.read_bytes())
    else:
        found = converting.convert(
            Path(source), target, mean=mean, classes=classes, network=network
        )
        said = found.told()
    Console().print(said, highlight=False, markup=False, soft_wrap=True)


def export(model: Positional[Path], target: Positional[str], /) -> None:
    """Write a trained network in a form that others read, checked against the network itself.

    Args:
        model: model.safetensors, or the run folder that holds it.
        target: net.onnx, net.pt2 (a torch.export program), net.pth (torchvision's state dict), or
            hf:OWNER/NAME, a repository on the Hugging Face Hub.
    """
    from alexnet import export as exporting
    from alexnet import hub
    from alexnet.weights import load

    if target.startswith(hub.PREFIX):
        said = f"pushed to {hub.push(model, target)}"
    else:
        said = exporting.export(load(model), Path(target)).told()
    Console().print(said, highlight=False, markup=False, soft_wrap=True)
