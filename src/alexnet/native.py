"""`fused.cpp`, compiled by the system's compiler on first use, kept in the cache, called by ctypes.

The library in the cache is named by a hash of the source, the compiler, its flags and the CPU, and
ends in a checksum of itself; one that is damaged is compiled again. Processes that compile at the
same time each rename a whole file into place. The threads are those of PyTorch's OpenMP: a second
pool would make the two wait for each other.

Not here: when the library is used, and its autograd (`fused.py`).
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alexnet.errors import UserError
from alexnet.files import cache_folder, write_bytes

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fPIC", "-w")
SECONDS_TO_COMPILE = 120

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Chain(ctypes.Structure):
    """`Chain` of fused.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "maps", "columns")),
        *((name, ctypes.c_int64) for name in ("norm", "size", "pool_size", "pool_stride")),
        *((name, ctypes.c_int64) for name in ("relu_before", "relu_after", "threads")),
        *((name, ctypes.c_double) for name in ("alpha", "beta", "k")),
    ]


@dataclass(frozen=True)
class Library:
    """The compiled kernels. Tensors are channels last, of one dtype of DTYPES; index is uint8."""

    path: Path
    lanes: int
    handle: ctypes.CDLL

    def forward(self, chain: Chain, x: Tensor, y: Tensor, index: Tensor | None) -> None:
        run = getattr(self.handle, f"forward_{DTYPES[x.dtype]}")
        run(ctypes.byref(chain), _at(x), _at(y), _at(index))

    def backward(
        self, chain: Chain, dy: Tensor, x: Tensor, index: Tensor | None, dx: Tensor
    ) -> None:
        run = getattr(self.handle, f"backward_{DTYPES[x.dtype]}")
        run(ctypes.byref(chain), _at(dy), _at(x), _at(index), _at(dx))


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@functools.cache
def library() -> Library:
    """Raises UserError, with what to do, where the kernels cannot be compiled or loaded."""
    compiler = _compiler()
    openmp = _openmp_of_torch()
    path = cache_folder() / "kernels" / f"fused-{_fingerprint(compiler, openmp)}.so"
    if not _is_whole(path):
        compiled = _compile(compiler, openmp)
        write_bytes(path, compiled + hashlib.sha256(compiled).digest())
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"the compiled kernels {path} cannot be loaded: {error}") from None
    handle.lanes.restype = ctypes.c_int64
    return Library(path, int(handle.lanes()), handle)


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


def _fingerprint(compiler: str, openmp: str | None) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = [SOURCE.read_text(), compiler, version, " ".join(FLAGS), str(openmp), _cpu()]
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


def _compile(compiler: str, openmp: str | None) -> bytes:
    with tempfile.TemporaryDirectory(prefix="alexnet-") as name:
        unit, target = Path(name) / "fused.o", Path(name) / "fused.so"
        threads = ["-fopenmp"] if openmp else []
        _run([compiler, *FLAGS, *threads, "-c", str(SOURCE), "-o", str(unit)])
        # Linked apart, as -fopenmp would add the compiler's own library.
        _run([compiler, "-shared", str(unit), *filter(None, [openmp]), "-o", str(target)])
        return target.read_bytes()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} cannot compile the kernels: {error}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "error" in line]
        reason = (lines or [f"it ended with {done.returncode}"])[0]
        raise UserError(f"{command[0]} cannot compile the kernels: {reason}")
