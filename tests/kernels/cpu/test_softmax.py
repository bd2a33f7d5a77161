"""Softmax in C against float64."""

import itertools

import pytest
import torch

from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.softmax import softmax

SHAPES = [(1,), (50,), (3, 16), (5, 33, 7), (2, 3, 19, 1), (2, 4, 49, 21)]


@pytest.mark.parametrize("shape", SHAPES)
def test_against_torch(shape, in_nan, all_parts, rel):
    x = 5 * torch.randn(shape)
    straight = tuple(range(x.ndim))
    orders = {straight, straight[::-1], (*straight[:-2], *straight[:-3:-1])}
    for dim, of, to in itertools.product(straight, orders, orders):
        view = View.of(in_nan(x, *of))
        ours = all_parts(lambda out, view=view, dim=dim: softmax(view, out, dim), shape, *to)
        assert rel(ours, x.double().softmax(dim)) < 1e-6


@pytest.mark.parametrize("dim", [0, 1])
def test_extremes(dim, rel):
    x, out = torch.randn(20, 20), torch.empty(20, 20)
    x[3, 4], x[5, 6], x[7, 8] = 1e4, -1e4, float("-inf")
    run([softmax(View.of(x), View.of(out), dim)])
    assert rel(out, x.double().softmax(dim)) < 1e-6


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(dim, value):
    x, out = torch.randn(20, 20), torch.empty(20, 20)
    x[3, 4] = value
    run([softmax(View.of(x), View.of(out), dim)])
    others = torch.arange(20) != (4, 3)[dim]
    assert torch.isfinite(out.movedim(dim, -1)[others]).all()
    assert (out[:, 4] if dim == 0 else out[3])[(3, 4)[dim]].isnan()


@pytest.mark.parametrize(
    "shape, to, dim, words",
    [
        ((2, 3), (2, 4), 0, "out has shape"),
        ((2, 3), (2, 3), 2, "dimension 2 of 2"),
        ((2, 0), (2, 0), 1, "at least one element"),
        ((1, 1, 1, 1, 2), (1, 1, 1, 1, 2), 4, "1 to 4 dimensions"),
    ],
)
def test_bad_input_is_named(shape, to, dim, words):
    with pytest.raises(ValueError, match=words):
        softmax(View.of(torch.zeros(shape)), View.of(torch.zeros(to)), dim)
