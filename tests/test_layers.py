"""Every operation of `alexnet.layers` against its float64 loop in `oracles`, and its gradient."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import gradcheck

import oracles
from alexnet import layers

Array = NDArray[np.float64]


def maps(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Signed float64 activations: the source's first norm sees negative values."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


# -- response norm, Section 3.3


@given(
    columns=st.sampled_from([1, 2, 3]),
    maps_per_column=st.integers(1, 9),
    size=st.integers(1, 10),
    alpha=st.sampled_from([1e-4, 1e-4 / 5, 0.5]),
    beta=st.sampled_from([0.75, 0.5, 1.0]),
    k=st.sampled_from([2.0, 1.0, 0.25]),
    seed=st.integers(0, 1000),
)
def test_response_norm_is_the_printed_sum_over_the_maps_of_each_column(
    columns: int, maps_per_column: int, size: int, alpha: float, beta: float, k: float, seed: int
) -> None:
    x = maps(2, columns * maps_per_column, 2, 3, seed=seed, scale=20.0)
    constants = {"size": size, "alpha": alpha, "beta": beta, "k": k, "columns": columns}
    expected = oracles.response_norm(x.numpy(), **constants)
    for norm in (layers.response_norm, layers.response_norm_reference):
        assert_allclose(norm(x, **constants).numpy(), expected, rtol=1e-11, err_msg=norm.__name__)


@pytest.mark.parametrize("num_maps", [96, 256])
@pytest.mark.parametrize("alpha", [1e-4, 1e-4 / 5], ids=["paper", "source"])
def test_response_norm_over_48_and_128_maps_per_column(num_maps: int, alpha: float) -> None:
    x = maps(1, num_maps, 2, 2, scale=100.0)
    expected = oracles.response_norm(x.numpy(), size=5, alpha=alpha, beta=0.75, k=2.0, columns=2)
    computed = layers.response_norm(x, size=5, alpha=alpha, beta=0.75, k=2.0, columns=2)
    assert_allclose(computed.numpy(), expected, rtol=1e-11)


def test_response_norm_by_hand() -> None:
    # Four maps, size 3, alpha 1, k 1, beta 1/2, of one pixel: 1 2 2 4.
    x = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    whole = layers.response_norm(x, size=3, alpha=1.0, beta=0.5, k=1.0).flatten()
    assert_allclose(whole, [1 / 6**0.5, 2 / 10**0.5, 2 / 25**0.5, 4 / 21**0.5])
    columns = layers.response_norm(x, size=3, alpha=1.0, beta=0.5, k=1.0, columns=2).flatten()
    assert_allclose(columns, [1 / 6**0.5, 2 / 6**0.5, 2 / 21**0.5, 4 / 21**0.5])
    even = layers.response_norm(x, size=2, alpha=1.0, beta=0.5, k=1.0).flatten()
    assert_allclose(even, [1 / 2**0.5, 2 / 6**0.5, 2 / 9**0.5, 4 / 21**0.5])


def test_response_norm_defaults_to_the_printed_constants() -> None:
    x = maps(1, 7, 3, 3, scale=100.0)
    expected = oracles.response_norm(x.numpy(), size=5, alpha=1e-4, beta=0.75, k=2.0)
    assert_allclose(layers.response_norm(x).numpy(), expected, rtol=1e-11)


def test_torch_divides_alpha_by_the_window_and_we_do_not() -> None:
    x = maps(1, 7, 3, 3, scale=100.0)
    source = layers.response_norm(x, size=5, alpha=1e-4 / 5, beta=0.75, k=2.0)
    torchs = F.local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0)
    assert_allclose(source, torchs, rtol=1e-11)
    paper = layers.response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0)
    assert float((paper / source).min()) < 0.8, "alpha 1e-4 and 2e-5 should differ at this scale"


def test_response_norm_does_not_look_across_columns() -> None:
    x = maps(1, 8, 2, 2, scale=10.0)
    changed = x.clone()
    changed[:, 4:] += 100.0
    before = layers.response_norm(x, alpha=1.0, columns=2)
    after = layers.response_norm(changed, alpha=1.0, columns=2)
    assert_array_equal(before[:, :4], after[:, :4])
    across = layers.response_norm(changed, alpha=1.0) - layers.response_norm(x, alpha=1.0)
    assert float(across[:, :4].abs().max()) > 0.1, "one column of eight maps must feel the change"


# -- spatial norm, the source's "cnorm2"


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    size=st.integers(1, 6),
    alpha=st.sampled_from([0.001 / 25, 0.5]),
    k=st.sampled_from([1.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_spatial_norm_is_the_sum_over_a_clipped_window_of_the_same_map(
    height: int, width: int, size: int, alpha: float, k: float, seed: int
) -> None:
    x = maps(2, 3, height, width, seed=seed, scale=20.0)
    constants = {"size": size, "alpha": alpha, "beta": 0.75, "k": k}
    expected = oracles.spatial_norm(x.numpy(), **constants)
    for norm in (layers.spatial_norm, layers.spatial_norm_reference):
        assert_allclose(norm(x, **constants).numpy(), expected, rtol=1e-11, err_msg=norm.__name__)


def test_spatial_norm_by_hand() -> None:
    # One row 1 2 2 4, alpha 1, k 1, beta 1/2: the same numbers as across maps.
    x = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64).reshape(1, 1, 1, 4)
    for turned in (x, x.transpose(2, 3)):
        odd = layers.spatial_norm(turned, size=3, alpha=1.0, beta=0.5, k=1.0).flatten()
        assert_allclose(odd, [1 / 6**0.5, 2 / 10**0.5, 2 / 25**0.5, 4 / 21**0.5])
        even = layers.spatial_norm(turned, size=2, alpha=1.0, beta=0.5, k=1.0).flatten()
        assert_allclose(even, [1 / 2**0.5, 2 / 6**0.5, 2 / 9**0.5, 4 / 21**0.5])


def test_spatial_norm_defaults_to_the_constants_of_the_source() -> None:
    x = maps(1, 2, 7, 7, scale=100.0)
    expected = oracles.spatial_norm(x.numpy(), size=5, alpha=0.001 / 25, beta=0.75, k=1.0)
    assert_allclose(layers.spatial_norm(x).numpy(), expected, rtol=1e-11)


# -- gradients of the norms


@pytest.mark.parametrize("size", [5, 4, 1])
@pytest.mark.parametrize("columns", [1, 2])
def test_response_norm_has_the_exact_gradient(size: int, columns: int) -> None:
    x = maps(2, 6, 2, 2, scale=2.0).requires_grad_()

    def norm(x: Tensor) -> Tensor:
        return layers.response_norm(x, size=size, alpha=0.3, beta=0.75, k=1.5, columns=columns)

    assert gradcheck(norm, (x,), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("size", [5, 4, 1])
def test_spatial_norm_has_the_exact_gradient(size: int) -> None:
    x = maps(2, 2, 4, 5, scale=2.0).requires_grad_()

    def norm(x: Tensor) -> Tensor:
        return layers.spatial_norm(x, size=size, alpha=0.3, beta=0.75, k=1.5)

    assert gradcheck(norm, (x,), eps=1e-6, atol=1e-7, rtol=1e-6)


def input_gradient(norm: Callable[..., Tensor], x: Tensor, **constants: float) -> Array:
    leaf = x.clone().requires_grad_()
    y = norm(leaf, **constants)
    y.backward(maps(*y.shape, seed=99).to(y))
    assert leaf.grad is not None
    return leaf.grad.double().numpy()


@given(
    columns=st.sampled_from([1, 2]),
    maps_per_column=st.integers(1, 7),
    size=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_the_gradient_of_response_norm_is_that_of_autograd(
    columns: int, maps_per_column: int, size: int, seed: int
) -> None:
    x = maps(2, columns * maps_per_column, 3, 2, seed=seed, scale=5.0)
    constants = {"size": size, "alpha": 0.1, "beta": 0.75, "k": 2.0, "columns": columns}
    own = input_gradient(layers.response_norm, x, **constants)
    reference = input_gradient(layers.response_norm_reference, x, **constants)
    assert_allclose(own, reference, rtol=1e-10, atol=1e-12)


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    size=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_the_gradient_of_spatial_norm_is_that_of_autograd(
    height: int, width: int, size: int, seed: int
) -> None:
    x = maps(2, 3, height, width, seed=seed, scale=5.0)
    constants = {"size": size, "alpha": 0.1, "beta": 0.75, "k": 1.0}
    own = input_gradient(layers.spatial_norm, x, **constants)
    reference = input_gradient(layers.spatial_norm_reference, x, **constants)
    assert_allclose(own, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["response_norm", "spatial_norm"])
def test_norms_keep_the_type_of_their_input_and_its_precision(
    name: str, memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    norm, reference = getattr(layers, name), getattr(layers, f"{name}_reference")
    x = maps(19, 8, 6, 5, scale=5.0).to(dtype)  # a batch of no round number
    constants = {"alpha": 0.1} | ({"columns": 2} if name == "response_norm" else {})
    typed = x.clone().contiguous(memory_format=memory_format)
    computed, expected = norm(typed, **constants), reference(x.double(), **constants)
    assert computed.dtype == dtype
    scale = float(expected.abs().max())
    assert_allclose(computed.double(), expected, rtol=tolerance, atol=tolerance * scale)
    own = input_gradient(norm, typed, **constants)
    autograds = input_gradient(reference, x.double(), **constants)
    scale = np.abs(autograds).max()
    assert_allclose(own, autograds, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["response_norm", "spatial_norm"])
def test_norms_on_a_gpu_have_the_precision_of_float32(name: str) -> None:
    norm, reference = getattr(layers, name), getattr(layers, f"{name}_reference")
    x = maps(32, 96, 14, 13, scale=30.0)
    constants = {"alpha": 0.001} | ({"columns": 2} if name == "response_norm" else {})
    expected = reference(x, **constants)
    # rounding to TF32 would be seen: it keeps 10 bits, a relative error of 5e-4
    computed = norm(x.float().cuda(), **constants).cpu().double()
    assert_allclose(computed, expected, rtol=1e-5, atol=1e-5)
    own = input_gradient(lambda x, **how: norm(x.cuda(), **how).cpu(), x.float(), **constants)
    autograds = input_gradient(reference, x, **constants)
    assert_allclose(own, autograds, rtol=1e-5, atol=1e-5 * np.abs(autograds).max())


# -- overlapping pools, Section 3.4, with the source's clipped windows


@st.composite
def pool_cases(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(height, width, size, stride) with stride <= size <= both sides."""
    size = draw(st.integers(1, 4))
    stride = draw(st.integers(1, size))
    return draw(st.integers(size, 12)), draw(st.integers(size, 12)), size, stride


@given(case=pool_cases(), seed=st.integers(0, 1000))
def test_pools_cover_the_picture_and_clip_the_last_window(
    case: tuple[int, int, int, int], seed: int
) -> None:
    height, width, size, stride = case
    x = maps(2, 2, height, width, seed=seed) - 3.0  # mostly negative: a padded zero would win
    largest = oracles.pool(x.numpy(), size=size, stride=stride, kind="max")
    average = oracles.pool(x.numpy(), size=size, stride=stride, kind="avg")
    assert_array_equal(layers.max_pool(x, size, stride).numpy(), largest)
    assert_allclose(layers.avg_pool(x, size, stride).numpy(), average, rtol=1e-12)


@pytest.mark.parametrize("pool", [layers.max_pool, layers.avg_pool])
def test_pool_sizes_of_the_paper_and_of_the_cifar_nets(
    pool: Callable[[Tensor, int, int], Tensor],
) -> None:
    sizes = {55: 27, 27: 13, 13: 6, 32: 16, 16: 8, 8: 4, 24: 12, 12: 6}
    measured = {side: pool(maps(1, 1, side, side), 3, 2).shape[-1] for side in sizes}
    assert measured == sizes


def test_non_overlapping_pools_cover_an_odd_picture() -> None:
    assert layers.max_pool(maps(1, 1, 55, 55), 2, 2).shape == (1, 1, 28, 28)  # run 147
    assert layers.max_pool(maps(1, 1, 11, 11), 2, 2).shape == (1, 1, 6, 6)


def test_pools_by_hand() -> None:
    x = torch.tensor([[-4.0, -3.0, -2.0, -8.0]], dtype=torch.float64).reshape(1, 1, 1, 4)
    x = x.expand(1, 1, 4, 4)
    assert layers.max_pool(x, 3, 2)[0, 0].tolist() == [[-2.0, -2.0]] * 2
    assert layers.avg_pool(x, 3, 2)[0, 0].tolist() == [[-3.0, -5.0]] * 2


@pytest.mark.parametrize("side", [8, 9])
def test_pools_have_the_exact_gradient(side: int) -> None:
    x = maps(1, 2, side, side, seed=3).requires_grad_()
    assert gradcheck(lambda x: layers.max_pool(x, 3, 2), (x,))
    assert gradcheck(lambda x: layers.avg_pool(x, 3, 2), (x,))


# -- the overhang of conv1


@given(
    height=st.integers(5, 30),
    width=st.integers(5, 30),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 5),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_an_overhanging_convolution_reads_zeros_at_the_right_and_bottom(
    height: int, width: int, kernel: int, stride: int, padding: int, seed: int
) -> None:
    x = maps(3, height, width, seed=seed)
    weight, bias = maps(2, 3, kernel, kernel, seed=seed + 1), maps(2, seed=seed + 2)
    padded = layers.pad_overhang(x[None], kernel, stride, padding)
    computed = F.conv2d(padded, weight, bias, stride=stride, padding=padding)[0]
    expected = oracles.convolve(
        x.numpy(), weight.numpy(), bias.numpy(), stride=stride, padding=padding
    )
    assert computed.shape == expected.shape
    assert_allclose(computed.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_conv1_of_224_reads_three_zero_pixels_at_the_right_and_bottom() -> None:
    x = maps(3, 224, 224, scale=60.0)
    padded = layers.pad_overhang(x[None], 11, 4, 0)[0]
    assert padded.shape == (3, 227, 227)
    assert_array_equal(padded[:, :224, :224], x)
    assert padded[:, 224:].abs().max() == 0
    assert padded[:, :, 224:].abs().max() == 0
    weight, bias = maps(1, 3, 11, 11, seed=1, scale=0.01), maps(1, seed=2)
    computed = F.conv2d(padded, weight, bias, stride=4)
    expected = oracles.convolve(x.numpy(), weight.numpy(), bias.numpy(), stride=4)
    assert computed.shape == (1, 55, 55)
    assert_allclose(computed.numpy(), expected, rtol=1e-9, atol=1e-11)


def test_a_picture_of_227_needs_no_overhang() -> None:
    x = maps(1, 3, 227, 227)
    assert_array_equal(layers.pad_overhang(x, 11, 4, 0), x)


# -- dropout, Section 4.2


@pytest.mark.parametrize("rate", [0.5, 0.2])
@pytest.mark.parametrize("inverted", [False, True], ids=["plain", "inverted"])
def test_dropout_in_training_is_a_mask_which_only_the_inverted_form_rescales(
    rate: float, inverted: bool
) -> None:
    x = maps(8, 4096) + 10.0  # no zero of its own
    y = layers.dropout(
        x, rate, inverted=inverted, training=True, generator=torch.Generator().manual_seed(0)
    )
    kept = (y != 0).numpy()
    expected = oracles.dropout(x.numpy(), kept, rate, inverted=inverted)
    assert_allclose(y.numpy(), expected, rtol=1e-12)
    count = kept.size
    allowed = 5 * (rate * (1 - rate) / count) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < allowed, f"kept {kept.mean():.4f} of {count}"
    for other in range(1, len(kept)):
        agreement = (kept[0] == kept[other]).mean()
        assert agreement < 0.9, f"pictures 0 and {other} share {agreement:.2f} of their mask"


@pytest.mark.parametrize("inverted", [False, True], ids=["plain", "inverted"])
def test_dropout_at_test_keeps_every_unit(inverted: bool) -> None:
    x = maps(2, 50)
    y = layers.dropout(x, 0.2, inverted=inverted, training=False, generator=None)
    assert_allclose(y.numpy(), oracles.dropout_at_test(x.numpy(), 0.2, inverted=inverted))


@pytest.mark.parametrize("inverted", [False, True], ids=["plain", "inverted"])
@pytest.mark.parametrize("training", [False, True])
def test_dropout_of_rate_zero_changes_nothing(inverted: bool, training: bool) -> None:
    x = maps(2, 50)
    generator = torch.Generator().manual_seed(0)
    y = layers.dropout(x, 0.0, inverted=inverted, training=training, generator=generator)
    assert_array_equal(y, x)


@pytest.mark.parametrize("inverted", [False, True], ids=["plain", "inverted"])
def test_the_gradient_of_dropout_passes_the_same_mask(inverted: bool) -> None:
    x = (maps(4, 100) + 10.0).requires_grad_()
    y = layers.dropout(
        x, 0.5, inverted=inverted, training=True, generator=torch.Generator().manual_seed(1)
    )
    gradient = maps(4, 100, seed=5)
    y.backward(gradient)
    expected = oracles.dropout(gradient.numpy(), (y != 0).numpy(), 0.5, inverted=inverted)
    assert x.grad is not None
    assert_allclose(x.grad.numpy(), expected, rtol=1e-12)


def test_the_mask_of_dropout_is_that_of_its_generator_alone() -> None:
    x = maps(4, 100) + 10.0

    def mask(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return layers.dropout(x, 0.5, inverted=False, training=True, generator=generator) != 0

    first = mask(3)
    torch.manual_seed(12345)
    assert_array_equal(first, mask(3))
    assert not torch.equal(first, mask(4))


def test_a_second_draw_from_one_generator_is_another_mask() -> None:
    x = maps(4, 100) + 10.0
    generator = torch.Generator().manual_seed(0)
    masks = [
        layers.dropout(x, 0.5, inverted=False, training=True, generator=generator) != 0
        for _ in range(2)
    ]
    assert not torch.equal(*masks)


# -- locally connected convolution, the CIFAR-10 nets of the source


def set_filters(layer: layers.LocallyConnected2d, weight: Tensor, bias: Tensor) -> None:
    """weight (out, in, kernel, kernel, rows, columns), bias (out, rows, columns)."""
    with torch.no_grad():
        layer.weight.copy_(weight.permute(4, 5, 0, 1, 2, 3).reshape(layer.weight.shape))
        layer.bias.copy_(bias.permute(1, 2, 0).reshape(layer.bias.shape))


@given(
    in_channels=st.integers(1, 3),
    out_channels=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    padding=st.integers(0, 2),
    side=st.integers(5, 7),
    seed=st.integers(0, 1000),
)
def test_a_locally_connected_layer_has_filters_and_biases_of_its_own_at_every_place(
    in_channels: int, out_channels: int, kernel: int, padding: int, side: int, seed: int
) -> None:
    layer = layers.LocallyConnected2d(in_channels, out_channels, kernel, side, padding).double()
    out_px = side + 2 * padding - kernel + 1
    weight = maps(out_channels, in_channels, kernel, kernel, out_px, out_px, seed=seed)
    bias = maps(out_channels, out_px, out_px, seed=seed + 1)
    x = maps(2, in_channels, side, side, seed=seed + 2)
    set_filters(layer, weight, bias)
    computed = layer(x).detach()
    expected = [
        oracles.locally_connected(picture.numpy(), weight.numpy(), bias.numpy(), padding=padding)
        for picture in x
    ]
    assert_allclose(computed.numpy(), np.stack(expected), rtol=1e-10, atol=1e-12)


def test_a_locally_connected_layer_with_equal_filters_is_a_convolution() -> None:
    layer = layers.LocallyConnected2d(4, 3, 3, 8, 1).double()
    weight, bias = maps(3, 4, 3, 3), maps(3, seed=1)
    x = maps(2, 4, 8, 8, seed=2)
    set_filters(
        layer, weight[..., None, None].repeat(1, 1, 1, 1, 8, 8), bias[:, None, None].repeat(1, 8, 8)
    )
    computed = layer(x).detach()
    assert_allclose(computed, F.conv2d(x, weight, bias, padding=1), rtol=1e-10, atol=1e-12)


def test_a_locally_connected_layer_has_the_exact_gradient() -> None:
    layer = layers.LocallyConnected2d(2, 3, 3, 4, 1).double()
    x = maps(2, 2, 4, 4).requires_grad_()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, parameters, (x,))

    assert gradcheck(run, (x, layer.weight, layer.bias))


@pytest.mark.parametrize(("size", "columns"), [(5, 1), (5, 2), (4, 2), (9, 3)])
def test_the_two_ways_to_sum_over_maps_agree(size: int, columns: int) -> None:
    x = torch.randn(2, 12, 3, 4, dtype=torch.float64)
    band = layers.channel_band(12, size, columns).double()
    below, above = size // 2, size - 1 - size // 2
    expected = F.conv2d(x, band, groups=columns)
    torch.testing.assert_close(layers.map_sum(x, below, above, columns), expected)
    transposed = layers.channel_band(12, size, columns, transpose=True).double()
    expected = F.conv2d(x, transposed, groups=columns)
    torch.testing.assert_close(layers.map_sum(x, above, below, columns), expected)
