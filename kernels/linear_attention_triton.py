"""Triton kernels of linear_attention.

For each sample and head: context = softmax_n(k) v^T (d, d), by a running maximum over the positions as in
FlashAttention (Dao et al. 2022), then context^T softmax_d(q). If samples and heads are enough to fill the device, one
program does both and the context stays in registers. Otherwise the positions are split over programs, whose partial
contexts are merged where they are used.

    normaliser: log sum_n exp(k), which gives softmax_n(k) = exp(k - normaliser) without another pass
    s_b, s_c, s_p (and out_*): strides of batch, channel and position, in elements, s_* of qkv
    D: width of a head; DP: D padded to a power of two, at least 16; N: positions at a time
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import empty_images, positions, power_of_2, split
from fastdiff.kernels.products import dot


@triton.jit
def softmax_features(q, c, D: tl.constexpr):
    """Softmax over the features c < D of a tile (positions, features), float32."""
    q = tl.where((c < D)[None, :], q, float("-inf"))
    q = tl.exp(q - tl.max(q, axis=1)[:, None])
    return q / tl.sum(q, axis=1)[:, None]


@triton.jit
def _context(
    k, v, start, stop, s_c: tl.constexpr, s_p: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr
):
    """The running maximum (DP,), sum (DP,) and unnormalised context (DP, DP) over positions start .. stop - 1."""
    c = tl.arange(0, DP)
    top = tl.full((DP,), float("-inf"), tl.float32)
    total = tl.zeros((DP,), tl.float32)
    context = tl.zeros((DP, DP), tl.float32)
    for n in range(start, stop, N):
        p = n + tl.arange(0, N)
        valid = (p < stop)[:, None] & (c < D)[None, :]
        offset = p[:, None] * s_p + c[None, :] * s_c
        keys = tl.where((p < stop)[:, None], tl.load(k + offset, valid, 0.0).to(tl.float32), float("-inf"))
        values = tl.load(v + offset, valid, 0.0)
        higher = tl.maximum(top, tl.max(keys, axis=0))
        shrink = tl.exp(top - higher)
        keys = tl.exp(keys - higher[None, :])
        total = total * shrink + tl.sum(keys, axis=0)
        context *= shrink[:, None]
        context = dot(tl.trans(keys.to(values.dtype)), values, context)
        top = higher
    return top, total, context


@triton.jit
def _apply(
    q,  # pointer to the head's queries
    out,  # pointer to the head's result
    context,  # (DP, DP) float32
    start,
    stop,
    s_c: tl.constexpr,
    s_p: tl.constexpr,
    out_c: tl.constexpr,
    out_p: tl.constexpr,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
):
    """out = scale softmax_d(q) context at positions start .. stop - 1."""
    c = tl.arange(0, DP)
    for n in range(start, stop, N):
        p = n + tl.arange(0, N)
        valid = (p < stop)[:, None] & (c < D)[None, :]
        queries = tl.load(q + p[:, None] * s_p + c[None, :] * s_c, valid, 0.0)
        weights = softmax_features(queries.to(tl.float32), c, D).to(queries.dtype)
        y = dot(weights, context.to(queries.dtype), tl.zeros((N, DP), tl.float32)) * scale
        tl.store(out + p[:, None] * out_p + c[None, :] * out_c, y.to(out.dtype.element_ty), valid)


@triton.jit
def square_of(D: tl.constexpr, DP: tl.constexpr):
    """Offsets and mask of a head's (d, d) context."""
    c = tl.arange(0, DP)
    return c[:, None] * D + c[None, :], (c < D)[:, None] & (c < D)[None, :]


@triton.jit
def _save(context, normaliser, index, top, total, value, D: tl.constexpr, DP: tl.constexpr):
    """Writes a head's context and normaliser."""
    c = tl.arange(0, DP)
    square, inside = square_of(D, DP)
    tl.store(normaliser + index * D + c, top + tl.log(total), c < D)
    tl.store(context + index * D * D + square, value, inside)


@triton.jit
def linear_attention_whole(
    qkv,  # (B, 3 heads D, n) any float dtype
    out,  # (B, heads D, n) qkv's dtype, written
    context,  # (B, heads, D, D) float32, written
    normaliser,  # (B, heads, D) float32, written
    count,  # n, positions
    heads,
    s_b: tl.constexpr,
    s_c: tl.constexpr,
    s_p: tl.constexpr,
    out_b: tl.constexpr,
    out_c: tl.constexpr,
    out_p: tl.constexpr,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
):
    """A sample's head, whole."""
    index = tl.program_id(0).to(tl.int64)
    h = index % heads
    q = qkv + (index // heads) * s_b + h * D * s_c
    step = heads * D * s_c
    top, total, value = _context(q + step, q + 2 * step, 0, count, s_c, s_p, D, DP, N)
    value = value / total[:, None]
    _save(context, normaliser, index, top, total, value, D, DP)
    out += (index // heads) * out_b + h * D * out_c
    _apply(q, out, value, 0, count, s_c, s_p, out_c, out_p, scale, D, DP, N)


@triton.jit
def linear_attention_part(
    qkv,  # (B, 3 heads D, n) any float dtype
    context,  # (B, heads, parts, D, D) float32, written
    normaliser,  # (B, heads, parts, D) float32, written
    count,  # n, positions
    heads,
    span,  # positions of a part
    s_b: tl.constexpr,
    s_c: tl.constexpr,
    s_p: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
):
    """The context and normaliser of one part of the positions."""
    index = tl.program_id(0).to(tl.int64)
    part, parts = tl.program_id(1), tl.num_programs(1)
    h = index % heads
    k = qkv + (index // heads) * s_b + (heads + h) * D * s_c
    stop = tl.minimum((part + 1) * span, count)
    top, total, value = _context(k, k + heads * D * s_c, part * span, stop, s_c, s_p, D, DP, N)
    _save(context, normaliser, index * parts + part, top, total, value / total[:, None], D, DP)


@triton.jit
def linear_attention_apply(
    qkv,  # (B, 3 heads D, n) any float dtype
    out,  # (B, heads D, n) qkv's dtype, written
    context,  # (B, heads, parts, D, D) float32
    normaliser,  # (B, heads, parts, D) float32
    merged,  # (B, heads, D, D) float32, written
    merged_normaliser,  # (B, heads, D) float32, written
    count,  # n, positions
    heads,
    parts,
    s_b: tl.constexpr,
    s_c: tl.constexpr,
    s_p: tl.constexpr,
    out_b: tl.constexpr,
    out_c: tl.constexpr,
    out_p: tl.constexpr,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Merges the parts' contexts, weighted by their shares of sum_n exp(k), and applies them to SPAN positions."""
    index = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, DP)
    square, inside = square_of(D, DP)
    top = tl.full((DP,), float("-inf"), tl.float32)
    for part in range(parts):
        top = tl.maximum(top, tl.load(normaliser + (index * parts + part) * D + c, c < D, 0.0))
    total = tl.zeros((DP,), tl.float32)
    value = tl.zeros((DP, DP), tl.float32)
    for part in range(parts):
        share = tl.exp(tl.load(normaliser + (index * parts + part) * D + c, c < D, 0.0) - top)
        total += share
        value += tl.load(context + (index * parts + part) * D * D + square, inside, 0.0) * share[:, None]
    value = value / total[:, None]
    if tl.program_id(1) == 0:
        _save(merged, merged_normaliser, index, top, total, value, D, DP)
    h = index % heads
    q = qkv + (index // heads) * s_b + h * D * s_c
    out += (index // heads) * out_b + h * D * out_c
    start = tl.program_id(1) * SPAN
    _apply(q, out, value, start, tl.minimum(start + SPAN, count), s_c, s_p, out_c, out_p, scale, D, DP, N)


def options_of(d: int, n: int, dtype: torch.dtype) -> dict[str, int]:
    """The constants and launch options that all kernels of linear_attention take."""
    dp = max(16, power_of_2(d))
    rows = max(16, min(power_of_2(n), (2048 if dtype.itemsize == 2 else 512) // dp, 64))
    # The bound on registers is not reached; without it the assembler spills to save one.
    return dict(D=d, DP=dp, N=rows, num_warps=8 if dp > 32 else 4, maxnreg=168)


def forward(qkv: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, heads d, H, W), and for the gradient context (B, heads, d, d) and normaliser (B, heads, d), float32."""
    b, c, h, w = qkv.shape
    d, n = c // (3 * heads), h * w
    out = empty_images(qkv, heads * d)
    options = options_of(d, n, qkv.dtype)
    flat, into = positions(qkv), positions(out)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=qkv.device)

    context, normaliser = empty(b, heads, d, d), empty(b, heads, d)
    parts, span = split(b * heads, n, options["N"], 4 * options["N"])
    if parts == 1:
        numbers = n, heads, *flat.stride(), *into.stride(), scale
        launch(linear_attention_whole, (b * heads,), qkv.device, flat, into, context, normaliser, *numbers, **options)
        return out, context, normaliser
    pieces, normalisers = empty(b, heads, parts, d, d), empty(b, heads, parts, d)
    grid = b * heads, parts
    numbers = n, heads, span, *flat.stride()
    launch(linear_attention_part, grid, qkv.device, flat, pieces, normalisers, *numbers, **options)
    each = 4 * options["N"]
    grid = b * heads, -(-n // each)
    tensors = flat, into, pieces, normalisers, context, normaliser
    numbers = n, heads, parts, *flat.stride(), *into.stride(), scale
    launch(linear_attention_apply, grid, qkv.device, *tensors, *numbers, **options, SPAN=each)
    return out, context, normaliser
