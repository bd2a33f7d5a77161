"""Attention within a small picture with all around it in a block, in one pass: norm, projections, residual.

    y = (W_out softmax(q k^T scale) v + b + residual) factor,    q, k, v = W n(x) + b_W

n is a norm over groups of channels, Wu and He (2018), eq. 1, its gain and shift in W and b_W. A picture of few
positions fits a program, so that neither queries, keys, values nor scores are stored. For inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.conv_weight import Window, unpack
from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.picture_attention import Heads, picture_attention
from fastdiff.kernels.statistics import statistics_of

MAX_POSITIONS, MAX_CHANNELS, MAX_HEAD_WIDTH, MAX_WIDTH = 64, 128, 64, 256


def fits(dtype: torch.dtype, positions: int, channels: int, outputs: int, heads: int, width: int) -> bool:
    """Whether the kernel is to compute it: larger tiles, or float32, would not stay in registers.

    Every program reads all weights, 256 kB at most, from the cache; that is less than two launches and the traffic of
    q, k and v cost at any batch, by estimate.

    Args:
        dtype: of the images and weights.
        positions: H W.
        channels, outputs: C and O.
        heads, width: how many, and d, the width of each.
    """
    small = positions <= MAX_POSITIONS and max(channels, outputs) <= MAX_CHANNELS
    return dtype.itemsize == 2 and small and width <= MAX_HEAD_WIDTH and heads * width <= MAX_WIDTH


def small_attention(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    heads: Heads,
    scale: float,
    w_out: Tensor,
    b_out: Tensor | None,
    outputs: int,
    groups: int = 0,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    factor: float = 1.0,
    emit: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The block at the top of this file. Not differentiable.

    The Triton kernel keeps scores and sums in float32, and rounds what it multiplies to the weights' dtype.

    Args:
        x: (B, C, H, W), float32, bfloat16 or float16.
        w_qkv: (C padded, P padded), a 1x1 convolution to P channels, as conv_weight.pack gives it, but its matrix.
        b_qkv: (P,), or None.
        heads: among the P channels.
        scale: of the scores.
        w_out: (count width padded, O padded), likewise.
        b_out: (O,), or None.
        outputs: O.
        groups: of the norm, a divisor of C; 0 for none.
        eps: added to the norm's variance.
        residual: (B, O, H, W), or None.
        factor: of the result.
        emit: whether the result's statistics are wanted: None, "whole" or "channels"; see kernels.statistics.

    Returns:
        (B, O, H, W), x's dtype, from Triton in channels_last; with emit a pair, the second (B, 1, 3) or (B, 1, O, 3)
        float32.
    """
    given = x, w_qkv, b_qkv, heads, scale, w_out, b_out, outputs, groups, eps, residual, factor, emit
    if not use_triton(x):
        return small_attention_reference(*given)
    from fastdiff.kernels import small_attention_triton

    y, emitted = small_attention_triton.forward(*given)
    return y if emitted is None else (y, emitted)


def small_attention_reference(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    heads: Heads,
    scale: float,
    w_out: Tensor,
    b_out: Tensor | None,
    outputs: int,
    groups: int = 0,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    factor: float = 1.0,
    emit: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`small_attention` in plain torch."""
    normed = F.group_norm(x, groups, eps=eps) if groups else x
    projected = _projected(normed, w_qkv, b_qkv, w_qkv.shape[1])
    y = _projected(picture_attention(projected, heads, scale), w_out, b_out, outputs)
    y = (y if residual is None else y + residual) * factor
    return y if emit is None else (y, statistics_of(y, emit))


def _projected(x: Tensor, matrix: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    weight = unpack(matrix[None, None, None], Window((1, 1)), outputs, (x.shape[1], 0)).to(x.dtype)
    y = F.conv2d(x, weight)
    return y if bias is None else y + F.pad(bias, (0, outputs - len(bias))).to(x.dtype).view(-1, 1, 1)
