"""The C++ files of this package, compiled by the system's compiler on first use.

A library in the cache is named by a hash of its source, the compiler, its flags and the CPU, and
ends in a checksum of itself; one that is damaged is compiled again. Processes that compile at the
same time each rename a whole file into place. The threads are those of PyTorch's OpenMP: a second
pool would make the two wait for each other.

Not here: what the libraries do, and how they are called (`chain_op.py`).
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from alexnet.errors import UserError
from alexnet.files import cache_folder, write_bytes

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fPIC", "-w")
SECONDS_TO_COMPILE = 120


@functools.cache
def compiled(name: str) -> ctypes.CDLL:
    """The library of one C++ file of this package, e.g. "fused.cpp".

    Raises UserError, with what to do, where it cannot be compiled or loaded.
    """
    source, compiler, openmp = FOLDER / name, _compiler(), _openmp_of_torch()
    short = _fingerprint(source, compiler, openmp)
    path = cache_folder() / "kernels" / f"{source.stem}-{short}.so"
    if not _is_whole(path):
        content = _compile(source, compiler, openmp)
        write_bytes(path, content + hashlib.sha256(content).digest())
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"the compiled {path} cannot be loaded: {error}") from None


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return found
    raise UserError(f"there is no C++ compiler ({wanted or 'g++ or clang++'}); install one")


def _openmp_of_torch() -> str | None:
    """The OpenMP library that PyTorch has loaded; None: compile for one thread."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}
    return min(paths) if len(paths) == 1 else None


def _fingerprint(source: Path, compiler: str, openmp: str | None) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = [source.read_text(), compiler, version, " ".join(FLAGS), str(openmp), _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _is_whole(path: Path) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-32]).digest() == data[-32:]


def _compile(source: Path, compiler: str, openmp: str | None) -> bytes:
    with tempfile.TemporaryDirectory(prefix="alexnet-") as folder:
        unit, target = Path(folder) / "unit.o", Path(folder) / "unit.so"
        threads = ["-fopenmp"] if openmp else []
        _run([compiler, *FLAGS, *threads, "-c", str(source), "-o", str(unit)])
        # Linked apart, as -fopenmp would add the compiler's own library.
        _run([compiler, "-shared", str(unit), *filter(None, [openmp]), "-o", str(target)])
        return target.read_bytes()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} cannot compile C++: {error}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "error" in line]
        reason = (lines or [f"it ended with {done.returncode}"])[0]
        raise UserError(f"{command[0]} cannot compile C++: {reason}")
