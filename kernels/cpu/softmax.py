"""Softmax over one dimension in C."""

from __future__ import annotations

from fastdiff.kernels.cpu.dimensions import filled, joined, wrapped
from fastdiff.kernels.cpu.plan import Call, View, check_shape

MOST_DIMENSIONS = 4


def softmax(x: View, out: View, dim: int) -> Call:
    """softmax(x, dim).

    Fastest where that dimension's elements lie side by side, or those of another dimension, in both views.

    Args:
        x: at most MOST_DIMENSIONS dimensions, any strides.
        out: of x's shape, any strides.
        dim: of one element or more.

    Raises:
        ValueError: for anything else.
    """
    op, rank = "softmax", len(x.shape)
    if not 1 <= rank <= MOST_DIMENSIONS:
        raise ValueError(f"{op}: x has shape {x.shape}; accepted: 1 to {MOST_DIMENSIONS} dimensions")
    check_shape(op, "out", out, x.shape)
    dim = wrapped(op, dim, rank)
    if x.shape[dim] < 1:
        raise ValueError(f"{op}: x has shape {x.shape}; accepted: at least one element in dimension {dim}")
    each = list(zip(x.shape, x.strides, out.strides, strict=True))
    of = each.pop(dim)
    return Call(op, (x,), (out,), (*filled(joined(*each), MOST_DIMENSIONS - 1, views=2), *of))
