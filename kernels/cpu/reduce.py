"""Sums and means over some dimensions in C."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastdiff.kernels.cpu.dimensions import filled, joined, wrapped
from fastdiff.kernels.cpu.plan import Call, View, check_shape

MOST_DIMENSIONS = 5
HOW = ("sum", "mean")


def reduce(x: View, out: View, dims: Sequence[int], how: str) -> Call:
    """x.sum(dims) or x.mean(dims), added in pairs.

    Fastest where the elements of one dimension, kept or not, lie side by side.

    Args:
        x: at most MOST_DIMENSIONS dimensions, any strides.
        out: x's shape without those dimensions, or with size 1 in their place; any strides.
        dims: at least one.
        how: "sum" or "mean".

    Raises:
        ValueError: for anything else.
    """
    op, rank = "reduce", len(x.shape)
    if how not in HOW:
        raise ValueError(f"{op}: how = {how!r}; accepted: {', '.join(HOW)}")
    if not 1 <= rank <= MOST_DIMENSIONS:
        raise ValueError(f"{op}: x has shape {x.shape}; accepted: 1 to {MOST_DIMENSIONS} dimensions")
    gone = {wrapped(op, dim, rank) for dim in dims}
    if not gone or len(gone) < len(dims):
        raise ValueError(f"{op}: dims = {tuple(dims)}; accepted: at least one, each once")
    kept = [at for at in range(rank) if at not in gone]
    without, ones = tuple(x.shape[at] for at in kept), tuple(1 if at in gone else x.shape[at] for at in range(rank))
    check_shape(op, "out", out, without, ones)
    strides = dict(zip(kept if out.shape == without else range(rank), out.strides, strict=True))

    outer = joined(*((x.shape[at], x.strides[at]) for at in gone)) or [(1, 0)]
    others = joined(*((x.shape[at], x.strides[at], strides[at]) for at in kept))
    inner, lanes = outer.pop(), (1, 0)
    if inner[1] != 1 and others and others[-1][1] == 1:
        size, _, step = others.pop()
        lanes = size, step
    count = math.prod(x.shape[at] for at in gone)
    numbers = (
        *filled(others, MOST_DIMENSIONS - 1, views=2),
        *lanes,
        *filled(outer, MOST_DIMENSIONS - 1, views=1),
        *inner,
        float(count if how == "mean" else 1),
    )
    return Call(op, (x,), (out,), numbers)
