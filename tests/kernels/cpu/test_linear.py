"""Linear layers and 1x1 convolutions against float64, and the order of their weights."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.linear import linear, linear_weight
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.weights import panels, wide


def channels_last(view):
    """(B, C, H, W) → (B, H, W, C)."""
    if view is None:
        return None
    shape, strides = ((one[0], one[2], one[3], one[1]) for one in (view.shape, view.strides))
    return view._replace(shape=shape, strides=strides)


@pytest.mark.parametrize("m, c, o", [(2, 9, 11), (5, 3, 17), (40, 1, 2), (50, 64, 100), (97, 40, 33), (200, 16, 384)])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu", "relu"])
def test_the_layer(m, c, o, activation, computed, activations, rel):
    """Of m rows among NaN, as pictures of one row."""
    x, weight, bias, residual = torch.randn(1, c, 1, m), torch.randn(o, c), torch.randn(o), torch.randn(1, o, 1, m)
    packed = View.of(linear_weight(weight))

    def call(out, x, residual):
        x, residual, out = map(channels_last, (x, residual, out))
        return linear(x, packed, out, Ending(View.of(bias), activation, residual))

    expected = activations[activation](F.conv2d(x.double(), weight.double()[..., None, None], bias.double()))
    assert rel(computed(call, (1, o, 1, m), x, None), expected) < 1e-6
    assert rel(computed(call, (1, o, 1, m), x, residual), expected + residual) < 1e-6


def test_two_dimensions(rel):
    x, weight, out = torch.randn(7, 20), torch.randn(5, 20), torch.empty(7, 5)
    run([linear(View.of(x), View.of(linear_weight(weight)), View.of(out))], 2)
    assert rel(out, x.double() @ weight.double().t()) < 1e-6
    run([linear(View.of(x[3]), View.of(linear_weight(weight)), View.of(out[0]))], 2)
    assert torch.equal(out[0], out[3])


@pytest.mark.parametrize("rows", [slice(0, 3), slice(0, 1)])
def test_the_1x1_convolution_with_biases_of_each_picture(rows, computed, rel):
    x, weight, bias = torch.randn(3, 20, 5, 7), torch.randn(19, 20, 1, 1), torch.randn(3, 19)[rows]
    packed, residual = View.of(linear_weight(weight)), torch.randn(3, 19, 5, 7)

    def call(out, x, residual, *each):
        (shift,) = each or (View.of(bias),)
        return linear(channels_last(x), packed, channels_last(out), Ending(shift, "silu", channels_last(residual)))

    ours = computed(call, (3, 19, 5, 7), x, residual, *([bias] if len(bias) > 1 else ()))
    expected = F.conv2d(x.double(), weight.double()) + bias.double()[:, :, None, None]
    assert rel(ours, F.silu(expected) + residual) < 1e-6


def test_what_is_not_finite_stays_in_its_row():
    x, out = torch.randn(9, 16), torch.empty(9, 16)
    x[4, 3], x[7, 0] = float("nan"), float("inf")
    run([linear(View.of(x), View.of(linear_weight(torch.randn(16, 16))), View.of(out), Ending(activation="silu"))])
    assert torch.equal(torch.isfinite(out).all(dim=1), torch.isfinite(x).all(dim=1))


@pytest.mark.parametrize("o", [1, 4, 15, 16, 17, 32, 33, 56])
def test_panels(o):
    """Two vectors of columns after two others, row by row; what is left is filled to whole vectors with 0."""
    width, matrices = vector_width(), torch.randn(3, 5, o).double()
    ours = panels(matrices)
    assert ours.shape == (3, 5 * wide(o)) and ours.dtype == torch.float32
    for matrix, packed in zip(matrices, ours, strict=True):
        numbers = iter(packed.tolist())
        for start in range(0, o, 2 * width):
            for row in range(5):
                for at in range(start, min(start + 2 * width, wide(o))):
                    assert next(numbers) == (matrix[row, at].float() if at < o else 0)
        assert next(numbers, None) is None


X, WEIGHT = View.of(torch.zeros(3, 16)), View.of(torch.zeros(256))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: linear(X, View.of(torch.zeros(16 * 15)), X), "weight has shape"),
        (lambda: linear(X, WEIGHT, View.of(torch.zeros(4, 16))), "out has shape"),
        (lambda: linear(X, WEIGHT, X, Ending(residual=View.of(torch.zeros(3, 15)))), "residual has shape"),
        (lambda: linear(X, WEIGHT, X, Ending(View.of(torch.zeros(2, 16)))), "bias has shape"),
        (lambda: linear(X, WEIGHT, X, Ending(activation="tanh")), "'tanh'"),
        (lambda: linear(View.of(torch.zeros(16, 3).t()), WEIGHT, X), "x has shape .* evenly spaced"),
        (lambda: linear(View.of(torch.zeros(3, 16).half()), WEIGHT, X), "float16"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
