"""What comes with ImageNet besides pictures: names of classes, labels of validation pictures.

A development kit (2010's, 2012's and later ones), Kaggle's LOC_val_solution.csv and the lists of
classes that go round (LOC_synset_mapping.txt, synset_words.txt, words.txt) are read here. Labels
in the kit are numbers of its own; what we store is the WordNet id, and labels follow the ids in
sorted order unless a list of classes says otherwise.

Not here: pictures (sources.py, archives.py).
"""

import csv
import functools
import importlib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from alexnet.archives import SMALL_FILE_BYTES, small_files
from alexnet.errors import UserError

# Imagenette's ten classes, by WordNet id.
WORDNET_NAMES: Mapping[str, str] = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

# Lists of classes that lie beside the pictures, as Kaggle, Caffe and ImageNet itself call them.
NAMES_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")

SOLUTION_FILE = "LOC_val_solution.csv"

_WORDNET_ID = re.compile(r"n\d{8}")
_GROUND_TRUTH = re.compile(r"(validation|test)_ground_truth\.txt$")


@dataclass(frozen=True)
class Classes:
    """A list of classes, in the order of their labels: ids, and names by id."""

    file: Path
    ids: tuple[str, ...]
    names: dict[str, str]

    @functools.cached_property
    def _ids_by_name(self) -> dict[str, str | None]:
        """Names that two classes share, such as "crane", have None."""
        ids: dict[str, str | None] = {}
        for class_id, name in self.names.items():
            ids[name] = None if name in ids else class_id
        return ids

    def id_of(self, label: str | int) -> str:
        """The id of a class that a source calls by its id, its name or its number from 0."""
        if isinstance(label, int):
            if 0 <= label < len(self.ids):
                return self.ids[label]
        elif label in self.names:
            return label
        else:
            class_id = self._ids_by_name.get(label)
            if class_id is not None:
                return class_id
        raise UserError(f"class {label!r} is not among the {len(self.ids)} classes of {self.file}")


@dataclass(frozen=True)
class DevelopmentKit:
    """`labels`: WordNet ids of the pictures of "val" and, in 2010, "test", from the first on."""

    names: dict[str, str]
    labels: dict[str, tuple[str, ...]]


def is_wordnet_id(text: str) -> bool:
    return _WORDNET_ID.fullmatch(text) is not None


def read_classes(path: Path) -> Classes:
    """A list of classes, one a line: "id name", as in LOC_synset_mapping.txt, or just a name.

    The id ends at a tab or, if it is a WordNet id, at the first blank; a name alone is its own
    id. Raises UserError for an empty list and for a class that stands there twice.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        class_id, name = _split_line(line)
        if class_id in names:
            raise UserError(f"{path}, line {number}: class {class_id!r} stands there twice")
        if not is_plain(class_id):
            raise UserError(f"{path}, line {number}: {class_id!r} cannot be the id of a class")
        names[class_id] = name
    if not names:
        raise UserError(f"{path} names no classes; one a line is expected")
    return Classes(path, tuple(names), names)


def is_plain(text: str) -> bool:
    """Whether `text` can name a class: something printable, in one line."""
    return bool(text.strip()) and not re.search(r"[\0-\x1f\x7f\ud800-\udc7f\udd00-\udfff]", text)


def names_beside(folder: Path) -> dict[str, str]:
    """Names of classes from a well-known list in `folder`, {} without one."""
    for file in NAMES_FILES:
        if (folder / file).is_file():
            return read_classes(folder / file).names
    return {}


def read_solution(path: Path) -> dict[str, str]:
    """Kaggle's LOC_val_solution.csv: WordNet id by the name of the picture without suffix."""
    labels = {}
    for number, row in enumerate(csv_rows(path, ","), 1):
        if number == 1 and row[:1] == ["ImageId"]:
            continue
        class_id = row[1].split(" ")[0] if len(row) > 1 else ""
        if not is_wordnet_id(class_id):
            raise UserError(f"{path}, line {number}: no WordNet id in the second column")
        labels[row[0]] = class_id
    return labels


def csv_rows(path: Path, delimiter: str) -> Iterable[list[str]]:
    """The rows of a table in text, without empty ones."""
    try:
        rows = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter)
        yield from (row for row in rows if row)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None


def find_kit(folder: Path) -> Path | None:
    """The development kit in `folder`: itself, a folder or an archive with "devkit" in its name."""
    if any((folder / sub / "meta.mat").is_file() for sub in ("", "data")):
        return folder
    for path in sorted(folder.glob("*devkit*")):
        if path.is_dir() or path.name.endswith((".tar.gz", ".tgz", ".gz", ".tar")):
            return path
    return None


def read_kit(path: Path) -> DevelopmentKit:
    """Read a development kit, packed or unpacked. Raises UserError for what is missing."""
    files = _kit_files(path)
    metas = sorted(name for name in files if name.startswith("meta"))
    if not metas:
        raise UserError(f"{path} is no development kit: data/meta.mat is not in it")
    ids, names = _read_meta(files[_preferred(metas)], f"{path} (meta.mat)")
    labels = {}
    for split, word in (("val", "validation"), ("test", "test")):
        lists = sorted(name for name in files if f"{word}_ground_truth" in name)
        if lists:
            chosen = _preferred(lists)
            labels[split] = _read_ground_truth(files[chosen], ids, f"{path} ({chosen})")
    return DevelopmentKit(names, labels)


def optional_module(name: str, needed_for: str, hint: str = "") -> Any:
    """Import what not every user needs; raises UserError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(f"{needed_for} needs {package}: pip install {package}{hint}") from None


def _split_line(line: str) -> tuple[str, str]:
    head, tab, tail = line.strip().partition("\t")
    if not tab:
        first, _, rest = head.partition(" ")
        if not is_wordnet_id(first):
            return head, head
        head, tail = first, rest
    return head.strip(), tail.strip() or WORDNET_NAMES.get(head, head.strip())


def _read_text(path: Path) -> str:
    """Names of files need not be UTF-8: what is not is kept, as in names from the file system."""
    try:
        return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _kit_files(path: Path) -> dict[str, bytes]:
    """meta.mat and the ground truths of a kit, by the last part of their names."""

    def wanted(name: str) -> bool:
        base = PurePosixPath(name).name
        return base in ("meta.mat", "meta_clsloc.mat") or bool(_GROUND_TRUTH.search(base))

    if not path.is_dir():
        return {PurePosixPath(n).name: data for n, data in small_files(path, wanted).items()}
    files = {}
    for file in sorted((*path.glob("*"), *path.glob("data/*"), *path.glob("*/data/*"))):
        if wanted(file.name) and file.is_file():
            if file.stat().st_size > SMALL_FILE_BYTES:
                raise UserError(f"{file} is too large for a file of a development kit")
            files[file.name] = file.read_bytes()
    return files


def _preferred(names: list[str]) -> str:
    """Of the files of one kind, that for classification: later kits have some for detection."""
    return next((name for name in names if "clsloc" in name), names[0])


def _read_meta(data: bytes, where: str) -> tuple[dict[int, str], dict[str, str]]:
    """WordNet ids by the kit's numbers, and their words."""
    scipy_io = optional_module(
        "scipy.io", f"reading {where}", f", or put Kaggle's {SOLUTION_FILE} beside the pictures"
    )
    try:
        synsets = scipy_io.loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        number = next(name for name in synsets.dtype.names if name.endswith("_ID"))
        ids = {int(synset[number]): str(synset["WNID"]) for synset in synsets.flat}
        names = {str(synset["WNID"]): str(synset["words"]) for synset in synsets.flat}
    # A damaged file brings nearly every kind of exception out of SciPy.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} is damaged or no list of synsets: {reason}") from None
    return ids, names


def _read_ground_truth(data: bytes, ids: dict[int, str], where: str) -> tuple[str, ...]:
    try:
        return tuple(ids[int(line)] for line in data.split())
    except (ValueError, KeyError) as error:
        raise UserError(f"{where} is damaged: no class has the number {error}") from None
