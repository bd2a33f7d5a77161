"""Products in batches in C against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.matmul import matmul
from fastdiff.kernels.cpu.plan import View, run

SIZES = [
    # batches of a and of b, m, k, n: one number, more than a block of rows, panels with every tail, broadcast
    ((), (), 1, 1, 1),
    ((), (), 50, 7, 33),
    ((3,), (3,), 97, 20, 16),
    ((2, 3), (3,), 5, 31, 40),
    ((4, 1, 3), (2, 1), 9, 12, 65),
]


@pytest.mark.parametrize("of_a, of_b, m, k, n", SIZES)
@pytest.mark.parametrize("alpha", [1.0, -0.3])
def test_against_torch(of_a, of_b, m, k, n, alpha, in_nan, all_parts, rel):
    a, b = torch.randn(*of_a, m, k), torch.randn(*of_b, k, n)
    expected = alpha * (a.double() @ b.double())

    def order(x, transposed):
        *outer, row, column = range(x.ndim)
        return (*outer, column, row) if transposed else (*outer, row, column)

    for turned in range(8):
        views = [View.of(in_nan(x, *order(x, turned >> at & 1))) for at, x in enumerate((a, b))]
        ours = all_parts(
            lambda out, views=views: matmul(*views, out, alpha), expected.shape, *order(expected, turned >> 2)
        )
        assert rel(ours, expected) < 1e-6


@settings(max_examples=30, deadline=None)
@given(*[st.integers(0, 70)] * 3, st.integers(0, 3))
def test_any_size(m, k, n, batch):
    a, b, out = torch.randn(batch, m, k), torch.randn(batch, k, n), torch.full((batch, m, n), float("nan"))
    run([matmul(View.of(a), View.of(b), View.of(out))])
    torch.testing.assert_close(out, a @ b, rtol=1e-4, atol=1e-4)


def test_a_picture_alone_has_the_bits_that_it_has_in_a_batch(all_parts):
    a, b = torch.randn(5, 60, 20), torch.randn(20, 30)
    whole = all_parts(lambda out: matmul(View.of(a), View.of(b), out), (5, 60, 30), 0, 1, 2)
    alone = all_parts(lambda out: matmul(View.of(a[3:4]), View.of(b), out), (1, 60, 30), 0, 1, 2)
    assert torch.equal(alone[0], whole[3])


@pytest.mark.parametrize(
    "shapes, words",
    [
        (((3, 4), (5, 6), (3, 6)), "a and b have shapes"),
        (((3, 4), (4,), (3, 6)), "a and b have shapes"),
        (((1, 1, 1, 1, 3, 4), (4, 6), (1, 1, 1, 1, 3, 6)), "a and b have shapes"),
        (((2, 3, 4), (4, 6), (3, 6)), "a has shape"),
        (((3, 4), (2, 4, 6), (3, 3, 6)), "b has shape"),
        (((3, 4), (4, 6), (3, 5)), "out has shape"),
    ],
)
def test_bad_input_is_named(shapes, words):
    with pytest.raises(ValueError, match=words):
        matmul(*(View.of(torch.zeros(shape)) for shape in shapes))
