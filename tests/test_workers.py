"""Work in processes: in order, whatever dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from alexnet.workers import in_order


def squares(numbers: Sequence[int]) -> list[int]:
    return [number**2 for number in numbers]


def squares_or_death(numbers: Sequence[int]) -> list[int]:
    if 13 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return squares(numbers)


def jobs(count: int, size: int = 3) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(processes: int) -> None:
    found = in_order(squares, jobs(40), processes=processes, crashed=lambda item: [])
    assert [n for part in found for n in part] == [n**2 for n in range(40)]


def test_an_item_that_kills_its_process_is_named_and_the_others_are_done() -> None:
    found = in_order(squares_or_death, jobs(30), processes=2, crashed=lambda item: [-item])
    assert [n for part in found for n in part] == [-13 if n == 13 else n**2 for n in range(30)]


def noise(numbers: Sequence[int]) -> int:
    return os.write(2, b"TIFFReadDirectory: a warning")


def test_what_libraries_write_in_a_worker_does_not_reach_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    written = list(in_order(noise, jobs(6), processes=2, crashed=lambda item: 0))
    assert written == [28, 28]
    assert "TIFF" not in capfd.readouterr().err


SLEEPER = """
import sys
sys.path.insert(0, sys.argv[1])
import test_workers
from alexnet.workers import in_order
if __name__ == "__main__":
    for part in in_order(test_workers.own_number, [[0], [1]] * 1000, processes=2, crashed=print):
        print(part, flush=True)
"""


def own_number(items: Sequence[int]) -> int:
    time.sleep(0.02)
    return os.getpid()


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = {int(process.stdout.readline()) for _ in range(10)}
        process.kill()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if alive(worker)]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_jobs_under_way_weigh_no_more_than_they_may_and_one_job_always_may() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[list[int]]:
        for number in range(20):
            taken.append(number)
            yield [number] * (1 if number < 10 else 100)

    results = in_order(sum, jobs(), processes=2, crashed=int, weight=len, most=3)
    for count, result in enumerate(results):
        assert result == (count if count < 10 else 100 * count)
        # It is not under way any more; at most three others are, or one that is heavy by itself.
        assert len(taken) - (count + 1) <= 3
    assert taken == list(range(20))
