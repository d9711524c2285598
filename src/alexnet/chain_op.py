"""A ReLU, a norm, a max pool and a ReLU as one operation of `torch.library`, with its gradient.

`chain` is what autograd, `torch.compile` and `torch.export` see. It calls `fused.cpp` on a CPU,
`triton_kernels.py` on CUDA. Maps are channels last, in float32 or bfloat16; the arithmetic is
float32 inside. Saved for the backward pass are the input and one byte per window: the position of
its largest unit.

Not here: which steps of a network become a chain, and when it is fused (`fused.py`).
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from alexnet import native

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

# A window's position is one byte, of which 255 means none; and a unit is gathered from at most 16.
MOST_PIXELS = 254
MOST_WINDOWS = 16
MOST_SIZE = 9  # of a norm: half of it fits the narrowest vectors, of four floats


class Described(ctypes.Structure):
    """`Chain` of fused.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "maps", "columns")),
        *((name, ctypes.c_int64) for name in ("norm", "size", "pool_size", "pool_stride")),
        *((name, ctypes.c_int64) for name in ("relu_before", "relu_after", "threads")),
        *((name, ctypes.c_double) for name in ("alpha", "beta", "k")),
    ]


def _call(name: str, described: Described, x: Tensor, *tensors: Tensor) -> None:
    """Run "forward" or "backward" on the device of the tensors, of which x gives the dtype."""
    if x.is_cuda:
        from alexnet import triton_kernels

        getattr(triton_kernels, name)(described, x, *tensors)
        return
    # An empty tensor is passed as no address.
    places = [ctypes.c_void_p(t.data_ptr() if t.numel() else None) for t in (x, *tensors)]
    function = getattr(native.compiled("fused.cpp"), f"{name}_{DTYPES[x.dtype]}")
    function(ctypes.byref(described), *places)


@torch.library.custom_op("alexnet::chain", mutates_args=(), device_types=("cpu", "cuda"))
def chain(
    x: Tensor,
    relu_before: bool,
    norm: int,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    columns: int,
    pool_size: int,
    pool_stride: int,
    relu_after: bool,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """(chain of x, positions of the largest units; empty unless there is a pool and training)."""
    arguments = (relu_before, norm, size, alpha, beta, k, columns, pool_size, pool_stride)
    y, index = _outputs(x, pool_size, pool_stride, training)
    described = _describe(x, *arguments, relu_after)
    _call("forward", described, x, y, index)
    return y, index


@chain.register_fake
def _(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, pool_size, pool_stride, _, training = settings
    return _outputs(x, pool_size, pool_stride, training)


@torch.library.custom_op("alexnet::chain_backward", mutates_args=(), device_types=("cpu", "cuda"))
def chain_backward(
    dy: Tensor,
    x: Tensor,
    index: Tensor,
    relu_before: bool,
    norm: int,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    columns: int,
    pool_size: int,
    pool_stride: int,
    relu_after: bool,
) -> Tensor:
    arguments = (relu_before, norm, size, alpha, beta, k, columns, pool_size, pool_stride)
    dx = torch.empty_like(x)
    described = _describe(x, *arguments, relu_after)
    dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
    _call("backward", described, dy, x, index, dx)
    return dx


@chain_backward.register_fake
def _(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, *arguments, _ = inputs
    ctx.save_for_backward(x, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.arguments = arguments


def _backward(ctx, dy, _):  # type: ignore[no-untyped-def]
    x, index = ctx.saved_tensors
    return chain_backward(dy, x, index, *ctx.arguments), *([None] * (len(ctx.arguments) + 1))


chain.register_autograd(_backward, setup_context=_setup_context)


def _outputs(x: Tensor, size: int, stride: int, training: bool) -> tuple[Tensor, Tensor]:
    if not size:
        return torch.empty_like(x), x.new_empty(0, dtype=torch.uint8)
    rows, columns = (-(-(px - size) // stride) + 1 for px in x.shape[2:])
    shape = (*x.shape[:2], rows, columns)
    y = x.new_empty(shape).contiguous(memory_format=torch.channels_last)
    index = y.new_empty(y.numel() if training else 0, dtype=torch.uint8)
    return y, index


def _describe(
    x: Tensor,
    relu_before: bool,
    norm: int,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    columns: int,
    pool_size: int,
    pool_stride: int,
    relu_after: bool,
) -> Described:
    images, maps, height, width = x.shape
    return Described(
        images=images,
        height=height,
        width=width,
        maps=maps,
        columns=columns,
        norm=norm,
        size=size,
        pool_size=pool_size,
        pool_stride=pool_stride,
        relu_before=relu_before,
        relu_after=relu_after,
        threads=torch.get_num_threads(),
        alpha=alpha,
        beta=beta,
        k=k,
    )
