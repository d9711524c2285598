"""The operations of the paper's network that no library has right (Sections 3.1, 3.3, 3.4, 4.2).

Response normalisation per column and in both conventions, the spatial norm of the 2012 source,
pools whose last window is clipped, zeros that overhang on the right and bottom, dropout without
rescaling, and unshared convolution. All are functions of (B, C, H, W) tensors of any float type;
each own backward pass stands beside a plain `_reference` that autograd differentiates.

Not here: the order in which a network uses them (`networks.py`).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Images that are normalised at a time on a CPU: few enough that the intermediate results of one
# block stay in the cache, which halves the time of a step's norms.
CPU_BLOCK_IMAGES = 8

Window = Callable[[Tensor], Tensor]


def response_norm(
    x: Tensor,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    columns: int = 1,
) -> Tensor:
    """Normalise each unit by the `size` maps around it at the same place (Section 3.3).

    y[c] = x[c] * (k + alpha * sum_{j in window(c)} x[j]^2) ^ -beta,   (B, C, H, W) -> same

    The window starts at c - size // 2, holds `size` maps, and is clipped to the column of c: it
    never crosses from one column's maps to the other's. `alpha` multiplies the *sum*, as the
    paper prints it; the 2012 source divides its 1e-4 by the window size (`layer.py`).
    """
    below = size // 2
    above = size - 1 - below
    if x.device.type == "cpu":  # there, a product with a band is the fastest sum
        band = channel_band(x.shape[1], size, columns).to(x)
        transposed = channel_band(x.shape[1], size, columns, transpose=True).to(x)
        return _power_norm(
            x,
            lambda squares: F.conv2d(squares, band, groups=columns),
            lambda products: F.conv2d(products, transposed, groups=columns),
            (alpha, beta, k),
        )
    return _power_norm(  # elsewhere it might be done in TF32
        x,
        lambda squares: map_sum(squares, below, above, columns),
        lambda products: map_sum(products, above, below, columns),
        (alpha, beta, k),
    )


def response_norm_reference(
    x: Tensor,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    columns: int = 1,
) -> Tensor:
    """`response_norm` by shifted slices and autograd."""
    return torch.cat([_column_norm(part, size, alpha, beta, k) for part in x.chunk(columns, 1)], 1)


def _column_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    below = size // 2
    padded = F.pad(x.square(), (0, 0, 0, 0, below, size - 1 - below))
    total = torch.stack([padded[:, i : i + x.shape[1]] for i in range(size)]).sum(0)
    return x / (k + alpha * total) ** beta


def map_sum(x: Tensor, below: int, above: int, columns: int) -> Tensor:
    """Sum of maps c - below .. c + above of each column, clipped to it: (B, C, H, W) -> same."""
    padded = F.pad(x.reshape(len(x), columns, -1, *x.shape[2:]), (0, 0, 0, 0, below, above))
    return padded.unfold(2, below + 1 + above, 1).sum(-1).flatten(1, 2)


def channel_band(maps: int, size: int, columns: int, *, transpose: bool = False) -> Tensor:
    """Ones where map j is in the window of map c, as a 1x1 kernel: (C, C / columns, 1, 1)."""
    index = torch.arange(maps // columns)
    offset = index[None, :] - index[:, None] + size // 2  # j - (c - size // 2)
    band = (offset >= 0) & (offset < size)
    return (band.T if transpose else band).float().repeat(columns, 1)[:, :, None, None]


def spatial_norm(
    x: Tensor, *, size: int = 5, alpha: float = 0.001 / 25, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Normalise each unit by the size x size units around it in the same map.

    y[c, i, j] = x[c, i, j] * (k + alpha * sum_window x[c]^2) ^ -beta,   (B, C, H, W) -> same

    The window is clipped at the border; an even size reaches one further to the top and left.
    The second norm of stage 2 in the 2012 source (`layers-145.cfg`, "cnorm2"), which the paper
    does not mention; its alpha is 0.001 / size^2.
    """
    below = size // 2
    above = size - 1 - below
    return _power_norm(
        x,
        lambda squares: _spatial_sum(squares, size, below, above),
        lambda products: _spatial_sum(products, size, above, below),
        (alpha, beta, k),
    )


def spatial_norm_reference(
    x: Tensor, *, size: int = 5, alpha: float = 0.001 / 25, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """`spatial_norm` by shifted slices and autograd."""
    below, (height, width) = size // 2, x.shape[2:]
    above = size - 1 - below
    padded = F.pad(x.square(), (below, above, below, above))
    shifts = [padded[:, :, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return x / (k + alpha * torch.stack(shifts).sum(0)) ** beta


def _spatial_sum(x: Tensor, size: int, below: int, above: int) -> Tensor:
    if below != above:
        x, below = F.pad(x, (below, above, below, above)), 0
    return F.avg_pool2d(x, size, 1, below, divisor_override=1)


def _power_norm(
    x: Tensor, window: Window, transposed: Window, constants: tuple[float, float, float]
) -> Tensor:
    if torch.compiler.is_exporting():  # a program for any number of pictures has no blocks of them
        alpha, beta, k = constants
        return x * (k + alpha * window(x * x)) ** -beta
    return _PowerNorm.apply(x, window, transposed, constants)  # type: ignore[no-any-return]


class _PowerNorm(torch.autograd.Function):
    """y = x * s^-beta with s = k + alpha * window(x^2), for any linear window sum.

    With w the transposed window sum: dx = dy * s^-beta - 2 alpha beta x * w(dy * y / s).
    """

    @staticmethod
    def forward(ctx, x, window, transposed, constants):  # type: ignore[no-untyped-def]
        alpha, beta, k = constants
        y, s, offset = torch.empty_like(x), torch.empty_like(x), x.new_tensor(k)
        with torch.autocast(x.device.type, enabled=False):
            for block in _blocks(x):
                torch.add(offset, window(x[block] * x[block]), alpha=alpha, out=s[block])
                torch.mul(_power(s[block], beta), x[block], out=y[block])
        ctx.save_for_backward(x, s)
        ctx.transposed, ctx.alpha, ctx.beta = transposed, alpha, beta
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, s = ctx.saved_tensors
        dx = torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for block in _blocks(x):
                direct = _power(s[block], ctx.beta).mul_(dy[block])
                products = (direct * x[block]).div_(s[block])
                around = ctx.transposed(products).mul_(x[block])
                torch.add(direct, around, alpha=-2 * ctx.alpha * ctx.beta, out=dx[block])
        return dx, None, None, None


def _blocks(x: Tensor) -> list[slice]:
    step = CPU_BLOCK_IMAGES if x.device.type == "cpu" else max(1, len(x))
    return [slice(start, start + step) for start in range(0, len(x), step)]


def _power(s: Tensor, beta: float) -> Tensor:
    """s ^ -beta; for the paper's 3/4 by two square roots, several times as fast as a power."""
    if beta == 0.75:
        root = s.rsqrt()
        return root.sqrt().mul_(root)
    return s.pow(-beta)


def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Largest of each size x size window, every `stride` pixels (Section 3.4).

    The output has ceil((in - size) / stride) + 1 pixels; a window that hangs over the right or
    bottom edge is clipped to the picture (the 2012 source; for 224-pixel pictures none does).
    A tie passes its gradient to one of the equal units, in the source to all of them.
    """
    return F.max_pool2d(x, size, stride, ceil_mode=True)


def avg_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Mean of each window, sized as in `max_pool`; a clipped window divides by its own area."""
    return F.avg_pool2d(x, size, stride, ceil_mode=True)


def overhang(in_px: int, kernel: int, stride: int, padding: int) -> int:
    """Zero pixels to add at the right and bottom so that no pixel of the picture is left out.

    The 2012 source rounds the size of a convolution's output up: 1 + ceil((2 * padding + in -
    kernel) / stride). For 224 pixels, kernel 11 and stride 4 that is 55, with 3 pixels of zeros;
    for 227 pixels there are none.
    """
    steps = math.ceil((2 * padding + in_px - kernel) / stride)
    return max(0, steps * stride + kernel - (2 * padding + in_px))


def pad_overhang(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Add the zeros of `overhang`: (B, C, H, W) -> (B, C, H + bottom, W + right)."""
    bottom = overhang(x.shape[2], kernel, stride, padding)
    right = overhang(x.shape[3], kernel, stride, padding)
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def dropout(
    x: Tensor,
    rate: float,
    *,
    inverted: bool = False,
    training: bool,
    generator: torch.Generator | None = None,
    part: tuple[slice, slice] | None = None,
    whole: tuple[int, int] | None = None,
) -> Tensor:
    """Set each unit to zero with probability `rate` in training (Section 4.2).

    Plain, as in the paper and the 2012 source: x * mask in training, x * (1 - rate) at test.
    Inverted, as in Caffe and PyTorch: x * mask / (1 - rate) in training, x at test.

    x may be a `part` (of the images, of the units) of what `whole` (images, units) runs on several
    devices: then it gets that part of the mask that one device would draw.
    """
    keep = 1.0 - rate
    if not training:
        return x if inverted else x * keep
    if part is None or whole is None:
        mask = torch.empty_like(x).bernoulli_(keep, generator=generator)
    else:
        shape, memory = (*whole, *x.shape[2:]), _memory_format(x)
        like = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory)
        mask = like.bernoulli_(keep, generator=generator)[part]
    return x * (mask / keep if inverted else mask)


def _memory_format(x: Tensor) -> torch.memory_format:
    """The order in memory that `empty_like` would keep."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return torch.contiguous_format


class LocallyConnected2d(nn.Module):
    """Convolution with a filter and a bias of its own at each place ("local" in the 2012 source).

    (B, in_channels, image_px, image_px) -> (B, out_channels, image_px', image_px'), stride 1.
    weight (places, out_channels, in_channels * kernel_size^2), bias (places, out_channels).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, image_px: int, padding: int
    ) -> None:
        super().__init__()
        self.kernel_size, self.padding = kernel_size, padding
        self.image_px, self.out_px = image_px, image_px + 2 * padding - kernel_size + 1
        fan_in = in_channels * kernel_size**2
        self.weight = nn.Parameter(torch.zeros(self.out_px**2, out_channels, fan_in))
        self.bias = nn.Parameter(torch.zeros(self.out_px**2, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel_size, padding=self.padding)  # (B, fan_in, places)
        y = torch.einsum("bfp,pof->bop", patches, self.weight) + self.bias.T
        return y.reshape(y.shape[0], -1, self.out_px, self.out_px)
