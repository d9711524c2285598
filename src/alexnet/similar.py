"""The commands that find similar pictures and show them: index, search, serve.

Not here: what they do (`indexing.py`, `searching.py`, `serving.py`).
"""

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from alexnet.errors import UserError
from alexnet.progress import Progress

if TYPE_CHECKING:
    from alexnet.searching import Near, Searcher

Fast = Literal["ivfpq", "hnsw", "codes-256", "codes-128"]
LEFT_OUT_SHOWN = 5
GROUPS_SHOWN = 20


def index(
    model: Positional[Path],
    data: Positional[str],
    index_: Positional[Path],
    /,
    *,
    layer: str | None = None,
    split: str | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    fast: tuple[Fast, ...] = (),
    add: bool = False,
    remove: bool = False,
    device: str = "auto",
    batch_size: int = 128,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Keep the features of pictures, so that `alexnet search` finds the similar ones.

    Stopped and given again, it goes on; given again when done, it makes the searches of --fast
    that are missing.

    Args:
        model: model.safetensors, or the run folder that holds it.
        data: a packed data set or one of its splits, a built-in one, a folder, a pattern; with
            --remove, the name of a picture in the index, a folder or a pattern of them.
        index_: the folder of the index.
        layer: whose output is compared; by default the last hidden layer, fc7.
        split: only the train, val or test pictures.
        dtype: of the features: float32, or float16 in half the space.
        fast: searches for very many pictures: ivfpq, hnsw, codes-256, codes-128.
        add: add the pictures to the index that is there.
        remove: take pictures from the index.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        batch_size: pictures that the network sees at a time.
        json_: print one JSON object.
    """
    from alexnet import indexing
    from alexnet.files import sha256_of
    from alexnet.index import check_model, open_index
    from alexnet.step import find_device
    from alexnet.weights import load, weights_file

    if add and remove:
        raise UserError("--add or --remove, not both")
    file = weights_file(model)
    if remove:
        check_model(open_index(index_), sha256_of(file), model)
        changed = indexing.remove_pictures(index_, [data])
    else:
        network = load(file, find_device(device))
        with _Stages(Console(stderr=True)) as progress:
            changed = indexing.make_index(
                index_,
                network,
                file,
                data,
                layer=layer,
                split=split,
                dtype=dtype,
                fast=fast,
                add=add,
                batch_size=batch_size,
                progress=progress,
            )
    made = changed.index
    facts = {
        "index": str(index_),
        "pictures": len(made),
        "added": changed.added,
        "removed": changed.removed,
        "left_out": len(changed.left_out),
        "layer": made.description.model["layer"],
        "width": made.width,
        "dtype": made.description.dtype,
        "searches": ["exact", *made.description.searches],
    }
    if json_:
        print(json.dumps(facts))
        return
    say = functools.partial(Console().print, highlight=False, markup=False, soft_wrap=True)
    for path, reason in changed.left_out[:LEFT_OUT_SHOWN]:
        say(f"left out: {path}: {reason}")
    if len(changed.left_out) > LEFT_OUT_SHOWN:
        say(f"left out: {len(changed.left_out):,} in all")
    say(
        f"{index_}: {len(made):,} pictures ({changed.added:,} added, {changed.removed:,} removed), "
        f"{made.width:,} numbers of {facts['layer']} each, {made.description.dtype}; "
        f"searches: {', '.join(['exact', *made.description.searches])}"
    )


def search(
    index_: Positional[Path],
    pictures: Positional[tuple[str, ...]] = (),
    /,
    *,
    top: int = 6,
    by: Literal["exact", "ivfpq", "hnsw", "codes-256", "codes-128"] = "exact",
    model: Path | None = None,
    figure: Path | None = None,
    duplicates: bool = False,
    threshold: float = 0.1,
    verify: bool = False,
    device: str = "auto",
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Find the pictures of an index that are nearest to others, or nearly the same as each other.

    Args:
        index_: the folder of an index.
        pictures: files, folders (with all below), patterns; - reads a path a line from a pipe.
        top: how many for each picture.
        by: exact, as in the paper, or a search that the index was made with.
        model: the model that made the index, where it has been moved.
        figure: draw each picture and the nearest ones as in Figure 4: a .png or .svg file.
        duplicates: find the pictures of the index that are nearly the same as one another.
        threshold: how different such may be: 0 for the same features, 1 for nothing in common.
        verify: compare the checksum of every file of the index first.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_: print a JSON array, [{path, nearest: [{name, class, distance}]}].
    """
    from alexnet.index import open_index, verify_index
    from alexnet.searching import Searcher

    if figure is not None and figure.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"{figure}: a figure is a .png or a .svg")
    if not (pictures or duplicates or verify):
        raise UserError("name pictures to search for, or look for --duplicates")
    opened = open_index(index_)
    if verify:
        verify_index(opened)
    searcher = Searcher(opened, by)
    if duplicates:
        _print_duplicates(searcher, threshold, json_)
    elif pictures:
        _print_nearest(searcher, pictures, top, model, figure, device, json_)
    else:
        Console().print(f"{index_}: every file is as it was written", highlight=False)


def _print_nearest(
    searcher: "Searcher",
    pictures: tuple[str, ...],
    top: int,
    model: Path | None,
    figure: Path | None,
    device: str,
    json_: bool,
) -> None:
    from alexnet.gather import picture_paths, read_pictures
    from alexnet.searching import load_model_of, query_features
    from alexnet.step import find_device

    network = load_model_of(searcher.index, model, find_device(device))
    paths = list(picture_paths(pictures, getattr(sys.stdin, "buffer", None)))
    size_px = network.card.preprocessing.image_px
    found: list[tuple[str, list[Near], Any]] = []
    refused: list[tuple[str, str]] = []
    for block in read_pictures(paths, size_px, batch_size=64):
        refused.extend(block.refused)
        if len(block.pixels):
            near = searcher.find(query_features(searcher.index, network, block.pixels), top)
            found.extend(zip(block.readable, near, block.pixels, strict=True))
    if not found:
        first = "{}: {}".format(*refused[0]) if refused else "none was named"
        raise UserError(f"no picture to search for could be read: {first}")
    if figure is not None:
        _draw(searcher, network, found, figure)
    if json_:
        print(json.dumps([_record(path, near) for path, near, _ in found]
                         + [{"path": path, "error": why} for path, why in refused]))  # fmt: skip
        return
    unit = "bits" if searcher.by.startswith("codes-") else ""
    for path, ones, _ in found:
        print(path.encode(errors="backslashreplace").decode())
        for one in ones:
            away = f"{one.distance:.0f} {unit}" if unit else f"{one.distance:.2f}"
            name = one.name.encode(errors="backslashreplace").decode()
            print(f"  {away:>9}  {one.label or '-':<20}  {name}")
    for path, why in refused:
        print(f"alexnet: {path} cannot be read: {why}", file=sys.stderr)
    if figure is not None:
        print(f"figure: {figure}")


def _record(path: str, near: "list[Near]") -> dict[str, Any]:
    nearest = [{"name": n.name, "class": n.label or None, "distance": n.distance} for n in near]
    return {"path": path, "nearest": nearest}


def _draw(searcher: "Searcher", network: Any, found: list[Any], figure: Path) -> None:
    from alexnet.drawing import save_one
    from alexnet.figures import neighbours
    from alexnet.findings import Neighbours
    from alexnet.searching import Shelf

    shelf = Shelf(searcher.index, network.card.preprocessing.image_px)
    rows = [
        Neighbours(
            picture=pixels,
            label=network.predictions(pixels[None], top=1)[0].name,
            pictures=tuple(shelf.picture(one.row) for one in near),
            labels=tuple(one.label or Path(one.name).name for one in near),
        )
        for _, near, pixels in found
    ]
    layer = searcher.index.description.model["layer"]
    title = f"New pictures with what the network takes them for, and the nearest in {layer}"
    save_one(neighbours(rows, title=title), figure)


def _print_duplicates(searcher: "Searcher", threshold: float, json_: bool) -> None:
    from alexnet.searching import groups, near_duplicates

    if not 0 <= threshold <= 1:
        raise UserError(f"the threshold is {threshold:g}; it lies between 0 and 1")
    with Progress(Console(stderr=True), "comparing pictures") as advance:
        pairs = near_duplicates(searcher, threshold, advance)
    joined = groups(pairs)
    name = searcher.index.name
    if json_:
        near = [
            {"first": name(p.first), "second": name(p.second), "distance": p.distance}
            for p in pairs
        ]
        print(
            json.dumps({"groups": [[name(row) for row in rows] for rows in joined], "pairs": near})
        )
        return
    nearest = {row: p.distance for p in reversed(pairs) for row in (p.first, p.second)}
    for rows in sorted(joined, key=lambda rows: min(nearest[row] for row in rows))[:GROUPS_SHOWN]:
        print(f"{min(nearest[row] for row in rows):.3f}")
        for row in rows:
            print(f"  {name(row).encode(errors='backslashreplace').decode()}")
    more = (
        f"; {GROUPS_SHOWN} groups are shown, all with --json" if len(joined) > GROUPS_SHOWN else ""
    )
    print(
        f"{sum(map(len, joined)):,} of {len(searcher.index):,} pictures are nearly the same as "
        f"another, in {len(joined):,} groups{more}"
    )


class _Stages:
    """One bar after another: `progress(what is being done, done, total)`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.title: str | None = None
        self.bar: Progress | None = None

    def __enter__(self) -> "_Stages":
        return self

    def __call__(self, title: str, done: int, total: int) -> None:
        if title != self.title:
            self.__exit__()
            self.title, self.bar = title, Progress(self.console, title)
            self.bar.__enter__()
        assert self.bar is not None
        self.bar.advance(done, total)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
            self.bar = None


def serve(
    model: Positional[Path],
    /,
    *,
    index: Path | None = None,
    by: Literal["exact", "ivfpq", "hnsw", "codes-256", "codes-128"] = "exact",
    host: str = "127.0.0.1",
    port: int = 7860,
    max_mb: float = 20.0,
    max_megapixels: float = 64.0,
    per_minute: float = 120.0,
    seconds: float = 60.0,
    device: str = "auto",
) -> None:
    """Show what a network sees: a page to drop pictures on, and a JSON endpoint beside it.

    Bound to this machine alone unless --host says otherwise. Pictures stay in memory and are
    forgotten.

    Args:
        model: model.safetensors, or the run folder that holds it.
        index: show the nearest pictures of this index, too.
        by: how to search it: exact, or a search that it was made with.
        host: address to listen on; 0.0.0.0 is every one that this machine has.
        port: number to listen on.
        max_mb: megabytes that a picture may have.
        max_megapixels: millions of pixels that a picture may have.
        per_minute: requests of one client in the long run; twice as many at once.
        seconds: until an answer, waiting included.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
    """
    from alexnet import serving
    from alexnet.service import Limits, Service, check_port

    if min(max_mb, max_megapixels, per_minute, seconds) <= 0:
        raise UserError("the limits of size, pixels, rate and time must be above 0")
    if not 0 < port < 65536:
        raise UserError(f"port {port}: choose one from 1 to 65535")
    limits = Limits(
        max_bytes=round(max_mb * 2**20),
        max_pixels=round(max_megapixels * 1e6),
        seconds=seconds,
        per_minute=per_minute,
        burst=max(1, round(2 * per_minute)),
    )
    network, searcher = _network_and_searcher(model, index, by, device)
    check_port(host, port)
    with Service(network, limits, searcher) as service:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{port}"
        app = serving.make_app(service, serving.examples_of(service), address)
        say = functools.partial(Console().print, highlight=False, markup=False, soft_wrap=True)
        say(f"{address} shows the page; {address}/api/predict answers programs; Ctrl-C ends both")
        serving.run(app, host, port)


def _network_and_searcher(model: Path, index: Path | None, by: str, device: str) -> tuple[Any, Any]:
    from alexnet.index import open_index
    from alexnet.searching import Searcher, load_model_of
    from alexnet.step import find_device
    from alexnet.weights import load, weights_file

    file = weights_file(model)
    if index is None:
        return load(file, find_device(device)), None
    opened = open_index(index)
    network = load_model_of(opened, file, find_device(device))
    return network, Searcher(opened, by)
