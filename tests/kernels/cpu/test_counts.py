"""Multiply-adds and bytes of calls, against counts by hand and torch's own; how fast a core is."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdiff.kernels.cpu import attention, compiled
from fastdiff.kernels.cpu.convolution import convolution, convolution_weight
from fastdiff.kernels.cpu.counts import PRODUCTS, WITHOUT, moved, multiply_adds
from fastdiff.kernels.cpu.depthwise import depthwise, depthwise_weight
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.linear import linear, linear_weight
from fastdiff.kernels.cpu.matmul import matmul
from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.pointwise import broadcast, pointwise
from fastdiff.kernels.cpu.rate import multiply_adds as rate
from fastdiff.kernels.cpu.softmax_attention import softmax_attention
from fastdiff.kernels.cpu.weights import wide
from fastdiff.kernels.cpu.window import Window
from fastdiff.kernels.cpu.winograd import WINDOW, winograd, winograd_weight
from fastdiff.kernels.folded_attention import fold


def images(*shape):
    return View.of(torch.zeros(shape).contiguous(memory_format=torch.channels_last))


def zeros(*shape):
    return View.of(torch.zeros(shape))


def by_torch(function, *shapes):
    """Half of the operations that torch counts."""
    with FlopCounterMode(display=False) as counter:
        function(*map(torch.zeros, shapes))
    return counter.get_total_flops() // 2


def test_every_kernel_is_counted_or_has_no_products():
    text = (compiled.SOURCES / "plan.h").read_text()
    kernels = set(re.findall(r"^ +DO\((\w+)\)", text, re.MULTILINE))
    assert kernels == {*PRODUCTS, *WITHOUT} and len(kernels) == len(PRODUCTS) + len(WITHOUT)


@pytest.mark.parametrize(
    "stride, padding, dilation", [((1, 1), (1, 1), (1, 1)), ((2, 2), (0, 0), (1, 1)), ((1, 1), (0, 2), (2, 1))]
)
def test_convolutions_are_counted_as_torch_counts_them(stride, padding, dilation):
    n, c, o, kernel, options = 3, 5, 7, (3, 2), (stride, padding, dilation)
    shape = torch.nn.functional.conv2d(torch.zeros(n, c, 9, 11), torch.zeros(o, c, *kernel), None, *options).shape
    weight = View.of(convolution_weight(torch.zeros(o, c, *kernel)))
    window = Window(kernel, *options)
    call = convolution(Operands(images(n, c, 9, 11), images(*shape), window), weight)
    plain = lambda x, w: torch.conv2d(x, w, None, *options)  # noqa: E731
    assert multiply_adds(call) == by_torch(plain, (n, c, 9, 11), (o, c, *kernel))
    written = torch.Size(shape).numel()
    assert moved(call) == 4 * (n * c * 9 * 11 + c * wide(o) * 6 + written)
    deep = View.of(depthwise_weight(torch.zeros(o, 1, *kernel)))
    call = depthwise(Operands(images(n, o, 9, 11), images(*shape), window), deep)
    assert multiply_adds(call) == 6 * written


def test_winograd_does_36_products_for_16_outputs():
    c, o = 32, 48
    x, out, weight = images(2, c, 8, 12), images(2, o, 8, 12), View.of(winograd_weight(torch.zeros(o, c, 3, 3)))
    assert multiply_adds(winograd(Operands(x, out, WINDOW), weight)) == 2 * 8 * 12 * c * o * 36 / 16
    assert moved(winograd(Operands(x, out, WINDOW, Ending(residual=out)), weight)) == 4 * (
        2 * 96 * (c + 2 * o) + 36 * c * wide(o)
    )
    uneven = winograd(Operands(images(1, c, 5, 3), images(1, o, 5, 3), WINDOW), weight)  # two tiles
    assert multiply_adds(uneven) == 2 * 36 * c * o


def test_products_are_counted_as_torch_counts_them():
    weight = View.of(linear_weight(torch.zeros(7, 5)))
    assert multiply_adds(linear(zeros(3, 4, 5), weight, zeros(3, 4, 7))) == 3 * 4 * 5 * 7
    call = matmul(zeros(3, 4, 5), zeros(5, 6), zeros(3, 4, 6))
    assert multiply_adds(call) == by_torch(torch.matmul, (3, 4, 5), (5, 6))
    assert moved(call) == 4 * (3 * 4 * 5 + 5 * 6 + 3 * 4 * 6)
    q, k, v, out = zeros(2, 3, 6, 4), zeros(2, 3, 5, 4), zeros(2, 3, 5, 8), zeros(2, 3, 6, 8)
    assert multiply_adds(softmax_attention(q, k, v, out)) == 2 * 3 * 6 * 5 * (4 + 8)


def test_an_attention_block_is_counted_with_its_matrices_folded_or_not():
    n, c, heads, d, p = 2, 40, 2, 32, 6 * 6
    width = heads * d

    def made(c):
        into, out, vector = torch.zeros(3 * width, c, 1, 1), torch.zeros(c, width, 1, 1), torch.zeros(c)
        gain = torch.zeros(1, c, 1, 1)
        packed = attention.pack(fold(vector, vector, into, out, vector, gain, heads, False, 1e-5))
        memory = zeros(*packed.numbers_shape(n)), zeros(*packed.context_shape(n))
        return packed, attention.attention_block(images(n, c, 6, 6), packed, images(n, c, 6, 6), *memory)

    for c in (16, 40, 128):
        packed, (statistics, context, output) = made(c)
        values = c * c * d if packed.second is None else 2 * c * d * d
        assert multiply_adds(statistics) == 0
        assert multiply_adds(context) == n * heads * (2 * p * c * d + values)
        assert multiply_adds(output) == n * p * 2 * c * width


def test_what_is_broadcast_or_read_twice_moves_once():
    x, row = zeros(3, 4), zeros(4)
    call = pointwise(x, [x, broadcast(row, (3, 4)), x], [("mul", 0, 1), ("add", 3, 2)])
    assert multiply_adds(call) == 0 and moved(call) == 4 * (12 + 4 + 12)


def test_a_core_does_at_least_a_vector_in_four_cycles():
    assert rate(0.01) > 1e8 * compiled.vector_width()
