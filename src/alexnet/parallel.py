"""Ranks: how many processes train one network, and what each has of it (Section 3.2).

torchrun, or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, starts the
processes (`torchrun ... -m -- alexnet train ...`: without the `--` it takes our `--run` for its own
`--run-path`); `--parallel` says what they are for. Ranks lie on a mesh of replicas x columns: the
columns of one replica see the same pictures and exchange activations, the replicas of one column
see different ones and exchange gradients. Without a launcher there is one rank, and every
exchange here does nothing.

    data=4                four replicas (what a launcher's ranks are without --parallel)
    columns=2             two columns, one rank each
    columns=2,data=2      two replicas of two columns: ranks 0, 1 and ranks 2, 3
    hybrid                convolutions are replicas, fully connected layers are cut (`hybrid.py`)

Not here: the cut of a network (`columns.py`).
"""

import contextlib
import dataclasses
import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous

from alexnet.collectives import FAILED, Group, Journal, RankFailed, Watch, is_out_of_memory
from alexnet.errors import UserError, suggest
from alexnet.rendezvous import own_store

Result = TypeVar("Result")

WAYS = ("data", "columns", "hybrid")

# The library's own limit is behind ours, which can say more.
SPARE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What the ranks are for: `columns` of each replica, or convolutions and full layers apart."""

    replicas: int = 1
    columns: int = 1
    hybrid: bool = False

    def __str__(self) -> str:
        if self.hybrid:
            return "hybrid"
        parts = [f"columns={self.columns}"] * (self.columns > 1)
        return ",".join(parts + [f"data={self.replicas}"] * (self.replicas > 1)) or "one rank"


def parse(text: str | None, size: int) -> Plan:
    """What `--parallel` says, for `size` ranks. Raises UserError where the two do not fit."""
    if text is None:
        return Plan(replicas=size)
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in WAYS:
            raise UserError(f"--parallel {text!r}: no {name!r}{suggest(name, WAYS)}")
        if name == "hybrid":
            if equals or "," in text:
                raise UserError(f"--parallel {text!r}: hybrid stands alone, and takes all ranks")
            return Plan(replicas=size, hybrid=size > 1)
        if not value.isdecimal() or int(value) < 1 or name in found:
            raise UserError(f"--parallel {text!r}: say {name}=N once, N a number from 1 on")
        found[name] = int(value)
    columns = found.get("columns", 1)
    replicas = found.get("data", max(1, size // columns))
    if replicas * columns != size:
        needed = replicas * columns
        ranks = "1 process runs" if size == 1 else f"{size} processes run"
        raise UserError(
            f"--parallel {text} needs {needed} processes and {ranks}; start "
            f"torchrun --nproc-per-node {needed} -m -- alexnet train ..."
        )
    return Plan(replicas, columns)


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    everyone: all ranks; columns: those of this replica; replicas: those of this column.
    """

    plan: Plan = Plan()
    everyone: Group = dataclasses.field(default_factory=Group)
    columns: Group = dataclasses.field(default_factory=Group)
    replicas: Group = dataclasses.field(default_factory=Group)
    journal: Journal = dataclasses.field(default_factory=Journal)
    watch: Watch | None = None

    @property
    def rank(self) -> int:
        return self.everyone.rank

    @property
    def size(self) -> int:
        return self.everyone.size

    @property
    def speaks(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This rank's own device: on a machine with several GPUs the one of its number there.

        Raises UserError when there are fewer GPUs than ranks.
        """
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        local, found = local_rank(), torch.cuda.device_count()
        if local >= found:
            raise UserError(
                f"rank {self.rank} is number {local} on its machine, which has {found} GPUs; start "
                f"--nproc-per-node {found}, or choose --device cpu"
            )
        if not dist.is_nccl_available():
            raise UserError("this PyTorch has no NCCL, which GPUs exchange by; try --device cpu")
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    def same(self, **values: Any) -> None:
        """Raises UserError, on every rank, when the ranks disagree about one of these values.

        Dictionaries are compared entry by entry, and the first that differs is named.
        """
        found = self.everyone.objects(values, "agreement")
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if difference := _difference(value, other[name]):
                    raise UserError(
                        f"rank {rank} disagrees with rank 0 about the {name}: {difference}; "
                        "start all ranks alike"
                    )

    @property
    def on_this_machine(self) -> int:
        """How many ranks share this machine with this one, itself included."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) if self.size > 1 else 1

    def of_first(self, value: Result) -> Result:
        """What rank 0 says."""
        said = self.everyone.objects(value if self.rank == 0 else None, "what rank 0 says")
        return cast(Result, said[0])

    def one_after_another(self, function: Callable[[], Result]) -> Result:
        """What the function returns on each rank: first on rank 0, then on one of each machine,
        then on the others, who find in the cache what the first has put there.

        Takes as long as it takes: the time limit does not count here.
        """
        if self.watch is None:
            return function()
        self.watch.turns += 1
        prefix = f"turn/{self.watch.turns}"
        turn = 0 if self.rank == 0 else 1 if local_rank() == 0 else 2
        first_turns = range(turn)
        members = [0 if r == 0 else 1 if local == 0 else 2 for r, local in self._places()]
        store = self.watch.store
        for earlier in first_turns:
            while int(store.add(f"{prefix}/{earlier}", 0)) < members.count(earlier):
                time.sleep(0.05)
        result = function()
        store.add(f"{prefix}/{turn}", 1)
        return result

    def _places(self) -> list[tuple[int, int]]:
        return self.everyone.objects((self.rank, local_rank()), "places")

    def check_sees(self, folder: Path) -> None:
        """Raises UserError when a rank does not see a folder that rank 0 has made."""
        if self.size == 1:
            return
        folder = folder.resolve()
        token = folder / f".seen-by-all-{os.getpid()}.tmp"
        names = self.everyone.objects(str(token), "run folder")
        if self.speaks:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
        self.everyone.wait("run folder made")
        sees = self.everyone.objects(Path(names[0]).exists(), "run folder seen")
        if self.speaks:
            token.unlink()
        if not all(sees):
            raise UserError(
                f"rank {sees.index(False)} does not see the run folder {folder} of rank 0; choose "
                "a --run on a file system that all machines share"
            )


ALONE = Ranks()


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))


def world_size() -> int:
    """The number of processes that a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_by_launcher() -> int:
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def joined(plan: Plan, *, seconds: float, **asked: Any) -> Iterator[Ranks]:
    """The ranks, while they work together; whatever ends one of them ends all, in one line.

    seconds: how long an exchange may take. asked: what all ranks have to be asked alike, besides
    the plan, since it decides what they exchange.

    Raises UserError when the ranks do not come together, or were started differently.
    """
    size = world_size()
    if size == 1:
        yield Ranks()
        return
    watch = start_engine(size, seconds)
    try:
        with _failures_told(watch):
            assert dist.group.WORLD is not None
            everyone = Group(dist.group.WORLD, watch.journal)
            Ranks(everyone=everyone).same(parallel=str(plan), **asked)
            ranks = on_mesh(plan, watch, dist.group.WORLD)
            assert ranks is not None
            yield ranks
    finally:
        watch.stop()
        watch.join()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def start_engine(size: int, seconds: float) -> Watch:
    """Bring the ranks together, and set a watch over them.

    Raises UserError when they do not come.
    """
    if not (dist.is_available() and dist.is_gloo_available()):
        raise UserError("this PyTorch was built without gloo, which ranks talk by")
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"WORLD_SIZE is {size}, but {name} is not set; start with torchrun")
    limit = timedelta(seconds=seconds + SPARE_SECONDS)
    try:
        kept, rank, size = next(rendezvous("env://", timeout=limit))
        kept.set_timeout(limit)
        store = own_store(kept, rank, size, limit.total_seconds())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {rank_by_launcher()} on {socket.gethostname()}: the {size} ranks did not come "
            f"together at {os.environ['MASTER_ADDR']}: {str(error).splitlines()[0]}"
        ) from None
    watch = Watch(store, dist.get_rank(), size, seconds)
    watch.start()
    return watch


def on_mesh(plan: Plan, watch: Watch, everyone: dist.ProcessGroup) -> Ranks | None:
    """The ranks of a plan, the first of those that a launcher started; None on another."""
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    mesh = DeviceMesh(
        "cuda" if on_gpus else "cpu",
        torch.arange(plan.replicas * plan.columns).view(plan.replicas, plan.columns),
        mesh_dim_names=("replicas", "columns"),
    )
    if mesh.get_coordinate() is None:
        return None
    journal = watch.journal
    return Ranks(
        plan=plan,
        everyone=Group(everyone, journal),
        columns=Group(mesh.get_group("columns"), journal),
        replicas=Group(mesh.get_group("replicas"), journal),
        journal=journal,
        watch=watch,
    )


@contextlib.contextmanager
def _failures_told(watch: Watch) -> Iterator[None]:
    """Turn a failure of this rank into one line of all of them."""
    try:
        yield
    except UserError as error:
        _leave(watch, str(error), 2)
    except torch.OutOfMemoryError as error:
        _leave(watch, f"out of memory: {str(error).splitlines()[0]}", FAILED)
    except MemoryError:
        _leave(watch, "out of memory", FAILED)
    except RankFailed as error:
        time.sleep(1.0)  # whoever is at fault speaks first
        _leave(watch, str(error), FAILED)
    except OSError as error:
        _leave(watch, str(error), 2)
    except Exception as error:
        if is_out_of_memory(error):
            _leave(watch, "out of memory", FAILED)
        if not watch.report(f"{type(error).__name__}: {error}", FAILED):
            os._exit(FAILED)
        raise


def _leave(watch: Watch, message: str, code: int) -> NoReturn:
    if watch.report(message, code):
        who = f"rank {watch.rank}: " if watch.rank else ""
        print(f"alexnet: {who}{' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)  # the library's threads may wait for ranks that will not come


def code_sha256() -> str:
    """Of the source of this package, which all ranks must share."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _difference(here: Any, there: Any, path: str = "") -> str:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in dict.fromkeys((*here, *there)):
            inner = f"{path}.{key}" if path else str(key)
            if found := _difference(here.get(key), there.get(key), inner):
                return found
        return ""
    if here == there:
        return ""
    return f"{path} is {there!r} there and {here!r} here".strip()
