"""Run the Triton kernels on a CPU by Triton's interpreter; `test_triton_kernels.py` starts it.

Reads pickled cases (settings, x, dy) from standard input and writes (y, dx) for each.
"""

import os
import pickle
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from alexnet import chain_op, triton_kernels


def main() -> None:
    results = []
    for settings, x, dy in pickle.load(sys.stdin.buffer):
        pool_size, pool_stride = settings["pool_size"], settings["pool_stride"]
        x = x.contiguous(memory_format=torch.channels_last)
        y, index = chain_op._outputs(x, pool_size, pool_stride, training=True)
        described = chain_op._describe(x, **settings)
        triton_kernels.forward(described, x, y, index)
        dx = torch.empty_like(x)
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        triton_kernels.backward(described, dy, x, index, dx)
        results.append((y, dx))
    pickle.dump(results, sys.stdout.buffer)


if __name__ == "__main__":
    main()
