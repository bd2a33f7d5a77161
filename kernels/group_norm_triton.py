"""Triton kernels of group_norm: a program for each sample, whose second reading of x comes from the cache.

Where samples are too few to fill the device, their positions are split over programs, in two launches: the statistics
of each part; then the parts' statistics merged, always in the same order, and one part normalised.

Each lane of a tile keeps mean and squared deviations by Welford's update (1962); lanes and parts are merged by Chan's
formula (Chan, Golub and LeVeque 1983). So there is no difference of large sums, and no reduction across threads inside
the loop.

    x_b, x_c, x_p (and y_*): strides of batch, channel and position, in elements
    scale_b, shift_b: strides of batch of scale and shift, 0 where all samples share a row
    GROUPS, CG: groups, and channels of a group; GP, KP: both padded to powers of two; ROWS: positions at a time
    AFFINE, ADDED, MODULATED: whether there are weight and bias, input_bias, scale and shift
    BEFORE, AFTER: the names of the activations, "none" for none
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.activations import activate
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.group_norm_tiles import (
    channel_statistics,
    columns,
    group_statistics,
    input_bias_of,
    modulation,
    options_of,
)
from fastdiff.kernels.layout import contiguous, empty_images, per_sample, positions, split


@triton.jit
def _normalise(
    x,
    y,
    mean,  # (columns,) float32
    rstd,  # (columns,) float32
    added,  # (1, columns) float32, or 0
    b,  # the sample
    c,  # (columns,) channels
    mask,  # (columns,)
    weight,
    bias,
    scale,
    shift,
    scale_b,
    shift_b,
    start,
    stop,
    x_p: tl.constexpr,
    y_p: tl.constexpr,
    ROWS: tl.constexpr,
    AFFINE: tl.constexpr,
    MODULATED: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
):
    """Writes y at positions start .. stop - 1. x, y: pointers (1, columns) to a sample's first position."""
    w, o, m, t = modulation(b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE, MODULATED)
    gain = rstd * w * m
    offset = o * m + t
    for first in range(start, stop, ROWS):
        p = first + tl.arange(0, ROWS)
        valid = (p < stop)[:, None] & mask[None, :]
        v = activate(tl.load(x + p[:, None] * x_p, valid, 0.0).to(tl.float32) + added, BEFORE)
        v = activate((v - mean[None, :]) * gain[None, :] + offset[None, :], AFTER)
        tl.store(y + p[:, None] * y_p, v.to(y.dtype.element_ty), valid)


@triton.jit
def group_norm_forward(
    x,  # (B, C, n) any float dtype
    y,  # (B, C, n) x's dtype, written
    weight,  # (C,) any float dtype, or None
    bias,  # as weight
    input_bias,  # (C,) any float dtype, or None
    scale,  # (B, C) or (1, C) any float dtype, or None
    shift,  # as scale
    means,  # (B, GROUPS) float32, written
    rstds,  # (B, GROUPS) float32, written: 1 / standard deviation
    count,  # n, positions
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_p: tl.constexpr,
    scale_b,
    shift_b,
    eps,
    GROUPS: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    AFFINE: tl.constexpr,
    ADDED: tl.constexpr,
    MODULATED: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
):
    """y, means and rstds of a whole sample."""
    b = tl.program_id(0).to(tl.int64)
    c, g, mask, first = columns(GROUPS, CG, GP, KP)
    x += b * x_b + c[None, :] * x_c
    y += b * y_b + c[None, :] * y_c
    added = input_bias_of(input_bias, c, mask, ADDED)
    mean_c, m2_c = channel_statistics(x, added, count, x_p, mask, BEFORE, ROWS, GP * KP)
    mean, m2 = group_statistics(mean_c, m2_c, count, mask, CG, GP, KP)
    rstd = tl.rsqrt(m2 / (count * CG) + eps)
    tl.store(means + b * GROUPS + g, mean, mask & first)
    tl.store(rstds + b * GROUPS + g, rstd, mask & first)
    _normalise(
        x,
        y,
        mean,
        rstd,
        added,
        b,
        c,
        mask,
        weight,
        bias,
        scale,
        shift,
        scale_b,
        shift_b,
        0,
        count,
        x_p,
        y_p,
        ROWS,
        AFFINE,
        MODULATED,
        BEFORE,
        AFTER,
    )


@triton.jit
def group_norm_part(
    x,  # (B, C, n) any float dtype
    partial,  # (B, parts, GROUPS, 2) float32, written: mean, sum of squared deviations
    input_bias,  # (C,) any float dtype, or None
    count,  # n, positions
    span,  # positions of a part
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    GROUPS: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    ADDED: tl.constexpr,
    BEFORE: tl.constexpr,
):
    """The statistics of one part."""
    b, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c, g, mask, first = columns(GROUPS, CG, GP, KP)
    start = part * span
    n = tl.minimum(span, count - start)
    x += b * x_b + start * x_p + c[None, :] * x_c
    mean_c, m2_c = channel_statistics(x, input_bias_of(input_bias, c, mask, ADDED), n, x_p, mask, BEFORE, ROWS, GP * KP)
    mean, m2 = group_statistics(mean_c, m2_c, n, mask, CG, GP, KP)
    place = partial + ((b * parts + part) * GROUPS + g) * 2
    tl.store(place, mean, mask & first)
    tl.store(place + 1, m2, mask & first)


@triton.jit
def group_norm_apply(
    x,  # (B, C, n) any float dtype
    y,  # (B, C, n) x's dtype, written
    weight,  # (C,) any float dtype, or None
    bias,  # as weight
    input_bias,  # (C,) any float dtype, or None
    scale,  # (B, C) or (1, C) any float dtype, or None
    shift,  # as scale
    means,  # (B, GROUPS) float32, written
    rstds,  # (B, GROUPS) float32, written: 1 / standard deviation
    partial,  # (B, parts, GROUPS, 2) float32, as group_norm_part wrote it
    count,  # n, positions
    span,  # positions of a part
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_p: tl.constexpr,
    scale_b,
    shift_b,
    eps,
    GROUPS: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    AFFINE: tl.constexpr,
    ADDED: tl.constexpr,
    MODULATED: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
):
    """Merges the statistics of a sample's parts, and normalises one part."""
    b, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c, g, mask, first = columns(GROUPS, CG, GP, KP)
    mean = tl.zeros(c.shape, tl.float32)
    m2 = tl.zeros(c.shape, tl.float32)
    seen = 0.0
    for other in range(parts):
        n = tl.minimum(span, count - other * span).to(tl.float32)
        place = partial + ((b * parts + other) * GROUPS + g) * 2
        delta = tl.load(place, mask, 0.0) - mean
        share = n / (seen + n)
        mean += delta * share
        m2 += tl.load(place + 1, mask, 0.0) + delta * delta * (seen * share * CG)
        seen += n
    rstd = tl.rsqrt(m2 / (count * CG) + eps)
    if part == 0:
        tl.store(means + b * GROUPS + g, mean, mask & first)
        tl.store(rstds + b * GROUPS + g, rstd, mask & first)
    x += b * x_b + c[None, :] * x_c
    y += b * y_b + c[None, :] * y_c
    start = part * span
    _normalise(
        x,
        y,
        mean,
        rstd,
        input_bias_of(input_bias, c, mask, ADDED),
        b,
        c,
        mask,
        weight,
        bias,
        scale,
        shift,
        scale_b,
        shift_b,
        start,
        tl.minimum(start + span, count),
        x_p,
        y_p,
        ROWS,
        AFFINE,
        MODULATED,
        BEFORE,
        AFTER,
    )


def forward(x, weight, bias, input_bias, scale, shift, groups, eps, before, after) -> tuple[Tensor, Tensor, Tensor]:
    """group_norm's result, and for the gradient each group's mean and 1 / standard deviation, (B, groups) float32."""
    b, c, h, w = x.shape
    y = empty_images(x)
    means, rstds = (torch.empty((b, groups), dtype=torch.float32, device=x.device) for _ in range(2))
    (scale, scale_b), (shift, shift_b) = per_sample(scale, c), per_sample(shift, c)
    weight, bias, input_bias = map(contiguous, (weight, bias, input_bias))
    flat, into = positions(x), positions(y)
    options = options_of(x, groups, weight, input_bias, scale, before, after)
    given = flat, into, weight, bias, input_bias, scale, shift, means, rstds
    strides = *flat.stride(), *into.stride(), scale_b, shift_b
    parts, span = _parts(b, h * w, options["ROWS"])
    if parts == 1:
        launch(group_norm_forward, (b,), x.device, *given, h * w, *strides, eps, **options)
        return y, means, rstds
    partial = torch.empty((b, parts, groups, 2), dtype=torch.float32, device=x.device)
    some = {name: value for name, value in options.items() if name not in ("AFFINE", "MODULATED", "AFTER")}
    launch(group_norm_part, (b, parts), x.device, flat, partial, input_bias, h * w, span, *flat.stride(), **some)
    launch(group_norm_apply, (b, parts), x.device, *given, partial, h * w, span, *strides, eps, **options)
    return y, means, rstds


def _parts(b: int, n: int, rows: int) -> tuple[int, int]:
    """The number of parts that a sample's positions are split into, and the positions of each.

    Up to four tiles are not split: there, by estimate, the second launch costs what the split saves.
    """
    return split(b, n, rows, 2 * rows) if n > 4 * rows else (1, n)
