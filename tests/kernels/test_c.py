"""The CPU kernels in C against float64, on odd shapes."""

import itertools
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.attention_block import attention_block_reference
from fastdiff.kernels.cpu import attention as native_attention
from fastdiff.kernels.cpu import compiled
from fastdiff.kernels.cpu import linear as native_linear
from fastdiff.kernels.cpu import operators as native
from fastdiff.kernels.cpu.position_norm import position_norm
from fastdiff.kernels.cpu.softmax_attention import softmax_attention
from fastdiff.kernels.folded_attention import fold
from fastdiff.kernels.group_norm import group_norm_reference
from fastdiff.kernels.position_norm import position_norm as position_norm_reference

needs_compiler = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))


@pytest.fixture(autouse=True)
def poisoned():
    """Uninitialised memory is NaN, so that an element that no kernel wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def test_a_compiler_that_is_there_compiles():
    """The suite must not pass by skipping what it is about."""
    assert compiled.build_error() in (None, "no C compiler (cc, gcc or clang) was found")


CONVOLUTIONS = [
    # batch, in, out, height, width: one pixel, a whole tile, one row more, odd, wide; widths with every kind of tail
    (1, 16, 16, 1, 1),
    (2, 17, 19, 4, 4),
    (3, 28, 56, 5, 4),
    (1, 56, 28, 7, 7),
    (2, 33, 16, 3, 11),
    (5, 24, 40, 14, 14),
    (1, 112, 224, 7, 7),
    (2, 64, 64, 16, 16),
    (70, 16, 18, 2, 3),
]


# Relative, of one convolution: m = 4 has factors from 1/24 to 8 in its transforms, m = 2 from 1/2 to 1.
BOUNDS = {2: 1e-6, 4: 5e-6}


@needs_compiler
@pytest.mark.parametrize("b, c, o, h, w", CONVOLUTIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop", "half of a concatenation"])
@pytest.mark.parametrize("m", BOUNDS)
def test_the_convolution(b, c, o, h, w, layout, m, layouts, rel):
    x, weight, bias = torch.randn(b, c, h, w), torch.randn(o, c, 3, 3) / (3 * c**0.5), torch.randn(o)
    packed = native.winograd_weight(weight, m)
    ours = native.winograd(layouts(x)[layout], packed, bias, o)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert ours.shape == expected.shape and ours.is_contiguous(memory_format=torch.channels_last)
    assert rel(ours, expected) < BOUNDS[m]
    without = native.winograd(layouts(x)[layout], packed, None, o)
    assert rel(without, expected - bias.double().view(-1, 1, 1)) < BOUNDS[m]


ACTIVATIONS = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


@needs_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups, normed, added", [(1, True, True), (4, True, False), (1, False, True)])
@pytest.mark.parametrize("m", BOUNDS)
def test_what_the_convolution_takes_along(activation, groups, normed, added, m, rel):
    b, c, o, h, w = 3, 20, 24, 6, 7
    x, weight, bias = 2 + 3 * torch.randn(b, c, h, w), torch.randn(o, c, 3, 3) / 10, torch.randn(o)
    gain, shift, residual = torch.randn(c), torch.randn(c), torch.randn(b, o, h, w)
    ours = native.winograd(
        x,
        native.winograd_weight(weight, m),
        bias,
        o,
        activation,
        residual if added else None,
        (groups, gain, shift, 1e-5) if normed else None,
    )
    given = F.group_norm(x.double(), groups, gain.double(), shift.double()) if normed else x.double()
    expected = ACTIVATIONS[activation](F.conv2d(given, weight.double(), bias.double(), padding=1))
    assert rel(ours, expected + residual.double() if added else expected) < 5e-6


@needs_compiler
@pytest.mark.parametrize(
    "b, c, groups, h, w", [(1, 16, 1, 1, 2), (2, 24, 8, 5, 3), (3, 28, 1, 28, 28), (2, 18, 3, 2, 9)]
)
@pytest.mark.parametrize("after", ACTIVATIONS)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_norm(b, c, groups, h, w, after, mean, rel):
    x, weight, bias = mean + torch.randn(b, c, h, w), torch.randn(c), torch.randn(c)
    expected = group_norm_reference(x.double(), groups, weight.double(), bias.double(), after=after)
    assert rel(native.group_norm(x, groups, weight, bias, after=after), expected) < (2e-6 if mean == 0 else 1e-4)


@needs_compiler
@pytest.mark.parametrize("b, c, h, w", [(1, 16, 1, 1), (3, 28, 28, 28), (2, 18, 3, 13), (2, 40, 7, 7), (5, 112, 14, 4)])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop"])
def test_the_depthwise_convolution(b, c, h, w, size, layout, layouts, rel):
    x, weight, bias = torch.randn(b, c, h, w), torch.randn(c, 1, size, size), torch.randn(c)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=size // 2, groups=c)
    packed = native.depthwise_weight(weight)
    assert rel(native.depthwise(layouts(x)[layout], packed, bias), expected) < 2e-6
    without = native.depthwise(layouts(x)[layout], packed, None)
    assert rel(without, expected - bias.double().view(-1, 1, 1)) < 2e-6


@needs_compiler
def test_numbers_of_each_picture(rel):
    """Biases and a norm's weights that differ in a batch, or are said to be one picture's for all."""
    x, w, taps = torch.randn(3, 20, 5, 7), torch.randn(24, 20, 3, 3) / 10, torch.randn(20, 1, 3, 3)
    bias, gain, shift = torch.randn(3, 24), torch.randn(3, 20), torch.randn(3, 20)
    for rows in (slice(0, 3), slice(0, 1)):
        b, g, s = bias[rows], gain[rows], shift[rows]
        whole = [one.double()[:, :, None, None] for one in (b, g, s)]
        for m in (2, 4):
            ours = native.winograd(x, native.winograd_weight(w, m), b, 24, "silu")
            assert rel(ours, F.silu(F.conv2d(x.double(), w.double(), padding=1) + whole[0])) < 5e-6
        normed = F.group_norm(x.double(), 4)
        assert rel(native.group_norm(x, 4, g, s, after="relu"), F.relu(normed * whole[1] + whole[2])) < 2e-6
        deep = F.conv2d(x.double(), taps.double(), padding=1, groups=20) + whole[2]
        assert rel(native.depthwise(x, native.depthwise_weight(taps), s), deep) < 2e-6


@needs_compiler
@pytest.mark.parametrize("m, c, o", [(2, 9, 11), (5, 3, 17), (50, 64, 100), (97, 40, 33), (200, 16, 384)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_linear_layer(m, c, o, activation, rel):
    x, weight, bias, residual = torch.randn(m, c), torch.randn(o, c), torch.randn(o), torch.randn(o, m).t()
    packed = native_linear.linear_weight(weight)
    expected = ACTIVATIONS[activation](F.linear(x.double(), weight.double(), bias.double()))
    assert rel(native_linear.linear(x, packed, bias, o, activation), expected) < 1e-6
    assert rel(native_linear.linear(x, packed, bias, o, activation, residual), expected + residual) < 1e-6
    without = native_linear.linear(x.t().contiguous().t(), packed, None, o)
    assert rel(without, F.linear(x.double(), weight.double())) < 1e-6


@needs_compiler
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop", "half of a concatenation"])
def test_the_1x1_convolution(layout, layouts, rel):
    x, weight, residual = torch.randn(2, 20, 5, 7), torch.randn(19, 20, 1, 1), torch.randn(2, 19, 5, 7)
    packed = native_linear.linear_weight(weight)
    ours = native_linear.pointwise(layouts(x)[layout], packed, None, 19, "silu", residual)
    assert rel(ours, F.silu(F.conv2d(x.double(), weight.double())) + residual) < 1e-6
    assert ours.is_contiguous(memory_format=torch.channels_last)
    line = native_linear.pointwise(x.flatten(2), packed, None, 19)
    assert rel(line, F.conv1d(x.flatten(2).double(), weight.flatten(2).double())) < 1e-6


ATTENTIONS = [
    # batch, heads, queries, keys, width of a key, width of a value
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 3, 17),
    (2, 2, 49, 49, 32, 32),
    (1, 4, 64, 100, 8, 8),
    (3, 1, 25, 33, 40, 24),
]


@needs_compiler
@pytest.mark.parametrize("b, h, n, m, d, e", ATTENTIONS)
@pytest.mark.parametrize("scale", [None, 0.3, 20.0])
def test_softmax_attention(b, h, n, m, d, e, scale, rel):
    """At a scale of 20 the largest weight is nearly 1, and exponents of the others are down to e^-100."""
    q, k, v = torch.randn(b, n, h, d).transpose(1, 2), torch.randn(b, h, d, m).transpose(2, 3), torch.randn(b, h, m, e)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    ours = softmax_attention(q, k, v, scale)
    assert ours.transpose(1, 2).is_contiguous()
    assert rel(ours, expected) < (1e-6 if scale is None else 1e-5)


@needs_compiler
@pytest.mark.parametrize("b, c, h, w", [(1, 1, 1, 1), (2, 5, 3, 4), (3, 16, 7, 5), (2, 43, 2, 3)])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("after", ACTIVATIONS)
def test_the_norm_over_channels(b, c, h, w, centred, after, layouts, rel):
    x, residual = 3 + torch.randn(b, c, h, w), torch.randn(b, c, h, w)
    weight, bias = torch.randn(1, c, 1, 1), torch.randn(1, c, 1, 1)
    args = [one.double() for one in (x, weight, bias)]
    expected = position_norm_reference(*args, 1e-3, centred, after, residual.double())
    for given in layouts(x).values():
        assert rel(position_norm(given, weight, bias, 1e-3, centred, after, residual), expected) < 5e-6
    assert rel(position_norm(x * 1e-5, None, None, 1e-3, False), x.double() * 1e-5 / 1e-3) < 1e-6 or c > 16
    bare = position_norm_reference(x.double(), None, None, 1e-5, centred)
    assert c == 1 or rel(position_norm(x, None, None, 1e-5, centred), bare) < 5e-6


@needs_compiler
def test_the_tile_is_small_where_reading_the_weights_takes_the_time():
    assert native.winograd_tile(1, 7, 7) == 2 and native.winograd_tile(16, 7, 7) == 4
    assert native.winograd_tile(1, 28, 28) == native.winograd_tile(64, 14, 14) == 4


@needs_compiler
@pytest.mark.parametrize("c", [16, 28, 40, 112])
@pytest.mark.parametrize("h, w", [(1, 1), (3, 5), (7, 7), (13, 9)])
@pytest.mark.parametrize("gain, divide", [(True, True), (False, False)])
def test_the_attention_block(c, h, w, gain, divide, rel):
    heads, d = 4, 32
    weights = dict(
        norm_weight=torch.randn(c),
        norm_bias=torch.randn(c),
        w_qkv=torch.randn(3 * heads * d, c) / c**0.5,
        w_out=torch.randn(c, heads * d) / 10,
        b_out=torch.randn(c),
        gain=torch.randn(1, c, 1, 1) if gain else None,
    )
    x = torch.randn(3, c, h, w)
    ours = native_attention.attention_block(x, native_attention.pack(fold(**weights, heads=heads, divide_by_n=divide)))
    exact = {k: None if v is None else v.double() for k, v in weights.items()}
    expected = attention_block_reference(x.double(), fold(**exact, heads=heads, divide_by_n=divide))
    assert rel(ours, expected) < 5e-6


@needs_compiler
def test_logits_of_hundreds_do_not_overflow(rel):
    c = 16
    weights = dict(
        norm_weight=torch.ones(c),
        norm_bias=torch.zeros(c),
        w_qkv=60 * torch.randn(384, c),
        w_out=torch.randn(c, 128) / 10,
        b_out=torch.randn(c),
        gain=torch.ones(1, c, 1, 1),
    )
    x = torch.randn(2, c, 4, 4)
    ours = native_attention.attention_block(x, native_attention.pack(fold(**weights, heads=4, divide_by_n=True)))
    exact = fold(**{k: v.double() for k, v in weights.items()}, heads=4, divide_by_n=True)
    assert rel(ours, attention_block_reference(x.double(), exact)) < 1e-4


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value):
    x, c = torch.randn(2, 16, 4, 4), 16
    x[1, 3, 2, 2] = value
    weight = native.winograd_weight(torch.randn(c, c, 3, 3), 4)
    for activation in ACTIVATIONS:
        out = native.winograd(x, weight, None, c, activation)
        assert torch.isfinite(out[0]).all() and not torch.isfinite(out[1]).all()
    out = native.group_norm(x, 1, torch.ones(c), torch.zeros(c))
    assert torch.isfinite(out[0]).all() and not torch.isfinite(out[1]).any()
    pointwise = native_linear.pointwise(x, native_linear.linear_weight(torch.randn(c, c)), None, c, "silu")
    assert (torch.isfinite(pointwise).all(dim=1) == torch.isfinite(x).all(dim=1)).all()
    for centred in (True, False):  # NaN in all channels of the position; of an infinite length x / length is 0
        out = position_norm(x, None, None, 1e-5, centred)
        assert torch.equal(out.isnan(), position_norm_reference(x, None, None, 1e-5, centred).isnan())
        assert torch.isfinite(out[0]).all() and out[1, :, 2, 2].isnan().any()
    q = x.flatten(2)[:, None]  # as keys a bad one spoils every query
    assert (
        torch.isfinite(softmax_attention(q, q, q)[0]).all() and not torch.isfinite(softmax_attention(q, q, q)[1]).all()
    )


@needs_compiler
def test_bits_depend_neither_on_threads_nor_on_the_place_in_a_batch():
    x, c, o = torch.randn(37, 24, 7, 7), 24, 40
    weights, bias = [native.winograd_weight(torch.randn(o, c, 3, 3), m) for m in (2, 4)], torch.randn(o)
    deep = native.depthwise_weight(torch.randn(c, 1, 7, 7))
    folded = native_attention.pack(
        fold(
            torch.randn(c),
            torch.randn(c),
            torch.randn(384, c),
            torch.randn(c, 128),
            torch.randn(c),
            torch.randn(1, c, 1, 1),
            4,
            True,
        )
    )
    matrix, (gain, shift) = native_linear.linear_weight(torch.randn(o, c)), torch.randn(2, c)

    def outputs(x):
        norm = (4, gain, shift, 1e-5)
        return (
            *(native.winograd(x, weight, bias, o, "gelu", norm=norm) for weight in weights),
            native.group_norm(x, 4, gain, shift),
            native.depthwise(x, deep, shift),
            native_attention.attention_block(x, folded),
            native_linear.pointwise(x, matrix, bias, o, "silu"),
            position_norm(x, gain, shift, 1e-5, True, "gelu"),
            softmax_attention(*x.unflatten(1, (3, 2, 4)).flatten(4).transpose(-1, -2).unbind(1)),
        )

    whole = outputs(x)
    for threads, part in itertools.product((1, 2, 3, 5), (slice(0, 37), slice(5, 6), slice(11, 30))):
        torch.set_num_threads(threads)
        for ours, expected in zip(outputs(x[part]), whole, strict=True):
            assert torch.equal(ours, expected[part])


@needs_compiler
@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: native.winograd(torch.zeros(1, 2, 4, 4), torch.zeros(36, 2 * 16), None, 16), "2 channels"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4), torch.zeros(36, 15 * 16), None, 16), "weight has shape"),
        (lambda: native.winograd(torch.zeros(16, 4, 4), torch.zeros(36, 256), None, 16), "x has shape"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4).double(), torch.zeros(36, 256), None, 16), "float64"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4), torch.zeros(36, 256), None, 16, "tanh"), "'tanh'"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4), torch.zeros(36, 256), torch.zeros(15), 16), "bias has"),
        (
            lambda: native.winograd(
                torch.zeros(1, 16, 4, 4), torch.zeros(36, 256), None, 16, None, torch.zeros(1, 16, 4, 5)
            ),
            "residual has",
        ),
        (lambda: native.group_norm(torch.zeros(1, 16, 4, 4), 3, torch.ones(16), torch.ones(16)), "groups = 3"),
        (lambda: native.group_norm(torch.zeros(1, 16, 4, 4), 1, torch.ones(32)[::2], torch.ones(16)), "contiguous"),
        (lambda: native.depthwise(torch.zeros(1, 16, 4, 4), torch.zeros(2, 2, 16), None), "odd size"),
        (lambda: native.depthwise(torch.zeros(1, 16, 4, 4), torch.zeros(3, 3, 17), None), "weight has shape"),
        (lambda: native_linear.linear(torch.zeros(3, 16), torch.zeros(16 * 15), None, 16), "weight has shape"),
        (lambda: native_linear.linear(torch.zeros(3, 16).half(), torch.zeros(256), None, 16), "float16"),
        (lambda: position_norm(torch.zeros(1, 16, 4, 4), torch.ones(17), None, 1e-5, True), "17"),
        (lambda: position_norm(torch.zeros(1, 16, 4, 4), None, None, 1e-5, True, "tanh"), "'tanh'"),
        (lambda: softmax_attention(*[torch.zeros(1, 2, 3, 4)] * 2, torch.zeros(1, 2, 4, 4)), "have shapes"),
        (lambda: softmax_attention(*[torch.zeros(1, 2, 3, 4).double()] * 3), "float64"),
        (lambda: softmax_attention(*[torch.zeros(1, 2, 3, 4)] * 3, scale=-1.0), "scale = -1.0"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("without, width", [("-mno-avx512f", 8), pytest.param("-mno-avx", 4, marks=pytest.mark.slow)])
def test_narrower_vectors(without, width):
    """What other processors run, here: its own copies of every loop, with tails of their own."""
    if width >= compiled.vector_width():
        pytest.skip("this processor's own width")
    chosen = "bits_depend or takes_along or the_norm or depthwise or (the_convolution and crop) or linear or softmax"
    code = (
        "import sys, pytest; from fastdiff.kernels.cpu.compiled import vector_width; "
        f"assert vector_width() == {width}; sys.exit(pytest.main({['-q', '-p', 'no:xdist', __file__, '-k', chosen]}))"
    )
    done = run(code, CC=f"cc {without}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
