"""Triton kernels of attention_block: its two launches.

attention_block_keys, a program for each sample and block of key columns: the pre-norm's statistics, then
xh softmax_n(W_k xh)^T with a running maximum over the positions. attention_block_out, a program for each sample and
chunk of positions: the rest. x is read three times and written once; queries, keys and values never leave the chip.

    x_b, x_c, x_p (and y_*): strides of batch, channel and position, in elements
    C, HEADS, D, WIDTH: channels, heads, width of a head, HEADS D; CP, DP: C and D padded to powers of two
    COLUMNS: key columns of a program; ROWS, N: positions at a time, for the statistics and for the products
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.channel_norm_triton import normalise
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.folded_attention import FoldedAttention
from fastdiff.kernels.group_norm_tiles import channel_statistics
from fastdiff.kernels.layout import FILL, empty_images, positions, power_of_2
from fastdiff.kernels.linear_attention import output_scale
from fastdiff.kernels.linear_attention_triton import softmax_features
from fastdiff.kernels.products import dot


@triton.jit
def attention_block_keys(
    x,  # (B, C, n) any float dtype
    w_k,  # (WIDTH, C) the network's dtype
    sums,  # (B, C, WIDTH) w_k's dtype, written: xh K^T
    statistics,  # (B, 2) float32, written: mean, 1 / standard deviation
    count,  # n, positions
    blocks,  # of key columns
    eps,
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Writes the sample's mean and 1 / standard deviation, and xh K^T for the program's columns of K."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.arange(0, CP)
    present = c < C
    x += b * x_b + c[None, :] * x_c

    mean_c, m2_c = channel_statistics(x, 0.0, count, x_p, present, "none", ROWS, CP)
    mean = tl.sum(mean_c, axis=0) / C
    off = tl.where(present, mean_c - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(m2_c + count * off * off, axis=0) / (count * C) + eps)
    tl.store(statistics + 2 * b, mean)
    tl.store(statistics + 2 * b + 1, rstd)

    inside = present[:, None] & (j < WIDTH)[None, :]
    weight = tl.load(w_k + j[None, :] * C + c[:, None], inside, 0.0)  # (CP, COLUMNS)
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    gram = tl.zeros((CP, COLUMNS), tl.float32)
    for start in range(0, count, N):
        p = start + tl.arange(0, N)
        valid = (p < count)[:, None] & present[None, :]
        v = tl.load(x + p[:, None] * x_p, valid, 0.0).to(tl.float32)
        v = tl.where(valid, (v - mean) * rstd, 0.0).to(weight.dtype)
        keys = dot(v, weight, tl.zeros((N, COLUMNS), tl.float32))
        keys = tl.where((p < count)[:, None], keys, float("-inf"))
        higher = tl.maximum(top, tl.max(keys, axis=0))
        shrink = tl.exp(top - higher)
        keys = tl.exp(keys - higher[None, :])
        total = total * shrink + tl.sum(keys, axis=0)
        gram *= shrink[None, :]
        gram = dot(tl.trans(v), keys.to(weight.dtype), gram)
        top = higher
    gram = gram / total[None, :]
    tl.store(sums + (b * C + c[:, None]) * WIDTH + j[None, :], gram.to(sums.dtype.element_ty), inside)


@triton.jit
def attention_block_out(
    x,  # (B, C, n) any float dtype
    y,  # (B, C, n) x's dtype, written
    w_q,  # (HEADS D, C) the network's dtype
    q_bias,  # (HEADS D,) float32
    first,  # A (HEADS, C, C) if FOLDED, else W_out (HEADS, C, D); the network's dtype
    second,  # None if FOLDED, else W_v (HEADS, D, C)
    bias,  # (C,) float32
    shift,  # (C,) float32
    gain,  # (C,) the network's dtype, or None
    sums,  # (B, C, HEADS D) as attention_block_keys wrote it
    statistics,  # (B, 2) float32, likewise
    count,  # n, positions
    chunks,  # of positions
    scale,  # d^-1/2, or d^-1/2 / n
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_p: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_p: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    N: tl.constexpr,
    FOLDED: tl.constexpr,
    NORM: tl.constexpr,
):
    """Writes the block's result at N positions. FOLDED: first is A. NORM: the output norm and the addition of x."""
    b = (tl.program_id(0) // chunks).to(tl.int64)
    p = (tl.program_id(0) % chunks) * N + tl.arange(0, N)
    c = tl.arange(0, CP)
    d = tl.arange(0, DP)
    valid = (p < count)[:, None] & (c < C)[None, :]
    raw = tl.load(x + b * x_b + p[:, None] * x_p + c[None, :] * x_c, valid, 0.0)
    mean = tl.load(statistics + 2 * b)
    rstd = tl.load(statistics + 2 * b + 1)
    v = tl.where(valid, (raw.to(tl.float32) - mean) * rstd, 0.0).to(w_q.dtype.element_ty)

    tall = (c < C)[:, None] & (d < D)[None, :]  # (CP, DP)
    out = tl.zeros((N, CP), tl.float32)
    for h in range(HEADS):
        weight = tl.load(w_q + (h * D + d[None, :]) * C + c[:, None], tall, 0.0)
        queries = dot(v, weight, tl.zeros((N, DP), tl.float32))
        queries += tl.load(q_bias + h * D + d, d < D, 0.0)[None, :]
        queries = softmax_features(queries, d, D).to(v.dtype)
        gram = tl.load(sums + (b * C + c[:, None]) * (HEADS * D) + h * D + d[None, :], tall, 0.0)
        if FOLDED:
            square = (c < C)[:, None] & (c < C)[None, :]
            mix = tl.load(first + h * C * C + c[:, None] * C + c[None, :], square, 0.0)
            mixed = dot(mix, gram, tl.zeros((CP, DP), tl.float32))
        else:
            wide = (d < D)[:, None] & (c < C)[None, :]
            values = tl.load(second + h * D * C + d[:, None] * C + c[None, :], wide, 0.0)
            context = dot(values, gram, tl.zeros((DP, DP), tl.float32)).to(v.dtype)
            mix = tl.load(first + h * C * D + c[:, None] * D + d[None, :], tall, 0.0)
            mixed = dot(mix, context, tl.zeros((CP, DP), tl.float32))
        out = dot(queries, tl.trans(mixed.to(v.dtype)), out)
    constant = tl.load(bias + c, c < C, 0.0) + scale * tl.load(shift + c, c < C, 0.0)
    out = out * scale + constant[None, :]
    if NORM:
        xhat, _ = normalise(out, valid, C, 1e-5)  # eps of the output norm, a channel_norm
        out = xhat * tl.load(gain + c, c < C, 0.0).to(tl.float32)[None, :] + raw.to(tl.float32)
    tl.store(y + b * y_b + p[:, None] * y_p + c[None, :] * y_c, out.to(y.dtype.element_ty), valid)


def forward(x: Tensor, folded: FoldedAttention) -> Tensor:
    """attention_block(x, folded), for any float dtype."""
    b, c, h, w = x.shape
    n, width = h * w, folded.w_q.shape[0]
    d = width // folded.heads
    cp, dp = max(16, power_of_2(c)), max(16, power_of_2(d))
    y = empty_images(x)
    sums = torch.empty((b, c, width), dtype=folded.w_k.dtype, device=x.device)
    statistics = torch.empty((b, 2), dtype=torch.float32, device=x.device)
    flat, into = positions(x), positions(y)
    # A program takes all key columns if the samples alone fill the device and the sums fit, else one head's.
    columns = max(16, power_of_2(width)) if b >= FILL // 2 and cp * power_of_2(width) <= 8192 else dp
    rows = max(16, min(64, power_of_2(n), 4096 // max(cp, columns)))
    blocks = -(-width // columns)
    tensors = flat, folded.w_k, sums, statistics
    sizes = dict(C=c, CP=cp, WIDTH=width, COLUMNS=columns, N=rows, ROWS=max(1, min(power_of_2(n), 4096 // cp)))
    numbers = n, blocks, folded.eps, *flat.stride()
    launch(attention_block_keys, (b * blocks,), x.device, *tensors, *numbers, **sizes, num_warps=8)

    rows = max(16, min(64, power_of_2(n), 8192 // cp))
    chunks = -(-n // rows)
    first, second = folded.values if len(folded.values) == 2 else (*folded.values, None)
    weights = folded.w_q, folded.q_bias, first, second, folded.bias, folded.shift, folded.gain
    numbers = n, chunks, output_scale(d, n, folded.divide_by_n), *flat.stride(), *into.stride()
    sizes = dict(
        HEADS=folded.heads, D=d, DP=dp, C=c, CP=cp, N=rows, FOLDED=second is None, NORM=folded.gain is not None
    )
    launch(
        attention_block_out,
        (b * chunks,),
        x.device,
        *(flat, into, *weights, sums, statistics),
        *numbers,
        **sizes,
        num_warps=4 if cp <= 64 else 8,
        num_stages=2,
    )
    return y
