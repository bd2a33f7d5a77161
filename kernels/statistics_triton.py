"""Statistics of parts of a sample, and what they are together, inside Triton kernels.

A part is (count, mean, M2), float32: how many values it has, their mean, and the sum of their squared distances from
it. Parts are merged by Chan's formula (Chan, Golub and LeVeque 1983), which subtracts no large sums; and always in the
same order, without atomic additions.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merged(statistics, parts, PARTS: tl.constexpr):
    """Mean and biased variance of all parts, from (parts, 3) at this place. PARTS: a power of two, at least parts."""
    i = tl.arange(0, PARTS)
    n = tl.load(statistics + 3 * i, i < parts, 0.0)
    means = tl.load(statistics + 3 * i + 1, i < parts, 0.0)
    m2 = tl.load(statistics + 3 * i + 2, i < parts, 0.0)
    count = tl.sum(n, axis=0)
    mean = tl.sum(n * means, axis=0) / count
    off = means - mean
    return mean, tl.sum(m2 + n * off * off, axis=0) / count


@triton.jit
def write_part(
    statistics,  # (B, parts blocks, 3), or (B, parts, O, 3) if EMIT is "channels"
    values,  # (ROWS, COLUMNS) any float dtype
    mask,  # (ROWS, COLUMNS)
    present,  # (ROWS,), of which mask is those with a channel
    b,  # the sample
    part,
    parts,
    block,  # of channels
    blocks,
    o,  # (COLUMNS,) channels
    O: tl.constexpr,  # noqa: E741
    EMIT: tl.constexpr,
):
    """Write a tile's statistics: of all its values, or of each of its channels."""
    v = tl.where(mask, values.to(tl.float32), 0.0)
    rows = tl.sum(present.to(tl.float32), axis=0)
    if EMIT == "channels":
        mean = tl.sum(v, axis=0) / rows
        off = tl.where(mask, v - mean[None, :], 0.0)
        place = statistics + ((b * parts + part) * O + o) * 3
        tl.store(place, tl.zeros_like(mean) + rows, o < O)
        tl.store(place + 1, mean, o < O)
        tl.store(place + 2, tl.sum(off * off, axis=0), o < O)
    else:
        count = rows * tl.sum((o < O).to(tl.float32), axis=0)
        mean = tl.sum(v) / count
        off = tl.where(mask, v - mean, 0.0)
        place = statistics + ((b * parts + part) * blocks + block) * 3
        tl.store(place, count)
        tl.store(place + 1, mean)
        tl.store(place + 2, tl.sum(off * off))
