"""Depthwise convolutions, also transposed."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.depthwise import (
    depthwise,
    depthwise_weight,
    transposed_depthwise,
    transposed_depthwise_weights,
)
from fastdiff.kernels.cpu.plan import View

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14))
CHANNELS = st.sampled_from([1, 3, 4, 7, 16, 17, 30, 40])


@settings(max_examples=150)
@given(
    SIZES,
    CHANNELS,
    PAIRS,
    PAIRS,
    PAIRS,
    st.tuples(*[st.integers(-1, 4)] * 4),
    st.sampled_from([None, "gelu", "silu"]),
    st.booleans(),
)
def test_any_window(computed, activations, sizes, c, kernel, stride, dilation, padding, activation, more):
    torch.manual_seed(0)
    (b, h, w), (top, bottom, left, right) = sizes, padding
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    bottom, right = max(bottom, spans[0] - h - top), max(right, spans[1] - w - left)
    size = [
        (length - span) // step + 1
        for length, span, step in zip((h + top + bottom, w + left + right), spans, stride, strict=True)
    ]
    x, weight = torch.randn(b, c, h, w), torch.randn(c, 1, *kernel)
    bias, residual = (torch.randn(b, c), torch.randn(b, c, *size)) if more else (None, None)
    packed = View.of(depthwise_weight(weight))
    ours = computed(
        lambda out, x, bias, residual: depthwise(
            x, packed, out, kernel, stride, (top, left), dilation, bias, activation, residual
        ),
        (b, c, *size),
        x,
        bias,
        residual,
    )
    expected = F.conv2d(
        F.pad(x.double(), (left, right, top, bottom)), weight.double(), None, stride, 0, dilation, groups=c
    )
    expected = activations[activation](expected + bias[:, :, None, None] if more else expected)
    expected = expected + residual if more else expected
    assert (ours - expected).norm() <= 2e-6 * expected.norm() + 1e-6


@pytest.mark.parametrize("c, size", [(28, 28), (40, 7), (16, 70)])  # the last in more than one band of rows
@pytest.mark.parametrize("kernel", [3, 7])
def test_layers_of_networks(computed, rel, c, size, kernel):
    x, weight, bias = torch.randn(2, c, size, size), torch.randn(c, 1, kernel, kernel), torch.randn(c)
    packed = View.of(depthwise_weight(weight))
    ours = computed(
        lambda out, x: depthwise(x, packed, out, kernel, padding=kernel // 2, bias=View.of(bias)), tuple(x.shape), x
    )
    assert rel(ours, F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2, groups=c)) < 1e-6


@settings(max_examples=60)
@given(SIZES, CHANNELS, PAIRS, PAIRS, PAIRS.map(lambda pair: (pair[0] - 1, pair[1] - 1)))
def test_transposed(computed, sizes, c, kernel, stride, padding):
    torch.manual_seed(0)
    b, h, w = sizes
    x, weight, bias = torch.randn(b, c, h, w), torch.randn(c, 1, *kernel), torch.randn(b, c)
    spans = [(n - 1) * s + k for n, k, s in zip((h, w), kernel, stride, strict=True)]
    padding = tuple(min(p, (span - 1) // 2) for p, span in zip(padding, spans, strict=True))
    further = tuple(s - 1 for s in stride)
    expected = F.conv_transpose2d(x.double(), weight.double(), None, stride, padding, further, groups=c)
    expected = F.relu(expected + bias[:, :, None, None])
    packed = [View.of(one) for one in transposed_depthwise_weights(weight, stride, padding)]
    residual = torch.randn(expected.shape)
    ours = computed(
        lambda out, x, bias, residual: transposed_depthwise(
            x, packed, out, kernel, stride, padding, 1, bias, "relu", residual
        ),
        tuple(expected.shape),
        x,
        bias,
        residual,
    )
    expected = expected + residual
    assert (ours - expected).norm() <= 1e-6 * expected.norm() + 1e-6


def test_edm_resampling(computed, rel):
    """A box filter down and up by two, for each channel (Karras et al. 2022)."""
    x, weight = torch.randn(2, 20, 6, 8), torch.full((20, 1, 2, 2), 0.25)
    down = computed(lambda out, x: depthwise(x, View.of(depthwise_weight(weight)), out, 2, 2), (2, 20, 3, 4), x)
    assert rel(down, F.conv2d(x.double(), weight.double(), stride=2, groups=20)) < 1e-6
    packed = [View.of(one) for one in transposed_depthwise_weights(weight * 4, 2)]
    up = computed(lambda out, x: transposed_depthwise(x, packed, out, 2, 2), (2, 20, 12, 16), x)
    assert rel(up, F.conv_transpose2d(x.double(), weight.double() * 4, stride=2, groups=20)) < 1e-6


def zeros(*shape):
    made = torch.zeros(shape)
    return View.of(made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": View.of(torch.zeros(1, 16, 4, 4))}, "x has shape"),
        ({"x": zeros(16, 4, 4)}, "x has shape"),
        ({"out": zeros(1, 17, 4, 4)}, "out has shape"),
        ({"weight": View.of(depthwise_weight(torch.zeros(50, 1, 3, 3)))}, "weight has shape"),
        ({"kernel": 2}, "weight has shape"),
        ({"stride": 0}, "stride = 0"),
        ({"bias": zeros(17)}, "bias has shape"),
        ({"residual": zeros(1, 16, 4, 5)}, "residual has shape"),
        ({"activation": "tanh"}, "'tanh'"),
    ],
)
def test_bad_input_is_named(change, words):
    weight = View.of(depthwise_weight(torch.zeros(16, 1, 3, 3)))
    arguments = {"x": zeros(1, 16, 4, 4), "weight": weight, "out": zeros(1, 16, 4, 4), "kernel": 3, "padding": 1}
    depthwise(**arguments)
    with pytest.raises(ValueError, match=words):
        depthwise(**{**arguments, **change})
