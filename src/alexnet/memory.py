"""Memory that one step frees is kept for the next one (CPU, glibc).

A step allocates and frees some gigabytes of activations. By default glibc gives each large block
back to the system, which must fill the next one with zeros page by page: 0.3 s of each step of the
full-size network on two cores. `keep` tells it, for the whole process and without preloading
another allocator, to take large blocks from the heap and never to shrink it. The process keeps its
peak memory.

Not here: memory of the loader (`loader.Buffers`) and of accelerators, which PyTorch keeps itself.
"""

import ctypes
import functools
import platform

# Parameters of mallopt(3).
TRIM_THRESHOLD = -1
MMAP_MAX = -4


@functools.cache
def keep() -> bool:
    """Keep freed memory from now on; whether that could be set. Elsewhere than on glibc False."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # The second call would undo the first if it were left out: any size would be trimmed.
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
