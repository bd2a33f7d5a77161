"""Triton kernel of small_attention: a program for each sample, whose positions are one tile. All is channels_last.

C, O: channels of x and of the result; D: of a head, DP: padded to a power of two
GROUPS, CG, GP, KP: the norm's groups, as in group_norm_tiles; one group without a norm
WIDE, OP: columns of w_qkv and w_out; ROWS: positions, COLUMNS: output channels, padded to powers of two
EMIT: "none", "whole" or "channels"
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.group_norm_tiles import columns, group_statistics
from fastdiff.kernels.layout import contiguous, empty_images, positions_last, power_of_2
from fastdiff.kernels.picture_attention import Heads
from fastdiff.kernels.products import dot
from fastdiff.kernels.statistics_triton import write_part


@triton.jit
def _part(
    x,  # (ROWS, GP KP) the weight's dtype
    weight,  # (GP KP, 1) pointers to the rows of x's channels
    bias,  # any float dtype, or None
    first,  # column of the weight
    known,  # (GP KP,)
    D: tl.constexpr,
    DP: tl.constexpr,
    BIAS: tl.constexpr,
):
    """(ROWS, DP) queries, keys or values of a head."""
    j = tl.arange(0, DP)
    kernel = tl.load(weight + first + j[None, :], known[:, None] & (j < D)[None, :], 0.0)
    out = dot(x, kernel, tl.zeros((x.shape[0], DP), tl.float32))
    if BIAS:
        out += tl.load(bias + first + j, j < D, 0.0).to(tl.float32)[None, :]
    return out.to(x.dtype)


@triton.jit
def small_attention_forward(
    x,  # (B, n, C) any float dtype
    residual,  # (B, n, O) any float dtype, or None
    y,  # (B, n, O) x's dtype, written
    w_qkv,  # (C padded, WIDE) the network's dtype
    b_qkv,  # any float dtype, or None
    w_out,  # (heads D padded, OP) the network's dtype
    b_out,  # (O,) any float dtype, or None
    emitted,  # (B, 1, 3) or (B, 1, O, 3) float32, written; or None
    count,  # n
    heads,
    apart,  # channels from one head to the next
    q,  # the first head's first channel
    k,
    v,
    scale,
    eps,
    factor,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    D: tl.constexpr,
    DP: tl.constexpr,
    GROUPS: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    KP: tl.constexpr,
    WIDE: tl.constexpr,
    OP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    BIAS_QKV: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EMIT: tl.constexpr,
):
    """y and its statistics."""
    b = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, ROWS)
    present = p < count
    c, _, known, _ = columns(GROUPS, CG, GP, KP)
    at = (b * count + p)[:, None]
    mask = present[:, None] & known[None, :]
    given = tl.load(x + at * C + c[None, :], mask, 0.0).to(tl.float32)
    if NORM:
        mean_c = tl.sum(given, axis=0) / count
        off = tl.where(mask, given - mean_c[None, :], 0.0)
        mean, m2 = group_statistics(mean_c, tl.sum(off * off, axis=0), count, known, CG, GP, KP)
        rstd = tl.rsqrt(m2 / (count * CG) + eps)
        given = tl.where(mask, (given - mean[None, :]) * rstd[None, :], 0.0)
    rows = given.to(w_qkv.dtype.element_ty)
    weight = w_qkv + c[:, None] * WIDE
    o = tl.arange(0, COLUMNS)
    j = tl.arange(0, DP)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for h in range(heads):
        first = h * apart
        queries = _part(rows, weight, b_qkv, q + first, known, D, DP, BIAS_QKV)
        keys = _part(rows, weight, b_qkv, k + first, known, D, DP, BIAS_QKV)
        values = _part(rows, weight, b_qkv, v + first, known, D, DP, BIAS_QKV)
        scores = dot(queries, tl.trans(keys), tl.zeros((ROWS, ROWS), tl.float32)) * scale
        scores = tl.where(present[None, :], scores, float("-inf"))
        scores = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        scores = scores / tl.sum(scores, axis=1)[:, None]
        out = dot(scores.to(rows.dtype), values, tl.zeros((ROWS, DP), tl.float32))
        place = w_out + (h * D + j)[:, None] * OP + o[None, :]
        total = dot(out.to(rows.dtype), tl.load(place, (j < D)[:, None] & (o < O)[None, :], 0.0), total)
    mask = present[:, None] & (o < O)[None, :]
    if BIAS:
        total += tl.load(b_out + o, o < O, 0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + at * O + o[None, :], mask, 0.0).to(tl.float32)
    result = (total * factor).to(y.dtype.element_ty)
    tl.store(y + at * O + o[None, :], result, mask)
    if EMIT != "none":
        wide = result.to(tl.float32)
        write_part(emitted, wide, tl.zeros_like(wide), 1, present, b, 0, 1, 0, 1, o, o < O, O, EMIT)


def forward(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    heads: Heads,
    scale: float,
    w_out: Tensor,
    b_out: Tensor | None,
    outputs: int,
    groups: int,
    eps: float,
    residual: Tensor | None,
    factor: float,
    emit: str | None,
) -> tuple[Tensor, Tensor | None]:
    """small_attention of the same arguments: the result, and its statistics if they are wanted."""
    b, c, h, w = x.shape
    y = empty_images(x, outputs)
    emitted = None
    if emit is not None:
        shape = (b, 1, 3) if emit == "whole" else (b, 1, outputs, 3)
        emitted = torch.empty(shape, dtype=torch.float32, device=x.device)
    several = max(1, groups)
    gp, kp = power_of_2(several), power_of_2(c // several)
    wide = max(16, power_of_2(outputs))
    launch(
        small_attention_forward,
        (b,),
        x.device,
        *(positions_last(x), positions_last(residual), y, w_qkv, contiguous(b_qkv), w_out, contiguous(b_out), emitted),
        *(h * w, heads.count, heads.apart, heads.q, heads.k, heads.v, scale, eps, factor),
        C=c,
        O=outputs,
        D=heads.width,
        DP=max(16, power_of_2(heads.width)),
        GROUPS=several,
        CG=c // several,
        GP=gp,
        KP=max(kp, 16 // gp),
        WIDE=w_qkv.shape[1],
        OP=w_out.shape[1],
        ROWS=max(16, power_of_2(h * w)),
        COLUMNS=wide,
        NORM=groups > 0,
        BIAS_QKV=b_qkv is not None,
        BIAS=b_out is not None,
        RESIDUAL=residual is not None,
        EMIT=emit or "none",
        num_warps=8 if wide * h * w > 4096 else 4,
        num_stages=2,
        maxnreg=255,  # rarely reached; without it the assembler spills to reach an occupancy of its own
    )
    return y, emitted
