"""Trials in processes of their own, one for each device: what they say, and how they are stopped.

A worker heeds SIGINT in trials only, hands its progress on line by line, and does not outlive a
command that was killed. Not here: which trial goes to which worker (`campaign.py`).
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from alexnet.errors import UserError
from alexnet.stopping import EXIT_STOPPED, Interrupted
from alexnet.trials import Line, Place, Trial, carry_out

Say = Callable[[str], None]
RELAY_SECONDS = 5.0  # for what has been said and not told; workers that still live keep it open


@dataclass(frozen=True)
class Workers:
    """`wish`: 1 from when they are to stop. It has no lock, which a killed worker would keep."""

    pools: Sequence[ProcessPoolExecutor]
    wish: Any  # of sharedctypes

    def hand_out(self, number: int, trial: Trial, place: Place) -> "Future[Line]":
        """Its line, later; KeyboardInterrupt where it was to stop. Raises BrokenProcessPool."""
        # A worker that is started now does not hear SIGINT before it knows what to do about it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return self.pools[number].submit(_carry_out, trial, place)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """Trainings save themselves; what is handed out from now on ends at once."""
        self.wish.value = 1
        for worker in multiprocessing.active_children():
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGINT)

    @property
    def stopping(self) -> bool:
        return bool(self.wish.value)


@contextlib.contextmanager
def worker_pools(count: int, say: Say) -> Iterator[Workers]:
    """So many processes; what their trials say comes to `say`, from a thread.

    They are stopped where the block or `say` raises, which is raised here when they have ended.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    wish = context.RawValue("b", 0)
    found = Workers(
        [
            ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(writer, wish))
            for _, writer in pipes
        ],
        wish,
    )
    failures: list[BaseException] = []

    def tell(text: str) -> None:
        if failures:  # what workers say is still read, or they would wait for ever
            return
        try:
            say(text)
        except BaseException as error:
            failures.append(error)
            found.stop()

    readers = [reader for reader, _ in pipes]
    relay = threading.Thread(target=_relay, args=(readers, tell), daemon=True)
    relay.start()
    try:
        yield found
    except BaseException:
        found.stop()
        raise
    finally:
        try:
            for pool in found.pools:
                pool.shutdown(cancel_futures=True)
        finally:
            for _, writer in pipes:
                writer.close()
            relay.join(RELAY_SECONDS)
    if failures:
        raise failures[0]


def killed(name: str) -> UserError:
    return UserError(
        f"the process of {name} was killed, mostly for want of memory; "
        "the same command goes on, with fewer --devices in less"
    )


def _relay(readers: Sequence[Connection], say: Say) -> None:
    """Until every writer, here and in the workers, is closed."""
    still = list(readers)
    while still:
        for reader in wait(still):
            assert isinstance(reader, Connection)
            try:
                text = reader.recv_bytes().decode()
            except (EOFError, OSError):  # closed, or a worker died while it wrote
                still.remove(reader)
                reader.close()
            else:
                say(text)


# --- In a worker ----------------------------------------------------------------------------------

_at_work = threading.Event()  # it has a trial
_given: dict[str, Any] = {}  # its end of the pipe, and the wish


def _begin(writer: Connection, wish: Any) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    _given.update(writer=writer, wish=wish)

    def wait_for_its_end() -> None:
        parent.join()
        if not _at_work.is_set():
            os._exit(EXIT_STOPPED)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def _carry_out(trial: Trial, place: Place) -> Line:
    parent = multiprocessing.parent_process()

    def tell(text: str) -> None:
        with contextlib.suppress(OSError):  # nobody is left to be told
            _given["writer"].send_bytes(f"{trial.arm} seed {trial.seed}: {text}".encode())

    try:
        _at_work.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if _given["wish"].value:  # it came before there was anything to interrupt
            raise KeyboardInterrupt
        return carry_out(trial, place, tell)
    except (Interrupted, KeyboardInterrupt):
        if parent is not None and not parent.is_alive():
            os._exit(EXIT_STOPPED)  # nobody is left to hand anything to
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _at_work.clear()
