"""Triton kernels of group_norm: a program for each sample, whose second reading of x comes from the cache.

Where samples are too few to fill the device, their positions are split over programs, in two launches: the statistics
of each part; then the parts' statistics merged, always in the same order, and one part normalised.

Each lane of a tile keeps mean and squared deviations by Welford's update (1962); lanes and parts are merged by Chan's
formula (Chan, Golub and LeVeque 1983). So there is no difference of large sums, and no reduction across threads inside
the loop.

    x_b, x_c, x_p (and y_*): strides of batch, channel and position, in elements
    scale_b, shift_b: strides of batch of scale and shift, 0 where all samples share a row
    WIDE: channels of y; those beyond C, which there are with one group alone, become zeros
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
from fastdiff.kernels.layout import contiguous, empty_images, per_sample, positions, positions_last, power_of_2, split
from fastdiff.kernels.statistics_triton import merged_channels


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
    second,
    x_p: tl.constexpr,
    y_p: tl.constexpr,
    FIRST: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    AFFINE: tl.constexpr,
    MODULATED: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
):
    """Writes y at positions start .. stop - 1.

    x, y, second: pointers (1, columns) to a sample's first position; second: to channels from FIRST on, channels_last.
    """
    w, o, m, t = modulation(b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE, MODULATED)
    gain = rstd * w * m
    offset = o * m + t
    for first in range(start, stop, ROWS):
        p = first + tl.arange(0, ROWS)
        valid = (p < stop)[:, None] & mask[None, :]
        of_x = valid
        if FIRST < C:
            of_x = valid & (c < FIRST)[None, :]
        v = tl.load(x + p[:, None] * x_p, of_x, 0.0).to(tl.float32)
        if FIRST < C:
            v += tl.load(second + p[:, None] * (C - FIRST), valid & (c >= FIRST)[None, :], 0.0).to(tl.float32)
        v = activate(v + added, BEFORE)
        v = activate((v - mean[None, :]) * gain[None, :] + offset[None, :], AFTER)
        into = valid
        if WIDE > C:  # of one group, whose columns are the channels
            into = (p < stop)[:, None] & (c < WIDE)[None, :]
            v = tl.where(valid, v, 0.0)
        tl.store(y + p[:, None] * y_p, v.to(y.dtype.element_ty), into)


@triton.jit
def place_of_second(second, b, c, count, FIRST: tl.constexpr, C: tl.constexpr):
    """Pointers (1, columns) to a sample's first position; None where there is no second input."""
    place = second
    if FIRST < C:
        place = second + b * count * (C - FIRST) + (c - FIRST)[None, :]
    return place


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
    WIDE: tl.constexpr,
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
        None,
        x_p,
        y_p,
        GROUPS * CG,
        GROUPS * CG,
        WIDE,
        ROWS,
        AFFINE,
        MODULATED,
        BEFORE,
        AFTER,
    )


@triton.jit
def group_norm_part(
    x,  # (B, C, n) any float dtype
    statistics,  # (B, parts, C, 3) float32, written
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
    """The statistics of one part of each channel; see statistics_triton."""
    b, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c, g, mask, first = columns(GROUPS, CG, GP, KP)
    start = part * span
    n = tl.minimum(span, count - start)
    x += b * x_b + start * x_p + c[None, :] * x_c
    mean_c, m2_c = channel_statistics(x, input_bias_of(input_bias, c, mask, ADDED), n, x_p, mask, BEFORE, ROWS, GP * KP)
    place = statistics + ((b * parts + part) * (GROUPS * CG) + c) * 3
    tl.store(place, tl.zeros_like(mean_c) + n, mask)
    tl.store(place + 1, mean_c, mask)
    tl.store(place + 2, m2_c, mask)


@triton.jit
def _known(
    statistics,
    second_statistics,
    b,
    c,
    mask,
    count,
    parts,
    second_parts,
    eps,
    FIRST: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    KP: tl.constexpr,
    C: tl.constexpr,
):
    """Mean and 1 / standard deviation of each column's group, from the statistics of a sample's parts."""
    zeros = tl.zeros(c.shape, tl.float32)
    mean_c, m2_c, seen = merged_channels(
        zeros, zeros, zeros, statistics + b * parts * (FIRST * 3), parts, c, mask & (c < FIRST), FIRST
    )
    if FIRST < C:
        place = second_statistics + b * second_parts * ((C - FIRST) * 3)
        mean_c, m2_c, seen = merged_channels(
            mean_c, m2_c, seen, place, second_parts, c - FIRST, mask & (c >= FIRST), C - FIRST
        )
    mean, m2 = group_statistics(mean_c, m2_c, count, mask, CG, GP, KP)
    return mean, tl.rsqrt(m2 / (count * CG) + eps)


@triton.jit
def group_norm_apply(
    x,  # (B, FIRST, n) any float dtype
    y,  # (B, C, n) x's dtype, written
    weight,  # (C,) any float dtype, or None
    bias,  # as weight
    input_bias,  # (C,) any float dtype, or None
    scale,  # (B, C) or (1, C) any float dtype, or None
    shift,  # as scale
    means,  # (B, GROUPS) float32, written
    rstds,  # (B, GROUPS) float32, written: 1 / standard deviation
    statistics,  # (B, parts, FIRST, 3) float32
    second,  # (B, n, C - FIRST) any float dtype, channels_last, the channels after x's; or None
    second_statistics,  # (B, second_parts, C - FIRST, 3) float32, or None
    count,  # n, positions
    span,  # positions of a program
    parts,
    second_parts,
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_p: tl.constexpr,
    scale_b,
    shift_b,
    eps,
    FIRST: tl.constexpr,
    WIDE: tl.constexpr,
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
    """Merges the statistics of a sample's parts, and normalises the program's positions."""
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, g, mask, first = columns(GROUPS, CG, GP, KP)
    C: tl.constexpr = GROUPS * CG
    mean, rstd = _known(
        statistics, second_statistics, b, c, mask, count, parts, second_parts, eps, FIRST, CG, GP, KP, C
    )
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
        place_of_second(second, b, c, count, FIRST, C),
        x_p,
        y_p,
        FIRST,
        C,
        WIDE,
        ROWS,
        AFFINE,
        MODULATED,
        BEFORE,
        AFTER,
    )


@triton.jit
def group_norm_rows_forward(
    gains,  # (B, C) float32, written
    offsets,  # (B, C) float32, written
    weight,  # (C,) any float dtype, or None
    bias,  # as weight
    scale,  # (B, C) or (1, C) any float dtype, or None
    shift,  # as scale
    statistics,  # (B, parts, FIRST, 3) float32
    second_statistics,  # (B, second_parts, C - FIRST, 3) float32, or None
    count,  # n, positions
    parts,
    second_parts,
    scale_b,
    shift_b,
    eps,
    FIRST: tl.constexpr,
    GROUPS: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    KP: tl.constexpr,
    AFFINE: tl.constexpr,
    MODULATED: tl.constexpr,
):
    """A program for each sample."""
    b = tl.program_id(0).to(tl.int64)
    c, _, mask, _ = columns(GROUPS, CG, GP, KP)
    C: tl.constexpr = GROUPS * CG
    mean, rstd = _known(
        statistics, second_statistics, b, c, mask, count, parts, second_parts, eps, FIRST, CG, GP, KP, C
    )
    w, o, m, t = modulation(b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE, MODULATED)
    gain = rstd * w * m
    tl.store(gains + b * C + c, gain, mask)
    tl.store(offsets + b * C + c, o * m + t - mean * gain, mask)


def forward(
    x, weight, bias, input_bias, scale, shift, groups, eps, before, after, wide=None
) -> tuple[Tensor, Tensor, Tensor]:
    """group_norm's result, and for the gradient each group's mean and 1 / standard deviation, (B, groups) float32.

    wide: channels of the result, C or more; those beyond C are zeros.
    """
    b, c, h, w = x.shape
    options = options_of(x, c, groups, weight, input_bias, scale, before, after)
    parts, span = _parts(b, h * w, options["ROWS"])
    if parts == 1:
        given, strides = _given(x, c, wide or c, groups, weight, bias, input_bias, scale, shift)
        launch(group_norm_forward, (b,), x.device, *given, h * w, *strides, eps, WIDE=wide or c, **options)
        _, y, *_, means, rstds = given
        return y.unflatten(2, (h, w)), means, rstds
    flat, input_bias = positions(x), contiguous(input_bias)
    statistics = torch.empty((b, parts, c, 3), dtype=torch.float32, device=x.device)
    some = {name: value for name, value in options.items() if name not in ("AFFINE", "MODULATED", "AFTER")}
    launch(group_norm_part, (b, parts), x.device, flat, statistics, input_bias, h * w, span, *flat.stride(), **some)
    given = weight, bias, input_bias, scale, shift, groups, eps, before, after
    return apply(x, statistics, None, None, *given, wide)


def apply(
    x,
    statistics,
    second,
    second_statistics,
    weight,
    bias,
    input_bias,
    scale,
    shift,
    groups,
    eps,
    before,
    after,
    wide=None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `forward`, of x and the channels of `second` after it, from the statistics of their channels."""
    b, first, h, w = x.shape
    c = first + (0 if second is None else second.shape[1])
    options = options_of(x, c, groups, weight, input_bias, scale, before, after)
    programs, span = _parts(b, h * w, options["ROWS"])
    given, strides = _given(x, c, wide or c, groups, weight, bias, input_bias, scale, shift)
    launch(
        group_norm_apply,
        (b, programs),
        x.device,
        *(*given, statistics, positions_last(second), second_statistics),
        *(h * w, span, statistics.shape[1], 0 if second_statistics is None else second_statistics.shape[1]),
        *(*strides, eps),
        FIRST=first,
        WIDE=wide or c,
        **options,
    )
    _, y, *_, means, rstds = given
    return y.unflatten(2, (h, w)), means, rstds


def rows(statistics, second_statistics, n, weight, bias, scale, shift, groups, eps) -> tuple[Tensor, Tensor]:
    """group_norm_rows of the same arguments; n: positions."""
    b, parts, first, _ = statistics.shape
    c = first + (0 if second_statistics is None else second_statistics.shape[2])
    gains, offsets = (torch.empty((b, c), dtype=torch.float32, device=statistics.device) for _ in range(2))
    (scale, scale_b), (shift, shift_b) = per_sample(scale, c), per_sample(shift, c)
    gp, kp = power_of_2(groups), power_of_2(c // groups)
    launch(
        group_norm_rows_forward,
        (b,),
        statistics.device,
        *(gains, offsets, contiguous(weight), contiguous(bias), scale, shift, statistics, second_statistics),
        *(n, parts, 0 if second_statistics is None else second_statistics.shape[1], scale_b, shift_b, eps),
        FIRST=first,
        GROUPS=groups,
        CG=c // groups,
        GP=gp,
        KP=kp,
        AFFINE=weight is not None,
        MODULATED=scale is not None,
        num_warps=max(1, min(8, gp * kp // 128)),
    )
    return gains, offsets


def _given(x, c, wide, groups, weight, bias, input_bias, scale, shift):
    """What both ways of normalising are given: tensors, the result and what it is made of among them; and strides."""
    means, rstds = (torch.empty((x.shape[0], groups), dtype=torch.float32, device=x.device) for _ in range(2))
    (scale, scale_b), (shift, shift_b) = per_sample(scale, c), per_sample(shift, c)
    weight, bias, input_bias = map(contiguous, (weight, bias, input_bias))
    flat, into = positions(x), positions(empty_images(x, wide))
    given = flat, into, weight, bias, input_bias, scale, shift, means, rstds
    return given, (*flat.stride(), *into.stride(), scale_b, shift_b)


def _parts(b: int, n: int, rows: int) -> tuple[int, int]:
    """The number of parts that a sample's positions are split into, and the positions of each.

    Up to four tiles are not split: there, by estimate, the second launch costs what the split saves.
    """
    return split(b, n, rows, 2 * rows) if n > 4 * rows else (1, n)
