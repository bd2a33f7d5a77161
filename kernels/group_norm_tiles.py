"""What the kernels of group_norm share: a tile's columns, their parameters and their statistics.

A tile is (ROWS positions, GP KP columns): GROUPS groups, padded to GP, of CG channels each, padded to KP.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.activations import activate
from fastdiff.kernels.layout import power_of_2, registers, tile


@triton.jit
def columns(GROUPS: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, KP: tl.constexpr):
    """Each column's channel, group, mask (false in the padding), and whether it is the first of its group."""
    j = tl.arange(0, GP * KP)
    g, k = j // KP, j % KP
    return g * CG + k, g, (g < GROUPS) & (k < CG), k == 0


@triton.jit
def over_group(v, GP: tl.constexpr, KP: tl.constexpr):
    """(GP KP,): the sum over each group's columns, in every one of them."""
    total = tl.sum(tl.reshape(v, (GP, KP)), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], (GP, KP)), (GP * KP,))


@triton.jit
def modulation(b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE: tl.constexpr, MODULATED: tl.constexpr):
    """weight, bias, scale + 1 and shift of each column, (GP KP,) float32; 1, 0, 1 and 0 where absent."""
    w = tl.full(c.shape, 1.0, tl.float32)
    o = tl.zeros(c.shape, tl.float32)
    m, t = w, o
    if AFFINE:
        w = tl.load(weight + c, mask, 0.0).to(tl.float32)
        o = tl.load(bias + c, mask, 0.0).to(tl.float32)
    if MODULATED:
        m = tl.load(scale + b * scale_b + c, mask, 0.0).to(tl.float32) + 1.0
        t = tl.load(shift + b * shift_b + c, mask, 0.0).to(tl.float32)
    return w, o, m, t


@triton.jit
def channel_statistics(
    x, added, count, x_p: tl.constexpr, mask, BEFORE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Mean and sum of squared deviations of before(x + added) over `count` positions: (COLUMNS,) float32 each.

    x: pointers (1, COLUMNS) to the first position. added: (1, COLUMNS) or 0. mask: (COLUMNS,).
    """
    r = tl.arange(0, ROWS)
    mean_t = tl.zeros((ROWS, COLUMNS), tl.float32)
    m2_t = tl.zeros((ROWS, COLUMNS), tl.float32)
    seen = 0.0
    for start in range(0, count, ROWS):
        p = start + r
        valid = (p < count)[:, None] & mask[None, :]
        v = activate(tl.load(x + p[:, None] * x_p, valid, 0.0).to(tl.float32) + added, BEFORE)
        seen += 1.0
        delta = v - mean_t
        mean_new = mean_t + delta * (1.0 / seen)
        m2_t = tl.where(valid, m2_t + delta * (v - mean_new), m2_t)
        mean_t = tl.where(valid, mean_new, mean_t)
    # positions that each row of the tile has seen
    n = ((count - r + ROWS - 1) // ROWS).to(tl.float32)[:, None]
    mean_c = tl.sum(mean_t * n, axis=0) / count
    off = mean_t - mean_c[None, :]
    return mean_c, tl.sum(m2_t + n * off * off, axis=0)


@triton.jit
def group_statistics(mean_c, m2_c, count, mask, CG: tl.constexpr, GP: tl.constexpr, KP: tl.constexpr):
    """Mean and sum of squared deviations of each column's group, from the columns' own over `count` positions."""
    mean = over_group(mean_c, GP, KP) / CG
    off = tl.where(mask, mean_c - mean, 0.0)
    return mean, over_group(m2_c + count * off * off, GP, KP)


@triton.jit
def input_bias_of(input_bias, c, mask, ADDED: tl.constexpr):
    """The input's bias in each column, (1, columns) float32, or 0."""
    added = 0.0
    if ADDED:
        added = tl.load(input_bias + c, mask, 0.0).to(tl.float32)[None, :]
    return added


def options_of(x: Tensor, channels: int, groups: int, weight, input_bias, scale, before, after) -> dict:
    """The constants and launch options that all kernels of group_norm take."""
    width = channels // groups
    gp, kp = power_of_2(groups), power_of_2(width)
    rows, _, warps = tile(gp * kp, x.shape[2] * x.shape[3])
    return dict(
        GROUPS=groups,
        CG=width,
        GP=gp,
        KP=kp,
        ROWS=rows,
        AFFINE=weight is not None,
        ADDED=input_bias is not None,
        MODULATED=scale is not None,
        BEFORE=before or "none",
        AFTER=after or "none",
        num_warps=warps,
        **registers(x, 128),
    )
