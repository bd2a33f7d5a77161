"""Triton kernel of fused_conv: an implicit GEMM, rows of which are a sample's positions and columns output channels.

A program makes a tile (ROWS, COLUMNS) of one sample, in one phase of a transposed convolution. For DEPTH input channels
at a time and for each tap of the window it multiplies the positions that the tap sees, (ROWS, DEPTH), with the tap's
weights, (DEPTH, COLUMNS). All images are channels_last. Which tile is whose depends on the sizes of the picture and not
on the batch, so that a sample's bits do not either.

    C, C2, R, R2, O: channels of x, of the second input, of the residual and its second part, and of the result
    TALL, WIDE: taps of the window; STRIDE: positions from one window to the next; NEAREST: by how much x is upsampled
    PHASES: along each axis, as many as a transposed convolution's stride, else 1
    W: columns of the result's grid, in a phase
    KINDS_H, KINDS_W: rows and columns of the border table
    NORM: "none", "whole" (one mean and one deviation of a sample) or "channels" (scale and shift of each channel)
    EMIT: "none", "whole" (a part is a tile) or "channels" (a part is a tile's rows, for each channel)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.activations import activate
from fastdiff.kernels.conv_weight import Window, depth, padded
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, per_sample, positions_last, power_of_2
from fastdiff.kernels.products import dot
from fastdiff.kernels.statistics_triton import merged, write_part
from fastdiff.kernels.tuning import estimated, tiling


@triton.jit
def accumulate(
    total,  # (ROWS, COLUMNS) float32
    x,  # the sample's first element
    weight,  # the phase's first tap, its columns: (1, COLUMNS) pointers
    scale,  # the sample's first channel's, any float dtype, if SCALED
    shift,  # as scale
    h,  # (ROWS,) the row that the window's first tap sees
    w,  # as h, the column
    present,  # (ROWS,)
    height,  # of x, upsampled
    width,
    taps,  # TALL WIDE, not known to the compiler, which would unroll the loop
    C: tl.constexpr,
    DEEP: tl.constexpr,  # C as the weight has it, padded
    ALL: tl.constexpr,  # rows of the weight for one tap, of both inputs
    OP: tl.constexpr,
    WIDE: tl.constexpr,
    NEAREST: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALED: tl.constexpr,
    BEFORE: tl.constexpr,
):
    """total + the products with all of one input's channels."""
    lanes = tl.arange(0, DEPTH)
    for first in range(0, DEEP, DEPTH):
        c = first + lanes
        if SCALED:
            a = tl.load(scale + c, c < C, 0.0).to(tl.float32)[None, :]
            o = tl.load(shift + c, c < C, 0.0).to(tl.float32)[None, :]
        for tap in range(taps):
            row, column = h + tap // WIDE, w + tap % WIDE
            seen = present & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (row // NEAREST) * (width // NEAREST) + column // NEAREST
            mask = seen[:, None] & (c < C)[None, :]
            v = tl.load(x + place[:, None] * C + c[None, :], mask, 0.0)
            if SCALED:  # beyond the border there are zeros, which the norm does not shift
                v = activate(v.to(tl.float32) * a + o, BEFORE)
                v = tl.where(mask, v, 0.0)
            kernel = tl.load(weight + (tap * ALL + c[:, None]) * OP)
            total = dot(v.to(kernel.dtype), kernel, total)
    return total


@triton.jit
def _with_borders(
    total,  # (ROWS, COLUMNS) float32
    borders,  # (2, KINDS_H, KINDS_W, O) float32
    mean,  # divided by the deviation
    h,  # (ROWS,)
    w,  # (ROWS,)
    height,
    width,
    o,  # (COLUMNS,)
    O: tl.constexpr,  # noqa: E741
    KINDS_H: tl.constexpr,
    KINDS_W: tl.constexpr,
):
    """total + shift - mean W' * 1, of each position's kind.

    A product with rows that are 1 at the kind and 0 elsewhere looks the kinds up, without a gather for each element.
    Three bfloat16 numbers hold all 24 bits of a float32 one.
    """
    kind_h = tl.where(h == 0, 0, tl.where(h == height - 1, KINDS_H - 1, 1))
    kind_w = tl.where(w == 0, 0, tl.where(w == width - 1, KINDS_W - 1, 1))
    kinds = tl.arange(0, 16)
    chosen = ((kind_h * KINDS_W + kind_w)[:, None] == kinds[None, :]).to(tl.float32).to(tl.bfloat16)
    place = kinds[:, None] * O + o[None, :]
    mask = (kinds < KINDS_H * KINDS_W)[:, None] & (o < O)[None, :]
    rest = tl.load(borders + KINDS_H * KINDS_W * O + place, mask, 0.0) - mean * tl.load(borders + place, mask, 0.0)
    for _ in tl.static_range(3):
        part = rest.to(tl.bfloat16)
        total = dot(chosen, part, total)
        rest -= part.to(tl.float32)
    return total


@triton.jit
def _with_shortcut(
    total,  # (ROWS, COLUMNS) float32
    residual,  # (B, H', W', R) any float dtype
    weight,  # (1, COLUMNS) pointers to the first channel's
    at,  # (ROWS,) positions
    present,  # (ROWS,)
    R: tl.constexpr,
    RP: tl.constexpr,
    OP: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """total + a 1x1 convolution of the residual."""
    for first in range(0, RP, DEPTH):
        c = first + tl.arange(0, DEPTH)
        v = tl.load(residual + at[:, None] * R + c[None, :], present[:, None] & (c < R)[None, :], 0.0)
        kernel = tl.load(weight + c[:, None] * OP)
        total = dot(v.to(kernel.dtype), kernel, total)
    return total


@triton.jit
def fused_conv_forward(
    x,  # (B, H, W, C) any float dtype
    second,  # (B, H, W, C2) as x, or None
    y,  # (B, H', W', O), written
    weight,  # (PHASES, PHASES, TALL, WIDE, DEEP + DEEP2, OP) the network's dtype, padded with zeros
    bias,  # (O,) any float dtype, or None
    scale,  # (B, C + C2) or (1, C + C2) any float dtype, if NORM is "channels"
    shift,  # as scale
    statistics,  # (B, parts, 3) float32, if NORM is "whole"
    borders,  # (2, KINDS_H, KINDS_W, O) float32, if NORM is "whole"
    added,  # (B, O) or (1, O) any float dtype, or None
    residual,  # (B, H', W', R) any float dtype, or None
    residual_second,  # (B, H', W', R2) as residual, or None
    shortcut,  # (RP + RP2, OP) weight's dtype, or None
    emitted,  # (B, parts, 3) or (B, parts, O, 3) float32, written; or None
    height,  # H NEAREST
    width,
    taps,  # TALL WIDE
    count,  # positions of a phase
    tiles,  # of positions
    blocks,  # of columns
    parts,  # of statistics
    lead,  # padding of a transposed convolution
    top,  # rows before the position, of the first that a window sees in a phase without lead
    left,
    scale_b,  # strides of batch, 0 where all samples share a row
    shift_b,
    added_b,
    eps,
    factor,
    C: tl.constexpr,
    C2: tl.constexpr,
    R: tl.constexpr,
    R2: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    DEEP: tl.constexpr,
    DEEP2: tl.constexpr,
    RP: tl.constexpr,
    RP2: tl.constexpr,
    OP: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    NEAREST: tl.constexpr,
    PHASES: tl.constexpr,
    W: tl.constexpr,
    KINDS_H: tl.constexpr,
    KINDS_W: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DEPTH2: tl.constexpr,
    DEPTH_R: tl.constexpr,
    DEPTH_R2: tl.constexpr,
    NORM: tl.constexpr,
    BEFORE: tl.constexpr,
    BIAS: tl.constexpr,
    ADDED: tl.constexpr,
    AFTER: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EMIT: tl.constexpr,
):
    """y, a tile of it, and the tile's statistics."""
    block = tl.program_id(0) % blocks
    pid = tl.program_id(0) // blocks
    part = pid % (PHASES * PHASES * tiles)
    b = (pid // (PHASES * PHASES * tiles)).to(tl.int64)
    phase, tile = part // tiles, part % tiles
    down, across = phase // PHASES, phase % PHASES
    p = tile * ROWS + tl.arange(0, ROWS)
    present = p < count
    h, w = p // W, p % W
    o = block * COLUMNS + tl.arange(0, COLUMNS)

    first_h = h * STRIDE + (down + lead) // PHASES - top
    first_w = w * STRIDE + (across + lead) // PHASES - left
    sample = b * (height // NEAREST) * (width // NEAREST)
    weight += phase * (TALL * WIDE * (DEEP + DEEP2) * OP) + o[None, :]
    own_scale, own_shift, second_scale, second_shift = scale, shift, scale, shift
    if NORM == "channels":
        own_scale += b * scale_b
        own_shift += b * shift_b
        second_scale, second_shift = own_scale + C, own_shift + C
    # fmt: off
    total = accumulate(
        tl.zeros((ROWS, COLUMNS), tl.float32), x + sample * C, weight, own_scale, own_shift,
        first_h, first_w, present, height, width, taps,
        C, DEEP, DEEP + DEEP2, OP, WIDE, NEAREST, DEPTH, NORM == "channels", BEFORE,
    )
    if C2:
        total = accumulate(
            total, second + sample * C2, weight + DEEP * OP, second_scale, second_shift,
            first_h, first_w, present, height, width, taps,
            C2, DEEP2, DEEP + DEEP2, OP, WIDE, NEAREST, DEPTH2, NORM == "channels", BEFORE,
        )
    # fmt: on
    mask = present[:, None] & (o < O)[None, :]
    if NORM == "whole":
        mean, variance = merged(statistics + b * parts * 3, parts, PARTS)
        rstd = tl.rsqrt(variance + eps)
        total = _with_borders(total * rstd, borders, mean * rstd, h, w, count // W, W, o, O, KINDS_H, KINDS_W)
    if BIAS:
        total += tl.load(bias + o, o < O, 0.0).to(tl.float32)[None, :]
    if ADDED:
        total += tl.load(added + b * added_b + o, o < O, 0.0).to(tl.float32)[None, :]
    total = activate(total, AFTER)
    at = b * count * (PHASES * PHASES) + (h * PHASES + down) * (W * PHASES) + w * PHASES + across
    if RESIDUAL == "shortcut":
        total = _with_shortcut(total, residual, shortcut + o[None, :], at, present, R, RP, OP, DEPTH_R)
        if R2:
            weights = shortcut + RP * OP + o[None, :]
            total = _with_shortcut(total, residual_second, weights, at, present, R2, RP2, OP, DEPTH_R2)
    elif RESIDUAL == "identity":
        total += tl.load(residual + at[:, None] * O + o[None, :], mask, 0.0).to(tl.float32)
    out = (total * factor).to(y.dtype.element_ty)
    tl.store(y + at[:, None] * O + o[None, :], out, mask)
    if EMIT != "none":
        v, parts = out.to(tl.float32), PHASES * PHASES * tiles
        write_part(emitted, v, tl.zeros_like(v), 1, present, b, part, parts, block, blocks, o, o < O, O, EMIT)


def forward(
    x: Tensor,
    weight: Tensor,
    window: Window,
    channels: int,
    bias: Tensor | None,
    second: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    before: str | None,
    statistics: Tensor | None,
    borders: Tensor | None,
    eps: float,
    added: Tensor | None,
    after: str | None,
    residual: Tensor | None,
    residual_second: Tensor | None,
    shortcut: Tensor | None,
    factor: float,
    emit: str | None,
) -> tuple[Tensor, Tensor | None]:
    """fused_conv of the same arguments: the result, and its statistics if they are wanted."""
    given = dict(locals())  # the arguments
    (b, c, *size), c2 = x.shape, 0 if second is None else second.shape[1]
    height, width = window.result(*size)
    phases, kernel = window.phases, weight.shape[1:3]
    count = (height // phases) * (width // phases)
    r, r2 = (0 if one is None else one.shape[1] for one in (residual, residual_second))
    deep, deep2 = padded(c), padded(c2)
    constants = dict(
        C=c,
        C2=c2,
        R=r,
        R2=r2,
        O=channels,
        DEEP=deep,
        DEEP2=deep2,
        RP=padded(r),
        RP2=padded(r2),
        OP=weight.shape[-1],
        TALL=kernel[0],
        WIDE=kernel[1],
        STRIDE=window.step,
        NEAREST=window.nearest,
        PHASES=phases,
        W=width // phases,
        KINDS_H=1 if borders is None else borders.shape[1],
        KINDS_W=1 if borders is None else borders.shape[2],
        DEPTH=depth(deep),
        DEPTH2=depth(deep2),
        DEPTH_R=depth(padded(r)),
        DEPTH_R2=depth(padded(r2)),
        NORM="whole" if statistics is not None else "channels" if scale is not None else "none",
        BEFORE=before or "none",
        BIAS=bias is not None,
        ADDED=added is not None,
        AFTER=after or "none",
        RESIDUAL="none" if residual is None else "identity" if shortcut is None else "shortcut",
        EMIT=emit or "none",
    )
    shape = f"{height}x{width}, {weight.dtype}, {', '.join(f'{name}={value}' for name, value in constants.items())}"
    cut = tiling(x.device, shape, estimated(count, channels), lambda: forward(**given))
    tiles, blocks = -(-count // cut.rows), weight.shape[-1] // cut.columns
    parts = phases * phases * tiles
    size_of_y = b, channels, height, width
    y = torch.empty(size_of_y, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    emitted = None
    if emit is not None:
        of = (parts * blocks,) if emit == "whole" else (parts, channels)
        emitted = torch.empty((b, *of, 3), dtype=torch.float32, device=x.device)
    (scale, scale_b), (shift, shift_b) = per_sample(scale, c + c2), per_sample(shift, c + c2)
    added_rows, added_b = per_sample(added, channels)
    read = 0 if statistics is None else statistics.shape[1]
    launch(
        fused_conv_forward,
        (b * parts * blocks,),
        x.device,
        *(positions_last(x), positions_last(second), y, weight, contiguous(bias), scale, shift, statistics, borders),
        *(added_rows, positions_last(residual), positions_last(residual_second), shortcut, emitted),
        *(size[0] * window.nearest, size[1] * window.nearest, kernel[0] * kernel[1], count, tiles, blocks, read),
        *(window.lead, *window.before, scale_b, shift_b, added_b, eps, factor),
        **constants,
        PARTS=power_of_2(read),
        ROWS=cut.rows,
        COLUMNS=cut.columns,
        num_warps=cut.warps,
        num_stages=cut.stages,
        maxnreg=255,  # rarely reached; without it the assembler spills to reach an occupancy of its own
    )
    return y, emitted
