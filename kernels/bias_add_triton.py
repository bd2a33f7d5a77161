"""Triton kernel of bias_add and conv_ending: a program takes a tile of ROWS positions by COLUMNS channels of a sample.

x_b, x_c, x_p (and y_*, r_* of the residual): strides of batch, channel and position, in elements
C: channels; WIDE: those of y, of which the ones beyond C become zeros
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.activations import activate
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, empty_images, per_sample, positions, promoted, tile


@triton.jit
def conv_ending_forward(
    x,  # (B, C, n) any float dtype
    y,  # (B, C, n) the promoted dtype, written
    residual,  # (B, C, n) any float dtype, or None
    bias,  # (C,) any float dtype, or None
    residual_bias,  # (C,) any float dtype, or None
    added,  # (B, C) or (1, C) any float dtype, or None
    count,  # n, positions
    channel_blocks,  # tiles side by side
    added_b,  # added's stride of batch, 0 for (1, C)
    C: tl.constexpr,
    WIDE: tl.constexpr,
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_p: tl.constexpr,
    r_b: tl.constexpr,
    r_c: tl.constexpr,
    r_p: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RESIDUAL_BIAS: tl.constexpr,
    ADDED: tl.constexpr,
    AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = after(x + bias + added) + residual + residual_bias."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pid = pid // channel_blocks
    per_sample = tl.cdiv(count, ROWS)
    b = (pid // per_sample).to(tl.int64)
    p = (pid % per_sample) * ROWS + tl.arange(0, ROWS)[:, None]
    mask = (p < count) & (c < C)
    v = tl.load(x + b * x_b + p * x_p + c * x_c, mask, 0.0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + c, c < C, 0.0).to(tl.float32)
    if ADDED:
        v += tl.load(added + b * added_b + c, c < C, 0.0).to(tl.float32)
    v = activate(v, AFTER)
    if RESIDUAL:
        v += tl.load(residual + b * r_b + p * r_p + c * r_c, mask, 0.0).to(tl.float32)
    if RESIDUAL_BIAS:
        v += tl.load(residual_bias + c, c < C, 0.0).to(tl.float32)
    # Every activation of 0 is 0.
    tl.store(y + b * y_b + p * y_p + c * y_c, v.to(y.dtype.element_ty), (p < count) & (c < WIDE))


def forward(
    x: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    after: str | None,
    residual: Tensor | None,
    residual_bias: Tensor | None,
    channels: int | None,
) -> Tensor:
    """conv_ending of the same arguments."""
    b, c, h, w = x.shape
    wide = c if channels is None else channels
    y = empty_images(x, wide, dtype=promoted(x, residual, bias, residual_bias, added))
    bias, residual_bias = contiguous(bias), contiguous(residual_bias)
    added_rows, added_b = per_sample(added, c)
    rows, columns, warps = tile(min(wide, 256), h * w, 2048)
    blocks = -(-wide // columns)
    flat, into = positions(x), positions(y)
    other = None if residual is None else positions(residual)
    launch(
        conv_ending_forward,
        (b * -(-h * w // rows) * blocks,),
        x.device,
        *(flat, into, other, bias, residual_bias, added_rows),
        *(h * w, blocks, added_b, c, wide),
        *(*flat.stride(), *into.stride(), *((0, 0, 0) if other is None else other.stride())),
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        RESIDUAL_BIAS=residual_bias is not None,
        ADDED=added is not None,
        AFTER=after or "none",
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )
    return y
