"""Sums and means in C against float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.dimensions import joined
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.reduce import HOW, reduce

SHAPES = [(1,), (50,), (3, 17), (5, 33, 7), (2, 5, 4, 21), (2, 3, 2, 5, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_against_torch(shape, in_nan, all_parts, rel):
    x = 1 + torch.randn(shape)
    straight = tuple(range(x.ndim))
    for size in straight:
        for dims, of in itertools.product(itertools.combinations(straight, size + 1), (straight, straight[::-1])):
            view, expected = View.of(in_nan(x, *of)), x.double().mean(dims, keepdim=True)
            ours = all_parts(lambda out, view=view, dims=dims: reduce(view, out, dims, "mean"), expected.shape, *of)
            assert rel(ours, expected) < 1e-6


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_strides(data):
    shape = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    rank = len(shape)
    of = data.draw(st.permutations(range(rank)))
    dims = data.draw(st.sets(st.integers(-rank, -1), min_size=1))
    how, keep = data.draw(st.sampled_from(HOW)), data.draw(st.booleans())
    x = torch.randn(shape).permute(of)
    expected = getattr(x.double(), how)(tuple(dims), keepdim=keep)
    out = torch.empty(expected.shape)
    run([reduce(View.of(x), View.of(out), tuple(dims), how)])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shape, dims", [((1, 3_000_000), (1,)), ((1_000_000, 3), (0,)), ((1000, 3000), (0, 1))])
def test_the_error_of_many_stays_small(shape, dims, rel):
    x = torch.rand(shape)
    expected = x.double().sum(dims)
    out = torch.empty(expected.shape)
    run([reduce(View.of(x), View.of(out), dims, "sum")])
    assert rel(out, expected) < 2e-7


def test_expanded_views_and_joined_dimensions(rel):
    x, out = torch.randn(6, 1, 20).expand(6, 5, 20), torch.empty(20)
    run([reduce(View.of(x), View.of(out), (0, 1), "sum")])
    assert rel(out, x.double().sum((0, 1))) < 1e-6
    assert joined((3, 48), (1, 7), (4, 12), (5, 2)) == [(12, 12), (5, 2)]
    assert joined((3, 48, 4), (4, 12, 2)) == [(3, 48, 4), (4, 12, 2)]


@pytest.mark.parametrize(
    "shape, to, dims, how, words",
    [
        ((2, 3), (3,), (0,), "max", "'max'"),
        ((2, 3), (2,), (0,), "sum", "out has shape"),
        ((2, 3), (2,), (2,), "sum", "dimension 2 of 2"),
        ((2, 3), (2,), (1, -1), "sum", "each once"),
        ((2, 3), (2, 3), (), "sum", "at least one"),
        ((1, 1, 1, 1, 1, 2), (2,), (0,), "sum", "1 to 5 dimensions"),
    ],
)
def test_bad_input_is_named(shape, to, dims, how, words):
    with pytest.raises(ValueError, match=words):
        reduce(View.of(torch.zeros(shape)), View.of(torch.zeros(to)), dims, how)
