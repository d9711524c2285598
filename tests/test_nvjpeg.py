"""JPEGs decoded on a device: in order, one batch at a time, and the same crops as ever."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fabricate
from alexnet.config import Recipe
from alexnet.dataset import Split
from alexnet.errors import UserError
from alexnet.loader import batches
from alexnet.nvjpeg import DeviceDecoder, torchcodec
from alexnet.pictures import JpegPictures, decode_jpeg, encode_jpeg

CPU = torch.device("cpu")


class Recorded:
    """A decoder and a stream that write down what happens to them, in which thread."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.inside = 0

    def synchronize(self) -> None:
        self.events.append(("empty", threading.get_ident()))

    def decode(self, files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        self.events.append(("decode", threading.get_ident()))
        self.inside += 1
        assert self.inside == 1, "one batch at a time"
        time.sleep(0.001)  # so that others may try
        self.inside -= 1
        return [
            torch.from_numpy(decode_jpeg(file.numpy().tobytes()).copy()).permute(2, 0, 1)
            for file in files
        ]


def jpegs(folder: Path, count: int = 30, size_px: int = 12) -> Split:
    random = np.random.default_rng(0)
    shades = random.integers(0, 256, (count, 1, 1, 3)) + np.arange(size_px)[:, None, None]
    pixels = np.broadcast_to(shades, (count, size_px, size_px, 3)).clip(0, 255).astype(np.uint8)
    files = [encode_jpeg(picture) for picture in np.ascontiguousarray(pixels)]
    (folder / "images.jpegs").write_bytes(b"".join(files))
    images = JpegPictures(folder / "images.jpegs", np.cumsum([0, *map(len, files)]), size_px)
    return Split("train", images, np.arange(count), tuple(map(str, range(count))))


def tiny(**data: str) -> Recipe:
    return fabricate.recipe(
        data={"image_px": 12, **data}, augment={"crop_px": 8}, optimizer={"batch_size": 7}
    )


def test_batches_of_a_device_decoder_are_those_of_the_processor(tmp_path: Path) -> None:
    split, device = jpegs(tmp_path), Recorded()
    decoder = DeviceDecoder(CPU, device, device.decode)
    expected = batches(split, tiny(), step=0, stop=15)
    found = batches(split, tiny(), step=0, stop=15, threads=4, decoder=decoder)
    for batch, other in zip(found, expected, strict=True):
        for name in ("crops", "labels", "top", "left", "flip", "colour"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name
        assert batch.crops.is_contiguous()


def test_the_stream_is_empty_before_and_after_each_batch(tmp_path: Path) -> None:
    split, device = jpegs(tmp_path), Recorded()
    decoder = DeviceDecoder(CPU, device, device.decode)
    for _ in batches(split, tiny(), step=0, stop=20, threads=4, decoder=decoder):
        pass
    assert len({thread for _, thread in device.events}) > 1
    for start in range(0, len(device.events), 3):
        kinds, threads = zip(*device.events[start : start + 3], strict=True)
        assert kinds == ("empty", "decode", "empty")
        assert len(set(threads)) == 1


def test_a_damaged_picture_is_named_as_on_the_processor(tmp_path: Path) -> None:
    def fails(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        raise RuntimeError("nvjpegDecodeBatched failed")

    split = jpegs(tmp_path)
    decoder = DeviceDecoder(CPU, Recorded(), fails)
    with pytest.raises(UserError, match=r"GPU does not decode these JPEGs \(nvjpegDecodeBa"):
        next(batches(split, tiny(), step=0, stop=1, decoder=decoder))
    whole = bytearray((tmp_path / "images.jpegs").read_bytes())
    whole[-200:] = bytes(200)
    (tmp_path / "images.jpegs").write_bytes(whole)
    device = Recorded()
    decoder = DeviceDecoder(CPU, device, device.decode)
    with pytest.raises(UserError, match=r"images.jpegs is damaged \(picture 29"):
        for _ in batches(split, tiny(), step=0, stop=5, decoder=decoder):
            pass


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    decoder = DeviceDecoder(CPU, Recorded(), lambda files, device: [torch.zeros(1, 12, 12)] * 7)
    with pytest.raises(UserError, match=r"to \(1, 12, 12\) instead of \(3, 12, 12\)"):
        next(batches(jpegs(tmp_path), tiny(), step=0, stop=1, decoder=decoder))


def test_without_torchcodec_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}\nand more")

    monkeypatch.setattr("alexnet.nvjpeg.importlib.import_module", missing)
    with pytest.raises(
        UserError, match=r"needs torchcodec 0.16 or later .* pip install"
    ) as refused:
        torchcodec()
    assert "\n" not in str(refused.value)


def test_on_the_processor_the_setting_changes_nothing(tmp_path: Path) -> None:
    split = jpegs(tmp_path)
    one, other = (next(batches(split, tiny(decoder=d), step=0, stop=1)) for d in ("cpu", "cuda"))
    assert torch.equal(one.crops, other.crops)


@pytest.mark.gpu
def test_nvjpeg_gives_nearly_the_pixels_of_libjpeg_whatever_runs_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    split, device = jpegs(tmp_path, count=64, size_px=64), torch.device("cuda")
    recipe = fabricate.recipe(
        data={"image_px": 64, "decoder": "cuda"},
        augment={"crop_px": 56},
        optimizer={"batch_size": 16},
    )
    left = torch.randn(2048, 2048, device=device)
    expected = batches(split, recipe, step=0, stop=100)
    found = batches(split, recipe, step=0, stop=100, threads=4, device=device)
    for batch, other in zip(found, expected, strict=True):
        left = left @ left / 2048  # memory is freed while work that reads it is queued
        difference = (batch.crops.cpu().float() - other.crops.float()).abs()
        assert difference.mean() < 2
        assert difference.max() < 24
        assert torch.equal(batch.labels.cpu(), other.labels)
