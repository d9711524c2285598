"""Both ends of a training step in one pass over memory each, on a CPU (Sections 4.1 and 5).

`prepare` equals mirroring, `subtract_mean` and `add_colour_noise` of `augment.py` after another;
`update` equals `paper_sgd_step_reference` of `optim.py`. Both round as those do, up to the fused
multiply-add of the compiler; the kernels are in `passes.cpp`.

Not here: compiling and loading them (`native.py`), and the same on a GPU.
"""

import ctypes

import torch
from torch import Tensor

from alexnet import native

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class _Input(ctypes.Structure):
    """`Input` of passes.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "crop_px", "image_px", "out_px")),
        *((name, ctypes.c_int64) for name in ("mirror_mean", "has_shift", "threads")),
        ("std", ctypes.c_float * 3),
        ("divisor", ctypes.c_float),
    ]


def prepare(
    crops: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    mean_image: Tensor,
    shift: Tensor | None,
    *,
    mirror_mean: bool,
    input_std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    divisor: float = 1.0,
    out_px: int,
    dtype: torch.dtype,
) -> Tensor:
    """((crop - mean) / std + shift) / divisor: uint8 (B, s, s, 3) -> (B, 3, out_px, out_px).

    top, left int64 (B,): where each picture's window of the mean image (S, S, 3) begins; where
    flip (B,) is true the crop is mirrored, and the window with it if `mirror_mean`. shift is float
    (B, 3) or None. Beyond s pixels the result is zero. It is channels last.
    """
    count, size_px = crops.shape[:2]
    crops, top, left, flip = (part.contiguous() for part in (crops, top, left, flip))
    assert (crops.dtype, top.dtype, left.dtype) == (torch.uint8, torch.int64, torch.int64)
    mean_image = mean_image.float().contiguous()
    shift = None if shift is None else shift.float().contiguous()
    out = torch.empty((count, out_px, out_px, 3), dtype=dtype)
    settings = _Input(
        images=count,
        crop_px=size_px,
        image_px=mean_image.shape[1],
        out_px=out_px,
        mirror_mean=mirror_mean,
        has_shift=shift is not None,
        threads=torch.get_num_threads(),
        std=(ctypes.c_float * 3)(*input_std),
        divisor=divisor,
    )
    run = getattr(_library(), f"prepare_{DTYPES[dtype]}")
    run(ctypes.byref(settings), *map(_at, (crops, top, left, flip, mean_image, shift, out)))
    return out.permute(0, 3, 1, 2)


def update(
    weight: Tensor,
    grad: Tensor,
    velocity: Tensor,
    copy: Tensor | None,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """v <- momentum * v - weight_decay * lr * w - lr * g;   w <- w + v;   copy <- w.

    weight and velocity are float32, grad float32 or bfloat16, copy bfloat16 or None (which a
    bfloat16 grad needs not to be); all have the same strides and no gaps.
    """
    run = getattr(_library(), f"update_{DTYPES[grad.dtype]}")
    run(
        *map(_at, (weight, grad, velocity, copy)),
        ctypes.c_int64(weight.numel()),
        *map(ctypes.c_float, (lr, momentum, weight_decay * lr)),
        ctypes.c_int64(torch.get_num_threads()),
    )


def _library() -> ctypes.CDLL:
    return native.compiled("passes.cpp")


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
