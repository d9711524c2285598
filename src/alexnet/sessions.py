"""The sessions of a run: each time that a process took it up, kept in RUN/environment.json.

The top of environment.json tells of the first, "sessions" of all: when, by which command, with
which versions, from which step. What starts processes again by itself, torchrun after a rank died
or SLURM after a node did, is known by an identity of its own, so that a run which it began is gone
on with and no other. Not here: what a process is made of (`log.environment`).
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from alexnet.errors import UserError
from alexnet.files import explain_os_error, read_json, write_json

FACTS = (
    "started",
    "command",
    "folder",
    "alexnet",
    "commit",
    "python",
    "torch",
    "device",
    "threads",
)


def session(environment: dict[str, Any], step: int, changed: dict[str, Any]) -> dict[str, Any]:
    """One entry of "sessions"; `changed` are the settings that are not those of the one before."""
    facts = {name: environment[name] for name in FACTS}
    return {**facts, "step": step, "changed": changed, "restart": restarts(), "launch": launches()}


def add_session(run: Path, entry: dict[str, Any]) -> None:
    """Raises UserError when environment.json is damaged."""
    path = run / "environment.json"
    environment = read_json(path)
    if not isinstance(environment, dict):
        raise UserError(f"{path} is damaged: it is no description of a run")
    write_json(path, {**environment, "sessions": [*sessions_of(environment), entry]})


def sessions_of(environment: dict[str, Any]) -> list[dict[str, Any]]:
    """The sessions that environment.json tells of; what is no session is left out."""
    sessions = environment.get("sessions")
    return [entry for entry in sessions if isinstance(entry, dict)] if sessions else []


def restarts() -> int:
    """How often torchrun or SLURM has started this again by itself."""
    counts = (os.environ.get(f"{who}_RESTART_COUNT", "") for who in ("TORCHELASTIC", "SLURM"))
    return max((int(count) for count in counts if count.isdecimal()), default=0)


def launches() -> list[str]:
    """What tells one launch of this command from another: of torchrun's agent, of SLURM's job."""
    found = []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        found.append("agent " + _parent())
        if os.environ["TORCHELASTIC_RUN_ID"] != "none":  # its default
            found.append("torchrun " + os.environ["TORCHELASTIC_RUN_ID"])
    if "SLURM_JOB_ID" in os.environ:
        found.append("slurm " + os.environ["SLURM_JOB_ID"])
    return found


def _parent() -> str:
    """The parent process, told from all others of this machine, and of those after a reboot."""
    number = os.getppid()
    parts = [str(number)]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])
    return sha256(" ".join(parts).encode()).hexdigest()[:16]


def own_run(run: Path | None) -> Path | None:
    """The run that this same command of this same launch began before it was started again.

    Without `run`, it is looked for in runs/. None for whoever was not started again, or by hand.
    """
    if not restarts():
        return None
    wanted, command = set(launches()), ["alexnet", *sys.argv[1:]]
    for path in [run] if run is not None else sorted(Path("runs").glob("*")):
        with contextlib.suppress(UserError):
            environment = read_json(path / "environment.json")
            for entry in sessions_of(environment if isinstance(environment, dict) else {}):
                if entry.get("command") == command and wanted & set(entry.get("launch", [])):
                    return path
    return None


@contextlib.contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold a lock on the run folder, which goes with the process however that ends.

    Raises UserError when another process trains there. Where a file system knows no locks there is
    none.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        folder = os.open(run, os.O_RDONLY)
    except OSError as error:
        raise explain_os_error(error, run) from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process trains in {run}; wait for it, or stop it with Ctrl-C or SIGTERM"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(folder)
