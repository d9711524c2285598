"""How the pictures of each kind of source are listed: folders, archives, challenges, tables.

One function a kind fills a `Draft`: it adds pictures by split, class and name below the class,
and notes what the source says of its classes. The order and the meaning of names, labels and
splits are settled afterwards, for all kinds alike (sources.py).

Not here: reading tars (archives.py) and tables (tables.py), ImageNet's labels (imagenet.py).
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from alexnet import archives, tables
from alexnet.archives import SPLIT_OF, Archive, Found, Member, Refused
from alexnet.errors import UserError
from alexnet.imagenet import (
    SOLUTION_FILE,
    Classes,
    csv_rows,
    find_kit,
    is_plain,
    is_wordnet_id,
    names_beside,
    read_kit,
    read_solution,
)
from alexnet.images import SUFFIXES
from alexnet.listing import Listing, Picture, Place

KINDS = {
    "folder": "a folder per class, split into train and val (and test) or not; also in a tar",
    "ilsvrc": "ILSVRC 2010 or 2012 as downloaded: train and validation tars, development kit",
    "synsets": "ImageNet's tars of one synset each, nXXXXXXXX.tar, or one tar of them",
    "kaggle": "Kaggle's ILSVRC/Data/CLS-LOC with LOC_val_solution.csv",
    "parquet": "Hugging Face parquet: an image column (bytes, path) and a label column",
    "webdataset": "WebDataset tars: <key>.jpg beside <key>.cls or <key>.json",
    "cifar10": "CIFAR-10's python batches, unpacked or as cifar-10-python.tar.gz",
    "csv": "a table in text of path, label and, if you like, split",
}

# The share of pictures set aside where the source does not say which; of all of ImageNet, the
# paper held out half (Section 6).
VAL_FRACTION = 0.1
SYNSETS_VAL_FRACTION = 0.5

# Where a split may be found; CIFAR-10 and others have no validation set of their own, and their
# test set takes its place.
VAL_FOLDERS = ("val", "valid", "validation")

# Folders in a source that tars and tables are looked for in.
INNER_FOLDERS = ("data", "train", *VAL_FOLDERS, "test")

CLS_LOC_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")

# Words that stand above the columns of a table in text.
PATH_WORDS = frozenset(
    {"path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"}
)
LABEL_WORDS = frozenset({"label", "class", "class_id", "target", "category", "wnid"})


@dataclass
class Draft:
    """A listing that is being filled, and what the source says of its classes.

    `order` are class ids in the order of their labels, `names` those known; `numeric` says that
    ids which are numbers are labels; `ordered` that pictures keep the order they came in.
    `unique` says that no two pictures can have the same name.
    """

    listing: Listing
    given: Classes | None
    order: tuple[str, ...] | None = None
    names: dict[str, str] = field(default_factory=dict)
    numeric: bool = False
    ordered: bool = False
    unique: bool = False
    val_fraction: float = VAL_FRACTION

    def class_id(self, label: str | int) -> str:
        return _class_id(label, self.given)


def data_files(source: Path, pattern: str) -> list[Path]:
    """Files in a folder and in its folders for data and splits; a file is its own only one."""
    if not source.is_dir():
        return [source]
    folders = [source, *(source / name for name in INNER_FOLDERS)]
    return sorted(file for folder in folders for file in folder.glob(pattern) if file.is_file())


def csv_files(source: Path) -> list[Path]:
    found = sorted((*source.glob("*.csv"), *source.glob("*.tsv")))
    return [file for file in found if file.name != SOLUTION_FILE]


def split_in(name: str) -> str | None:
    """The split that the name of a file holds as a word: "val" for x-validation-00001.tar."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)


def _by_split(source: Path, files: list[Path]) -> list[tuple[str, Path]]:
    """Each file with its split, from its name or its folder's.

    All are "train" if none says any, and a file by itself is: it is split here.
    """
    if not source.is_dir():
        return [("train", source)]
    splits = [split_in(file.relative_to(source).as_posix()) for file in files]
    if None in splits and any(splits):
        odd = files[splits.index(None)]
        raise UserError(f"{odd} says no split in its name (train, val or test), but others do")
    return [(split or "train", file) for split, file in zip(splits, files, strict=True)]


# Folders of pictures


def _fill_folder(source: Path, draft: Draft) -> None:
    """A folder with `train` and one of `val`, `valid`, `validation` or `test` is taken as split;
    without a validation set, `test` is it. Otherwise each folder in `source` is a class (or in
    its `train`, if that is all there is). Pictures may lie deeper. Names that start with a dot,
    and files without the suffix of a picture, are passed over.
    """
    if not source.is_dir():
        _need_tar(source, "folder")
        draft.listing.add(_in_tar(source, "folders", None, draft))
        return
    draft.unique = True
    for split, folder in split_folders(source).items():
        _add_class_folders(source, folder, split, draft)


def split_folders(source: Path) -> dict[str, Path]:
    """The folders of the splits; {"train": folder} alone where pictures are not split yet."""
    folders = {folder.name: folder for folder in folders_in(source)}
    held_out = [name for name in (*VAL_FOLDERS, "test") if name in folders]
    if "train" not in folders or (not held_out and len(folders) > 1):
        return {"train": source}
    parts = {"train": folders["train"]}
    if held_out:
        parts["val"] = folders[held_out[0]]
    if "test" in held_out[1:]:
        parts["test"] = folders["test"]
    return parts


def folders_in(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    return [
        e for e in entries if e.is_dir() and not e.name.startswith(".") and e.name != "__MACOSX"
    ]


def _add_class_folders(source: Path, folder: Path, split: str, draft: Draft) -> None:
    class_folders = folders_in(folder)
    if not class_folders:
        raise UserError(
            f"{folder} has no folders in it; put the pictures of each class in a folder of its "
            f"own (other sources that are understood: {', '.join(list(KINDS)[1:])})"
        )
    empty = []
    for class_folder in class_folders:
        if draft.listing.add(_below(source, class_folder, split, draft)) == 0:
            empty.append(class_folder)
    if len(empty) == len(class_folders):
        raise UserError(f"no pictures in {folder} (looked for {' '.join(sorted(SUFFIXES))})")
    if empty:
        raise UserError(f"class folder {empty[0]} holds no pictures; fill or remove it")
    if len(class_folders) == 1:
        name = class_folders[0].name
        raise UserError(f"{folder} holds one class only ({name}); two are the least")


def _below(source: Path, folder: Path, split: str, draft: Draft) -> Iterator[Picture]:
    class_id = draft.class_id(folder.name)
    for relative, place in _files_below(source, folder, draft.listing.refuse):
        yield Picture(split, class_id, f"{class_id}/{relative}", place)


def _files_below(source: Path, folder: Path, refused: Refused) -> Iterator[tuple[str, Place]]:
    """Pictures in a folder and deeper: paths below it, with forward slashes, and places."""
    root = os.path.abspath(folder)
    for parent, subfolders, files in os.walk(root, onerror=_unreadable_folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in SUFFIXES:
                continue
            path = os.path.join(parent, name)
            place = _place_of_file(path, os.path.relpath(path, os.path.abspath(source)), refused)
            if place is not None:
                yield os.path.relpath(path, root).replace(os.sep, "/"), place


def _place_of_file(path: str, name: str, refused: Refused) -> Place | None:
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: decoding it fails, and says so
        return Place("file", path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        refused(name, "not a file, but a folder, a pipe or a device")
        return None
    return Place("file", path, 0, status.st_size, status.st_mtime_ns)


def _unreadable_folder(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}")


# Archives


def _need_tar(source: Path, kind: str) -> None:
    if not source.is_dir() and not archives.is_archive(source.name):
        raise UserError(f"{source} is no source of kind {kind}: {KINDS[kind]}")


def _in_tar(tar: Path, layout: str, split: str | None, draft: Draft) -> Iterator[Picture]:
    """The pictures of a tar in one of the layouts of archives.py; `split` if the tar has one."""
    refused = draft.listing.refuse
    for found, member, place in _spans(tar, layout, refused):
        class_id = checked_class(found.label, member.path, draft.given, refused)
        if class_id is not None:
            name = f"{class_id}/{found.name}"
            yield Picture(split or found.split or "train", class_id, name, place)


def _spans(
    tar: Path, layout: str, refused: Refused
) -> Iterator[tuple[Found[Member], Member, Place]]:
    path, mtime_ns = os.path.abspath(tar), tar.stat().st_mtime_ns
    with archives.opened(tar, refused) as archive:
        for found in archives.pictures_in(archive, layout, lambda member: member):
            member = found.kept
            yield found, member, Place("span", path, member.start, member.size, mtime_ns)


def checked_class(
    label: str | int, path: str, given: Classes | None, refused: Refused
) -> str | None:
    if isinstance(label, str) and not is_plain(label):
        refused(path, f"{label!r} cannot be the id of a class")
        return None
    return _class_id(label, given)


def _class_id(label: str | int, given: Classes | None) -> str:
    if given is not None:
        return given.id_of(label)
    return str(label)


def _fill_synsets(source: Path, draft: Draft) -> None:
    _need_tar(source, "synsets")
    draft.val_fraction = SYNSETS_VAL_FRACTION
    if not source.is_dir():
        draft.names = names_beside(source.parent)
        draft.listing.add(_in_tar(source, "tars", None, draft))
        return
    tars = [tar for tar in data_files(source, "*.tar") if is_wordnet_id(tar.stem)]
    if not tars:
        raise UserError(f"no archives called nXXXXXXXX.tar in {source}")
    draft.names = names_beside(source)
    for tar in tars:
        if draft.listing.add(_in_synset(tar, draft)) == 0:
            draft.listing.refuse(tar.name, "no pictures in it")


def _in_synset(tar: Path, draft: Draft) -> Iterator[Picture]:
    class_id = draft.class_id(tar.stem)
    for found, _, place in _spans(tar, "flat", draft.listing.refuse):
        yield Picture("train", class_id, f"{class_id}/{found.name}", place)


def _fill_webdataset(source: Path, draft: Draft) -> None:
    _need_tar(source, "webdataset")
    draft.numeric = True
    tars = data_files(source, "*.tar")
    if not tars:
        raise UserError(f"no archives (.tar) in {source}")
    for split, tar in _by_split(source, tars):
        draft.listing.add(_in_tar(tar, "samples", split, draft))


# The challenges


def _fill_ilsvrc(source: Path, draft: Draft) -> None:
    _need_tar(source, "ilsvrc")
    if source.is_dir():
        parts = {split: _challenge_part(source, split) for split in ("train", "val", "test")}
        _fill_challenge(source, parts, draft)
    else:
        draft.names = names_beside(source.parent)
        draft.listing.add(_in_tar(source, "tars", "train", draft))


def _fill_kaggle(source: Path, draft: Draft) -> None:
    root = next((source / f for f in CLS_LOC_FOLDERS if (source / f).is_dir()), None)
    if root is None:
        raise UserError(f"no ILSVRC/Data/CLS-LOC in {source}, as Kaggle's archive has it")
    parts = {split: root / split for split in ("train", "val", "test")}
    _fill_challenge(source, {s: p if p.is_dir() else None for s, p in parts.items()}, draft)


def challenge_tars(source: Path) -> list[Path]:
    """Archives of whole pictures: neither boxes nor those of the task of dogs (t3)."""
    others = re.compile(r"bbox|devkit|_t3|patch", re.IGNORECASE)
    return [tar for tar in sorted(source.glob("*.tar")) if not others.search(tar.name)]


def _challenge_part(source: Path, split: str) -> Path | None:
    tars = [tar for tar in challenge_tars(source) if split_in(tar.name) == split]
    if len(tars) > 1:
        names = ", ".join(tar.name for tar in tars)
        raise UserError(f"{source} has several archives for {split} ({names}); leave one there")
    if tars:
        return tars[0]
    if split == "val":
        return val_folder(source)
    return source / split if (source / split).is_dir() else None


def val_folder(source: Path) -> Path | None:
    return next((source / name for name in VAL_FOLDERS if (source / name).is_dir()), None)


def _fill_challenge(source: Path, parts: dict[str, Path | None], draft: Draft) -> None:
    """Training pictures by class, and those for validation and test by class or by number."""
    train = parts["train"]
    if train is None:
        raise UserError(f"no training pictures in {source}: neither a tar nor a folder for train")
    labels, draft.names = _challenge_labels(source)
    if train.is_dir():
        _add_class_folders(source, train, "train", draft)
    else:
        draft.listing.add(_in_tar(train, "tars", "train", draft))
    for split in ("val", "test"):
        part = parts[split]
        if part is None:
            continue
        if part.is_dir() and folders_in(part) and not _is_flat(part):
            _add_class_folders(source, part, split, draft)
        else:
            draft.listing.add(_by_number(source, part, split, labels.get(split), draft))


def _is_flat(folder: Path) -> bool:
    return any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())


def _challenge_labels(
    source: Path,
) -> tuple[dict[str, Callable[[str], str | None]], dict[str, str]]:
    """By split: the WordNet id of a picture by its name without suffix. And names of classes."""
    names = names_beside(source)
    if (source / SOLUTION_FILE).is_file():
        return {"val": read_solution(source / SOLUTION_FILE).get}, names
    kit_path = find_kit(source)
    if kit_path is None:
        return {}, names
    kit = read_kit(kit_path)
    return {split: _numbered(ids) for split, ids in kit.labels.items()}, {**kit.names, **names}


def _numbered(ids: tuple[str, ...]) -> Callable[[str], str | None]:
    def class_of(stem: str) -> str | None:
        number = re.search(r"[0-9]{1,9}$", stem)
        index = int(number[0]) if number else 0
        return ids[index - 1] if 1 <= index <= len(ids) else None

    return class_of


def _by_number(
    source: Path,
    part: Path,
    split: str,
    class_of: Callable[[str], str | None] | None,
    draft: Draft,
) -> Iterator[Picture]:
    """Pictures with numbers for names, whose classes stand elsewhere; a folder or a tar."""
    refused = draft.listing.refuse
    unlabelled = 0
    pictures: Iterable[tuple[str, Place]]
    if part.is_dir():
        pictures = _files_below(source, part, refused)
    else:
        pictures = ((found.name, place) for found, _, place in _spans(part, "flat", refused))
    for path, place in pictures:
        folder, _, name = path.rpartition("/")
        class_id = folder.rpartition("/")[2]
        if not is_wordnet_id(class_id):
            class_id = (class_of and class_of(os.path.splitext(name)[0])) or ""
        if class_id:
            class_id = draft.class_id(class_id)
            yield Picture(split, class_id, f"{class_id}/{name}", place)
        elif class_of is not None:
            refused(f"{part.name}/{path}", "its number has no label")
        elif split == "val":
            raise UserError(
                f"no labels for the pictures in {part}: put the development kit or Kaggle's "
                f"{SOLUTION_FILE} into {source}, or sort them into folders by class"
            )
        else:
            unlabelled += 1
    if unlabelled:
        refused(part.name, f"{unlabelled:,} pictures without labels")


# Tables


def _fill_parquet(source: Path, draft: Draft) -> None:
    """Rows keep their order: a table is read forwards, not row by row across the disk."""
    draft.numeric = draft.ordered = True
    files = data_files(source, "*.parquet")
    if not files:
        raise UserError(f"no tables (.parquet) in {source}")
    numbers = dict.fromkeys(archives.SPLIT_OF.values(), 0)
    for split, file in _by_split(source, files):
        names = tables.parquet_columns(str(file)).names
        if draft.order not in (None, names):
            raise UserError(f"{file} knows other classes than {files[0]}")
        draft.order = names
        draft.listing.add(_in_parquet(file, split, numbers, draft))
    draft.listing.remarks.append("pictures keep the order of the rows of the tables")


def _in_parquet(file: Path, split: str, numbers: dict[str, int], draft: Draft) -> Iterator[Picture]:
    """`numbers` counts the rows of each split so far: the names of pictures without a path."""
    path, mtime_ns = os.path.abspath(file), file.stat().st_mtime_ns
    unlabelled = 0
    for row in tables.parquet_rows(str(file)):
        number = numbers[split]
        numbers[split] += 1
        if row.label is None or (isinstance(row.label, str) and not is_plain(row.label)):
            unlabelled += 1
            continue
        class_id = draft.class_id(row.label)
        name = re.split(r"[/\\]", row.path)[-1] if row.path else f"{number:08d}"
        place = Place("parquet", path, row.number, row.size, mtime_ns)
        yield Picture(split, class_id, f"{class_id}/{name}", place)
    if unlabelled:
        draft.listing.refuse(file.name, f"{unlabelled:,} rows without a label")


def cifar_source(source: Path) -> Path | None:
    """Where the batches are: the source, a folder in it, or an archive in it."""
    first = tables.CIFAR_BATCHES[0]
    for folder in (source, source / "cifar-10-batches-py"):
        if (folder / first).is_file():
            return folder
    archive = source / "cifar-10-python.tar.gz"
    return archive if archive.is_file() else None


def _fill_cifar10(source: Path, draft: Draft) -> None:
    place = cifar_source(source) if source.is_dir() else source
    if place is None:
        raise UserError(f"no batches of CIFAR-10 (data_batch_1 ... test_batch) in {source}")
    batches = _cifar_folder(place) if place.is_dir() else _cifar_archive(place, draft)
    contents = {name: (file, start, data) for name, file, start, data in batches}
    if tables.CIFAR_NAMES not in contents:
        raise UserError(f"no {tables.CIFAR_NAMES}, with the names of the classes, in {place}")
    names = tables.cifar_names(contents[tables.CIFAR_NAMES][2], f"{place}: {tables.CIFAR_NAMES}")
    draft.order = tuple(draft.class_id(name) for name in names)
    missing = [name for name in tables.CIFAR_BATCHES if name not in contents]
    if missing:
        raise UserError(f"no {', '.join(missing)} in {place}")
    mtime_ns = place.stat().st_mtime_ns
    for batch in tables.CIFAR_BATCHES:
        file, offset, data = contents[batch]
        start, labels, files = tables.cifar_batch(data, f"{place}: {batch}")
        if not all(0 <= label < len(names) for label in labels):
            raise UserError(f"{place}: {batch} has labels that {tables.CIFAR_NAMES} does not name")
        split = "test" if batch == "test_batch" else "train"
        draft.listing.add(
            Picture(
                split,
                draft.order[label],
                f"{draft.order[label]}/{name}",
                Place(
                    "cifar",
                    file,
                    offset + start + index * tables.CIFAR_BYTES,
                    tables.CIFAR_BYTES,
                    mtime_ns,
                ),
            )
            for index, (label, name) in enumerate(zip(labels, files, strict=True))
        )


def _cifar_folder(folder: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """(name, file, where in it, content) of each batch and of the names."""
    for name in (*tables.CIFAR_BATCHES, tables.CIFAR_NAMES):
        file = folder / name
        if file.is_file():
            if file.stat().st_size > tables.MAX_PICKLE_BYTES:
                raise UserError(f"{file} is larger than a batch of CIFAR-10")
            yield name, os.path.abspath(file), 0, file.read_bytes()


def _cifar_archive(path: Path, draft: Draft) -> Iterator[tuple[str, str, int, bytes]]:
    file = tables.unpacked(os.path.abspath(path))
    archive = Archive(file, path.name, os.fstat(file.fileno()).st_size, draft.listing.refuse)
    try:
        for member in archive.members():
            name = member.name.rpartition("/")[2]
            if name in (*tables.CIFAR_BATCHES, tables.CIFAR_NAMES):
                data = archive.read(member) if member.size <= tables.MAX_PICKLE_BYTES else None
                if data is not None:
                    yield name, os.path.abspath(path), member.start, data
    except archives.NotAnArchive as error:
        raise UserError(f"{error} ({path})") from None


def _fill_csv(source: Path, draft: Draft) -> None:
    files = csv_files(source) if source.is_dir() else [source]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(f"one table (.csv or .tsv) is expected in {source}; there: {found}")
    draft.numeric = True
    draft.listing.add(_in_csv(files[0], draft))


def _in_csv(file: Path, draft: Draft) -> Iterator[Picture]:
    """Paths are relative to the table, or absolute. Without a line of words above them, the
    columns are path, label and, if there is a third one, split.
    """
    folder = os.path.abspath(file.parent)
    rows = iter(csv_rows(file, "\t" if file.suffix.lower() == ".tsv" else ","))
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file} is empty; rows of path,label are expected")
    columns = _csv_columns(first)
    start = 1 if columns is None else 2
    body = chain([first], rows) if columns is None else rows
    path_at, label_at, split_at = columns or (0, 1, 2 if len(first) > 2 else None)
    for number, row in enumerate(body, start):
        where = f"{file.name}, row {number}"
        if len(row) <= max(path_at, label_at, split_at or 0):
            draft.listing.refuse(where, "too few columns")
            continue
        path, label = row[path_at], row[label_at].strip()
        if not is_plain(label) or not path or "\0" in path:
            draft.listing.refuse(where, "no path or no label")
            continue
        split = "train" if split_at is None else SPLIT_OF.get(row[split_at].strip().lower())
        if split is None:
            raise UserError(
                f"{file}, row {number}: {row[split_at or 0]!r} is no split; known: train, val, test"
            )
        class_id = draft.class_id(_csv_label(label, draft.given))
        full_path = os.path.normpath(os.path.join(folder, path))
        place = _place_of_file(full_path, path, draft.listing.refuse)
        if place is not None:
            yield Picture(split, class_id, f"{class_id}/{_below_class(path, label)}", place)


def _csv_columns(row: list[str]) -> tuple[int, int, int | None] | None:
    """Where path, label and split stand according to a first line of words, None if it is none."""
    words = [word.strip().lower() for word in row]
    path = next((i for i, word in enumerate(words) if word in PATH_WORDS), None)
    label = next((i for i, word in enumerate(words) if word in LABEL_WORDS), None)
    if path is None or label is None:
        return None
    return path, label, words.index("split") if "split" in words else None


def _csv_label(label: str, given: Classes | None) -> str | int:
    """Numbers stand for places in the list of classes, if there is one without such ids."""
    if given is None or label in given.names:
        return label
    return int(label) if label.isascii() and label.isdigit() else label


def _below_class(path: str, label: str) -> str:
    """The path below the folder of the class, if it lies in such a one, else the name alone."""
    parts = re.split(r"[/\\]", path)
    if label in parts[:-1]:
        return "/".join(parts[parts.index(label) + 1 :])
    return parts[-1]


FILL: dict[str, Callable[[Path, Draft], None]] = {
    "folder": _fill_folder,
    "ilsvrc": _fill_ilsvrc,
    "synsets": _fill_synsets,
    "kaggle": _fill_kaggle,
    "parquet": _fill_parquet,
    "webdataset": _fill_webdataset,
    "cifar10": _fill_cifar10,
    "csv": _fill_csv,
}
