"""Winograd's convolution against float64, on odd shapes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.norm import norm_statistics
from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.winograd import WINDOW, fits, winograd, winograd_weight

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


@pytest.mark.parametrize("b, c, o, h, w", CONVOLUTIONS)
def test_the_convolution(b, c, o, h, w, computed, rel):
    x, weight, bias = torch.randn(b, c, h, w), torch.randn(o, c, 3, 3) / (3 * c**0.5), torch.randn(o)
    packed = View.of(winograd_weight(weight))
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert rel(computed(lambda out, x: winograd(Operands(x, out, WINDOW), packed), (b, o, h, w), x), expected) < 5e-6
    ours = computed(lambda out, x: winograd(Operands(x, out, WINDOW, Ending(View.of(bias))), packed), (b, o, h, w), x)
    assert rel(ours, expected + bias.double().view(-1, 1, 1)) < 5e-6


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu", "relu"])
@pytest.mark.parametrize("groups, normed, added", [(1, True, True), (4, True, False), (1, False, True)])
def test_what_it_takes_along(activation, groups, normed, added, computed, activations, rel):
    """A norm before it, whose result is what is padded by 0; biases of each picture, an activation, a residual."""
    b, c, o, h, w = 3, 20, 24, 6, 7
    x, weight, bias = 2 + 3 * torch.randn(b, c, h, w), torch.randn(o, c, 3, 3) / 10, torch.randn(b, o)
    gain, offset, residual = torch.randn(c), torch.randn(c), torch.randn(b, o, h, w)
    packed = View.of(winograd_weight(weight))

    def calls(out, x, bias, residual):
        numbers = View.of(torch.full((len(bias.memory), 2, c), torch.nan)) if normed else None
        before = [norm_statistics(x, numbers, groups, View.of(gain), View.of(offset))] if normed else []
        given = Operands(x, out, WINDOW, Ending(bias, activation, residual), numbers)
        return [*before, winograd(given, packed)]

    ours = computed(calls, (b, o, h, w), x, bias, residual if added else None)
    given = F.group_norm(x.double(), groups, gain.double(), offset.double()) if normed else x.double()
    expected = F.conv2d(given, weight.double(), padding=1) + bias.double()[:, :, None, None]
    expected = activations[activation](expected)
    assert rel(ours, expected + residual.double() if added else expected) < 5e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value, activations):
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    x[1, 3, 2, 2] = value
    packed, out = View.of(winograd_weight(torch.randn(16, 16, 3, 3))), torch.empty_like(x)
    for activation in activations:
        run([winograd(Operands(View.of(x), View.of(out), WINDOW, Ending(activation=activation)), packed)])
        assert torch.isfinite(out[0]).all() and not torch.isfinite(out[1]).all()


def picture(*shape):
    return View.of(torch.zeros(shape).contiguous(memory_format=torch.channels_last))


def test_what_fits():
    """At least a vector of channels, its own window, and results as large as the pictures."""
    width = vector_width()

    def takes(c=width, o=width, size=(4, 4), **window):
        return fits(Operands(picture(2, c, 4, 4), picture(2, o, *size), replace(WINDOW, **window)))

    assert takes() and not takes(c=width - 1) and not takes(o=width - 1) and not takes(size=(4, 5))
    assert not any(takes(**{name: (2, 1)}) for name in ("kernel", "stride", "padding", "dilation"))


X, WEIGHT = picture(2, 16, 4, 4), View.of(torch.zeros(36, 256))


def of(x=X, out=X, weight=WEIGHT, norm=None, **ending):
    return winograd(Operands(x, out, WINDOW, Ending(**ending), norm), weight)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"x": picture(2, 2, 4, 4)}, "at least .* channels"),
        ({"out": picture(2, 3, 4, 4)}, "at least .* channels"),
        ({"out": picture(2, 16, 4, 5)}, "one size"),
        ({"weight": View.of(torch.zeros(36, 240))}, "weight has shape"),
        ({"weight": View.of(torch.zeros(256, 36).t())}, "weight has strides"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"bias": View.of(torch.zeros(15))}, "bias has"),
        ({"bias": View.of(torch.zeros(3, 16))}, "bias has"),
        ({"bias": View.of(torch.zeros(32)[::2])}, "side by side"),
        ({"residual": picture(2, 16, 4, 5)}, "residual has"),
        ({"norm": View.of(torch.zeros(1, 2, 16))}, "norm has"),
        ({"norm": View.of(torch.zeros(2, 2, 32)[:, :, ::2])}, "norm has strides"),
        ({"x": View.of(torch.zeros(2, 16, 4, 4))}, "x has shape .* evenly spaced"),
    ],
)
def test_bad_input_is_named(given, words):
    of()
    with pytest.raises(ValueError, match=words):
        of(**given)
