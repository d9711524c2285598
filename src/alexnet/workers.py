"""Work divided among processes, in order, that survives the death of one of them.

A decoder that meets a hostile file may end its process. Then the jobs that were under way are done
again, one item at a time, and the item that kills its process alone is named.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from alexnet.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Jobs handed out per process: one being done, one waiting.
JOBS_AHEAD = 2


def available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[Sequence[Item]], Result],
    jobs: Iterable[Sequence[Item]],
    *,
    processes: int,
    crashed: Callable[[Item], Result],
    weight: Callable[[Sequence[Item]], int] = len,
    most: int | None = None,
) -> Iterator[Result]:
    """Yield function(job) for each job, in the order of the jobs.

    With one process the work is done here, unprotected. Otherwise `function` and the items must
    pickle; a few jobs are read ahead, while those under way weigh less than `most` together. Where
    a process died, its job's items are done one by one
    and yield a result each, `crashed(item)` for those that kill their process again.
    """
    if processes == 1:
        yield from map(function, jobs)
        return
    waiting: deque[tuple[Sequence[Item], Future[Result]]] = deque()
    limit = sys.maxsize if most is None else most
    under_way = 0
    jobs = iter(jobs)
    pool = _pool(processes)
    try:
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and len(waiting) < JOBS_AHEAD * processes and under_way < limit:
                job = next(jobs, None)
                exhausted = job is None
                if job is not None:
                    under_way += weight(job)
                    waiting.append((job, _submit(pool, function, job)))
            if not waiting:
                return
            job, future = waiting.popleft()
            under_way -= weight(job)
            try:
                yield future.result()
            except BrokenProcessPool:
                pool.shutdown(cancel_futures=True)
                for one in (job, *(other for other, _ in waiting)):
                    yield from _one_by_one(function, one, crashed)
                waiting.clear()
                under_way = 0
                pool = _pool(processes)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[Sequence[Item]], Result], job: Sequence[Item]
) -> Future[Result]:
    try:
        return pool.submit(function, job)
    except BrokenProcessPool as error:  # it broke meanwhile; whoever waits for the result is told
        failed: Future[Result] = Future()
        failed.set_exception(error)
        return failed


def _one_by_one(
    function: Callable[[Sequence[Item]], Result],
    job: Sequence[Item],
    crashed: Callable[[Item], Result],
) -> Iterator[Result]:
    pool = _pool(1)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise UserError(
            "no process can be started; take --processes 1, or guard your script with "
            'if __name__ == "__main__"'
        ) from None
    for item in job:
        try:
            yield pool.submit(function, [item]).result()
        except BrokenProcessPool:
            yield crashed(item)
            pool.shutdown()
            pool = _pool(1)
    pool.shutdown()


def _pool(processes: int) -> ProcessPoolExecutor:
    # Not forked: a fork of a process with threads, as torch has them, may hang.
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """End with the process that started this one, and write nothing to its terminal.

    Nothing else tells a worker that its parent was killed; and libraries such as libtiff write to
    the terminal of their own accord. What goes wrong is told by exceptions, which are passed on.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
