"""softmax_attention in C against float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.softmax_attention import softmax_attention

SIZES = [
    # batch, heads, queries, keys, head widths of keys and of values: one key, one query, odd, wide, other widths
    (1, 1, 1, 1, 1, 1),
    (2, 3, 49, 49, 8, 8),
    (1, 2, 50, 3, 5, 5),
    (2, 1, 7, 65, 32, 40),
    (1, 4, 33, 1, 64, 17),
    (1, 1, 25, 64, 256, 256),
]


def inputs(b, h, n, m, d, e):
    return torch.randn(b, h, n, d), torch.randn(b, h, m, d), torch.randn(b, h, m, e)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("scale", [None, 0.3, 20.0])
def test_against_torch(sizes, scale, in_nan, all_parts, rel):
    """At a scale of 20 the largest weight is nearly 1, and exponents of the others are down to e^-100."""
    q, k, v = inputs(*sizes)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    orders = itertools.product(((0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)), ((0, 1, 2, 3), (0, 2, 1, 3)))
    for of, to in orders:
        views = [View.of(in_nan(one, *of)) for one in (q, k, v)]
        ours = all_parts(lambda out, views=views: softmax_attention(*views, out, scale), expected.shape, *to)
        assert rel(ours, expected) < (1e-6 if scale is None else 1e-5)


def test_a_picture_alone_has_the_bits_that_it_has_in_a_batch(all_parts):
    q, k, v = inputs(5, 2, 30, 20, 8, 8)

    def attention(pictures):
        views = [View.of(one[pictures]) for one in (q, k, v)]
        return all_parts(lambda out: softmax_attention(*views, out), q[pictures].shape, 0, 1, 2, 3)

    whole = attention(slice(0, 5))
    for pictures in (slice(2, 3), slice(1, 4)):
        assert torch.equal(attention(pictures), whole[pictures])


def test_what_is_not_finite_stays_visible():
    q = torch.randn(2, 1, 9, 4)
    q[1, 0, 3, 2] = float("nan")  # as a key it spoils every query
    out = torch.empty(2, 1, 9, 4)
    view = View.of(q)
    run([softmax_attention(view, view, view, View.of(out))])
    assert torch.isfinite(out[0]).all() and out[1].isnan().all()


@pytest.mark.parametrize(
    "shapes, scale, words",
    [
        (((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 4, 4), (1, 2, 3, 4)), None, "have shapes"),
        (((1, 2, 3, 4), (1, 1, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)), None, "k has shape"),
        (((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 5)), None, "out has shape"),
        (((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)), -1.0, "scale = -1.0"),
        (((1, 2, 3, 4), (1, 2, 0, 4), (1, 2, 0, 4), (1, 2, 3, 4)), None, "0 keys"),
    ],
)
def test_bad_input_is_named(shapes, scale, words):
    with pytest.raises(ValueError, match=words):
        softmax_attention(*(View.of(torch.zeros(shape)) for shape in shapes), scale)


def test_channels_of_the_result_lie_side_by_side():
    x = View.of(torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match="out has strides"):
        softmax_attention(x, x, x, View.of(torch.zeros(1, 2, 4, 3).transpose(2, 3)))
