"""Convolutions by a product with what each output sees, also transposed and in groups."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.convolution import (
    convolution,
    convolution_weight,
    grouped_convolution,
    grouped_weights,
    transposed_convolution,
    transposed_weights,
)
from fastdiff.kernels.cpu.plan import View

BOUND = 1e-6
PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
CHANNELS = st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 33, 40])


def extras(b, c, o, size):
    """A bias for each picture, a residual, and a norm's numbers."""
    return torch.randn(b, o), torch.randn(b, o, *size), torch.randn(b, 2, c)


def normed(x, norm):
    return x.double() * norm[:, 0, :, None, None] + norm[:, 1, :, None, None]


@settings(max_examples=150)
@given(
    SIZES,
    CHANNELS,
    CHANNELS,
    PAIRS,
    PAIRS,
    PAIRS,
    st.tuples(*[st.integers(-1, 4)] * 4),
    st.sampled_from([None, "gelu", "gelu_tanh", "silu", "relu"]),
    st.booleans(),
)
def test_any_window(computed, activations, sizes, c, o, kernel, stride, dilation, padding, activation, more):
    torch.manual_seed(0)
    (b, h, w), (top, bottom, left, right) = sizes, padding
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    bottom, right = max(bottom, spans[0] - h - top), max(right, spans[1] - w - left)
    size = [
        (length - span) // step + 1
        for length, span, step in zip((h + top + bottom, w + left + right), spans, stride, strict=True)
    ]
    x, weight = torch.randn(b, c, h, w), torch.randn(o, c, *kernel)
    bias, residual, norm = extras(b, c, o, size) if more else (None, None, None)
    packed = View.of(convolution_weight(weight))
    ours = computed(
        lambda out, x, bias, residual, norm: convolution(
            x, packed, out, kernel, stride, (top, left), dilation, bias, activation, residual, norm
        ),
        (b, o, *size),
        x,
        bias,
        residual,
        norm,
    )
    seen = F.pad(normed(x, norm) if more else x.double(), (left, right, top, bottom))
    expected = F.conv2d(seen, weight.double(), None, stride, 0, dilation)
    expected = activations[activation](expected + bias.double()[:, :, None, None] if more else expected)
    expected = expected + residual if more else expected
    assert (ours - expected).norm() <= BOUND * expected.norm() + 1e-6


@pytest.mark.parametrize(
    "c, o, kernel, stride, padding, size",
    [
        (3, 64, 3, 1, 1, 12),
        (1, 18, 7, 1, 3, 14),
        (64, 3, 3, 1, 1, 9),
        (28, 28, 4, 2, 1, 14),
        (64, 70, 1, 2, 0, 9),
        (4, 7, 16, 16, 0, 33),
    ],
)
def test_layers_of_networks(computed, rel, c, o, kernel, stride, padding, size):
    x, weight, bias = torch.randn(2, c, size, size), torch.randn(o, c, kernel, kernel), torch.randn(o)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    packed, bias = View.of(convolution_weight(weight)), View.of(bias)
    ours = computed(
        lambda out, x: convolution(x, packed, out, kernel, stride, padding, bias=bias), tuple(expected.shape), x
    )
    assert rel(ours, expected) < BOUND


@settings(max_examples=100)
@given(
    SIZES, CHANNELS, CHANNELS, PAIRS, PAIRS, PAIRS, PAIRS.map(lambda pair: (pair[0] - 1, pair[1] - 1)), st.booleans()
)
def test_transposed(computed, sizes, c, o, kernel, stride, dilation, padding, more):
    torch.manual_seed(0)
    b, h, w = sizes
    x, weight = torch.randn(b, c, h, w), torch.randn(c, o, *kernel)
    spans = [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip((h, w), kernel, stride, dilation, strict=True)]
    padding = tuple(min(p, (span - 1) // 2) for p, span in zip(padding, spans, strict=True))
    further = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
    bias, residual, norm = torch.randn(b, o), None, None
    size = [span - 2 * p + f for span, p, f in zip(spans, padding, further, strict=True)]
    if more:
        bias, residual, norm = extras(b, c, o, size)
    packed = [View.of(one) for one in transposed_weights(weight, stride, padding, dilation)]
    ours = computed(
        lambda out, x, bias, residual, norm: transposed_convolution(
            x, packed, out, kernel, stride, padding, dilation, bias, "relu", residual, norm
        ),
        (b, o, *size),
        x,
        bias,
        residual,
        norm,
    )
    seen = normed(x, norm) if more else x.double()
    expected = F.conv_transpose2d(seen, weight.double(), None, stride, padding, further, 1, dilation)
    expected = F.relu(expected + bias[:, :, None, None]) + (residual if more else 0)
    assert (ours - expected).norm() <= BOUND * expected.norm() + 1e-6


@pytest.mark.parametrize(
    "kernel, stride, padding, further, size", [(4, 2, 1, 0, 5), (2, 2, 0, 0, 7), (7, 7, 0, 0, 1), (3, 2, 1, 1, 4)]
)
def test_transposed_layers_of_networks(computed, rel, kernel, stride, padding, further, size):
    x, weight = torch.randn(3, 20, size, size), torch.randn(20, 18, kernel, kernel)
    expected = F.conv_transpose2d(x.double(), weight.double(), None, stride, padding, further)
    packed = [View.of(one) for one in transposed_weights(weight, stride, padding)]
    ours = computed(
        lambda out, x: transposed_convolution(x, packed, out, kernel, stride, padding), tuple(expected.shape), x
    )
    assert rel(ours, expected) < BOUND


@pytest.mark.parametrize("c, o, groups", [(6, 4, 2), (40, 20, 5), (12, 24, 4)])
def test_groups(computed, rel, c, o, groups):
    x, weight = torch.randn(2, c, 6, 5), torch.randn(o, c // groups, 3, 3)
    bias, residual, norm = extras(2, c, o, (3, 3))
    packed = [View.of(one) for one in grouped_weights(weight, groups)]
    ours = computed(
        lambda out, x, bias, residual, norm: grouped_convolution(
            x, packed, out, 3, 2, 1, 1, bias, "silu", residual, norm
        ),
        (2, o, 3, 3),
        x,
        bias,
        residual,
        norm,
    )
    expected = F.conv2d(normed(x, norm), weight.double(), None, 2, 1, 1, groups) + bias[:, :, None, None]
    assert rel(ours, F.silu(expected) + residual) < BOUND
    shared = torch.randn(o)
    ours = computed(lambda out, x: grouped_convolution(x, packed, out, 3, 2, 1, bias=View.of(shared)), (2, o, 3, 3), x)
    assert rel(ours, F.conv2d(x.double(), weight.double(), shared.double(), 2, 1, 1, groups)) < BOUND


def test_what_is_not_finite_stays_visible(computed):
    x, packed = torch.randn(2, 3, 6, 6), View.of(convolution_weight(torch.randn(17, 3, 3, 3)))
    x[1, 2, 2, 3] = torch.inf
    ours = computed(lambda out, x: convolution(x, packed, out, 3, padding=1), (2, 17, 6, 6), x)
    seen = F.max_pool2d((~x.isfinite()).float().amax(1, keepdim=True), 3, 1, 1) > 0
    assert ours.isfinite().equal(~seen.expand_as(ours))


def zeros(*shape):
    made = torch.zeros(shape)
    return View.of(made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": View.of(torch.zeros(1, 2, 4, 4))}, "x has shape"),
        ({"x": zeros(1, 2, 4)}, "x has shape"),
        ({"out": zeros(2, 3, 4, 4)}, "out has shape"),
        ({"out": zeros(1, 3, 4, 0)}, "out not empty"),
        ({"out": View.of(torch.zeros(1, 3, 4, 4))}, "side by side"),
        ({"weight": zeros(7)}, "weight has shape"),
        ({"kernel": 2}, "weight has shape"),
        ({"kernel": -1}, "kernel = -1"),
        ({"stride": (1, 0)}, r"stride = \(1, 0\)"),
        ({"dilation": 0}, "dilation = 0"),
        ({"padding": 2**31}, "padding = 2147483648"),
        ({"bias": zeros(2)}, "bias has shape"),
        ({"residual": zeros(1, 3, 4, 5)}, "residual has shape"),
        ({"norm": zeros(1, 2, 3)}, "norm has shape"),
        ({"norm": View.of(torch.zeros(1, 2, 4)[:, :, ::2])}, "norm has strides"),
        ({"activation": "tanh"}, "'tanh'"),
    ],
)
def test_bad_input_is_named(change, words):
    weight = View.of(convolution_weight(torch.zeros(3, 2, 3, 3)))
    arguments = {"x": zeros(1, 2, 4, 4), "weight": weight, "out": zeros(1, 3, 4, 4), "kernel": 3, "padding": 1}
    convolution(**arguments)
    with pytest.raises(ValueError, match=words):
        convolution(**{**arguments, **change})


def test_bad_input_of_lists_is_named():
    weights = [View.of(one) for one in transposed_weights(torch.zeros(2, 4, 4, 4), 2, 1)]
    x, out = zeros(1, 2, 4, 4), zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="3 weights"):
        transposed_convolution(x, weights[:3], out, 4, 2, 1)
    with pytest.raises(ValueError, match="residual has shape"):
        transposed_convolution(x, weights, out, 4, 2, 1, residual=zeros(1, 4, 7, 8))
    with pytest.raises(ValueError, match="stride = 0"):
        transposed_weights(torch.zeros(2, 4, 4, 4), 0)
    weights = [View.of(one) for one in grouped_weights(torch.zeros(4, 1, 3, 3), 2)]
    for changed, words in (
        ({"weights": weights * 2}, "4 groups"),
        ({"bias": zeros(3)}, "bias has shape"),
        ({"residual": zeros(1, 6, 8, 8)}, "residual has shape"),
        ({"norm": zeros(1, 2, 4)}, "norm has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            grouped_convolution(**{"x": x, "weights": weights, "out": out, "kernel": 3, **changed})
