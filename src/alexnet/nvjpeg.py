"""JPEGs of a packed data set decoded on the GPU that trains, by torchcodec (nvJPEG).

For machines whose GPUs learn faster than their cores decode; `--set data.decoder=cuda`. nvJPEG and
libjpeg round differently: pixels differ from those of the cores by a few levels here and there,
which is why this is a setting of the data and off by default.

nvJPEG's hardware engine writes its output before work that is queued on its stream is done
(meta-pytorch/torchcodec#1634, pytorch/vision#9606), into memory that such work may still read. So
one batch at a time is decoded, on a stream that is empty before, and is emptied after.

Not here: decoding on the processor (pictures.py), order and draws (loader.py).
"""

import contextlib
import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from alexnet.errors import UserError
from alexnet.pictures import JpegPictures, Numbers

DecodeBatch = Callable[[Sequence[Tensor], torch.device], Sequence[Tensor]]
"""Files (bytes,) uint8 on the processor -> pictures (3, S, S) uint8 on the device."""


class Stream(Protocol):
    def synchronize(self) -> Any: ...


class DeviceDecoder:
    """Crops of JPEGs that are decoded on a device, on a `stream` that nobody else decodes on."""

    def __init__(
        self, device: torch.device, stream: Stream, decode: DecodeBatch | None = None
    ) -> None:
        self._device, self._stream = device, stream
        self._decode = torchcodec() if decode is None else decode
        self._one_at_a_time = threading.Lock()

    def crops(
        self, images: JpegPictures, indices: Numbers, tops: Numbers, lefts: Numbers, size_px: int
    ) -> Tensor:
        """One window of each picture: uint8 (B, size, size, 3) on the device; all work is done.

        Raises UserError for a damaged picture, as reading it on the processor does.
        """
        files = [torch.from_numpy(images.file(index)) for index in indices.tolist()]
        if not files:
            return torch.empty(0, size_px, size_px, 3, dtype=torch.uint8, device=self._device)
        windows = zip(tops.tolist(), lefts.tolist(), strict=True)
        with self._one_at_a_time, self._on_stream():
            self._stream.synchronize()
            pictures = self._decoded(files, images, indices)
            crops = torch.stack(
                [
                    picture[:, top : top + size_px, left : left + size_px].permute(1, 2, 0)
                    for picture, (top, left) in zip(pictures, windows, strict=True)
                ]
            )
            self._stream.synchronize()
        return crops

    def _decoded(
        self, files: Sequence[Tensor], images: JpegPictures, indices: Numbers
    ) -> Sequence[Tensor]:
        try:
            pictures = self._decode(files, self._device)
        # Drivers and decoders fail with any kind of exception.
        except Exception as error:
            images[indices]  # names the one that is damaged
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the GPU does not decode these JPEGs ({reason}); --set data.decoder=cpu"
            ) from error
        shape = (3, *images.shape[1:3])
        for picture in pictures:
            if tuple(picture.shape) != shape:
                images[indices]
                raise UserError(
                    f"the GPU decodes a JPEG to {tuple(picture.shape)} instead of {shape}; "
                    "--set data.decoder=cpu"
                )
        return pictures

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self._stream, torch.cuda.Stream):
            return torch.cuda.stream(self._stream)
        return contextlib.nullcontext()


def torchcodec() -> DecodeBatch:
    """nvJPEG through torchcodec. Raises UserError where it is not installed or too old."""
    try:
        decode_jpeg = importlib.import_module("torchcodec.decoders").decode_jpeg
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"data.decoder=cuda needs torchcodec 0.16 or later ({reason}): "
            "pip install 'alexnet[nvjpeg]', or --set data.decoder=cpu"
        ) from None

    def decode(files: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
        pictures: Sequence[Tensor] = decode_jpeg(list(files), mode="RGB", device=device)
        return pictures

    return decode
