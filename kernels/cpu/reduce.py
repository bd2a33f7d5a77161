"""Sums and means over some dimensions in C."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastdiff.kernels.cpu.dimensions import filled, wrapped
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

    rows = any(x.strides[at] == 1 and x.shape[at] > 1 for at in gone)
    lanes = [at for at in kept if not rows and x.strides[at] == 1 and x.shape[at] > 1][:1]
    others = [at for at in kept if at not in lanes]
    across = (x.shape[lanes[0]], strides[lanes[0]]) if lanes else (1, 0)
    sizes, *steps = ([each[at] for at in others] for each in (x.shape, x.strides, strides))
    outer, apart = joined([(x.shape[at], x.strides[at]) for at in gone])
    count = math.prod(x.shape[at] for at in gone)
    numbers = (
        *filled(sizes, *steps, rank=MOST_DIMENSIONS - 1),
        *across,
        *filled(outer[:-1], apart[:-1], rank=MOST_DIMENSIONS - 1),
        *(outer[-1], apart[-1]),
        float(count if how == "mean" else 1),
    )
    return Call(op, (x,), (out,), numbers)


def joined(dims: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Sizes and strides of the same elements in fewer dimensions where they are evenly spaced.

    The one whose elements lie closest together is the last.
    """
    made: list[tuple[int, int]] = []
    for size, stride in sorted(dims, key=lambda one: -abs(one[1])):
        if size == 1:
            continue
        if made and made[-1][1] == size * stride:
            made[-1] = made[-1][0] * size, stride
        else:
            made.append((size, stride))
    made = made or [(1, 0)]
    return [size for size, _ in made], [stride for _, stride in made]
