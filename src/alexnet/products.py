"""Convolutions and matrix products in the form that a CPU computes fastest (Section 3.5).

`convolve` and `linear` equal `F.conv2d` and `F.linear`, and a ReLU after them, up to rounding; all
arithmetic is oneDNN's. What differs from the plain call, as measured (docs/performance.md):
a ReLU is done while the result is still in the cache; the gradient of a bias is a sum of its own,
which oneDNN does badly with three input channels; fp32 matrix products go to oneDNN, where PyTorch
takes MKL, slower on AMD's CPUs; and in fp32 a strided convolution of few channels is done as one
of stride 1 on pixels folded into channels (space to depth).

Not here: norms and pools (`fused.py`), and when these forms are used (`model.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)

# Pictures have three colours; from eight channels on a direct convolution is as fast.
FEW_CHANNELS = 4


def are_usable(x: Tensor, weight: Tensor) -> bool:
    """Whether these forms take the tensors: on a CPU with oneDNN, outside of any tracing."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in DTYPES
        and len(x) > 0
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int,
    padding: int,
    groups: int,
    relu: bool = False,
    fold: bool | None = None,
) -> Tensor:
    """F.conv2d of (B, C, H, W), then a ReLU if `relu`: (B, C', H', W'), channels last.

    `fold`: pixels into channels first (None: where that is faster, which is fp32 with a stride
    and few channels).
    """
    if fold is None:
        fold = stride > 1 and x.shape[1] <= FEW_CHANNELS and x.dtype == torch.float32
    if fold:
        x, weight = fold_pixels(x, weight, stride, padding)
        stride, padding = 1, 0
    return _Convolution.apply(x, weight, bias, stride, padding, groups, relu)  # type: ignore[no-any-return]


def fold_pixels(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """Squares of stride x stride pixels become the channels of one: same products, stride 1.

    x (B, C, H, W) -> (B, stride^2 C, H', W'); weight (O, C, k, k) -> (O, stride^2 C, k', k') with
    k' = ceil(k / stride), where the added taps are zero. Both are channels last.
    """
    kernel = weight.shape[-1]
    taps = -(-kernel // stride)
    sides = [((px + 2 * padding - kernel) // stride + taps) * stride for px in x.shape[2:]]
    bottom, right = (to - px - padding for to, px in zip(sides, x.shape[2:], strict=True))
    spare = taps * stride - kernel
    x = F.pad(x, (padding, right, padding, bottom))
    return _folded(x, stride), _folded(F.pad(weight, (0, spare, 0, spare)), stride)


def _folded(x: Tensor, stride: int) -> Tensor:
    count, channels, height, width = x.shape
    rows, columns = height // stride, width // stride
    pixels = x.permute(0, 2, 3, 1).reshape(count, rows, stride, columns, stride, channels)
    squares = pixels.transpose(2, 3).reshape(count, rows, columns, stride**2 * channels)
    return squares.permute(0, 3, 1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """F.linear of (B, N), then a ReLU if `relu`: (B, M)."""
    return _Linear.apply(x, weight, bias, relu)  # type: ignore[no-any-return]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, groups, relu):  # type: ignore[no-untyped-def]
        y = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups, _name(relu), [], ""
        )
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.arguments = stride, padding, groups
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, y = ctx.saved_tensors
        stride, padding, groups = ctx.arguments
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        dy = _before_relu(dy, y).contiguous(memory_format=torch.channels_last)
        dx = dweight = dbias = None
        if of_x or of_weight:
            dx, dweight, _ = torch.ops.aten.convolution_backward(
                dy,
                x,
                weight,
                None,
                [stride] * 2,
                [padding] * 2,
                [1, 1],
                False,
                [0, 0],
                groups,
                [of_x, of_weight, False],
            )
        if of_bias:
            dbias = dy.permute(0, 2, 3, 1).flatten(0, 2).sum(0)
        return dx, dweight, dbias, None, None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, relu):  # type: ignore[no-untyped-def]
        y = _product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, y = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        dy = _before_relu(dy, y)
        return (
            _product(dy, weight.T) if of_x else None,
            _product(dy.T, x.T) if of_weight else None,
            dy.sum(0) if of_bias else None,
            None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Any:
    """x (B, N) times the transpose of weight (M, N), each of any strides: (B, M)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, _name(relu), [], "")


def _name(relu: bool) -> str:
    return "relu" if relu else "none"


def _before_relu(dy: Tensor, y: Tensor | None) -> Tensor:
    """The gradient before the ReLU whose result was y; as it is where there was none."""
    return dy if y is None else torch.ops.aten.threshold_backward(dy, y, 0)
