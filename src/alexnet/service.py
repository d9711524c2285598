"""Answers about pictures that strangers send: what is on them, what is near, what is seen.

The part of `alexnet serve` that knows of no web framework: limits on bytes, pixels, kind, rate,
time and how many wait; decoding in processes of their own, which a hostile file may end without
harm and which are stopped when they take too long; one network that answers in turn. Pictures are
only ever in memory. Not here: HTTP and the page (`serving.py`).
"""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alexnet import seeing
from alexnet.decoding import Decoders, Refused, too_slow
from alexnet.errors import UserError
from alexnet.searching import Searcher, Shelf, query_features
from alexnet.trained import TrainedAlexNet

TOP = 5
NEAREST = 6
MAX_TOP = 100
THUMBNAIL_PX = 160
MAX_CLIENTS = 10_000


Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """What one picture, one client and all of them together may ask for."""

    max_bytes: int = 20 << 20
    max_pixels: int = 64_000_000
    seconds: float = 20.0  # for one answer, waiting included
    per_minute: float = 120.0  # requests of one client, in the long run ...
    burst: int = 240  # ... and at once
    waiting: int = 400  # requests under way
    bytes_under_way: int = 512 << 20


@dataclass(frozen=True)
class Sent:
    """A picture that came: its prepared square (S, S, 3), what it was, and until when to answer."""

    pixels: Pixels
    format: str
    width: int
    height: int
    deadline: float


class Service:
    """One network, perhaps with an index, that answers many at once; close it when done."""

    def __init__(
        self,
        model: TrainedAlexNet,
        limits: Limits,
        searcher: Searcher | None = None,
        *,
        decoders: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.limits, self.searcher, self.clock = model, limits, searcher, clock
        image_px = model.card.preprocessing.image_px
        self.shelf = Shelf(searcher.index, image_px) if searcher is not None else None
        self.rates = Rates(limits.per_minute, limits.burst, clock)
        self._decoders = Decoders(decoders)
        self._network = threading.Lock()
        self._counts = threading.Lock()
        self._under_way = self._bytes = 0

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._decoders.close()

    def admit(self, client: str, size: int | None) -> "_Admission":
        """Let a request in: `with service.admit(client, length): ...`.

        Raises Refused: 413 for too many bytes, 429 for too many requests, 503 while too many wait.
        """
        if size is not None and size > self.limits.max_bytes:
            raise self.too_large()
        self.rates.take(client)
        return _Admission(self, size if size is not None else self.limits.max_bytes)

    def too_large(self) -> Refused:
        megabytes = self.limits.max_bytes / 2**20
        return Refused(413, f"the picture has more than {megabytes:g} MB, the limit here")

    def receive(self, data: bytes) -> Sent:
        """Decode a picture. Raises Refused: 413 too large, 415 no picture, 422 broken, 504 slow."""
        deadline = self.clock() + self.limits.seconds
        if len(data) > self.limits.max_bytes:
            raise self.too_large()
        if not data:
            raise Refused(400, "no picture came: send its bytes as the body of the request")
        job = (data, self.model.card.preprocessing.image_px, self.limits.max_pixels)
        found = self._decoders.run(job, self.limits.seconds)
        if isinstance(found, tuple) and len(found) == 2:
            raise Refused(*found)
        pixels, kind, width, height = found
        return Sent(pixels, kind, width, height, deadline)

    def predict(self, sent: Sent, top: int = TOP) -> list[dict[str, Any]]:
        """The most probable classes: [{class, id, probability}], most probable first."""
        with self._turn(sent):
            prediction = self.model.predictions(sent.pixels[None], top=min(max(top, 1), MAX_TOP))[0]
        return [
            {"class": guess.name, "id": guess.class_id, "probability": guess.probability}
            for guess in prediction.top
        ]

    def nearest(self, sent: Sent, count: int = NEAREST) -> list[dict[str, Any]]:
        """The nearest pictures of the index: [{name, class, distance, picture}]; [] without one.

        `name` is the last part of the picture's name: where it lies on this machine stays here.
        """
        if self.searcher is None or self.shelf is None:
            return []
        count = min(max(count, 1), MAX_TOP, len(self.searcher.index))
        with self._turn(sent):
            vectors = query_features(self.searcher.index, self.model, sent.pixels[None])
            (near,) = self.searcher.find(vectors, count)
            return [
                {
                    "name": one.name.replace("\\", "/").rpartition("/")[2],
                    "class": one.label or None,
                    "distance": one.distance,
                    "picture": jpeg(self.shelf.picture(one.row)),
                }
                for one in near
            ]

    def conv1(self, sent: Sent) -> bytes:
        """conv1's responses as a PNG."""
        with self._turn(sent):
            return png(seeing.conv1_responses(self.model, sent.pixels))

    def occlusion(self, sent: Sent, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Where the first guess depends on the picture: {class, probability, lowest, picture}."""
        with self._turn(sent):
            guess = self.model.predictions(sent.pixels[None], top=1)[0].top[0]

        def advance(done: int, total: int) -> None:
            self._check_time(sent)
            progress(done, total)

        def probabilities_of(crops: Tensor) -> Tensor:
            with self._turn(sent):  # others' pictures take theirs between two batches
                found: Tensor = self.model(crops).float().softmax(1)
            return found

        found = seeing.occlusion(
            self.model,
            sent.pixels,
            guess.label,
            probabilities_of=probabilities_of,
            progress=advance,
        )
        shown = seeing.occlusion_picture(self.model, sent.pixels, guess.probability, found)
        return {
            "class": guess.name,
            "probability": guess.probability,
            "lowest": float(found.min()),
            "picture": jpeg(shown, enlarge_to=THUMBNAIL_PX * 2),
        }

    def _turn(self, sent: Sent) -> "_Turn":
        return _Turn(self._network, sent.deadline - self.clock())

    def _check_time(self, sent: Sent) -> None:
        if self.clock() > sent.deadline:
            raise too_slow()


class _Turn:
    """The network, for one at a time; Refused where it does not come in time."""

    def __init__(self, lock: threading.Lock, seconds: float) -> None:
        self.lock, self.seconds = lock, seconds

    def __enter__(self) -> None:
        if self.seconds <= 0 or not self.lock.acquire(timeout=self.seconds):
            raise too_slow()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class _Admission:
    """A request under way, with the memory that it may take."""

    def __init__(self, service: Service, size: int) -> None:
        self.service, self.size = service, size

    def __enter__(self) -> None:
        service, limits = self.service, self.service.limits
        with service._counts:
            full = service._under_way >= limits.waiting
            if full or service._bytes + self.size > max(limits.bytes_under_way, limits.max_bytes):
                raise Refused(503, "too many pictures are waiting here; try again in a moment")
            service._under_way += 1
            service._bytes += self.size

    def __exit__(self, *_: object) -> None:
        with self.service._counts:
            self.service._under_way -= 1
            self.service._bytes -= self.size


class Rates:
    """A bucket of tokens for each client: `burst` at once, refilled at `per_minute`."""

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float]) -> None:
        self.per_second, self.burst, self.clock = per_minute / 60, burst, clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Raises Refused (429) for a client that asks too often."""
        now = self.clock()
        with self._lock:
            tokens, then = self._buckets.pop(client, (float(self.burst), now))
            tokens = min(self.burst, tokens + (now - then) * self.per_second)
            enough = tokens >= 1
            self._buckets[client] = (tokens - enough, now)
            while len(self._buckets) > MAX_CLIENTS:  # those that were silent longest
                self._buckets.popitem(last=False)
        if not enough:
            wait = (1 - tokens) / self.per_second if self.per_second else 3600
            raise Refused(429, f"too many requests; try again in {wait:.0f} s")


# Pictures to send


def jpeg(pixels: Pixels, enlarge_to: int = THUMBNAIL_PX) -> bytes:
    """A square as JPEG of at most THUMBNAIL_PX, or enlarged to `enlarge_to`."""
    image = Image.fromarray(pixels)
    side = max(enlarge_to, THUMBNAIL_PX)
    if image.width != side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=86)
    return buffer.getvalue()


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def check_port(host: str, port: int) -> None:
    """Raises UserError where the port is taken, or the address is not of this machine."""
    import errno
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} of {host} is in use; choose another: --port {port + 1}"
                ) from None
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from None
