"""Collectives with a name: what each sends is counted, and a hang says who waits for whom, and in
what.

A `Group` is some ranks that exchange tensors, on PyTorch's own engine. Every exchange has a name,
like "conv3 forward". A thread of each rank watches: when one takes longer than the time limit, or
another rank has failed, it says so in one line and ends this process, which is the only way out of
a library that waits.

Bytes are those of the tensors that this rank has to send to others, whatever the algorithm:
    gather       own part x (ranks - 1)
    return_sum   everything but the own part
    sum          2 x (ranks - 1) / ranks x the tensor, the least that an all-reduce takes (a ring's)

Not here: which ranks form a group (`parallel.py`), and what is exchanged (`columns.py`).
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

FAILED = 1  # exit code of the ranks that another one's failure ends

SPARE_SECONDS = 10.0  # that a rank gives the store to answer, after its time limit

# The same under the name that PyTorch has for it since 2.14.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class RankFailed(Exception):
    """An exchange failed: another rank has died, or the network between them."""


@dataclass
class _Open:
    """An exchange that has begun; `work` is known once it has been handed to the library."""

    number: int
    name: str
    since: float
    work: Any = None


@dataclass
class Journal:
    """Where this rank is, for those who wait for it, and the bytes it has sent, by name."""

    sent: Counter[str] = field(default_factory=Counter)
    number: int = 0
    last: str = "the start"
    opened: deque[_Open] = field(default_factory=deque)

    def begin(self, name: str, sent: int) -> _Open:
        while self.opened and _is_done(self.opened[0]):
            self.opened.popleft()
        self.number += 1
        self.last = name
        self.sent[name] += sent
        entry = _Open(self.number, name, time.monotonic())
        self.opened.append(entry)
        return entry

    def oldest(self) -> _Open | None:
        """The first exchange that has begun and is not done."""
        return next((entry for entry in list(self.opened) if not _is_done(entry)), None)


def _is_done(entry: _Open) -> bool:
    return entry.work is not None and entry.work.is_completed()


class _Finished:
    @staticmethod
    def is_completed() -> bool:
        return True


class Group:
    """Ranks that exchange tensors; `rank` and `size` are this one's place among them.

    A group of one exchanges nothing, and needs no engine.
    """

    def __init__(
        self, engine: dist.ProcessGroup | None = None, journal: Journal | None = None
    ) -> None:
        self.engine = engine
        self.journal = journal or Journal()
        self.rank = dist.get_rank(engine) if engine is not None else 0
        self.size = dist.get_world_size(engine) if engine is not None else 1

    def sizes(self, total: int) -> list[int]:
        """How many of `total` things belong to each rank: consecutive, and different by one at
        most."""
        bounds = [rank * total // self.size for rank in range(self.size + 1)]
        return [end - start for start, end in pairwise(bounds)]

    def own(self, total: int, rank: int | None = None) -> slice:
        """Which of `total` things belong to this rank (or another)."""
        rank = self.rank if rank is None else rank
        return slice(rank * total // self.size, (rank + 1) * total // self.size)

    def gather(self, part: Tensor, dim: int, sizes: Sequence[int], name: str) -> Tensor:
        """Put the ranks' parts together along `dim`, where they have these sizes."""
        if self.size == 1:
            return part
        started = self.start_gather(part, dim, sizes, name)
        return started()

    def start_gather(
        self, part: Tensor, dim: int, sizes: Sequence[int], name: str
    ) -> Callable[[], Tensor]:
        """Begin a `gather`, and return what waits for it and gives its result."""
        if self.size == 1:
            return lambda: part
        memory = _memory_format(part)
        sent = part.detach().contiguous(memory_format=memory)
        shapes = [(*part.shape[:dim], size, *part.shape[dim + 1 :]) for size in sizes]
        counts = [prod(shape) for shape in shapes]
        received = part.new_empty(sum(counts))
        flat = _flat(sent)
        if len(set(counts)) == 1:
            finish = self._start(
                name,
                lambda: _all_gather(received, flat, group=self.engine, async_op=True),
                _bytes(sent) * (self.size - 1),
            )
        else:
            finish = self._start(
                name,
                lambda: dist.all_to_all_single(
                    received,
                    flat.repeat(self.size),
                    counts,
                    [sent.numel()] * self.size,
                    group=self.engine,
                    async_op=True,
                ),
                _bytes(sent) * (self.size - 1),
            )

        def result() -> Tensor:
            finish()
            parts = [
                _shaped(block, shape, memory)
                for block, shape in zip(torch.split(received, counts), shapes, strict=True)
            ]
            return torch.cat(parts, dim)

        return result

    def return_sum(self, whole: Tensor, dim: int, sizes: Sequence[int], name: str) -> Tensor:
        """Give every rank its part along `dim` of the sum over the ranks: what undoes a `gather`.

        Summed in the order of the ranks, so that the result depends on no algorithm.
        """
        if self.size == 1:
            return whole
        return self.start_return_sum(whole, dim, sizes, name)()

    def start_return_sum(
        self, whole: Tensor, dim: int, sizes: Sequence[int], name: str
    ) -> Callable[[], Tensor]:
        """Begin a `return_sum`, and return what waits for it and gives its result."""
        if self.size == 1:
            return lambda: whole
        memory = _memory_format(whole)
        parts = [
            part.contiguous(memory_format=memory) for part in torch.split(whole, list(sizes), dim)
        ]
        own = parts[self.rank]
        received = whole.new_empty(own.numel() * self.size)
        counts = [part.numel() for part in parts]
        finish = self._start(
            name,
            lambda: dist.all_to_all_single(
                received,
                torch.cat([_flat(part) for part in parts]),
                [own.numel()] * self.size,
                counts,
                group=self.engine,
                async_op=True,
            ),
            (whole.numel() - own.numel()) * whole.element_size(),
        )

        def result() -> Tensor:
            finish()
            total = received.view(self.size, -1).sum(0)
            return _shaped(total, tuple(own.shape), memory)

        return result

    def sum(self, tensor: Tensor, name: str) -> Tensor:
        """The sum over the ranks, in place."""
        return self._reduce(tensor, dist.ReduceOp.SUM, name)

    def max(self, tensor: Tensor, name: str) -> Tensor:
        """The largest over the ranks, in place."""
        return self._reduce(tensor, dist.ReduceOp.MAX, name)

    def start_sum(self, tensor: Tensor, name: str) -> tuple[Any, _Open]:
        """Begin a sum in place; the library's handle, for those who wait in their own way."""
        entry = self.journal.begin(name, self._reduced_bytes(tensor))
        entry.work = dist.all_reduce(tensor, group=self.engine, async_op=True)
        return entry.work, entry

    def _reduce(self, tensor: Tensor, kind: Any, name: str) -> Tensor:
        if self.size > 1:
            self._start(
                name,
                lambda: dist.all_reduce(tensor, kind, group=self.engine, async_op=True),
                self._reduced_bytes(tensor),
            )()
        return tensor

    def _reduced_bytes(self, tensor: Tensor) -> int:
        return 2 * (self.size - 1) * _bytes(tensor) // self.size

    def objects(self, value: Any, name: str) -> list[Any]:
        """What each rank says, in their order: plain values, by way of the CPU."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._named(name, 0) as entry:
            dist.all_gather_object(found, value, group=self.engine)
            entry.work = _Finished
        return found

    def wait(self, name: str) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            self.sum(torch.zeros(1), name)

    def _start(self, name: str, begin: Callable[[], Any], sent: int) -> Callable[[], None]:
        with self._named(name, sent) as entry:
            entry.work = begin()

        def finish() -> None:
            with _explained(name):
                entry.work.wait()

        return finish

    @contextlib.contextmanager
    def _named(self, name: str, sent: int) -> Any:
        entry = self.journal.begin(name, sent)
        with _explained(name):
            yield entry


@contextlib.contextmanager
def _explained(name: str) -> Any:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        reason = str(error).splitlines()[0]
        raise RankFailed(f"the exchange {name!r} failed: {reason}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch had none left: on a CPU it says so with a plain RuntimeError."""
    words = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Pictures stay in the order in memory that they have."""
    is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    plain = x.is_contiguous()
    return torch.channels_last if is_last and not plain else torch.contiguous_format


def _flat(x: Tensor) -> Tensor:
    """The numbers in the order in which they lie in memory."""
    return x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).reshape(-1)


def _shaped(flat: Tensor, shape: tuple[int, ...], memory: torch.memory_format) -> Tensor:
    if memory == torch.contiguous_format:
        return flat.view(shape)
    batch, maps, height, width = shape
    return flat.view(batch, height, width, maps).permute(0, 3, 1, 2)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


ALONE = Group()


class Watch(threading.Thread):
    """Ends this process, saying why, when an exchange takes too long or another rank has failed.

    Ranks tell one another where they are through PyTorch's store. The rank that is to be blamed
    cannot always speak, so the one that waits names it: the one that has come least far.
    """

    def __init__(self, store: Any, rank: int, size: int, seconds: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.size, self.seconds = store.clone(), rank, size, seconds
        self.journal = Journal()
        self.told = ""
        self.turns = 0  # of `Ranks.one_after_another`
        self.ended = threading.Event()

    def run(self) -> None:
        pause = min(1.0, self.seconds / 4)
        clock = threading.Thread(target=self._clock, name="clock", daemon=True)
        clock.start()
        while not self.ended.wait(pause):
            try:
                self._tell()
                waits_in = self.journal.oldest()
                if waits_in and time.monotonic() - waits_in.since > self.seconds:
                    self._leave(self._hang(waits_in))
                if failure := self.failure():
                    self._follow(failure)
            except RuntimeError:  # whoever holds the store is gone, and has said why
                if not self.ended.is_set():
                    time.sleep(pause)
                    os._exit(FAILED)
        clock.join()  # a thread in the library when Python ends would end it with a crash

    def _clock(self) -> None:
        """Ends this process where the store does not answer either: whoever holds it hangs."""
        while not self.ended.wait(1.0):
            waits_in = self.journal.oldest()
            spare = max(SPARE_SECONDS, self.seconds / 10)
            if waits_in and time.monotonic() - waits_in.since > self.seconds + spare:
                print(
                    f"alexnet: rank {self.rank} has waited {self.seconds:g} s in the exchange "
                    f"{waits_in.name!r}, and whoever started the ranks, or rank 0, does not "
                    "answer; --set system.collective_seconds=N waits longer",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(FAILED)

    def stop(self) -> None:
        self.ended.set()

    def report(self, message: str, code: int) -> bool:
        """Tell the others that this rank has failed. Whether it is the one to say so aloud.

        Where all ranks find the same mistake, rank 0 speaks for them.
        """
        mine = json.dumps({"rank": self.rank, "message": message, "code": code})
        try:
            self.store.set(f"failed/{self.rank}", mine)
            if self.rank:
                time.sleep(0.5)
                if self.store.check(["failed/0"]):
                    zero = json.loads(self.store.get("failed/0"))
                    if zero["message"] == message:
                        return False
            first: bytes = self.store.compare_set("failed", "", mine)
        except RuntimeError:
            return True
        return first.decode() == mine

    def failure(self) -> dict[str, Any] | None:
        """What the first rank that failed has said."""
        if not self.store.check(["failed"]):
            return None
        return cast(dict[str, Any], json.loads(self.store.get("failed")))

    def _tell(self) -> None:
        here = json.dumps({"number": self.journal.number, "last": self.journal.last})
        if here != self.told:
            self.store.set(f"at/{self.rank}", here)
            self.told = here

    def _hang(self, waits_in: _Open) -> str:
        places = {}
        for rank in range(self.size):
            if self.store.check([f"at/{rank}"]):
                places[rank] = json.loads(self.store.get(f"at/{rank}"))
            else:
                places[rank] = {"number": 0, "last": "the start"}
        behind = [
            f"rank {rank} has not come to it (its last exchange: {places[rank]['last']!r})"
            for rank in places
            if rank != self.rank and places[rank]["number"] < waits_in.number
        ]
        return (
            f"rank {self.rank} has waited {self.seconds:g} s in the exchange {waits_in.name!r}; "
            f"{', '.join(behind) or 'all ranks are in it: the network between them fails'}; "
            "--set system.collective_seconds=N waits longer"
        )

    def _leave(self, message: str) -> None:
        if self.report(message, FAILED):
            print(f"alexnet: {message}", file=sys.stderr, flush=True)
        os._exit(FAILED)

    def _follow(self, failure: dict[str, Any]) -> None:
        """Leave with the rank that failed, after a moment in which to leave by oneself."""
        if failure["rank"] != self.rank and not self.ended.wait(5.0):
            os._exit(failure["code"])
