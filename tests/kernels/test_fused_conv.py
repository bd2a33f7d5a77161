"""fused_conv in Triton against float64 and against the operations that it replaces."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.conv_weight import Window, pack, unpack
from fastdiff.kernels.fused_conv import fold_norm, fused_conv, fused_conv_reference
from fastdiff.kernels.group_norm import FUNCTIONS
from fastdiff.kernels.statistics import merged, statistics_of

SAME = Window((3, 3), padding=(1, 1))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WINDOWS = {
    "3x3": SAME,
    "1x1": Window((1, 1)),
    "7x7": Window((7, 7), padding=(3, 3)),
    "across": Window((1, 3), padding=(0, 1)),
    "down": Window((4, 4), stride=2, padding=(1, 1)),
    "without padding": Window((2, 2), stride=2),
    "up": Window((4, 4), stride=2, padding=(1, 1), transposed=True),
    "up by tiles": Window((2, 2), stride=2, transposed=True),
    "far up": Window((4, 4), stride=4, transposed=True),
    "upsampled": Window((3, 3), padding=(1, 1), nearest=2),
}


def images(device, *shape, dtype=torch.float32):
    return torch.randn(*shape, device=device).to(dtype, memory_format=torch.channels_last)


def kernel(window, channels, outputs, device, dtype=torch.float32):
    shape = (channels, outputs) if window.transposed else (outputs, channels)
    return (torch.randn(*shape, *window.kernel, device=device) / (channels * window.kernel[0]) ** 0.5).to(dtype)


def convolved(x, weight, window):
    """By torch, in float64."""
    x, weight = x.double(), weight.double()
    if window.nearest > 1:
        x = F.interpolate(x, scale_factor=window.nearest)
    convolution = F.conv_transpose2d if window.transposed else F.conv2d
    return convolution(x, weight, None, window.stride, window.padding)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("c, second, o, h, w", [(5, 0, 7, 6, 8), (20, 6, 18, 10, 8), (1, 0, 1, 4, 4)])
def test_every_window(triton_device, agrees, name, c, second, o, h, w):
    window = WINDOWS[name]
    x = images(triton_device, 2, c, h, w)
    other = images(triton_device, 2, second, h, w) if second else None
    weight = kernel(window, c + second, o, triton_device)
    packed = pack(weight, window, second)
    assert torch.equal(unpack(packed, window, o, (c, second)), weight)
    expected = convolved(x if other is None else torch.cat((x, other), 1), weight, window)
    assert expected.shape[2:] == window.result(h, w)
    y = fused_conv(x, packed, window, o, second=other)
    agrees(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = None if other is None else other.double()
    agrees(fused_conv_reference(x.double(), packed.double(), window, o, second=exact).float(), expected)


# Network A's levels; a tile that the picture does not fill; channels in several blocks, and in several products.
SIZES = [(28, 56, 28, 28), (112, 20, 7, 7), (70, 130, 3, 5), (18, 200, 1, 1), (3, 5, 2, 9)]


@pytest.mark.parametrize("c, o, h, w", SIZES)
def test_the_statistics_of_a_result(triton_device, rel, c, o, h, w):
    x = images(triton_device, 2, c, h, w)
    packed = pack(kernel(SAME, c, o, triton_device), SAME)
    added = torch.full((1, o), 30.0, device=triton_device)  # a mean far above the deviation
    for emit, dims in (("whole", 1), ("channels", 2)):
        y, statistics = fused_conv(x, packed, SAME, o, added=added, emit=emit)
        of_result = y.double().flatten(dims)
        for found, expected in zip(
            merged(statistics), (of_result.mean(-1), of_result.var(-1, correction=0)), strict=True
        ):
            assert found.dtype == torch.float32
            assert rel(found, expected) < 1e-5 or expected.abs().max() == 0


@pytest.mark.parametrize("c, o, h, w", SIZES)
@pytest.mark.parametrize("size, affine", [(3, True), (1, False)])
def test_a_norm_of_one_group_in_front(triton_device, agrees, c, o, h, w, size, affine):
    window = Window((size, size), padding=(size // 2, size // 2))
    x = images(triton_device, 2, c, h, w) * 3 + 5
    weight, bias = kernel(window, c, o, triton_device), torch.randn(o, device=triton_device)
    gain, shift = torch.randn(2, c, device=triton_device) if affine else (None, None)
    folded, borders = fold_norm(weight, gain, shift, (h, w), torch.float32)
    exact = [None if one is None else one.double() for one in (gain, shift)]
    expected = convolved(F.group_norm(x.double(), 1, *exact, 1e-3), weight, window) + bias.double().view(-1, 1, 1)
    given = dict(statistics=statistics_of(x, "whole"), borders=borders, eps=1e-3)
    y = fused_conv(x, pack(folded, window), window, o, bias, **given)
    agrees(y, expected, times=8)  # a mean above the deviation is subtracted after the products
    double = fused_conv_reference(x.double(), pack(folded, window).double(), window, o, bias, **given)
    agrees(double.float(), expected, times=8)


@pytest.mark.parametrize("before", [None, "silu", "gelu", "relu"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_scale_and_a_shift_in_front(triton_device, agrees, before, shared):
    """Of both inputs; padding stays zero."""
    x, other = images(triton_device, 2, 9, 5, 6), images(triton_device, 2, 20, 5, 6)
    scale, shift = torch.randn(2, 1 if shared else 2, 29, device=triton_device)
    weight = kernel(SAME, 29, 11, triton_device)
    whole = torch.cat((x, other), 1).double() * scale.double()[..., None, None] + shift.double()[..., None, None]
    expected = convolved(FUNCTIONS[before](whole), weight, SAME)
    packed = pack(weight, SAME, 20)
    y = fused_conv(x, packed, SAME, 11, second=other, scale=scale, shift=shift, before=before)
    agrees(y, expected)


@pytest.mark.parametrize("after", [None, "gelu", "gelu_tanh", "silu", "relu"])
@pytest.mark.parametrize("shortcut", [None, (13, 0), (40, 7)])
@pytest.mark.parametrize("rows", [1, 2])
def test_what_follows(triton_device, agrees, after, shortcut, rows):
    x, residual = images(triton_device, 2, 8, 6, 5), images(triton_device, 2, shortcut[0] if shortcut else 40, 6, 5)
    second = images(triton_device, 2, shortcut[1], 6, 5) if shortcut and shortcut[1] else None
    weight = kernel(SAME, 8, 40, triton_device)
    bias, added = torch.randn(40, device=triton_device), torch.randn(rows, 40, 1, 1, device=triton_device)
    expected = convolved(x, weight, SAME) + bias.double().view(-1, 1, 1) + added.double()
    expected, other, matrix = FUNCTIONS[after](expected), residual.double(), None
    if shortcut:
        one = torch.randn(40, sum(shortcut), 1, 1, device=triton_device)
        whole = other if second is None else torch.cat((other, second.double()), 1)
        other, matrix = F.conv2d(whole, one.double()), pack(one, Window((1, 1)), shortcut[1])[0, 0, 0]
    given = dict(added=added, after=after, residual=residual, residual_second=second, shortcut=matrix, factor=0.5)
    expected = (expected + other) / 2
    agrees(fused_conv(x, pack(weight, SAME), SAME, 40, bias, **given), expected)
    given = {name: one.double() if isinstance(one, torch.Tensor) else one for name, one in given.items()}
    double = fused_conv_reference(x.double(), pack(weight, SAME).double(), SAME, 40, bias.double(), **given)
    torch.testing.assert_close(double, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c, o, h, w", [(28, 56, 14, 14), (112, 28, 7, 7)])
def test_a_block_in_16_bits(triton_device, agrees, dtype, c, o, h, w):
    """A norm, a convolution, GELU, and the next one with its norm and the residual, as in a ConvNeXt block."""
    x = images(triton_device, 2, c, h, w, dtype=dtype)
    one, two = kernel(SAME, c, o, triton_device, dtype), kernel(SAME, o, c, triton_device, dtype)
    gains = torch.randn(2, 2, max(c, o), device=triton_device) * 0.2 + 1
    normed = F.group_norm(x.double(), 1, *gains[0, :, :c].double())
    inner = F.gelu(convolved(normed, one, SAME))
    expected = convolved(F.group_norm(inner, 1, *gains[1, :, :o].double()), two, SAME) + x.double()
    folded, borders = fold_norm(one, *gains[0, :, :c], (h, w), dtype)
    first = dict(statistics=statistics_of(x, "whole"), borders=borders, after="gelu", emit="whole")
    y, statistics = fused_conv(x, pack(folded, SAME), SAME, o, **first)
    folded, borders = fold_norm(two, *gains[1, :, :o], (h, w), dtype)
    y = fused_conv(y, pack(folded, SAME), SAME, c, statistics=statistics, borders=borders, residual=x)
    agrees(y, expected, times=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_does_not_depend_on_its_batch(triton_device, dtype):
    x, weight = images(triton_device, 5, 20, 9, 9, dtype=dtype), kernel(SAME, 20, 30, triton_device, dtype)
    packed = pack(weight, SAME)
    both = fused_conv(x, packed, SAME, 30, emit="whole"), fused_conv(x[3:4], packed, SAME, 30, emit="whole")
    for many, one in zip(*both, strict=True):
        assert torch.equal(many[3:4], one)


def test_every_layout(triton_device, agrees, layouts):
    x, weight = torch.randn(2, 5, 6, 7, device=triton_device), kernel(SAME, 5, 4, triton_device)
    for given in layouts(x).values():
        agrees(fused_conv(given, pack(weight, SAME), SAME, 4), convolved(x, weight, SAME))


def test_other_transposed_convolutions_are_refused():
    for given in (dict(kernel=(3, 3), padding=(1, 1)), dict(kernel=(4, 4)), dict(kernel=(4, 2), padding=(1, 0))):
        with pytest.raises(ValueError, match="accepted: transposed by a kernel of stride \\+ 2 padding"):
            Window(stride=2, transposed=True, **given)
