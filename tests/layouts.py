"""The same few pictures in every layout that ImageNet and other sets of pictures come in.

`split_folder` and `class_folder` make the pictures; every other function takes such a folder and
writes the same files in another layout.
"""

import csv
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from alexnet.errors import UserError

Result = TypeVar("Result")

CLASSES = ("n01440764", "n02102040", "n03888257")
WORDS = {"n01440764": "tench, Tinca tinca", "n02102040": "English springer", "n03888257": "chute"}
VAL_NAME = "ILSVRC2012_val_{:08d}"


def picture_bytes(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 3, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def class_folder(root: Path) -> Path:
    """Six, five and four pictures in folders by class."""
    for label, wnid in enumerate(CLASSES):
        for number in range(6 - label):
            path = root / wnid / f"{wnid}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture_bytes(10 * label + number))
    return root


def split_folder(root: Path) -> Path:
    """Fifteen pictures to train on, six to validate, numbered across the classes as in ILSVRC."""
    class_folder(root / "train")
    for number in range(1, 7):
        wnid = CLASSES[(number * number) % 3]
        if number > 4:
            wnid = CLASSES[2]
        path = root / "val" / wnid / f"{VAL_NAME.format(number)}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(100 + number))
    return root


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def synset_tars(folder: Path) -> dict[str, bytes]:
    """A tar for each class folder, by its name."""
    return {
        f"{class_folder.name}.tar": tar_bytes(files_below(class_folder))
        for class_folder in sorted(folder.iterdir())
    }


def tried(
    call: Callable[..., Result], *arguments: object, refusal: type[ValueError] = UserError
) -> Result | str:
    """What a call returns, or the message of its refusal, which must be one line."""
    try:
        return call(*arguments)
    except refusal as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return message


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def synsets(folder: Path, target: Path) -> Path:
    for name, data in synset_tars(folder).items():
        write(target / name, data)
    return target


def tar_of_synsets(folder: Path, target: Path) -> Path:
    return write(target / "fall11_whole.tar", tar_bytes(synset_tars(folder)))


def tar_of_folders(folder: Path, target: Path) -> Path:
    files = {f"pets/{name}": data for name, data in files_below(folder).items()}
    return write(target / "pets.tar", tar_bytes(files))


def validation(folder: Path) -> dict[int, tuple[str, bytes]]:
    """(class, bytes) of the validation pictures by their numbers."""
    return {
        int(path.stem.rpartition("_")[2]): (path.parent.name, path.read_bytes())
        for path in sorted((folder / "val").glob("*/*"))
    }


def flat_validation(folder: Path) -> dict[str, bytes]:
    by_number = sorted(validation(folder).items())
    return {f"{VAL_NAME.format(number)}.JPEG": data for number, (_, data) in by_number}


def meta_mat() -> bytes:
    """The synsets of a development kit: numbers that are not in the order of the WordNet ids."""
    import scipy.io

    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object)]
    rows = [(KIT_NUMBER[wnid], wnid, WORDS[wnid], "a gloss") for wnid in CLASSES]
    rows.append((4, "n00000004", "a synset above", "of no picture"))
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    return buffer.getvalue()


KIT_NUMBER = dict(zip(CLASSES, (3, 1, 2), strict=True))


def kit_files(folder: Path) -> dict[str, bytes]:
    numbers = [KIT_NUMBER[wnid] for _, (wnid, _) in sorted(validation(folder).items())]
    truth = "".join(f"{number}\n" for number in numbers).encode()
    return {
        "ILSVRC2012_devkit_t12/readme.txt": b"about the kit",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }


def ilsvrc(folder: Path, target: Path) -> Path:
    """As downloaded, with an unpacked development kit."""
    write(target / "ILSVRC2012_img_train.tar", tar_bytes(synset_tars(folder / "train")))
    write(target / "ILSVRC2012_img_val.tar", tar_bytes(flat_validation(folder)))
    for name, data in kit_files(folder).items():
        write(target / name, data)
    return target


def ilsvrc_with_packed_kit(folder: Path, target: Path) -> Path:
    import gzip

    write(target / "ILSVRC2012_img_train.tar", tar_bytes(synset_tars(folder / "train")))
    for name, data in flat_validation(folder).items():
        write(target / "val" / name, data)
    kit = gzip.compress(tar_bytes(kit_files(folder)))
    write(target / "ILSVRC2012_devkit_t12.tar.gz", kit)
    return target


def solution(folder: Path, target: Path) -> None:
    lines = ["ImageId,PredictionString"]
    for number, (wnid, _) in reversed(validation(folder).items()):
        lines.append(f"{VAL_NAME.format(number)},{wnid} 1 2 3 4 {wnid} 5 6 7 8 ")
    write(target / "LOC_val_solution.csv", "\n".join(lines).encode())
    mapping = "".join(f"{wnid} {WORDS[wnid]}\n" for wnid in CLASSES)
    write(target / "LOC_synset_mapping.txt", mapping.encode())


def ilsvrc_with_solution(folder: Path, target: Path) -> Path:
    """Training tar, a validation tar in folders by chance, labels from Kaggle."""
    write(target / "ILSVRC2012_img_train.tar", tar_bytes(synset_tars(folder / "train")))
    files = {f"val/{name}": data for name, data in flat_validation(folder).items()}
    write(target / "ILSVRC2012_img_val.tar", tar_bytes(files))
    solution(folder, target)
    return target


def ilsvrc_with_folders(folder: Path, target: Path) -> Path:
    write(target / "ILSVRC2012_img_train.tar", tar_bytes(synset_tars(folder / "train")))
    for name, data in files_below(folder / "val").items():
        write(target / "val" / name, data)
    return target


def kaggle(folder: Path, target: Path) -> Path:
    root = target / "ILSVRC" / "Data" / "CLS-LOC"
    for name, data in files_below(folder / "train").items():
        write(root / "train" / name, data)
    for name, data in flat_validation(folder).items():
        write(root / "val" / name, data)
    solution(folder, target)
    return target


def by_split(folder: Path) -> dict[str, dict[str, bytes]]:
    return {split: files_below(folder / split) for split in ("train", "val")}


def classes_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "train").iterdir())


def parquet(folder: Path, target: Path, *, names: bool = True) -> Path:
    """Two files to train on, one to validate, in Hugging Face's form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    classes = classes_of(folder)
    label = {"_type": "ClassLabel", **({"names": classes} if names else {})}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    (target / "data").mkdir(parents=True, exist_ok=True)
    for split, files in by_split(folder).items():
        rows = [
            {
                "image": {"bytes": data, "path": Path(name).name},
                "label": classes.index(Path(name).parent.name),
            }
            for name, data in files.items()
        ]
        halves = [rows[:7], rows[7:]] if split == "train" else [rows]
        for number, half in enumerate(halves):
            name = f"{ {'val': 'validation'}.get(split, split) }-{number:05d}-of-{len(halves):05d}"
            table = pa.Table.from_pylist(half, schema=schema)
            pq.write_table(table, target / "data" / f"{name}.parquet", row_group_size=3)
    return target


def webdataset(folder: Path, target: Path, *, label: str = "cls") -> Path:
    """Shards of five samples; `label` "cls" has the class as text, "index" a number, "json"."""
    for split, files in by_split(folder).items():
        items = list(files.items())
        for shard in range(0, len(items), 5):
            members = {}
            for name, data in items[shard : shard + 5]:
                key, wnid = name.removesuffix(".JPEG"), Path(name).parent.name
                members[name] = data
                if label == "json":
                    text = json.dumps({"label": CLASSES.index(wnid), "note": "by hand"})
                    members[f"{key}.json"] = text.encode()
                else:
                    text = wnid if label == "cls" else str(CLASSES.index(wnid))
                    members[f"{key}.cls"] = text.encode()
            write(target / f"toys-{split}-{shard // 5:06d}.tar", tar_bytes(members))
    return target


def table(folder: Path, target: Path, *, header: bool = True) -> Path:
    """labels.csv of path, label and split, beside pictures in one folder."""
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow(["label", "split", "file_name"])
    for split, files in by_split(folder).items():
        for name, data in reversed(files.items()):
            path = write(target / "all pictures" / Path(name).name, data).relative_to(target)
            wnid = Path(name).parent.name
            writer.writerow([wnid, split, path] if header else [path, wnid, split])
    return write(target / "labels.csv", text.getvalue().encode())


def classes_file(target: Path) -> Path:
    lines = "".join(f"{wnid} {WORDS[wnid]}\n" for wnid in CLASSES)
    return write(target / "classes.txt", lines.encode())


def cifar_batches(pictures_each: int = 4) -> dict[str, bytes]:
    """Six batches and the names of three classes, as python pickles."""
    files = {"batches.meta": pickle.dumps({b"label_names": [b"bird", b"cat", b"dog"]}, protocol=3)}
    batches = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    for number, batch in enumerate(batches):
        random = np.random.default_rng(number)
        content = {
            b"batch_label": batch.encode(),
            b"labels": [(index + number) % 3 for index in range(pictures_each)],
            b"data": random.integers(0, 256, (pictures_each, 3072), dtype=np.uint8),
            b"filenames": [f"{batch}_s_{index:06d}.png".encode() for index in range(pictures_each)],
        }
        files[batch] = pickle.dumps(content, protocol=3)
    return files


def cifar10(target: Path) -> Path:
    for name, data in cifar_batches().items():
        write(target / "cifar-10-batches-py" / name, data)
    return target


def cifar10_archive(target: Path) -> Path:
    import gzip

    files = {f"cifar-10-batches-py/{name}": data for name, data in cifar_batches().items()}
    return write(target / "cifar-10-python.tar.gz", gzip.compress(tar_bytes(files)))
