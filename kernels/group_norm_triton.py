"""The Triton form of group_norm: a program for each sample, whose second reading comes from the cache.

Where samples are too few to fill the device their positions are split over programs, in two launches: statistics of
each part, then every part normalised by those of all parts together. Always in the same order, so with the same bits.

Statistics by Welford's update in every lane of a tile (positions, channels), the lanes' results, and those of parts,
combined by Chan's formula: no difference of large sums, and no reduction across threads inside the loop.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.activations import activate, activation_slope
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, empty_images, per_sample, positions, power_of_2, registers, split, tile


@triton.jit
def _columns(GROUPS: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, KP: tl.constexpr):
    """Channel, group and mask of each column; groups and the CG channels of a group are padded to powers of two."""
    j = tl.arange(0, GP * KP)
    g, k = j // KP, j % KP
    return g * CG + k, g, (g < GROUPS) & (k < CG), k == 0


@triton.jit
def _over_group(v, GP: tl.constexpr, KP: tl.constexpr):
    """The sum over each group's columns, given back to every one of them. (GP * KP,)"""
    total = tl.sum(tl.reshape(v, (GP, KP)), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], (GP, KP)), (GP * KP,))


@triton.jit
def _modulation(
    b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE: tl.constexpr, MODULATED: tl.constexpr
):
    """weight, bias, scale + 1 and shift of each column, float32."""
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
    """Mean and sum of squared deviations of before(x + added) for each column, over `count` positions.

    x: pointers (1, COLUMNS) to the first position; added: (1, COLUMNS) or 0; mask: (COLUMNS,). Both results (COLUMNS,)
    float32.
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
    # How many positions each row of the tile has seen.
    n = ((count - r + ROWS - 1) // ROWS).to(tl.float32)[:, None]
    mean_c = tl.sum(mean_t * n, axis=0) / count
    off = mean_t - mean_c[None, :]
    return mean_c, tl.sum(m2_t + n * off * off, axis=0)


@triton.jit
def _group_statistics(mean_c, m2_c, count, mask, CG: tl.constexpr, GP: tl.constexpr, KP: tl.constexpr):
    """Mean and sum of squared deviations of each column's group, from those of the columns over `count` positions."""
    mean = _over_group(mean_c, GP, KP) / CG
    off = tl.where(mask, mean_c - mean, 0.0)
    return mean, _over_group(m2_c + count * off * off, GP, KP)


@triton.jit
def _added(input_bias, c, mask, ADDED: tl.constexpr):
    """The bias of each column's input, (1, COLUMNS), or 0."""
    added = 0.0
    if ADDED:
        added = tl.load(input_bias + c, mask, 0.0).to(tl.float32)[None, :]
    return added


@triton.jit
def _normalise(
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
    """Writes the result at positions start to stop. x, y: pointers (1, COLUMNS) to a sample's first position."""
    w, o, m, t = _modulation(b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE, MODULATED)
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
    x,
    y,
    weight,
    bias,
    input_bias,
    scale,
    shift,
    means,
    rstds,
    count,
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
    b = tl.program_id(0).to(tl.int64)
    c, g, mask, first = _columns(GROUPS, CG, GP, KP)
    x += b * x_b + c[None, :] * x_c
    y += b * y_b + c[None, :] * y_c
    added = _added(input_bias, c, mask, ADDED)
    mean_c, m2_c = channel_statistics(x, added, count, x_p, mask, BEFORE, ROWS, GP * KP)
    mean, m2 = _group_statistics(mean_c, m2_c, count, mask, CG, GP, KP)
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
    x,
    partial,
    input_bias,
    count,
    span,
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
    """partial (B, parts, GROUPS, 2): mean and sum of squared deviations over a part's positions."""
    b, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c, g, mask, first = _columns(GROUPS, CG, GP, KP)
    start = part * span
    n = tl.minimum(span, count - start)
    x += b * x_b + start * x_p + c[None, :] * x_c
    mean_c, m2_c = channel_statistics(x, _added(input_bias, c, mask, ADDED), n, x_p, mask, BEFORE, ROWS, GP * KP)
    mean, m2 = _group_statistics(mean_c, m2_c, n, mask, CG, GP, KP)
    place = partial + ((b * parts + part) * GROUPS + g) * 2
    tl.store(place, mean, mask & first)
    tl.store(place + 1, m2, mask & first)


@triton.jit
def group_norm_apply(
    x,
    y,
    weight,
    bias,
    input_bias,
    scale,
    shift,
    means,
    rstds,
    partial,
    count,
    span,
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
    """Combines the statistics of a sample's parts, and normalises one part."""
    b, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c, g, mask, first = _columns(GROUPS, CG, GP, KP)
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
        _added(input_bias, c, mask, ADDED),
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


@triton.jit
def group_norm_backward(
    x,
    dy,
    dx,
    weight,
    bias,
    input_bias,
    scale,
    shift,
    means,
    rstds,
    sums,
    sums_normed,
    sums_input,
    count,
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    dy_b: tl.constexpr,
    dy_c: tl.constexpr,
    dy_p: tl.constexpr,
    dx_b: tl.constexpr,
    dx_c: tl.constexpr,
    dx_p: tl.constexpr,
    scale_b,
    shift_b,
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
    """dx, and for each sample and channel the sums over positions of dz, of dz normed and of dx, dz = dy after'(z)."""
    b = tl.program_id(0).to(tl.int64)
    c, g, mask, _ = _columns(GROUPS, CG, GP, KP)
    r = tl.arange(0, ROWS)
    x += b * x_b + c[None, :] * x_c
    dy += b * dy_b + c[None, :] * dy_c
    dx += b * dx_b + c[None, :] * dx_c
    mean = tl.load(means + b * GROUPS + g, mask, 0.0)[None, :]
    rstd = tl.load(rstds + b * GROUPS + g, mask, 0.0)[None, :]
    w, o, m, t = _modulation(b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE, MODULATED)
    gain, offset = (w * m)[None, :], (o * m + t)[None, :]
    added = _added(input_bias, c, mask, ADDED)

    sum_t = tl.zeros((ROWS, GP * KP), tl.float32)
    normed_t = tl.zeros((ROWS, GP * KP), tl.float32)
    for start in range(0, count, ROWS):
        p = start + r
        valid = (p < count)[:, None] & mask[None, :]
        v = activate(tl.load(x + p[:, None] * x_p, valid, 0.0).to(tl.float32) + added, BEFORE)
        xhat = (v - mean) * rstd
        dz = tl.load(dy + p[:, None] * dy_p, valid, 0.0).to(tl.float32)
        dz = dz * activation_slope(xhat * gain + offset, AFTER)
        sum_t += dz
        normed_t += dz * xhat
    s, s_normed = tl.sum(sum_t, axis=0), tl.sum(normed_t, axis=0)
    channels: tl.constexpr = GROUPS * CG
    tl.store(sums + b * channels + c, s, mask)
    tl.store(sums_normed + b * channels + c, s_normed, mask)

    elements = count * CG
    shared = (_over_group(w * m * s, GP, KP) / elements)[None, :]
    shared_normed = (_over_group(w * m * s_normed, GP, KP) / elements)[None, :]
    input_t = tl.zeros((ROWS, GP * KP), tl.float32)
    for start in range(0, count, ROWS):
        p = start + r
        valid = (p < count)[:, None] & mask[None, :]
        raw = tl.load(x + p[:, None] * x_p, valid, 0.0).to(tl.float32) + added
        xhat = (activate(raw, BEFORE) - mean) * rstd
        dz = tl.load(dy + p[:, None] * dy_p, valid, 0.0).to(tl.float32)
        dz = dz * activation_slope(xhat * gain + offset, AFTER)
        d = rstd * (dz * gain - shared - xhat * shared_normed) * activation_slope(raw, BEFORE)
        tl.store(dx + p[:, None] * dx_p, d.to(dx.dtype.element_ty), valid)
        if ADDED:
            input_t += tl.where(valid, d, 0.0)
    if ADDED:  # summed before rounding: what a norm follows nearly cancels
        tl.store(sums_input + b * channels + c, tl.sum(input_t, axis=0), mask)


def _options(x: Tensor, groups: int, weight, input_bias, scale, before, after) -> dict:
    width = x.shape[1] // groups
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


def forward(x, weight, bias, input_bias, scale, shift, groups, eps, before, after) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and 1 / standard deviation of each group, (B, groups) float32."""
    b, c, h, w = x.shape
    y = empty_images(x)
    means, rstds = (torch.empty((b, groups), dtype=torch.float32, device=x.device) for _ in range(2))
    (scale, scale_b), (shift, shift_b) = per_sample(scale, c), per_sample(shift, c)
    weight, bias, input_bias = map(contiguous, (weight, bias, input_bias))
    flat, into = positions(x), positions(y)
    options = _options(x, groups, weight, input_bias, scale, before, after)
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
    """How many parts a sample's positions are split into, and the positions of each.

    Up to four tiles are not split: by estimate the second launch costs then what the split would save.
    """
    return split(b, n, rows, 2 * rows) if n > 4 * rows else (1, n)


def backward(
    dy, x, weight, bias, input_bias, scale, shift, means, rstds, groups, before, after
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, input_bias, scale and shift."""
    b, c, h, w = x.shape
    dx = empty_images(x)
    s, s_normed, s_input = (torch.empty((b, c), dtype=torch.float32, device=x.device) for _ in range(3))
    (scale_rows, scale_b), (shift_rows, shift_b) = per_sample(scale, c), per_sample(shift, c)
    weight, bias, input_bias = map(contiguous, (weight, bias, input_bias))
    flat, grad, into = positions(x), positions(dy), positions(dx)
    launch(
        group_norm_backward,
        (b,),
        x.device,
        flat,
        grad,
        into,
        weight,
        bias,
        input_bias,
        scale_rows,
        shift_rows,
        means,
        rstds,
        s,
        s_normed,
        s_input,
        h * w,
        *flat.stride(),
        *grad.stride(),
        *into.stride(),
        scale_b,
        shift_b,
        **_options(x, groups, weight, input_bias, scale, before, after),
    )
    # What is left are sums over the (B, C) tensors: z = (xhat weight + bias) (scale + 1) + shift.
    dweight = dbias = dadded = dscale = dshift = None
    modulation = 1.0 if scale_rows is None else scale_rows.float() + 1
    if weight is not None:
        dweight = (s_normed * modulation).sum(0).to(weight.dtype)
        dbias = (s * modulation).sum(0).to(bias.dtype)
    if input_bias is not None:
        dadded = s_input.sum(0).to(input_bias.dtype)
    if scale is not None:
        ds = s_normed if weight is None else s_normed * weight.float() + s * bias.float()
        dscale = _as(ds, scale)
        dshift = _as(s, shift)
    return dx, dweight, dbias, dadded, dscale, dshift


def _as(gradient: Tensor, like: Tensor) -> Tensor:
    """(B, C) as the gradient of a tensor that may be shared by all samples."""
    if like.shape[0] == 1:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.reshape(like.shape).to(like.dtype)
