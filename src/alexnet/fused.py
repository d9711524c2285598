"""ReLU, norm and max pool as one operation, forward and backward (Sections 3.1, 3.3, 3.4).

`split` cuts the steps after a layer into the longest chains that one kernel can do: a ReLU, a
norm, a max pool and a ReLU, each where it is there, in this order. `apply` runs a chain: fused
(C++ on a CPU, Triton on CUDA) where that is possible, else by the plain functions of `layers.py`,
which it equals up to rounding. The kernels compute in float32, save the input and one byte per
window, and are one operation to autograd and to `torch.compile`.

Not here: that operation (`chain_op.py`).
"""

import functools
import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet import chain_op, layers, native
from alexnet.errors import UserError
from alexnet.networks import Pool, ResponseNorm, SpatialNorm, Step

Kernels = Literal["auto", "fused", "plain"]


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
    if x.is_cuda and isinstance(chain.norm, SpatialNorm) and chain.pool is not None:
        normed = _fused(replace(chain, pool=None, relu_after=False), x, columns)
        return _fused(Chain(pool=chain.pool, relu_after=chain.relu_after), normed, columns)
    return _fused(chain, x, columns)


def _fused(chain: Chain, x: Tensor, columns: int) -> Tensor:
    y: Tensor = chain_op.chain(
        x.contiguous(memory_format=torch.channels_last),
        **settings(chain, columns),
        training=torch.is_grad_enabled() and x.requires_grad,
    )[0]
    return y


def settings(chain: Chain, columns: int) -> dict[str, Any]:
    """A chain as the arguments of `chain_op.chain`."""
    norm, pool = chain.norm, chain.pool
    return {
        "relu_before": chain.relu_before,
        "norm": {type(None): 0, ResponseNorm: 1, SpatialNorm: 2}[type(norm)],
        "size": norm.size if norm else 0,
        "alpha": norm.alpha if norm else 0.0,
        "beta": norm.beta if norm else 0.0,
        "k": norm.k if norm else 1.0,
        "columns": columns if isinstance(norm, ResponseNorm) and norm.per_column else 1,
        "pool_size": pool.size if pool else 0,
        "pool_stride": pool.stride if pool else 0,
        "relu_after": chain.relu_after,
    }


def is_fusable(chain: Chain, x: Tensor, columns: int) -> bool:
    """Whether the kernels take this chain for this tensor."""
    norm, pool = chain.norm, chain.pool
    if x.ndim != 4 or x.dtype not in chain_op.DTYPES or x.shape[1] % columns:
        return False
    if norm is not None and not _is_ordinary(norm):
        return False
    if x.is_cuda and x.shape[1] // columns % 2:
        return False  # there the maps go in pairs
    return pool is None or _is_overlapping(pool, min(x.shape[2:]))


def _is_ordinary(norm: ResponseNorm | SpatialNorm) -> bool:
    return norm.k > 0 and norm.alpha >= 0 and 1 <= norm.size <= chain_op.MOST_SIZE


def _is_overlapping(pool: Pool, side_px: int) -> bool:
    windows = -(-pool.size // pool.stride)
    return (
        pool.kind == "max"
        and pool.stride <= pool.size <= side_px
        and pool.size**2 <= chain_op.MOST_PIXELS
        and windows**2 <= chain_op.MOST_WINDOWS
    )


def has_kernels(device: str, kernels: Kernels = "auto") -> bool:
    """Whether chains on this kind of device are fused.

    Says once why not. Raises UserError where "fused" is asked for and not to be had.
    """
    chosen = choice(kernels)
    if chosen == "plain" or device not in ("cpu", "cuda"):
        return False
    reason = _reason_against(device)
    if reason and chosen == "fused":
        raise UserError(f"kernels cannot be fused: {reason}; or take system.kernels=plain")
    return not reason


# Nothing for a compiler to look into: what torch.compiler.assume_constant_result would set, did it
# not take a second to import.
has_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choice(kernels: Kernels = "auto") -> str:
    """What was asked for: by the setting, or where that is "auto" by ALEXNET_KERNELS."""
    if kernels != "auto":
        return kernels
    chosen = os.environ.get("ALEXNET_KERNELS") or "auto"
    if chosen not in ("auto", "fused", "plain"):
        raise UserError(f"ALEXNET_KERNELS is {chosen!r}; it is auto, fused or plain")
    return chosen


@functools.cache
def _reason_against(device: str) -> str:
    """Why a device's kernels cannot be had, said once; empty if they can."""
    reason = _reason_on_cuda() if device == "cuda" else _reason_on_cpu()
    if reason:
        print(f"alexnet: slower norms and pools: {reason}", file=sys.stderr)
    return reason


def _reason_on_cpu() -> str:
    try:
        native.compiled("fused.cpp")
    except UserError as error:
        return str(error)
    return ""


def _reason_on_cuda() -> str:
    """Compares kernels and plain chains: the tests have seen the kernels interpreted only."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for chain in (Chain(True, ResponseNorm(), Pool()), Chain(norm=SpatialNorm())):
        generator = torch.Generator().manual_seed(0)
        x = (20 * torch.randn(2, 96, 9, 9, generator=generator)).cuda().requires_grad_()
        exact = x.detach().double().requires_grad_()
        expected = chain.plain(exact, 2)
        try:
            y = _fused(chain, x, 2)
            (dx,) = torch.autograd.grad(y.square().sum(), x)
        except Exception as error:
            return f"Triton's kernels fail: {str(error).splitlines()[0]}"
        (exact_dx,) = torch.autograd.grad(expected.square().sum(), exact)
        for actual, wanted in ((y, expected), (dx, exact_dx)):
            if not (actual - wanted).abs().max() < 1e-3 * wanted.abs().max():
                return "Triton's kernels disagree with the plain functions on this GPU"
    return ""
