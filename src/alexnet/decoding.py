"""Decoding what strangers send, in processes of their own (Section 2 prepares pictures).

A hostile file may end the program that decodes it, take all its memory or never come to an end:
here that costs a small process, which has a limit of memory and of time. It imports Pillow and
NumPy alone. Not here: how a picture is read (`images.py`).
"""

import io
import os
import threading
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures import TimeoutError as DecodingTimeout
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.images import UnreadableImage, read_image, resize_and_crop

MEMORY_OF_A_DECODER = 3 << 30
ATTEMPTS = 3

# What browsers and telephones send; every reader more is one more for hostile files.
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

Pixels = NDArray[np.uint8]


class Refused(Exception):
    """A request that is not answered: one line for whoever sent it, and the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def too_slow() -> Refused:
    return Refused(504, "that took too long here; try again later, or a smaller picture")


class Decoders:
    """A few processes that decode; replaced when a file ends one or takes too long."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(count)
        self._pool = self._new()

    def run(self, job: tuple[bytes, int, int], seconds: float) -> Any:
        """The result of `decode`. Raises Refused where there is none."""
        if not self._slots.acquire(timeout=seconds):
            raise too_slow()
        try:
            # Somebody else's file may end the process that this one is with: once more, then.
            for _ in range(ATTEMPTS):
                pool = self._pool
                try:
                    return pool.submit(decode, *job).result(timeout=seconds)
                except DecodingTimeout:
                    self._replace(pool)
                    raise too_slow() from None
                except (BrokenProcessPool, CancelledError, MemoryError, RuntimeError):
                    self._replace(pool)
            raise Refused(422, "the picture cannot be decoded: it ends the program that tries")
        finally:
            self._slots.release()

    def close(self) -> None:
        self._stop(self._pool)

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.count, mp_context=get_context("spawn"), initializer=_limit_decoder
        )

    def _replace(self, pool: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = self._new()
        self._stop(pool)

    @staticmethod
    def _stop(pool: ProcessPoolExecutor) -> None:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def _limit_decoder() -> None:
    """No decoder may take all the memory there is, or be stopped by the Ctrl-C of its parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_OF_A_DECODER, MEMORY_OF_A_DECODER))


def _end_with_parent() -> None:
    """However the server ends, its decoders do not stay behind."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(0)


def decode(
    data: bytes, image_px: int, max_pixels: int
) -> tuple[Pixels, str, int, int] | tuple[int, str]:
    """(square, format, width, height), or (status, reason). Runs in a decoder."""
    try:
        kind, width, height = _header(data)
        if width * height > max_pixels:
            millions = max_pixels / 1e6
            return 413, f"the picture has {width:,} x {height:,} pixels; the limit here is " + (
                f"{millions:g} million"
            )
        return resize_and_crop(read_image(data), image_px), kind, width, height
    except UnreadableImage as error:
        status = {"not-a-picture": 415, "empty": 415, "enormous": 413}.get(error.kind, 422)
        return status, f"the picture cannot be read: {error}"
    except MemoryError:
        return 413, "the picture takes more memory than it may here"


def _header(data: bytes) -> tuple[str, int, int]:
    """What it is and how large, before a pixel is decoded. Raises UnreadableImage."""
    try:
        with Image.open(io.BytesIO(data), formats=KINDS) as image:
            return image.format or "", *image.size
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage("it claims more pixels than any picture has", "enormous") from None
    # Pillow's readers fail on damaged headers with nearly every kind of exception there is.
    except Exception:
        known = ", ".join(KINDS)
        reason = f"not a picture of a kind that is taken here ({known}), or its header is damaged"
        raise UnreadableImage(reason, "not-a-picture") from None
