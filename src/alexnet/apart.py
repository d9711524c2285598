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
from multiprocessing.connection import Connection, wait

from alexnet.errors import UserError
from alexnet.stopping import EXIT_STOPPED, Interrupted
from alexnet.trials import Line, Place, Trial, carry_out

Say = Callable[[str], None]


@contextlib.contextmanager
def workers(count: int, say: Say) -> Iterator[list[ProcessPoolExecutor]]:
    """So many processes; what their trials say comes to `say`, from a thread."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    pools = [
        ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(writer,))
        for _, writer in pipes
    ]
    relay = threading.Thread(target=_relay, args=([reader for reader, _ in pipes], say))
    relay.start()
    try:
        yield pools
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        for _, writer in pipes:
            writer.close()
        relay.join()


def hand_out(pool: ProcessPoolExecutor, trial: Trial, place: Place) -> "Future[Line]":
    """Its line, later; KeyboardInterrupt where it was asked to stop."""
    return pool.submit(_carry_out, trial, place)


def stop_workers() -> None:
    """Those that a terminal has asked already take it for one wish."""
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGINT)


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
_writers: list[Connection] = []


def _begin(writer: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _writers.append(writer)

    def wait_for_its_end() -> None:
        parent.join()
        if not _at_work.is_set():
            os._exit(EXIT_STOPPED)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def _carry_out(trial: Trial, place: Place) -> Line:
    parent = multiprocessing.parent_process()
    _at_work.set()
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def tell(text: str) -> None:
        with contextlib.suppress(OSError):  # nobody is left to be told
            _writers[0].send_bytes(f"{trial.arm} seed {trial.seed}: {text}".encode())

    try:
        return carry_out(trial, place, tell)
    except (Interrupted, KeyboardInterrupt):
        if parent is not None and not parent.is_alive():
            os._exit(EXIT_STOPPED)  # nobody is left to hand anything to
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _at_work.clear()
