"""Depthwise convolutions, also transposed."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.depthwise import depthwise, depthwise_gradient, depthwise_weight
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.operands import Operands, calls
from fastdiff.kernels.cpu.phases import in_phases, phase_taps
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.window import Window

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
    packed, window = View.of(depthwise_weight(weight)), Window(kernel, stride, (top, left), dilation)
    ours = computed(
        lambda out, x, bias, residual: depthwise(Operands(x, out, window, Ending(bias, activation, residual)), packed),
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


def weight_gradient(x, dy, window, threads=1):
    """(B, KH, KW, C), written between NaN that stay."""
    view = View.of
    shape = (len(x), *window.kernel, x.shape[1])
    count = math.prod(shape)
    memory = torch.full((count + 10,), torch.nan)
    dw = memory[5:-5].view(shape)
    x, dy = (one.contiguous(memory_format=torch.channels_last) for one in (x, dy))
    run([depthwise_gradient(view(x), view(dy), view(dw), window)], threads)
    assert memory[:5].isnan().all() and memory[-5:].isnan().all()
    return dw


@settings(max_examples=100)
@given(SIZES, CHANNELS, st.tuples(*[st.integers(1, 9)] * 2), PAIRS, PAIRS, st.tuples(*[st.integers(0, 4)] * 2))
def test_the_gradient_of_the_weight(sizes, c, kernel, stride, dilation, padding):
    """Against float64; its bits depend neither on the threads nor on the other pictures."""
    torch.manual_seed(0)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    b, *size = sizes
    size = [max(length, span - 2 * pad) for length, span, pad in zip(size, spans, padding, strict=True)]
    x, weight = torch.randn(b, c, *size), torch.zeros(c, 1, *kernel, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x.double(), weight, None, stride, padding, dilation, groups=c)
    dy = torch.randn(y.shape)
    window = Window(kernel, stride, padding, dilation)
    ours = weight_gradient(x, dy, window)
    (expected,) = torch.autograd.grad(y, weight, dy.double())
    found = ours.double().sum(0).permute(2, 0, 1)[:, None]
    assert (found - expected).norm() <= 2e-6 * expected.norm() + 1e-6
    for threads in (2, 3, 5):
        assert torch.equal(ours, weight_gradient(x, dy, window, threads))
    assert torch.equal(ours[-1:], weight_gradient(x[-1:], dy[-1:], window))


@pytest.mark.parametrize("c, size", [(28, 28), (40, 7), (16, 70)])  # the last in more than one band of rows
@pytest.mark.parametrize("kernel", [3, 7])
def test_layers_of_networks(computed, rel, c, size, kernel):
    x, weight, bias = torch.randn(2, c, size, size), torch.randn(c, 1, kernel, kernel), torch.randn(c)
    packed, window = View.of(depthwise_weight(weight)), Window((kernel, kernel), padding=(kernel // 2, kernel // 2))
    ours = computed(
        lambda out, x: depthwise(Operands(x, out, window, Ending(View.of(bias))), packed), tuple(x.shape), x
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
    window = Window(kernel, stride, padding)
    weights = [View.of(depthwise_weight(taps)) for taps in phase_taps(weight, window)]
    residual = torch.randn(expected.shape)
    ours = computed(
        lambda out, x, bias, residual: calls(
            depthwise, in_phases(Operands(x, out, window, Ending(bias, "relu", residual))), weights
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
    packed, window = View.of(depthwise_weight(weight)), Window((2, 2), (2, 2))
    down = computed(lambda out, x: depthwise(Operands(x, out, window), packed), (2, 20, 3, 4), x)
    assert rel(down, F.conv2d(x.double(), weight.double(), stride=2, groups=20)) < 1e-6
    weights = [View.of(depthwise_weight(taps)) for taps in phase_taps(weight * 4, window)]
    up = computed(lambda out, x: calls(depthwise, in_phases(Operands(x, out, window)), weights), (2, 20, 12, 16), x)
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
        ({"window": Window((2, 2), padding=(1, 1))}, "weight has shape"),
        ({"ending": Ending(zeros(17))}, "bias has shape"),
        ({"ending": Ending(residual=zeros(1, 16, 4, 5))}, "residual has shape"),
        ({"ending": Ending(activation="tanh")}, "'tanh'"),
        ({"norm": zeros(1, 2, 16)}, "norm has shape"),
    ],
)
def test_bad_input_is_named(change, words):
    weight, window = View.of(depthwise_weight(torch.zeros(16, 1, 3, 3))), Window((3, 3), padding=(1, 1))
    given = {"x": zeros(1, 16, 4, 4), "weight": weight, "out": zeros(1, 16, 4, 4), "window": window}

    def made(weight, **operands):
        return depthwise(Operands(**operands), weight)

    made(**given)
    with pytest.raises(ValueError, match=words):
        made(**{**given, **change})
