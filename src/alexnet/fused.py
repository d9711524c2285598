"""ReLU, norm and max pool as one operation, forward and backward (Sections 3.1, 3.3, 3.4).

`split` cuts the steps after a layer into the longest chains that one kernel can do: a ReLU, a
norm, a max pool and a ReLU, each where it is there, in this order. `apply` runs a chain: fused
(`fused.cpp` on a CPU) where that is possible, else by the plain functions of `layers.py`, which it
equals up to rounding. The kernels compute in float32, save the input and one byte per window, and
go through `torch.library`, so that `torch.compile` and autograd see one operation.

Not here: compiling and calling the library (`native.py`).
"""

import functools
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet import layers, native
from alexnet.errors import UserError
from alexnet.networks import Pool, ResponseNorm, SpatialNorm, Step

Kernels = Literal["auto", "fused", "plain"]

# A window's position is one byte, of which 255 means none; and a unit is gathered from at most 16.
MOST_PIXELS = 254
MOST_WINDOWS = 16


@dataclass(frozen=True)
class Chain:
    """Steps that follow each other and are done as one."""

    relu_before: bool = False
    norm: ResponseNorm | SpatialNorm | None = None
    pool: Pool | None = None
    relu_after: bool = False

    def plain(self, x: Tensor, columns: int) -> Tensor:
        """The chain by the functions of `layers.py`, step by step."""
        if self.relu_before:
            x = F.relu(x)
        if self.norm is not None:
            x = _plain_norm(self.norm, x, columns)
        if self.pool is not None:
            x = layers.max_pool(x, self.pool.size, self.pool.stride)
        return F.relu(x) if self.relu_after else x


def _plain_norm(norm: ResponseNorm | SpatialNorm, x: Tensor, columns: int) -> Tensor:
    size, alpha, beta, k = norm.size, norm.alpha, norm.beta, norm.k
    if isinstance(norm, SpatialNorm):
        return layers.spatial_norm(x, size=size, alpha=alpha, beta=beta, k=k)
    columns = columns if norm.per_column else 1
    return layers.response_norm(x, size=size, alpha=alpha, beta=beta, k=k, columns=columns)


@functools.cache
def split(steps: tuple[Step, ...]) -> tuple[Chain | Step, ...]:
    """Cut steps into chains; what no chain can hold, and a ReLU alone, stays a step."""
    parts: list[Chain | Step] = []
    at = 0
    while at < len(steps):
        chain, length = _longest_chain(steps[at:])
        parts.append(chain if chain is not None else steps[at])
        at += length
    return tuple(parts)


def _longest_chain(steps: tuple[Step, ...]) -> tuple[Chain | None, int]:
    """The chain that begins here, or None, and how many steps that is."""
    left = list(steps)
    relu_before = left[0] == "relu"
    if relu_before:
        left.pop(0)
    norm = left.pop(0) if left and isinstance(left[0], ResponseNorm | SpatialNorm) else None
    pool = left.pop(0) if left and isinstance(left[0], Pool) and left[0].kind == "max" else None
    if norm is None and pool is None:
        return None, 1
    relu_after = pool is not None and bool(left) and left[0] == "relu" and not relu_before
    assert norm is None or isinstance(norm, ResponseNorm | SpatialNorm)
    assert pool is None or isinstance(pool, Pool)
    length = len(steps) - len(left) + relu_after
    return Chain(relu_before, norm, pool, relu_after), length


def apply(chain: Chain, x: Tensor, columns: int, kernels: Kernels = "auto") -> Tensor:
    """Run a chain on maps (B, C, H, W) of `columns` columns -> (B, C, H', W').

    "auto" is fused where it can be, unless the environment variable ALEXNET_KERNELS says "plain"
    or "fused"; "fused" raises UserError where there are no kernels; "plain" never uses them.
    A shape or dtype that the kernels do not take (float64 among them) is done plainly.
    """
    if not (is_fusable(chain, x, columns) and has_kernels(x.device.type, kernels)):
        return chain.plain(x, columns)
    norm, pool = chain.norm, chain.pool
    y: Tensor = _chain(
        x.contiguous(memory_format=torch.channels_last),
        chain.relu_before,
        {type(None): 0, ResponseNorm: 1, SpatialNorm: 2}[type(norm)],
        norm.size if norm else 0,
        norm.alpha if norm else 0.0,
        norm.beta if norm else 0.0,
        norm.k if norm else 1.0,
        columns if isinstance(norm, ResponseNorm) and norm.per_column else 1,
        pool.size if pool else 0,
        pool.stride if pool else 0,
        chain.relu_after,
        torch.is_grad_enabled() and x.requires_grad,
    )[0]
    return y


def is_fusable(chain: Chain, x: Tensor, columns: int) -> bool:
    """Whether the kernels take this chain for this tensor."""
    norm, pool = chain.norm, chain.pool
    if x.ndim != 4 or x.dtype not in native.DTYPES or x.shape[1] % columns:
        return False
    if isinstance(norm, SpatialNorm) or (norm is not None and not _is_normal(norm)):
        return False
    return pool is None or _is_overlapping(pool, min(x.shape[2:]))


def _is_normal(norm: ResponseNorm | SpatialNorm) -> bool:
    return norm.k > 0 and norm.alpha >= 0 and 1 <= norm.size <= 8


def _is_overlapping(pool: Pool, side_px: int) -> bool:
    windows = -(-pool.size // pool.stride)
    return (
        pool.kind == "max"
        and pool.stride <= pool.size <= side_px
        and pool.size**2 <= MOST_PIXELS
        and windows**2 <= MOST_WINDOWS
    )


def has_kernels(device: str, kernels: Kernels = "auto") -> bool:
    """Whether chains on this kind of device are fused.

    Says once why not. Raises UserError where "fused" is asked for and not to be had.
    """
    chosen = kernels if kernels != "auto" else _from_environment()
    if chosen == "plain" or device != "cpu":
        return False
    reason = _reason_against()
    if reason and chosen == "fused":
        raise UserError(f"kernels cannot be fused: {reason}; or take system.kernels=plain")
    return not reason


def _from_environment() -> str:
    chosen = os.environ.get("ALEXNET_KERNELS") or "auto"
    if chosen not in ("auto", "fused", "plain"):
        raise UserError(f"ALEXNET_KERNELS is {chosen!r}; it is auto, fused or plain")
    return chosen


@functools.cache
def _reason_against() -> str:
    """Why the CPU's kernels cannot be had, said once; empty if they can."""
    try:
        native.library()
    except UserError as error:
        print(f"alexnet: slower norms and pools: {error}", file=sys.stderr)
        return str(error)
    return ""


# --- The operation ------------------------------------------------------------------------------


@torch.library.custom_op("alexnet::chain", mutates_args=(), device_types="cpu")
def _chain(
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
    native.library().forward(described, x, y, index if index.numel() else None)
    return y, index


@_chain.register_fake
def _(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, pool_size, pool_stride, _, training = settings
    return _outputs(x, pool_size, pool_stride, training)


@torch.library.custom_op("alexnet::chain_backward", mutates_args=(), device_types="cpu")
def _chain_backward(
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
    native.library().backward(described, dy, x, index if index.numel() else None, dx)
    return dx


@_chain_backward.register_fake
def _(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, *arguments, _ = inputs
    ctx.save_for_backward(x, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.arguments = arguments


def _backward(ctx, dy, _):  # type: ignore[no-untyped-def]
    x, index = ctx.saved_tensors
    return _chain_backward(dy, x, index, *ctx.arguments), *([None] * (len(ctx.arguments) + 1))


_chain.register_autograd(_backward, setup_context=_setup_context)


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
) -> native.Chain:
    images, maps, height, width = x.shape
    return native.Chain(
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
