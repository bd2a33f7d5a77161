"""Triton kernel of bias_add: a program takes a tile of ROWS positions by COLUMNS channels of a sample.

x_b, x_c, x_p (and y_*, r_* of the residual): strides of batch, channel and position, in elements
C: channels
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, empty_images, positions, promoted, tile


@triton.jit
def bias_add_forward(
    x,  # (B, C, n) any float dtype
    y,  # (B, C, n) the promoted dtype, written
    residual,  # (B, C, n) any float dtype
    bias,  # (C,) any float dtype, or None
    residual_bias,  # (C,) any float dtype, or None
    count,  # n, positions
    channel_blocks,  # tiles side by side
    C: tl.constexpr,
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
    RESIDUAL_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = x + bias + residual + residual_bias."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pid = pid // channel_blocks
    per_sample = tl.cdiv(count, ROWS)
    b = (pid // per_sample).to(tl.int64)
    p = (pid % per_sample) * ROWS + tl.arange(0, ROWS)[:, None]
    mask = (p < count) & (c < C)
    v = tl.load(x + b * x_b + p * x_p + c * x_c, mask, 0.0).to(tl.float32)
    v += tl.load(residual + b * r_b + p * r_p + c * r_c, mask, 0.0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + c, c < C, 0.0).to(tl.float32)
    if RESIDUAL_BIAS:
        v += tl.load(residual_bias + c, c < C, 0.0).to(tl.float32)
    tl.store(y + b * y_b + p * y_p + c * y_c, v.to(y.dtype.element_ty), mask)


def forward(x: Tensor, residual: Tensor, bias: Tensor | None, residual_bias: Tensor | None) -> Tensor:
    """bias_add(x, residual, bias, residual_bias)."""
    b, c, h, w = x.shape
    y = empty_images(x, dtype=promoted(x, residual, bias, residual_bias))
    bias, residual_bias = contiguous(bias), contiguous(residual_bias)
    rows, columns, warps = tile(min(c, 256), h * w, 2048)
    blocks = -(-c // columns)
    flat, other, into = positions(x), positions(residual), positions(y)
    launch(
        bias_add_forward,
        (b * -(-h * w // rows) * blocks,),
        x.device,
        *(flat, into, other, bias, residual_bias),
        *(h * w, blocks, c),
        *(*flat.stride(), *into.stride(), *other.stride()),
        BIAS=bias is not None,
        RESIDUAL_BIAS=residual_bias is not None,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )
    return y
