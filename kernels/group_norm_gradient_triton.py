"""Triton kernel of group_norm's gradient: a program for each sample, in two passes over its positions.

With z = (xhat weight + bias) (scale + 1) + shift, dz = dy after'(z), g = weight (scale + 1), and means over a group's
channels and positions,

    dx = rstd (g dz - mean(g dz) - xhat mean(g dz xhat)) before'(x + input_bias)

The gradients of the parameters follow from each channel's sums over positions of dz, of dz xhat and of dx.

    x_b, x_c, x_p (and dy_*, dx_*): strides of batch, channel and position, in elements
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

from fastdiff.kernels.activations import activate, activation_slope
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.group_norm_tiles import columns, input_bias_of, modulation, options_of, over_group
from fastdiff.kernels.layout import contiguous, empty_images, per_sample, positions


@triton.jit
def group_norm_backward(
    x,  # (B, C, n) any float dtype
    dy,  # (B, C, n) any float dtype
    dx,  # (B, C, n) x's dtype, written
    weight,  # (C,) any float dtype, or None
    bias,  # as weight
    input_bias,  # (C,) any float dtype, or None
    scale,  # (B, C) or (1, C) any float dtype, or None
    shift,  # as scale
    means,  # (B, GROUPS) float32, from the forward pass
    rstds,  # (B, GROUPS) float32, likewise
    sums,  # (B, C) float32, written: the sum of dz
    sums_normed,  # (B, C) float32, written: of dz xhat
    sums_input,  # (B, C) float32, written if ADDED: of dx
    count,  # n, positions
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
    """dx, and each channel's sums over positions."""
    b = tl.program_id(0).to(tl.int64)
    c, g, mask, _ = columns(GROUPS, CG, GP, KP)
    r = tl.arange(0, ROWS)
    x += b * x_b + c[None, :] * x_c
    dy += b * dy_b + c[None, :] * dy_c
    dx += b * dx_b + c[None, :] * dx_c
    mean = tl.load(means + b * GROUPS + g, mask, 0.0)[None, :]
    rstd = tl.load(rstds + b * GROUPS + g, mask, 0.0)[None, :]
    w, o, m, t = modulation(b, c, mask, weight, bias, scale, shift, scale_b, shift_b, AFFINE, MODULATED)
    gain, offset = (w * m)[None, :], (o * m + t)[None, :]
    added = input_bias_of(input_bias, c, mask, ADDED)

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
    shared = (over_group(w * m * s, GP, KP) / elements)[None, :]
    shared_normed = (over_group(w * m * s_normed, GP, KP) / elements)[None, :]
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
    if ADDED:  # summed before rounding, for the terms nearly cancel
        tl.store(sums_input + b * channels + c, tl.sum(input_t, axis=0), mask)


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
    tensors = flat, grad, into, weight, bias, input_bias, scale_rows, shift_rows, means, rstds, s, s_normed, s_input
    strides = *flat.stride(), *grad.stride(), *into.stride(), scale_b, shift_b
    options = options_of(x, x.shape[1], groups, weight, input_bias, scale, before, after)
    launch(group_norm_backward, (b,), x.device, *tensors, h * w, *strides, **options)
    # The rest are sums over (B, C) tensors, by z = (xhat weight + bias) (scale + 1) + shift.
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
    """(B, C) summed to the shape of `like`, which all samples may share, and in its dtype."""
    if like.shape[0] == 1:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.reshape(like.shape).to(like.dtype)
