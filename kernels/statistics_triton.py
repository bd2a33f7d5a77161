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
def with_value(mean, m2, count, value):
    """Mean and squared distances of `count` values, the last of them new: Welford's update (1962)."""
    off = value - mean
    mean += off / count
    return mean, m2 + off * (value - mean)


@triton.jit
def write_part(
    statistics,  # (B, parts blocks, 3), or (B, parts, O, 3) if EMIT is "channels"
    means,  # (ROWS, COLUMNS) float32, of the values that each element stands for
    m2,  # as means
    each,  # how many values that are
    present,  # (ROWS,)
    b,  # the sample
    part,
    parts,
    block,  # of channels
    blocks,
    o,  # (COLUMNS,) channels
    known,  # (COLUMNS,), those that there are
    O: tl.constexpr,  # noqa: E741
    EMIT: tl.constexpr,
):
    """Write a tile's statistics: of all its values, or of each of its channels."""
    mask = present[:, None] & known[None, :]
    v = tl.where(mask, means, 0.0)
    rows = tl.sum(present.to(tl.float32), axis=0)
    if EMIT == "channels":
        mean = tl.sum(v, axis=0) / rows
        off = v - mean[None, :]
        spread = tl.sum(tl.where(mask, m2 + each * off * off, 0.0), axis=0)
        place = statistics + ((b * parts + part) * O + o) * 3
        tl.store(place, tl.zeros_like(mean) + rows * each, known)
        tl.store(place + 1, mean, known)
        tl.store(place + 2, spread, known)
    else:
        count = rows * tl.sum(known.to(tl.float32), axis=0)
        mean = tl.sum(v) / count
        off = v - mean
        place = statistics + ((b * parts + part) * blocks + block) * 3
        tl.store(place, count * each)
        tl.store(place + 1, mean)
        tl.store(place + 2, tl.sum(tl.where(mask, m2 + each * off * off, 0.0)))


@triton.jit
def merged_channels(mean, m2, seen, statistics, parts, c, mask, C: tl.constexpr):
    """Mean, M2 and count of each channel with all parts of (parts, C, 3) at this place; c: the channels, if mask."""
    for part in range(parts):
        place = statistics + (part * C + c) * 3
        n = tl.load(place, mask, 0.0)
        delta = tl.load(place + 1, mask, 0.0) - mean
        share = n / tl.maximum(seen + n, 1.0)
        mean += delta * share
        m2 += tl.load(place + 2, mask, 0.0) + delta * delta * (seen * share)
        seen += n
    return mean, m2, seen
