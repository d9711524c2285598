"""The rendezvous of ranks: each start of them on a part of the launcher's store of its own.

torchrun's agents keep one store over all restarts (pytorch/pytorch#167288), and in it what dead
ranks have left: addresses at which nobody listens any more, and what they failed at. The number of
restarts does not tell one start from another, since each machine counts its own. So rank 0 draws a
name for this start and tells it to every rank that says it is there; a word left by a dead rank is
answered too, and nobody reads the answer.

Not here: what the ranks are for (`parallel.py`).
"""

import time
import uuid
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store

PAUSE_SECONDS = 0.02


def own_store(store: Store, rank: int, size: int, seconds: float) -> Store:
    """The part of the store that only the `size` ranks of this start write to.

    Raises RuntimeError when they have not all come within so many seconds.
    """
    if rank == 0:
        name = uuid.uuid4().hex
        _welcome(store, name, size, seconds)
    else:
        name = _arrive(store, rank, seconds)
    return PrefixStore(f"start/{name}", store)


def _welcome(store: Store, name: str, size: int, seconds: float) -> None:
    """Tell each rank the name, until all have said that they heard it."""
    until = time.monotonic() + seconds
    answered: dict[int, bytes] = {}
    away = set(range(1, size))
    while away:
        for rank in sorted(away):
            if store.check([f"here/{rank}"]):
                word: bytes = store.get(f"here/{rank}")
                if answered.get(rank) != word:
                    store.set(f"answer/{rank}/{word.decode()}", name)
                    answered[rank] = word
            if store.check([f"heard/{name}/{rank}"]):
                away.remove(rank)
        if away and time.monotonic() > until:
            raise RuntimeError(f"rank {min(away)} has not come within {seconds:g} s")
        time.sleep(PAUSE_SECONDS)


def _arrive(store: Store, rank: int, seconds: float) -> str:
    word = uuid.uuid4().hex
    answer = f"answer/{rank}/{word}"
    store.set(f"here/{rank}", word)
    store.wait([answer], timedelta(seconds=seconds))
    name: str = store.get(answer).decode()
    store.set(f"heard/{name}/{rank}", "")
    return name
