"""Triton kernels of depthwise_conv.

A program of the forward kernel makes a tile (COLUMNS, CHANNELS) of ROWS output rows. For each horizontal offset of the
kernel it reads an input row once and uses it for every output row that it reaches: with 7 rows and a 7x7 kernel it
reads 13 values an output element, not 49.

    x_b, x_c, x_h, x_w (and y_*, dy_*): strides of batch, channel, row and column, in elements
    K: the kernel's size; channels: C
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, empty_images, per_sample, positions_last, power_of_2
from fastdiff.kernels.statistics_triton import with_value, write_part


@triton.jit
def depthwise_conv_forward(
    x,  # (B, C, H, W) any float dtype
    y,  # (B, C, H, W) x's dtype, written
    weight,  # (K, K, C) any float dtype
    bias,  # (C,) any float dtype, or None
    time_bias,  # (B, C) or (1, C) any float dtype, or None
    second,  # (B, C - FIRST, H, W) as x, channels_last, or None
    emitted,  # (B, parts, 3) or (B, parts, C, 3) float32, written; or None
    height,
    width,
    channels: tl.constexpr,
    row_blocks,
    column_blocks,
    channel_blocks,
    first_blocks,  # of x's channels
    x_b: tl.constexpr,
    x_c: tl.constexpr,
    x_h: tl.constexpr,
    x_w: tl.constexpr,
    y_b: tl.constexpr,
    y_c: tl.constexpr,
    y_h: tl.constexpr,
    y_w: tl.constexpr,
    time_b,  # time_bias's stride of batch, 0 for (1, C)
    FIRST: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BIAS: tl.constexpr,
    TIME: tl.constexpr,
    EMIT: tl.constexpr,
):
    """y = conv(x) + bias + time_bias."""
    pid = tl.program_id(0)
    block = pid % channel_blocks
    pid = pid // channel_blocks
    w = (pid % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    column_block = pid % column_blocks
    pid = pid // column_blocks
    row = (pid % row_blocks) * ROWS
    b = (pid // row_blocks).to(tl.int64)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    if FIRST < channels:  # a block has channels of one input alone
        SECOND: tl.constexpr = channels - FIRST
        if block < first_blocks:
            known = c < FIRST
            step_h, step_w = width * FIRST, FIRST + 0 * width
            image = x + b * height * width * FIRST + c[None, :]
        else:
            inner = c - first_blocks * CHANNELS
            known = inner < SECOND
            c = inner + FIRST
            step_h, step_w = width * SECOND, SECOND + 0 * width
            image = second + b * height * width * SECOND + inner[None, :]
    else:
        known = c < channels
        step_h, step_w = x_h, x_w
        image = x + b * x_b + c[None, :] * x_c

    start = tl.zeros((CHANNELS,), tl.float32)
    if BIAS:
        start += tl.load(bias + c, known, 0.0).to(tl.float32)
    if TIME:
        start += tl.load(time_bias + b * time_b + c, known, 0.0).to(tl.float32)
    total = ()
    for _ in tl.static_range(ROWS):
        total = total + (tl.zeros((COLUMNS, CHANNELS), tl.float32) + start[None, :],)

    for j in range(K):
        column = w + (j - K // 2)
        inside = ((column >= 0) & (column < width))[:, None] & known[None, :]
        taps = ()
        for i in tl.static_range(K):
            tap = tl.load(weight + (i * K + j) * channels + c, known, 0.0)
            taps = taps + (tap.to(tl.float32)[None, :],)
        for r in tl.static_range(ROWS + K - 1):
            source = row + (r - K // 2)
            valid = inside & (source >= 0) & (source < height)
            v = tl.load(image + source * step_h + column[:, None] * step_w, valid, 0.0).to(tl.float32)
            after = ()
            for o in tl.static_range(ROWS):
                if r - o >= 0 and r - o < K:
                    after = after + (total[o] + v * taps[r - o],)
                else:
                    after = after + (total[o],)
            total = after
    y += b * y_b + c[None, :] * y_c + w[:, None] * y_w
    mask = (w < width)[:, None] & known[None, :]
    mean = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    m2 = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    rows = 0.0
    for o in tl.static_range(ROWS):
        tl.store(y + (row + o) * y_h, total[o].to(y.dtype.element_ty), mask & (row + o < height))
        if EMIT != "none":
            if row + o < height:
                rows += 1.0
                mean, m2 = with_value(mean, m2, rows, total[o].to(y.dtype.element_ty).to(tl.float32))
    if EMIT != "none":
        part, parts = (row // ROWS) * column_blocks + column_block, row_blocks * column_blocks
        # fmt: off
        write_part(
            emitted, mean, m2, rows, w < width, b, part, parts, block, channel_blocks, c, known, channels, EMIT
        )
        # fmt: on


@triton.jit
def depthwise_conv_weight_gradient(
    x,  # (B, C, H, W) any float dtype
    dy,  # (B, C, H, W) any float dtype
    partial,  # (parts, K, K, C) float32, written
    batch,  # B
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
    """The gradient of one kernel row's taps, summed over the program's share of samples and positions."""
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


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    time_bias: Tensor | None,
    second: Tensor | None = None,
    emit: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """depthwise_conv of x and the channels of `second` after it, and the result's statistics if they are wanted."""
    b, first, h, w = x.shape
    if second is not None:
        x = positions_last(x)
    c = first + (0 if second is None else second.shape[1])
    size = weight.shape[-1]
    y = empty_images(x, c)
    time_rows, time_b = per_sample(time_bias, c)
    bias = contiguous(bias)
    taps = weight[:, 0].permute(1, 2, 0).contiguous()  # (K, K, C); no copy after taps_first
    rows = 7 if h % 7 == 0 else 4  # 7 divides 28, 14 and 7, network A's sizes; 4 divides powers of two
    lanes = min(64, power_of_2(max(first, c - first)))
    width = min(512 // lanes, 16, power_of_2(w))  # four elements a thread; more would lower the occupancy
    down, across, of_first = -(-h // rows), -(-w // width), -(-first // lanes)
    blocks = of_first + -(-(c - first) // lanes)
    emitted = None
    if emit is not None:
        of = (down * across * blocks,) if emit == "whole" else (down * across, c)
        emitted = torch.empty((b, *of, 3), dtype=torch.float32, device=x.device)
    launch(
        depthwise_conv_forward,
        (b * down * across * blocks,),
        x.device,
        *(x, y, taps, bias, time_rows, positions_last(second), emitted),
        *(h, w, c, down, across, blocks, of_first),
        *(*x.stride(), *y.stride(), time_b),
        FIRST=first,
        K=size,
        ROWS=rows,
        COLUMNS=width,
        CHANNELS=lanes,
        BIAS=bias is not None,
        TIME=time_bias is not None,
        EMIT=emit or "none",
        num_warps=max(1, min(4, width * lanes // 128)),
        maxnreg=128 if x.element_size() == 2 else 168,
    )
    return y, emitted


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of weight, in its shape and dtype."""
    b, c, h, w = x.shape
    size = weight.shape[-1]
    lanes = min(32, power_of_2(c))
    span = min(32, power_of_2(h * w))
    blocks = -(-c // lanes)
    parts = min(
        b * -(-h * w // span), max(1, 512 // (blocks * size))
    )  # some hundred programs, whose sums are added below
    partial = torch.empty((parts, size, size, c), dtype=torch.float32, device=x.device)
    launch(
        depthwise_conv_weight_gradient,
        (blocks * size, parts),
        x.device,
        *(x, dy, partial),
        *(b, h, w, c, blocks),
        *(*x.stride(), *dy.stride()),
        K=size,
        POSITIONS=span,
        CHANNELS=lanes,
        num_warps=4,
    )
    return partial.sum(0).permute(2, 0, 1).unsqueeze(1).to(weight.dtype)
