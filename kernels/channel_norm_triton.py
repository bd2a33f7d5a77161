"""Triton kernels of channel_norm and position_norm: a tile of ROWS positions by all channels, read once.

    x_b, x_c, x_p (and y_*, dy_*, dx_*, r_* of the residual): strides of batch, channel and position, in elements
    C: channels; COLUMNS: C padded to a power of two

The gradient, with d = dy gain and means over a position's channels (xhat = (x - mean) rstd):

    dx = rstd (d - mean(d) - xhat mean(d xhat)),    dgain = sum over samples and positions of dy xhat
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.activations import activate
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, empty_images, positions, promoted, registers, tile


@triton.jit
def normalise(v, mask, C: tl.constexpr, eps):
    """xhat and 1 / standard deviation of each row of a tile (positions, channels), float32, in two passes."""
    off = tl.where(mask, v - (tl.sum(v, axis=1) / C)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(off * off, axis=1) / C + eps)[:, None]
    return off * rstd, rstd


@triton.jit
def position_norm_forward(
    x,  # (B, C, n) any float dtype
    y,  # (B, C, n) the promoted dtype, written
    weight,  # (C,) any float dtype, or None
    bias,  # likewise
    residual,  # (B, C, n) any float dtype, or None
    count,  # n, positions
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_p: tl.constexpr,
    r_b: tl.constexpr,
    r_c: tl.constexpr,
    r_p: tl.constexpr,
    eps,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    AFTER: tl.constexpr,
    RESIDUAL: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = after(n(x) weight + bias) + residual; CENTRED: n(x) is xhat, else x / max(|x|, eps)."""
    per_sample = tl.cdiv(count, ROWS)
    b = (tl.program_id(0) // per_sample).to(tl.int64)
    p = (tl.program_id(0) % per_sample) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, COLUMNS)[None, :]
    mask = (p < count) & (c < C)
    v = tl.load(x + b * x_b + p * x_p + c * x_c, mask, 0.0).to(tl.float32)
    if CENTRED:
        out, _ = normalise(v, mask, C, eps)
    else:
        out = v / tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), eps)[:, None]
    if WEIGHT:
        out *= tl.load(weight + c, c < C, 0.0).to(tl.float32)
    if BIAS:
        out += tl.load(bias + c, c < C, 0.0).to(tl.float32)
    out = activate(out, AFTER)
    if RESIDUAL:
        out += tl.load(residual + b * r_b + p * r_p + c * r_c, mask, 0.0).to(tl.float32)
    tl.store(y + b * y_b + p * y_p + c * y_c, out.to(y.dtype.element_ty), mask)


@triton.jit
def channel_norm_backward(
    x,  # (B, C, n) any float dtype
    dy,  # (B, C, n) any float dtype
    dx,  # (B, C, n) x's dtype, written
    gain,  # (C,) any float dtype
    partial,  # (programs, C) float32, written
    tiles,  # of all samples
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
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx, and the share of dgain of the tiles that the program takes."""
    columns = tl.arange(0, COLUMNS)
    c = columns[None, :]
    g = tl.load(gain + c, c < C, 0.0).to(tl.float32)
    dgain = tl.zeros((ROWS, COLUMNS), tl.float32)
    per_sample = tl.cdiv(count, ROWS)
    for i in range(tl.program_id(0), tiles, tl.num_programs(0)):
        b = (i // per_sample).to(tl.int64)
        p = (i % per_sample) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (p < count) & (c < C)
        v = tl.load(x + b * x_b + p * x_p + c * x_c, mask, 0.0).to(tl.float32)
        xhat, rstd = normalise(v, mask, C, eps)
        d = tl.load(dy + b * dy_b + p * dy_p + c * dy_c, mask, 0.0).to(tl.float32)
        dgain += d * xhat
        d *= g
        along = (tl.sum(d * xhat, axis=1) / C)[:, None]
        d = rstd * (d - (tl.sum(d, axis=1) / C)[:, None] - xhat * along)
        tl.store(dx + b * dx_b + p * dx_p + c * dx_c, d.to(dx.dtype.element_ty), mask)
    tl.store(partial + tl.program_id(0) * C + columns, tl.sum(dgain, axis=0), columns < C)


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    after: str | None,
    residual: Tensor | None,
) -> Tensor:
    """position_norm of the same arguments."""
    b, c, h, w = x.shape
    y = empty_images(x, dtype=promoted(x, weight, bias, residual))
    rows, columns, warps = tile(c, h * w, 2048)
    flat, into = positions(x), positions(y)
    other = None if residual is None else positions(residual)
    launch(
        position_norm_forward,
        (b * -(-h * w // rows),),
        x.device,
        *(flat, into, contiguous(weight), contiguous(bias), other),
        h * w,
        *(*flat.stride(), *into.stride(), *((0, 0, 0) if other is None else other.stride())),
        eps,
        CENTRED=centred,
        WEIGHT=weight is not None,
        BIAS=bias is not None,
        AFTER=after or "none",
        RESIDUAL=residual is not None,
        C=c,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )
    return y


def backward(dy: Tensor, x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x and gain."""
    b, c, h, w = x.shape
    dx = empty_images(x)
    rows, columns, warps = tile(c, h * w, 2048)
    tiles = b * -(-h * w // rows)
    programs = min(tiles, 512)  # a few for each multiprocessor; their shares of dgain are summed below
    partial = torch.empty((programs, c), dtype=torch.float32, device=x.device)
    flat, grad, into = positions(x), positions(dy), positions(dx)
    launch(
        channel_norm_backward,
        (programs,),
        x.device,
        *(flat, grad, into, gain.contiguous(), partial),
        *(tiles, h * w),
        *(*flat.stride(), *grad.stride(), *into.stride()),
        eps,
        C=c,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
        **registers(x, 128),
    )
    return dx, partial.sum(0).view(1, c, 1, 1).to(gain.dtype)
