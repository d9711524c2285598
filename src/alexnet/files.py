"""Writing files so that nothing already saved is ever lost.

Every writer of the package writes to a temporary name beside its target, flushes to the disk,
then renames: a reader finds either the whole old file or the whole new one. The same with folders.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from alexnet.errors import UserError

try:
    import fcntl
except ImportError:  # a system without file locks
    fcntl = None  # type: ignore[assignment]

HASHED_AT_A_TIME = 2**22


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`.

    Raises UserError when the disk is full or the folder cannot be written. The temporary file
    never outlives the block, and `path` keeps its old content unless the block succeeds.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Until the folder is on the disk too, a new name in it may be lost with the power."""
    with contextlib.suppress(OSError):  # some file systems, and Windows, know no such thing
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that were killed; nobody else may be writing there."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(target: Path, bytes_needed: int = 0) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which becomes `target` if the block succeeds.

    Whatever happens, nothing half-written stays behind. Raises UserError when the target has
    something in it, when fewer than `bytes_needed` are free, and for a write that fails.
    """
    target = target.resolve()  # "." has no name of its own
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} exists and is not empty; choose another place or remove it")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(temporary.parent).free
        if free_bytes < bytes_needed:
            raise UserError(
                f"{target} needs {bytes_needed:,} bytes and its disk has {free_bytes:,} free; "
                "free some space or choose another place"
            )
        temporary.mkdir()
        yield temporary
        if target.is_dir():
            target.rmdir()  # it is empty; not every system renames onto a folder
        temporary.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {target} needs {max(bytes_needed, 1):,} bytes in all; "
                "free some space or choose another place; nothing half-written was left"
            ) from error
        raise explain_os_error(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block with this path, which is nothing but a name."""
    with _held(path):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _held(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "ab")  # noqa: SIM115 (closed by the caller)
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file
            file.close()  # who had the lock has removed it; another one may lie there
    except OSError as error:
        raise explain_os_error(error, path) from error


def explain_os_error(error: OSError, path: Path) -> UserError:
    """Turn the error of a failed write into a line for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left on the disk for {path}; what was saved before is intact: "
            "free some space, then run the command again"
        )
    return UserError(f"cannot write {path}: {error.strerror or error}")


def cache_folder() -> Path:
    """Where what can be made again is kept; ALEXNET_CACHE names another place."""
    return Path(os.environ.get("ALEXNET_CACHE") or "~/.cache/alexnet").expanduser()


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; what Unicode has no character for, as in a file's name, is shown escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    # Paths that are not UTF-8 come as lone surrogates; `json.loads` takes them back from bytes.
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(errors="surrogatepass"))


def read_json(path: Path) -> Any:
    """Raises UserError when the file is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or cannot be read: {error}") from None


def sha256_of(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Hexadecimal; `advance` is called with the number of bytes of each part read."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while part := file.read(HASHED_AT_A_TIME):
            digest.update(part)
            if advance is not None:
                advance(len(part))
    return digest.hexdigest()
