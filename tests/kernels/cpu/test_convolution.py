"""Convolutions by a product with what each output sees, also transposed and in groups."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.convolution import convolution, convolution_weight
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.operands import Operands, calls, in_groups
from fastdiff.kernels.cpu.phases import in_phases, phase_taps
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.window import Window

BOUND = 1e-6
PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
CHANNELS = st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 33, 40])


def extras(b, c, o, size):
    """A bias for each picture, a residual, and a norm's numbers."""
    return torch.randn(b, o), torch.randn(b, o, *size), torch.randn(b, 2, c)


def packed(kernels):
    return [View.of(convolution_weight(kernel)) for kernel in kernels]


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
    packed, window = View.of(convolution_weight(weight)), Window(kernel, stride, (top, left), dilation)
    ours = computed(
        lambda out, x, bias, residual, norm: convolution(
            Operands(x, out, window, Ending(bias, activation, residual), norm), packed
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
    packed, ending = View.of(convolution_weight(weight)), Ending(View.of(bias))
    window = Window((kernel, kernel), (stride, stride), (padding, padding))
    ours = computed(lambda out, x: convolution(Operands(x, out, window, ending), packed), tuple(expected.shape), x)
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
    window = Window(kernel, stride, padding, dilation)
    weights = packed(phase_taps(weight, window))
    ours = computed(
        lambda out, x, bias, residual, norm: calls(
            convolution, in_phases(Operands(x, out, window, Ending(bias, "relu", residual), norm)), weights
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
    window = Window((kernel, kernel), (stride, stride), (padding, padding))
    weights = packed(phase_taps(weight, window))
    ours = computed(
        lambda out, x: calls(convolution, in_phases(Operands(x, out, window)), weights), tuple(expected.shape), x
    )
    assert rel(ours, expected) < BOUND


@pytest.mark.parametrize("c, o, groups", [(6, 4, 2), (40, 20, 5), (12, 24, 4)])
def test_groups(computed, rel, c, o, groups):
    x, weight = torch.randn(2, c, 6, 5), torch.randn(o, c // groups, 3, 3)
    bias, residual, norm = extras(2, c, o, (3, 3))
    weights, window = packed(weight.chunk(groups)), Window((3, 3), (2, 2), (1, 1))

    def made(out, x, bias, activation=None, residual=None, norm=None):
        whole = Operands(x, out, window, Ending(bias, activation, residual), norm)
        return calls(convolution, in_groups(whole, groups), weights)

    ours = computed(
        lambda out, x, bias, residual, norm: made(out, x, bias, "silu", residual, norm),
        (2, o, 3, 3),
        x,
        bias,
        residual,
        norm,
    )
    expected = F.conv2d(normed(x, norm), weight.double(), None, 2, 1, 1, groups) + bias[:, :, None, None]
    assert rel(ours, F.silu(expected) + residual) < BOUND
    shared = torch.randn(o)
    ours = computed(lambda out, x: made(out, x, View.of(shared)), (2, o, 3, 3), x)
    assert rel(ours, F.conv2d(x.double(), weight.double(), shared.double(), 2, 1, 1, groups)) < BOUND


@pytest.mark.parametrize(
    "c, o, groups, kernel, stride, padding, further",
    [
        (8, 16, 2, (4, 4), (2, 2), (1, 1), (0, 0)),
        (6, 4, 2, (3, 2), (2, 3), (1, 0), (1, 2)),
        (40, 20, 5, (2, 2), (3, 3), (0, 0), (0, 0)),  # some phases have no taps
        (12, 36, 4, (3, 3), (1, 1), (1, 1), (0, 0)),
    ],
)
def test_transposed_in_groups(computed, rel, c, o, groups, kernel, stride, padding, further):
    x, weight, window = torch.randn(2, c, 5, 4), torch.randn(c, o // groups, *kernel), Window(kernel, stride, padding)

    def exact(x, bias):
        given = x.double(), weight.double(), None if bias is None else bias.double()
        return F.conv_transpose2d(*given, stride, padding, further, groups)

    weights = packed([taps for part in weight.chunk(groups) for taps in phase_taps(part, window)])

    def made(out, x, ending, norm=None):
        parts = in_groups(Operands(x, out, window, ending, norm), groups)
        return calls(convolution, [phase for part in parts for phase in in_phases(part)], weights)

    shared = torch.randn(o)
    expected = exact(x, shared)
    shape = tuple(expected.shape)
    assert rel(computed(lambda out, x: made(out, x, Ending(View.of(shared))), shape, x), expected) < BOUND
    bias, residual, norm = extras(2, c, o, shape[2:])
    ours = computed(
        lambda out, x, bias, residual, norm: made(out, x, Ending(bias, "silu", residual), norm),
        shape,
        x,
        bias,
        residual,
        norm,
    )
    assert rel(ours, F.silu(exact(normed(x, norm), None) + bias[:, :, None, None]) + residual) < BOUND


def test_what_is_not_finite_stays_visible(computed):
    x, packed = torch.randn(2, 3, 6, 6), View.of(convolution_weight(torch.randn(17, 3, 3, 3)))
    x[1, 2, 2, 3] = torch.inf
    window = Window((3, 3), padding=(1, 1))
    ours = computed(lambda out, x: convolution(Operands(x, out, window), packed), (2, 17, 6, 6), x)
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
        ({"window": Window((2, 2), padding=(1, 1))}, "weight has shape"),
        ({"ending": Ending(zeros(2))}, "bias has shape"),
        ({"ending": Ending(residual=zeros(1, 3, 4, 5))}, "residual has shape"),
        ({"ending": Ending(residual=View.of(torch.zeros(1, 3, 4, 4)))}, "residual has shape .* side by side"),
        ({"norm": zeros(1, 2, 3)}, "norm has shape"),
        ({"norm": View.of(torch.zeros(1, 2, 4)[:, :, ::2])}, "norm has strides"),
        ({"ending": Ending(activation="tanh")}, "'tanh'"),
    ],
)
def test_bad_input_is_named(change, words):
    weight = View.of(convolution_weight(torch.zeros(3, 2, 3, 3)))
    given = {
        "x": zeros(1, 2, 4, 4),
        "weight": weight,
        "out": zeros(1, 3, 4, 4),
        "window": Window((3, 3), (1, 1), (1, 1)),
    }

    def made(weight, **operands):
        return convolution(Operands(**operands), weight)

    made(**given)
    with pytest.raises(ValueError, match=words):
        made(**{**given, **change})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kernel": (3, -1)}, r"kernel = \(3, -1\)"),
        ({"stride": (1, 0)}, r"stride = \(1, 0\)"),
        ({"dilation": (0, 1)}, r"dilation = \(0, 1\)"),
        ({"padding": (2**31, 0)}, r"padding = \(2147483648, 0\)"),
        ({"padding": (0, -(2**31))}, r"padding = \(0, -2147483648\)"),
    ],
)
def test_bad_windows_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        Window(**{"kernel": (3, 3), **change})


def test_bad_parts_are_named():
    window = Window((4, 4), (2, 2), (1, 1))
    parts = in_phases(Operands(zeros(1, 2, 4, 4), zeros(1, 4, 8, 8), window))
    weights = packed(phase_taps(torch.zeros(2, 4, 4, 4), window))
    assert len(calls(convolution, parts, weights)) == 4
    with pytest.raises(ValueError, match="3 weights; accepted: 4"):
        calls(convolution, parts, weights[:3])
    for groups in (0, 4, 3):
        with pytest.raises(ValueError, match=f"{groups} groups"):
            in_groups(Operands(zeros(1, 2, 4, 4), zeros(1, 4, 4, 4), window), groups)
