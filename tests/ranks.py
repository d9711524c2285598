"""Some processes that work as ranks, over loopback, as torchrun would start them.

`Crew(4).run(function, *arguments, size=2)` calls function(ranks, *arguments) in the first two of
four processes and returns what each returns. The processes stay for the next call, which saves
them their imports. The function is one of a module that they can import. The store's port is the
system's choice.
"""

import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alexnet.parallel import on_mesh, parse, start_engine

SECONDS = 60.0


class Crew:
    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.pipes, self.processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            arguments = (there, self.store.port, rank, size)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(
        self, function: Callable[..., Any], *arguments: Any, size: int = 2, way: str | None = None
    ) -> list[Any]:
        plan = parse(way, size)
        for pipe in self.pipes:
            pipe.send((plan, function, arguments))
        answers: dict[Any, Any] = {}
        while len(answers) < len(self.pipes):
            waiting = [pipe for pipe in self.pipes if pipe not in answers]
            ready = wait(waiting, SECONDS)
            assert ready, f"ranks do not answer: {[self.pipes.index(pipe) for pipe in waiting]}"
            for pipe in ready:
                saved = io.BytesIO(pipe.recv_bytes())
                is_good, answers[pipe] = torch.load(saved, weights_only=False)
                assert is_good, f"rank {self.pipes.index(pipe)}: {answers[pipe]}"
        return [answers[pipe] for pipe in self.pipes[:size]]

    def stop(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.join(10)
            process.kill()


def _work(pipe: Any, port: int, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    watch = start_engine(size, SECONDS)
    while True:
        try:
            plan, function, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            watch.stop()
            return
        first = dist.new_group(list(range(plan.replicas * plan.columns)))
        ranks = on_mesh(plan, watch, first)
        answer: tuple[bool, Any] = (True, None)
        try:
            if ranks is not None:
                answer = True, function(ranks, *arguments)
        except Exception:
            answer = False, traceback.format_exc()
        saved = io.BytesIO()
        torch.save(answer, saved)
        pipe.send_bytes(saved.getvalue())
