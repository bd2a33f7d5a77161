"""linear_attention in Triton against float64: positions, head widths and counts, dtypes, layouts, gradients."""

import pytest
import torch

from fastdiff.kernels.dispatch import using
from fastdiff.kernels.linear_attention import linear_attention, linear_attention_reference


def qkv(device, b, heads, d, h, w, dtype=torch.float32, spread=2.0):
    return (torch.randn(b, 3 * heads * d, h, w, device=device) * spread).to(dtype, memory_format=torch.channels_last)


def gradients(function, x, heads, divide, dy):
    x = x.detach().requires_grad_()
    y = function(x, heads, divide)
    return y, torch.autograd.grad(y, x, dy)[0]


SLOW = () if torch.cuda.is_available() else pytest.mark.slow  # in the interpreter
SHAPES = [
    (2, 4, 32, 7, 7),  # network A's heads
    (1, 3, 16, 7, 9),  # the narrowest tile, not padded
    (2, 2, 60, 14, 14),  # padded to 64
    (1, 5, 8, 1, 1),  # one position; a head narrower than a tile
    (3, 1, 33, 5, 4),  # padded to nearly twice the width
    (1, 1, 1, 3, 3),  # one feature
    (1, 1, 64, 4, 4),  # the widest head
]


# Dividing by n only changes a number that the kernels are given, so the largest shape runs once.
@pytest.mark.parametrize(
    "b, heads, d, h, w, divide",
    [(*shape, divide) for shape in SHAPES for divide in (False, True)]
    + [pytest.param(1, 4, 32, 28, 28, True, marks=SLOW)],  # split over programs
)
def test_every_shape_and_its_gradient(triton_device, agrees, b, heads, d, h, w, divide):
    x = qkv(triton_device, b, heads, d, h, w)
    dy = torch.randn(b, heads * d, h, w, device=triton_device)
    y, dx = gradients(linear_attention, x, heads, divide, dy)
    exact, exact_dx = gradients(linear_attention_reference, x.double(), heads, divide, dy.double())
    agrees(y, exact)
    if d > 1 or h * w > 1:
        agrees(dx, exact_dx, times=3)  # differences of near terms: one more digit is lost
    if heads * d > 1:
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_wider_heads_run_the_reference(triton_device):
    x = qkv(triton_device, 1, 1, 96, 3, 3)
    assert torch.equal(linear_attention(x, 1, True), linear_attention_reference(x, 1, True))


@pytest.mark.parametrize("h, w", [(7, 9), (16, 20)])  # one program for a head; three, of 128, 128 and 64 positions
def test_every_layout(triton_device, agrees, layouts, h, w):
    x = qkv(triton_device, 1, 2, 16, h, w)
    expected = linear_attention_reference(x.double(), 2, True)
    for given in layouts(x).values():
        agrees(linear_attention(given, 2, True), expected)


# The operands of products are rounded as well as the result: three roundings forward, five backward.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [16, 32, 60])
def test_reduced_precision(triton_device, agrees, dtype, d):
    x = qkv(triton_device, 1, 2, d, 14, 14, dtype)
    dy = torch.randn(1, 2 * d, 14, 14, device=triton_device).to(dtype)
    y, dx = gradients(linear_attention, x, 2, False, dy)
    exact, exact_dx = gradients(linear_attention_reference, x.double(), 2, False, dy.double())
    agrees(y, exact, times=3)
    agrees(dx, exact_dx, times=5)


@pytest.mark.parametrize("side", [pytest.param(128, marks=SLOW)])
def test_half_precision_keeps_the_division_by_n(triton_device, agrees, side):
    """1 / 16,384 times the context would leave float16's normal range before the product.

    The result is itself subnormal, with steps of 6e-8. Half a step is allowed, and three roundings of the largest.
    """
    x = qkv(triton_device, 1, 1, 16, side, side, torch.float16)
    x[:, 32:] *= 100
    y, exact = linear_attention(x, 1, True), linear_attention_reference(x.double(), 1, True)
    assert float((y.double() - exact).abs().max()) < 2**-25 + 3 * 2**-11 * float(exact.abs().max())


# 17 parts, of 128 positions and a last one of 22; 16,384 positions take the interpreter half a minute.
@pytest.mark.parametrize("h, w", [(46, 45), pytest.param(128, 128, marks=SLOW)])
def test_many_positions_are_split_over_programs(triton_device, agrees, h, w):
    """Partial contexts of one head are merged, with keys that grow, so that the running maximum changes."""
    x = qkv(triton_device, 1, 1, 16, h, w)
    x[:, 16:32] += torch.linspace(0, 60, h * w, device=triton_device).view(1, 1, h, w)
    dy = torch.randn(1, 16, h, w, device=triton_device)
    y, dx = gradients(linear_attention, x, 1, False, dy)
    exact, exact_dx = gradients(linear_attention_reference, x.double(), 1, False, dy.double())
    # exp of keys of size 60: their rounding, 4e-6, is a relative error of the result.
    agrees(y, exact, times=3)
    agrees(dx, exact_dx, times=5)


def test_large_keys_and_queries_do_not_overflow(triton_device, agrees):
    x = qkv(triton_device, 1, 2, 16, 7, 7, spread=200.0)
    y = linear_attention(x, 2, False)
    assert torch.isfinite(y).all()
    # exp of differences of some hundreds, each rounded by 1e-5
    agrees(y, linear_attention_reference(x.double(), 2, False), times=20)


def test_the_reference_is_the_published_expression(rel):
    """The tutorial's own steps: q softmaxed over features and scaled, k softmaxed over positions, v divided by n."""
    x = qkv("cpu", 2, 4, 32, 7, 5).double()
    q, k, v = x.reshape(2, 3, 4, 32, 35).unbind(1)
    q, k, v = q.softmax(-2) * 32**-0.5, k.softmax(-1), v / 35
    context = torch.einsum("bhdn,bhen->bhde", k, v)
    expected = torch.einsum("bhde,bhdn->bhen", context, q).reshape(2, 128, 7, 5)
    with using("reference"):
        assert rel(linear_attention(x, 4, True), expected) < 1e-14


@pytest.mark.parametrize(
    "given, heads, message",
    [
        (torch.zeros(1, 12, 3, 3, dtype=torch.int64), 2, "qkv is torch.int64"),
        (torch.zeros(1, 0, 3, 3), 2, r"shape \(1, 0, 3, 3\) with heads = 2; .* d at least 1"),
        (torch.zeros(1, 13, 3, 3), 2, "heads = 2"),
        (torch.zeros(1, 12, 3, 3), 0, "heads = 0"),
        (torch.zeros(1, 12, 9), 2, r"shape \(1, 12, 9\)"),
        (torch.zeros(1, 12, 0, 3), 2, "none of them 0"),
    ],
)
def test_what_it_cannot_take_is_named(given, heads, message):
    with pytest.raises(ValueError, match=message):
        linear_attention(given, heads, True)
