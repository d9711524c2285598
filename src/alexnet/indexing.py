"""Making an index of pictures, adding to it and taking from it (Section 6.1).

Features are computed a batch at a time and written as they come, so that memory does not grow with
the pictures. A command that is stopped goes on where it was when it is given again; the index
changes only at the end, by one rename. Not here: its files (`index.py`), search (`searching.py`).
"""

import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from alexnet import approximate
from alexnet.builtin import NAMES
from alexnet.codes import Encoder, train_encoder
from alexnet.dataset import is_packed
from alexnet.errors import UserError
from alexnet.extract import Block, open_source
from alexnet.files import atomic_file, explain_os_error, read_json, sha256_of, write_json
from alexnet.index import (
    DTYPES,
    PART_FILES,
    Description,
    Index,
    Origin,
    Part,
    check_model,
    is_index,
    open_index,
    write_description,
)
from alexnet.opening import open_dataset
from alexnet.packing import SPLITS, BusyError, lock, name_line
from alexnet.retrieval import squares_of
from alexnet.trained import TrainedAlexNet, feature_point

Progress = Callable[[str, int, int], None]  # (what is being done, done, total)

BUILDING = ".building"
NOTED_EVERY = 2000  # pictures between two notes of how far it has come


@dataclass(frozen=True)
class Changed:
    """What a command did: the index, how many pictures came or went, and what was left out."""

    index: Index
    added: int = 0
    removed: int = 0
    left_out: tuple[tuple[str, str], ...] = ()


def make_index(
    path: Path,
    model: TrainedAlexNet,
    model_path: Path,
    data: str,
    *,
    layer: str | None = None,
    split: str | None = None,
    dtype: str = "float32",
    fast: Sequence[str] = (),
    add: bool = False,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> Changed:
    """Index the pictures of `data`, or add them to the index that is there.

    `fast` names the searches to make beside the exact one: ivfpq, hnsw, codes-256, codes-128.
    Given again, the same command goes on where it was stopped, and makes the searches that are
    missing. Raises UserError where the index is of another model, layer or type, or of other
    pictures without `add`.
    """
    for name in fast:
        approximate.check_name(name)
    if dtype not in DTYPES:
        raise UserError(f"no type {dtype!r}; choose {' or '.join(DTYPES)}")
    begun = is_index(path) or (path / ".lock").exists()
    if path.exists() and not begun and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is no index; choose another place")
    if add and not is_index(path):
        raise UserError(f"{path} is no index to add to; leave out --add to make one")
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        before = open_index(path) if is_index(path) else None
        if before is not None:
            _check_same(before, model, model_path, layer, dtype if not add else None)
        found = _add_pictures(
            path, before, model, model_path, data, layer, split, dtype, add, batch_size, progress
        )
        index = _make_searches(found.index, fast, progress)
        _sweep(index)
        return replace(found, index=index)


def remove_pictures(path: Path, names: Sequence[str]) -> Changed:
    """Take pictures from an index by name, folder or pattern; their rows are no longer found.

    Raises UserError for a name that nothing in the index matches.
    """
    with _locked(path):
        index = open_index(path)
        chosen = np.zeros(len(index), np.bool_)
        all_names = list(index.names())
        for wanted in names:
            prefix = wanted.rstrip("/") + "/"
            matching = [
                name == wanted or name.startswith(prefix) or fnmatch.fnmatchcase(name, wanted)
                for name in all_names
            ]
            if not any(matching):
                raise UserError(f"{path} holds no picture {wanted!r}")
            chosen |= matching
        if chosen.all():
            raise UserError(f"that would leave {path} empty; remove the folder instead")
        live = index.is_live.copy()
        live[index.live[chosen]] = False
        described = index.description
        number = described.generation + 1
        file = f"removed-{number}.npy"
        _save(path / file, np.flatnonzero(~live))
        entry = {"file": file, "sha256": {file: sha256_of(path / file)}}
        write_description(path, replace(described, removed=entry, generation=number))
        index = open_index(path)
        _sweep(index)
        return Changed(index, removed=int(chosen.sum()))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        with lock(path / ".lock"):
            yield
    except BusyError:
        raise UserError(f"another command is changing {path}; wait for its end") from None


def _check_same(
    index: Index,
    model: TrainedAlexNet,
    model_path: Path,
    layer: str | None,
    dtype: str | None,
) -> None:
    check_model(index, sha256_of(model_path), model_path)
    described = index.description
    if layer is not None and model.network.layer(layer).name != described.model["layer"]:
        raise UserError(f"{index.path} holds {described.model['layer']}, not {layer}")
    if dtype is not None and dtype != described.dtype:
        raise UserError(f"{index.path} holds {described.dtype}, not {dtype}")


# Pictures


def _add_pictures(
    path: Path,
    before: Index | None,
    model: TrainedAlexNet,
    model_path: Path,
    data: str,
    layer: str | None,
    split: str | None,
    dtype: str,
    add: bool,
    batch_size: int,
    progress: Progress | None,
) -> Changed:
    source = open_source(data, model.card.preprocessing.image_px, split, batch_size)
    if before is not None:
        layer, dtype = before.description.model["layer"], before.description.dtype
    described = model.network.layer(layer or model.network.feature_layer)
    facts = {
        "model_sha256": sha256_of(model_path),
        "layer": described.name,
        "dtype": dtype,
        "data": str(Path(data).expanduser().absolute()),
        "split": split,
        "batch_size": batch_size,
    }
    if before is not None and not add:
        # The same command once more: nothing to add, searches may be.
        if before.description.parts[0].command != _digest(facts):
            raise UserError(
                f"{path} exists and holds other pictures; --add adds these, or choose another place"
            )
        return Changed(before)
    known = set(before.names()) if before is not None else set()
    folder = path / BUILDING
    origin = _origin(data, model.card.preprocessing.image_px)
    with _Writer(folder, facts, packed=origin.kind == "packed") as writer:
        vectors_of = model.feature_function(described.name)
        for block in source.blocks:
            if not writer.skip(block):
                new = np.array([name not in known for name in block.paths], np.bool_)
                pixels = block.pixels[new]
                vectors = model.vectors(vectors_of, pixels, batch_size=batch_size)
                writer.add(_fitting(vectors, dtype), block, new)
            if progress is not None:
                progress("computing features", writer.taken + len(source.refused), source.total)
        if not writer.rows:
            reason = "; the first: {}: {}".format(*source.refused[0]) if source.refused else ""
            there = f"are in {path} already" if known else "could be read"
            shutil.rmtree(folder)
            none = "all pictures" if known else "none of the pictures"
            raise UserError(f"{none} of {data} {there}{reason}")
        writer.finish()
    classes = list(before.description.classes) if before is not None else []
    part = _close_part(path, before, source.class_names, classes, origin, _digest(facts))
    number = before.description.generation + 1 if before is not None else 0
    old = before.description if before is not None else None
    description = Description(
        model=old.model
        if old
        else {
            "sha256": facts["model_sha256"],
            "path": str(model_path.resolve()),
            "network": model.network.name,
            "layer": described.name,
            **feature_point(described, before_relu=False),
        },
        width=writer.width,
        dtype=dtype,
        classes=tuple(classes),
        parts=(*(old.parts if old else ()), part),
        removed=old.removed if old else None,
        searches=old.searches if old else {},
        generation=number,
    )
    write_description(path, description)
    index = open_index(path)
    if old:
        index = _extend_searches(index)
    return Changed(index, added=part.rows, left_out=tuple(source.refused))


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _fitting(vectors: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        fitting: NDArray[Any] = vectors.astype(dtype)
    if not np.isfinite(fitting).all():
        reason = "too large for float16" if np.isfinite(vectors).all() else "not finite"
        raise UserError(f"a feature is {reason}; try --dtype float32")
    return fitting


def _origin(data: str, image_px: int) -> Origin:
    """Where the pictures of `data` can be read again; `open_source` takes the same ones."""
    path = Path(data).expanduser().resolve()
    for packed in (path, path.parent):
        if is_packed(packed) and (packed == path or path.name in SPLITS):
            return Origin("packed", str(packed))
    if data in NAMES:
        return Origin("packed", str(open_dataset(data, image_px=image_px).path.resolve()))
    return Origin("files", str(Path.cwd()))


def _close_part(
    path: Path,
    before: Index | None,
    class_names: Sequence[str],
    classes: list[str],
    origin: Origin,
    command: str,
) -> Part:
    """Give the finished folder its place; `classes` grows by the names that are new."""
    folder = path / BUILDING
    classes += [name for name in class_names if name not in classes]
    renumber = np.array([classes.index(name) for name in class_names] + [-1], np.int64)
    _save(folder / "labels.npy", renumber[np.load(folder / "labels.npy")])
    features = np.load(folder / "features.npy", mmap_mode="r")
    _save(folder / "squares.npy", squares_of(features))
    (folder / "state.json").unlink()
    taken = [part.name for part in before.description.parts] if before is not None else []
    number = max((int(name.removeprefix("part-")) for name in taken), default=-1) + 1
    target = path / f"part-{number}"
    if target.exists():  # of a command that was stopped between two renames
        shutil.rmtree(target)
    sums = {file: sha256_of(folder / file) for file in PART_FILES}
    os.replace(folder, target)
    return Part(target.name, len(features), origin, command, sums)


class _Writer:
    """The files of a part while it grows; state.json tells how far it has come."""

    def __init__(self, folder: Path, facts: dict[str, Any], *, packed: bool) -> None:
        self.folder, self.packed = folder, packed
        self.state: dict[str, Any] = {"facts": facts, "taken": 0, "rows": 0, "width": 0}
        self.state["digest"] = ""
        self.taken = self.rows = self.width = 0
        self.digest = hashlib.sha256()
        self.positions: dict[str, int] = {}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "_Writer":
        self.folder.mkdir(exist_ok=True)
        state = self.folder / "state.json"
        if state.exists():
            found = read_json(state)
            if isinstance(found, dict) and found.get("facts") == self.state["facts"]:
                self.state = found
        self.resumed = int(self.state["taken"])
        self.files: dict[str, IO[bytes]] = {
            name: self.stack.enter_context((self.folder / f"{name}.bin").open("ab"))
            for name in ("features", "labels", "places", "names")
        }
        sizes = self.state.get("sizes", {})
        for name, file in self.files.items():
            file.truncate(int(sizes.get(name, 0)))
            file.seek(0, os.SEEK_END)
        self.rows, self.width = int(self.state["rows"]), int(self.state["width"])
        self.noted = self.resumed
        return self

    def skip(self, block: Block) -> bool:
        """Whether the block was taken before the command was stopped."""
        if self.taken >= self.resumed:
            return False
        self._count(block)
        if self.taken >= self.resumed and (
            self.taken != self.resumed or self.digest.hexdigest() != self.state["digest"]
        ):
            self._begin_anew()
        return True

    def _begin_anew(self) -> NoReturn:
        shutil.rmtree(self.folder)
        raise UserError(
            "the pictures have changed since the command was stopped; give it again to begin anew"
        )

    def add(self, vectors: NDArray[Any], block: Block, new: NDArray[np.bool_]) -> None:
        places = self._count(block)
        self.width = vectors.shape[1] or self.width  # of no pictures, none
        self.files["features"].write(np.ascontiguousarray(vectors).tobytes())
        self.files["labels"].write(np.asarray(block.labels[new], np.int64).tobytes())
        self.files["places"].write(places[new].tobytes())
        chosen = [name for name, is_new in zip(block.paths, new, strict=True) if is_new]
        self.files["names"].write(b"".join(map(name_line, chosen)))
        self.rows += len(chosen)
        if self.taken - self.noted >= NOTED_EVERY:
            self.note()

    def _count(self, block: Block) -> NDArray[np.int64]:
        """Note that the block is taken; returns the places of its pictures."""
        places = np.full((len(block.paths), 2), -1, np.int64)
        for row, (split, name) in enumerate(zip(block.splits, block.paths, strict=True)):
            self.digest.update(name_line(name))
            if self.packed:
                at = self.positions.get(split, 0)
                self.positions[split] = at + 1
                places[row] = SPLITS.index(split), at
        self.taken += len(block.paths)
        return places

    def note(self) -> None:
        """Flush everything, then say how far it has come."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self.files.items()}
        self.state |= {
            "taken": self.taken,
            "rows": self.rows,
            "width": self.width,
            "digest": self.digest.hexdigest(),
            "sizes": sizes,
        }
        write_json(self.folder / "state.json", self.state)
        self.noted = self.taken

    def finish(self) -> None:
        """Give the arrays their headers."""
        if self.taken < self.resumed:
            self._begin_anew()
        self.note()
        for file in self.files.values():
            file.close()
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "features": (np.dtype(self.state["facts"]["dtype"]), (self.rows, self.width)),
            "labels": (np.dtype(np.int64), (self.rows,)),
            "places": (np.dtype(np.int64), (self.rows, 2)),
        }
        for name, (dtype, shape) in shapes.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": shape,
            }
            with (
                atomic_file(self.folder / f"{name}.npy") as temporary,
                open(temporary, "wb") as target,
                open(self.folder / f"{name}.bin", "rb") as raw,
            ):
                np.lib.format.write_array_header_1_0(target, header)
                shutil.copyfileobj(raw, target, 1 << 22)
            (self.folder / f"{name}.bin").unlink()
        os.replace(self.folder / "names.bin", self.folder / "names.txt")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is not None and self.folder.exists() and self.taken > self.noted:
            with contextlib.suppress(OSError, ValueError):
                self.note()
        self.stack.close()
        if isinstance(error, OSError):
            raise explain_os_error(error, self.folder) from error


# Searches


def _make_searches(index: Index, fast: Sequence[str], progress: Progress | None) -> Index:
    """Make the searches of `fast` that the index has not."""
    for name in fast:
        if name not in index.description.searches:
            entry = _search_entry(index, name, None, progress)
            index = _with_searches(index, index.description.searches | {name: entry})
    return index


def _extend_searches(index: Index) -> Index:
    """Let every search know of the rows that are new: trained on the old ones, it takes them in."""
    searches = {
        name: _search_entry(index, name, entry, None)
        for name, entry in index.description.searches.items()
    }
    return _with_searches(index, searches) if searches else index


def _with_searches(index: Index, searches: dict[str, dict[str, Any]]) -> Index:
    described = index.description
    number = described.generation + 1
    write_description(index.path, replace(described, searches=searches, generation=number))
    return open_index(index.path)


def _search_entry(
    index: Index, name: str, old: dict[str, Any] | None, progress: Progress | None
) -> dict[str, Any]:
    """Write the files of one search over all rows, removed ones too, under a new name."""
    stem = f"{name}-{index.description.generation + 1}"
    if name.startswith("codes-"):
        return _code_entry(index, name, stem, old, progress)
    file = f"{stem}.faiss"
    if old is not None:
        made, settings = approximate.extend(index, index.path / old["file"], old["settings"])
    else:
        made, settings = approximate.build(index, name, progress)
    with atomic_file(index.path / file) as temporary:
        approximate.save(made, temporary)
    return {"file": file, "settings": settings, "sha256": {file: sha256_of(index.path / file)}}


def _code_entry(
    index: Index, name: str, stem: str, old: dict[str, Any] | None, progress: Progress | None
) -> dict[str, Any]:
    bits = int(name.removeprefix("codes-"))
    encoder_file, file = f"{stem}.safetensors", f"{stem}.npy"
    if old is not None:
        encoder = Encoder.load(index.path / old["encoder"])
    else:
        report = functools.partial(progress, f"training {name}") if progress else None
        encoder = train_encoder(index.features, bits, progress=report)
    encoder.save(index.path / encoder_file)
    codes = np.concatenate([encoder.encode(part["features"]) for part in index.parts])
    _save(index.path / file, codes)
    sums = {name: sha256_of(index.path / name) for name in (file, encoder_file)}
    return {
        "file": file,
        "encoder": encoder_file,
        "settings": {"bits": bits},
        "sha256": sums,
    }


def _sweep(index: Index) -> None:
    """Remove files that index.json no longer names."""
    described = index.description
    kept = {file for entry in described.searches.values() for file in entry["sha256"]}
    kept |= {described.removed["file"]} if described.removed else set()
    for pattern in ("*.faiss", "codes-*", "removed-*.npy"):
        for file in index.path.glob(pattern):
            if file.name not in kept:
                file.unlink()


def _save(path: Path, array: NDArray[Any]) -> None:
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)
