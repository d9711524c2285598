"""What pictures lie in a source, told by looking: from a folder of pictures to ILSVRC's archives.

`find_source` lists the pictures of whatever `KINDS` names, `stream_source` those that come
through a pipe. However pictures are stored, they get the same split, class and name: the name is
"<split>/<class>/<file>" where the source is split, "<class>/<file>" where it is not and some
are held out for validation. Labels follow the sorted class ids, the order of a table's schema, or
the list of classes that the user gives.

Not here: how each kind is listed (kinds.py), what tars and tables hold (archives.py, tables.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from alexnet import archives
from alexnet.archives import COMPRESSED, Archive, Member, Refused
from alexnet.errors import UserError, suggest
from alexnet.imagenet import (
    SOLUTION_FILE,
    WORDNET_NAMES,
    Classes,
    find_kit,
    is_wordnet_id,
    read_classes,
)
from alexnet.kinds import (
    CLS_LOC_FOLDERS,
    FILL,
    INNER_FOLDERS,
    KINDS,
    Draft,
    challenge_tars,
    checked_class,
    cifar_source,
    csv_files,
    data_files,
    folders_in,
    split_folders,
    split_in,
    val_folder,
)
from alexnet.listing import Listing, Picture, Place

__all__ = ["KINDS", "find_source", "name_of_source", "stream_source"]

# How a stream of each kind is laid out; see archives.py.
STREAM_LAYOUTS = {"ilsvrc": "tars", "synsets": "tars", "webdataset": "samples", "folder": "folders"}


def find_source(
    source: str | Path,
    *,
    kind: str | None = None,
    classes: Path | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    listing_path: Path | None = None,
) -> Listing:
    """List the pictures of a source by split, class and name; see KINDS.

    `classes` is a file with a class a line (see `imagenet.read_classes`) in the order that labels
    are to have. `val_fraction` of each class, drawn with `seed`, is held out where the source is
    not split; None stands for a tenth, and for half of a source of kind "synsets". Raises
    UserError for a source that cannot be used.
    """
    source = Path(source).expanduser()
    if kind is not None and kind not in KINDS:
        raise UserError(f"no kind of source {kind!r}{suggest(kind, KINDS)}")
    try:
        source.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{source} is not there") from None
        raise UserError(f"cannot read {source}: {error.strerror}") from None
    kind = kind or _told_by_looking(source)
    given = None if classes is None else read_classes(classes)
    if listing_path is not None:
        listing_path.unlink(missing_ok=True)
    draft = Draft(Listing(listing_path), given)
    draft.listing.kind = kind
    FILL[kind](source, draft)
    _settle(source, draft, val_fraction, seed)
    return draft.listing


def name_of_source(source: Path) -> str:
    """What a data set is called after its source: the folder, or the file without its suffix."""
    source = source.expanduser().resolve()
    return source.stem if source.is_file() else source.name


def stream_source(
    file: IO[bytes],
    *,
    kind: str | None = None,
    classes: Path | None = None,
    refused: Refused = lambda name, reason: None,
) -> Iterator[tuple[Picture, bytes]]:
    """The pictures of a tar that can only be read forwards, as from a pipe, in their order.

    A tar of tars, a WebDataset tar or a tar of class folders, compressed or not. One picture is
    held at a time. What says nothing of splits is all "train". What is not taken is told to
    `refused`. Raises UserError for anything else.
    """
    if kind not in (None, "folder", "ilsvrc", "synsets", "webdataset"):
        raise UserError(
            f"a stream can be a tar, of kind ilsvrc, synsets, webdataset or folder; not {kind}"
        )
    given = None if classes is None else read_classes(classes)
    archive = Archive(archives.Pipe(archives.decompressed(file)), "stream", None, refused)
    try:
        yield from _streamed(archive, kind, given)
    except archives.NotAnArchive as error:
        raise UserError(f"{error}; a tar is expected") from None


def _streamed(
    archive: Archive, kind: str | None, given: Classes | None
) -> Iterator[tuple[Picture, bytes]]:
    def keep(member: Member) -> tuple[Member, bytes] | None:
        data = archive.read(member)
        return None if data is None else (member, data)

    layout = STREAM_LAYOUTS[kind] if kind else archives.layout_of_stream(archive)
    for found in archives.pictures_in(archive, layout, keep):
        member, data = found.kept
        class_id = checked_class(found.label, member.path, given, archive.refused)
        if class_id is not None:
            name = f"{class_id}/{found.name}"
            place = Place("span", "-", member.start, member.size)
            split = found.split or "train"
            full_name = name if found.split is None else f"{split}/{name}"
            yield Picture(split, class_id, full_name, place), data


def _told_by_looking(source: Path) -> str:
    """The kind of a source. Raises UserError if it could be two, or a file of no known kind."""
    if not source.is_dir():
        return _kind_of_file(source)
    signs = dict(_signs(source))
    if len(signs) > 1:
        signs.pop("csv", None)  # tables of all kinds lie beside pictures
    if len(signs) > 1:
        readings = " or ".join(f"as {kind} ({sign})" for kind, sign in signs.items())
        raise UserError(f"{source} can be read {readings}: say which with --kind")
    return next(iter(signs), "folder")


def _kind_of_file(file: Path) -> str:
    name = file.name.lower()
    if name.endswith((".parquet", ".csv", ".tsv")):
        return "parquet" if name.endswith(".parquet") else "csv"
    if name.startswith("cifar-10-python"):
        return "cifar10"
    if name.endswith(COMPRESSED):
        raise UserError(
            f"{file} is compressed, so that no picture can be read by itself: unpack it once, "
            "and give what comes out"
        )
    if not archives.is_archive(name):
        raise UserError(
            f"{file} is a file; give the folder that holds the pictures, "
            "or a file called .tar, .parquet or .csv"
        )
    layout = _layout(file)
    if layout == "tars":
        return "ilsvrc" if split_in(name) == "train" else "synsets"
    return "webdataset" if layout == "samples" else "folder"


def _signs(source: Path) -> Iterator[tuple[str, str]]:
    """(kind, what shows it) for each kind that a folder can be taken for.

    A folder per class is told by its folders only; a table in text counts without such.
    """
    if any((source / folder).is_dir() for folder in CLS_LOC_FOLDERS):
        yield "kaggle", "Data/CLS-LOC"
        return
    if (batches := cifar_source(source)) is not None:
        yield "cifar10", batches.name
    if tables_found := data_files(source, "*.parquet"):
        yield "parquet", tables_found[0].name
    tars = data_files(source, "*.tar")
    train = [tar for tar in challenge_tars(source) if split_in(tar.name) == "train"]
    if train and _looks_like(train[0], "tars"):
        yield "ilsvrc", train[0].name
    elif (source / "train").is_dir() and _has_loose_val(source) and _has_labels(source):
        yield "ilsvrc", "development kit or labels beside train and val"
        return
    elif tars and all(is_wordnet_id(tar.stem) for tar in tars):
        yield "synsets", tars[0].name
    elif tars and _looks_like(tars[0], "samples"):
        yield "webdataset", tars[0].name
    elif tars and not _has_class_folders(source):
        raise UserError(
            f"{source} holds archives such as {tars[0].name}, but none with a tar per class, "
            f"named nXXXXXXXX.tar, or in WebDataset's form; kinds of source: {', '.join(KINDS)}"
        )
    if _has_class_folders(source):
        yield "folder", "its class folders"
    elif len(found := csv_files(source)) == 1:
        yield "csv", found[0].name


def _layout(tar: Path) -> str:
    with archives.opened(tar, _ignore) as archive:
        return archives.layout_of(member.name for member in archive.members()) or "folders"


def _looks_like(tar: Path, layout: str) -> bool:
    """For archives that may lie there for another reason, and may be broken."""
    try:
        return _layout(tar) == layout
    except UserError:
        return False


def _ignore(name: str, reason: str) -> None:
    """For archives that are only looked into; what is refused is said when they are read."""


def _has_loose_val(source: Path) -> bool:
    folder = val_folder(source)
    return folder is not None and not folders_in(folder)


def _has_labels(source: Path) -> bool:
    return (source / SOLUTION_FILE).is_file() or find_kit(source) is not None


def _has_class_folders(source: Path) -> bool:
    parts = split_folders(source)
    if len(parts) > 1:
        return bool(folders_in(parts["train"]))
    names = [folder.name for folder in folders_in(source)]
    return len([n for n in names if n not in INNER_FOLDERS and "devkit" not in n]) > 1


def _settle(source: Path, draft: Draft, val_fraction: float | None, seed: int) -> None:
    """Check splits and classes, hold pictures out if need be, and fix names, labels and order."""
    listing = draft.listing
    classes = listing.classes_by_split()
    if not classes:
        raise UserError(f"no pictures in {source}, read as {listing.kind}{_first_refusal(listing)}")
    if "train" not in classes:
        raise UserError(f"{source} has pictures of {', '.join(classes)} only, none to train on")
    if "val" not in classes and "test" in classes:
        listing.rename_split("test", "val")
        classes["val"] = classes.pop("test")
    _check_same_classes(source, classes, listing)
    if len(classes["train"]) == 1:
        (only,) = classes["train"]
        raise UserError(f"{source} holds one class only ({only}); two are the least")
    if not draft.unique and (repeated := listing.tell_apart()):
        listing.remarks.append(
            f"{repeated:,} pictures have the name of another one of their class; "
            "they are told apart by #2, #3, ..."
        )
    if len(classes) == 1:
        if val_fraction is None:
            val_fraction = draft.val_fraction
        listing.hold_out(val_fraction, seed)
    else:
        listing.name_splits()
    names = draft.given.names if draft.given else {**WORDNET_NAMES, **draft.names}
    listing.finish(
        class_ids=_order(draft, classes["train"]),
        class_names=names,
        by_class=not draft.ordered,
    )


def _order(draft: Draft, present: set[str]) -> list[str] | None:
    """Class ids in the order of their labels; those without pictures get none."""
    order = draft.order
    if draft.given is not None:
        order = draft.given.ids
    if order is None:
        is_numeric = draft.numeric and all(i.isascii() and i.isdigit() for i in present)
        return sorted(present, key=int) if is_numeric else None
    absent = [class_id for class_id in order if class_id not in present]
    if absent:
        draft.listing.remarks.append(
            f"{len(absent):,} of {len(order):,} classes have no pictures and get no label, "
            f"such as {absent[0]!r}"
        )
    return [class_id for class_id in order if class_id in present]


def _check_same_classes(source: Path, classes: dict[str, set[str]], listing: Listing) -> None:
    for split, ids in classes.items():
        odd = sorted(ids ^ classes["train"])
        if odd:
            having = split if odd[0] in ids else "train"
            raise UserError(
                f"train and {split} in {source} have different classes: "
                f"{odd[0]!r} is only in {having}"
                + (f" ({len(odd)} such classes)" if len(odd) > 1 else "")
                + _first_refusal(listing)
            )


def _first_refusal(listing: Listing) -> str:
    """ "; not taken: NAME (reason)", "" if nothing was refused."""
    first = next(listing.refused(), None)
    return "" if first is None else f"; not taken: {first[0]} ({first[1]})"
