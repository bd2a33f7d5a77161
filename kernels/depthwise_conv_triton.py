"""The Triton form of depthwise_conv.

A program makes a tile (columns, channels) of several output rows at once. For each horizontal offset of the kernel an
input row is read once and used for every output row that it reaches: with 7 rows and a 7x7 kernel 13 readings for
each output element in place of 49.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, empty_images, per_sample, power_of_2


@triton.jit
def depthwise_conv_forward(
    x,
    y,
    weight,
    bias,
    time_bias,
    height,
    width,
    channels: tl.constexpr,
    row_blocks,
    column_blocks,
    channel_blocks,
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_h: tl.constexpr,
    x_w: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_h: tl.constexpr,
    y_w: tl.constexpr,
    time_b,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BIAS: tl.constexpr,
    TIME: tl.constexpr,
):
    """weight: (K, K, C), so that a tap's channels lie side by side."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    pid = pid // channel_blocks
    w = (pid % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    pid = pid // column_blocks
    row = (pid % row_blocks) * ROWS
    b = (pid // row_blocks).to(tl.int64)

    start = tl.zeros((CHANNELS,), tl.float32)
    if BIAS:
        start += tl.load(bias + c, c < channels, 0.0).to(tl.float32)
    if TIME:
        start += tl.load(time_bias + b * time_b + c, c < channels, 0.0).to(tl.float32)
    total = ()
    for _ in tl.static_range(ROWS):
        total = total + (tl.zeros((COLUMNS, CHANNELS), tl.float32) + start[None, :],)

    x += b * x_b + c[None, :] * x_c
    for j in range(K):
        column = w + (j - K // 2)
        inside = ((column >= 0) & (column < width))[:, None] & (c < channels)[None, :]
        taps = ()
        for i in tl.static_range(K):
            tap = tl.load(weight + (i * K + j) * channels + c, c < channels, 0.0)
            taps = taps + (tap.to(tl.float32)[None, :],)
        for r in tl.static_range(ROWS + K - 1):
            source = row + (r - K // 2)
            valid = inside & (source >= 0) & (source < height)
            v = tl.load(x + source * x_h + column[:, None] * x_w, valid, 0.0).to(tl.float32)
            after = ()
            for o in tl.static_range(ROWS):
                if r - o >= 0 and r - o < K:
                    after = after + (total[o] + v * taps[r - o],)
                else:
                    after = after + (total[o],)
            total = after
    y += b * y_b + c[None, :] * y_c + w[:, None] * y_w
    mask = (w < width)[:, None] & (c < channels)[None, :]
    for o in tl.static_range(ROWS):
        tl.store(y + (row + o) * y_h, total[o].to(y.dtype.element_ty), mask & (row + o < height))


@triton.jit
def depthwise_conv_weight_gradient(
    x,
    dy,
    partial,
    batch,
    height,
    width,
    channels: tl.constexpr,
    channel_blocks,
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_h: tl.constexpr,
    x_w: tl.constexpr,
    dy_b: tl.constexpr,
    dy_c: tl.constexpr,
    dy_h: tl.constexpr,
    dy_w: tl.constexpr,
    K: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """partial (parts, K, K, C): a program sums one kernel row's taps over its share of the batch."""
    c = (tl.program_id(0) % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    i = tl.program_id(0) // channel_blocks
    part, parts = tl.program_id(1), tl.num_programs(1)
    taps = ()
    for _ in tl.static_range(K):
        taps = taps + (tl.zeros((POSITIONS, CHANNELS), tl.float32),)
    chunks = tl.cdiv(height * width, POSITIONS)
    for n in range(part, batch * chunks, parts):
        b = (n // chunks).to(tl.int64)
        p = (n % chunks) * POSITIONS + tl.arange(0, POSITIONS)
        h, w = p // width, p % width
        present = (p < height * width)[:, None] & (c < channels)[None, :]
        d = tl.load(dy + b * dy_b + h[:, None] * dy_h + w[:, None] * dy_w + c[None, :] * dy_c, present, 0.0)
        source = h + i - K // 2
        present = present & ((source >= 0) & (source < height))[:, None]
        after = ()
        for j in tl.static_range(K):
            column = w + (j - K // 2)
            valid = present & ((column >= 0) & (column < width))[:, None]
            v = tl.load(x + b * x_b + source[:, None] * x_h + column[:, None] * x_w + c[None, :] * x_c, valid, 0.0)
            after = after + (taps[j] + d.to(tl.float32) * v.to(tl.float32),)
        taps = after
    for j in tl.static_range(K):
        tl.store(partial + ((part * K + i) * K + j) * channels + c, tl.sum(taps[j], axis=0), c < channels)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, time_bias: Tensor | None) -> Tensor:
    b, c, h, w = x.shape
    size = weight.shape[-1]
    y = empty_images(x)
    time_rows, time_b = per_sample(time_bias, c)
    bias = contiguous(bias)
    taps = weight[:, 0].permute(1, 2, 0).contiguous()  # no copy where taps_first has laid it out
    rows = 7 if h % 7 == 0 else 4  # 7 divides the sizes of network A on 28x28 pictures, 4 those of powers of two
    lanes = min(64, power_of_2(c))
    width = min(512 // lanes, 16, power_of_2(w))  # four elements a thread: more would cost occupancy
    blocks = -(-h // rows), -(-w // width), -(-c // lanes)
    launch(
        depthwise_conv_forward,
        (b * blocks[0] * blocks[1] * blocks[2],),
        x.device,
        x,
        y,
        taps,
        bias,
        time_rows,
        h,
        w,
        c,
        *blocks,
        *x.stride(),
        *y.stride(),
        time_b,
        K=size,
        ROWS=rows,
        COLUMNS=width,
        CHANNELS=lanes,
        BIAS=bias is not None,
        TIME=time_bias is not None,
        num_warps=max(1, min(4, width * lanes // 128)),
        maxnreg=128 if x.element_size() == 2 else 168,
    )
    return y


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    b, c, h, w = x.shape
    size = weight.shape[-1]
    lanes = min(32, power_of_2(c))
    span = min(32, power_of_2(h * w))
    blocks = -(-c // lanes)
    parts = min(b * -(-h * w // span), max(1, 512 // (blocks * size)))  # some hundred programs; summed below
    partial = torch.empty((parts, size, size, c), dtype=torch.float32, device=x.device)
    launch(
        depthwise_conv_weight_gradient,
        (blocks * size, parts),
        x.device,
        x,
        dy,
        partial,
        b,
        h,
        w,
        c,
        blocks,
        *x.stride(),
        *dy.stride(),
        K=size,
        POSITIONS=span,
        CHANNELS=lanes,
        num_warps=4,
    )
    return partial.sum(0).permute(2, 0, 1).unsqueeze(1).to(weight.dtype)
