"""The Triton form of linear_attention.

Forward, for each sample and head: context = softmax_n(k)^T v (d, d) by a running maximum over the positions, as
FlashAttention keeps it (Dao et al. 2022), then softmax_d(q) context. With enough samples and heads to fill the device
one program does both, and the context stays in registers; else the positions are split over programs and their
partial contexts merged where they are used.

Backward, with Q = softmax_d(q), K = softmax_n(k), out = scale Q context:
    d context = scale Q^T d out,   dQ = scale d out context^T,   dK = v d context^T,   dv = K d context
    dq = Q (dQ - sum_d Q dQ),      dk = K (dK - sum_n K dK)
and sum_n K dK = sum_e d context[:, e] context[:, e], so that no further pass over the positions is needed.
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
    """Softmax over the columns c < D of a tile (positions, features), float32."""
    q = tl.where((c < D)[None, :], q, float("-inf"))
    q = tl.exp(q - tl.max(q, axis=1)[:, None])
    return q / tl.sum(q, axis=1)[:, None]


@triton.jit
def _context(
    k, v, start, stop, s_c: tl.constexpr, s_p: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr
):
    """Maximum (DP,), sum (DP,) and unnormalised context (DP, DP) of softmax_n(k)^T v over positions start to stop."""
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
    q,
    out,
    context,
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
    c = tl.arange(0, DP)
    for n in range(start, stop, N):
        p = n + tl.arange(0, N)
        valid = (p < stop)[:, None] & (c < D)[None, :]
        queries = tl.load(q + p[:, None] * s_p + c[None, :] * s_c, valid, 0.0)
        weights = softmax_features(queries.to(tl.float32), c, D).to(queries.dtype)
        y = dot(weights, context.to(queries.dtype), tl.zeros((N, DP), tl.float32)) * scale
        tl.store(out + p[:, None] * out_p + c[None, :] * out_c, y.to(out.dtype.element_ty), valid)


@triton.jit
def _square(D: tl.constexpr, DP: tl.constexpr):
    """Offsets and mask of a head's (d, d) context."""
    c = tl.arange(0, DP)
    return c[:, None] * D + c[None, :], (c < D)[:, None] & (c < D)[None, :]


@triton.jit
def _save(context, normaliser, index, top, total, value, D: tl.constexpr, DP: tl.constexpr):
    c = tl.arange(0, DP)
    square, inside = _square(D, DP)
    tl.store(normaliser + index * D + c, top + tl.log(total), c < D)
    tl.store(context + index * D * D + square, value, inside)


@triton.jit
def linear_attention_whole(
    qkv,
    out,
    context,
    normaliser,
    count,
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
    """A program for each sample and head. context (B, heads, D, D), normaliser (B, heads, D): log sum_n exp k."""
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
    qkv,
    context,
    normaliser,
    count,
    heads,
    span,
    s_b: tl.constexpr,
    s_c: tl.constexpr,
    s_p: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
):
    """The context and normaliser of `span` positions; context (B, heads, parts, D, D), normaliser likewise."""
    index = tl.program_id(0).to(tl.int64)
    part, parts = tl.program_id(1), tl.num_programs(1)
    h = index % heads
    k = qkv + (index // heads) * s_b + (heads + h) * D * s_c
    stop = tl.minimum((part + 1) * span, count)
    top, total, value = _context(k, k + heads * D * s_c, part * span, stop, s_c, s_p, D, DP, N)
    _save(context, normaliser, index * parts + part, top, total, value / total[:, None], D, DP)


@triton.jit
def linear_attention_apply(
    qkv,
    out,
    context,
    normaliser,
    merged,
    merged_normaliser,
    count,
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
    """Merges the parts' contexts, each by its share of sum_n exp k, and applies the whole to SPAN positions."""
    index = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, DP)
    square, inside = _square(D, DP)
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


@triton.jit
def linear_attention_context_gradient(
    qkv,
    dy,
    partial,
    count,
    heads,
    span,
    s_b: tl.constexpr,
    s_c: tl.constexpr,
    s_p: tl.constexpr,
    dy_b: tl.constexpr,
    dy_c: tl.constexpr,
    dy_p: tl.constexpr,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
):
    """scale Q^T d out over `span` positions; partial (parts, B, heads, D, D)."""
    index = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    h = index % heads
    q = qkv + (index // heads) * s_b + h * D * s_c
    dy += (index // heads) * dy_b + h * D * dy_c
    c = tl.arange(0, DP)
    total = tl.zeros((DP, DP), tl.float32)
    stop = tl.minimum((part + 1) * span, count)
    for n in range(part * span, stop, N):
        p = n + tl.arange(0, N)
        valid = (p < stop)[:, None] & (c < D)[None, :]
        queries = tl.load(q + p[:, None] * s_p + c[None, :] * s_c, valid, 0.0)
        weights = softmax_features(queries.to(tl.float32), c, D)
        d = tl.load(dy + p[:, None] * dy_p + c[None, :] * dy_c, valid, 0.0)
        total = dot(tl.trans(weights.to(d.dtype)), d, total)
    square, inside = _square(D, DP)
    tl.store(partial + (part * tl.num_programs(0) + index) * D * D + square, total * scale, inside)


@triton.jit
def linear_attention_input_gradient(
    qkv,
    dy,
    dqkv,
    context,
    dcontext,
    normaliser,
    count,
    heads,
    s_b: tl.constexpr,
    s_c: tl.constexpr,
    s_p: tl.constexpr,
    dy_b: tl.constexpr,
    dy_c: tl.constexpr,
    dy_p: tl.constexpr,
    d_b: tl.constexpr,
    d_c: tl.constexpr,
    d_p: tl.constexpr,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
):
    """Gradients of q, k and v at N positions."""
    index = tl.program_id(0).to(tl.int64)
    h = index % heads
    c = tl.arange(0, DP)
    p = tl.program_id(1) * N + tl.arange(0, N)
    valid = (p < count)[:, None] & (c < D)[None, :]
    q = qkv + (index // heads) * s_b + h * D * s_c + p[:, None] * s_p + c[None, :] * s_c
    into = dqkv + (index // heads) * d_b + h * D * d_c + p[:, None] * d_p + c[None, :] * d_c
    d = tl.load(dy + (index // heads) * dy_b + h * D * dy_c + p[:, None] * dy_p + c[None, :] * dy_c, valid, 0.0)
    square, inside = _square(D, DP)
    forward = tl.load(context + index * D * D + square, inside, 0.0)
    back = tl.load(dcontext + index * D * D + square, inside, 0.0)
    step = heads * D * s_c
    step_d = heads * D * d_c
    nothing = tl.zeros((N, DP), tl.float32)

    weights = softmax_features(tl.load(q, valid, 0.0).to(tl.float32), c, D)
    grad = dot(d, tl.trans(forward.to(d.dtype)), nothing) * scale
    grad = weights * (grad - tl.sum(weights * grad, axis=1)[:, None])
    tl.store(into, grad.to(dqkv.dtype.element_ty), valid)

    keys = tl.load(q + step, valid, 0.0).to(tl.float32)
    keys = tl.exp(keys - tl.load(normaliser + index * D + c, c < D, 0.0)[None, :])
    values = tl.load(q + 2 * step, valid, 0.0)
    grad = dot(values, tl.trans(back.to(values.dtype)), nothing)
    grad = keys * (grad - tl.sum(forward * back, axis=1)[None, :])
    tl.store(into + step_d, grad.to(dqkv.dtype.element_ty), valid)

    grad = dot(keys.to(values.dtype), back.to(values.dtype), nothing)
    tl.store(into + 2 * step_d, grad.to(dqkv.dtype.element_ty), valid)


def _options(d: int, n: int, dtype: torch.dtype) -> dict[str, int]:
    dp = max(16, power_of_2(d))
    rows = max(16, min(power_of_2(n), (2048 if dtype.itemsize == 2 else 512) // dp, 64))
    # A bound on registers that is not reached: without one the assembler saves a register at the price of a spill.
    return dict(D=d, DP=dp, N=rows, num_warps=8 if dp > 32 else 4, maxnreg=168)


def forward(qkv: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, heads d, H, W), and for the backward pass context (B, heads, d, d) and normaliser (B, heads, d)."""
    b, c, h, w = qkv.shape
    d, n = c // (3 * heads), h * w
    out = empty_images(qkv, heads * d)
    options = _options(d, n, qkv.dtype)
    flat, into = positions(qkv), positions(out)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=qkv.device)

    context, normaliser = empty(b, heads, d, d), empty(b, heads, d)
    parts, span = split(b * heads, n, options["N"], 4 * options["N"])
    if parts == 1:
        launch(
            linear_attention_whole,
            (b * heads,),
            qkv.device,
            flat,
            into,
            context,
            normaliser,
            n,
            heads,
            *flat.stride(),
            *into.stride(),
            scale,
            **options,
        )
        return out, context, normaliser
    pieces, normalisers = empty(b, heads, parts, d, d), empty(b, heads, parts, d)
    launch(
        linear_attention_part,
        (b * heads, parts),
        qkv.device,
        flat,
        pieces,
        normalisers,
        n,
        heads,
        span,
        *flat.stride(),
        **options,
    )
    each = 4 * options["N"]
    launch(
        linear_attention_apply,
        (b * heads, -(-n // each)),
        qkv.device,
        flat,
        into,
        pieces,
        normalisers,
        context,
        normaliser,
        n,
        heads,
        parts,
        *flat.stride(),
        *into.stride(),
        scale,
        **options,
        SPAN=each,
    )
    return out, context, normaliser


def backward(dy: Tensor, qkv: Tensor, context: Tensor, normaliser: Tensor, heads: int, scale: float) -> Tensor:
    b, c, h, w = qkv.shape
    d, n = c // (3 * heads), h * w
    dqkv = empty_images(qkv)
    options = _options(d, n, qkv.dtype)
    flat, grad, into = positions(qkv), positions(dy.to(qkv.dtype)), positions(dqkv)
    parts, span = split(b * heads, n, options["N"], 4 * options["N"])
    partial = torch.empty((parts, b, heads, d, d), dtype=torch.float32, device=qkv.device)
    launch(
        linear_attention_context_gradient,
        (b * heads, parts),
        qkv.device,
        flat,
        grad,
        partial,
        n,
        heads,
        span,
        *flat.stride(),
        *grad.stride(),
        scale,
        **options,
    )
    dcontext = partial[0] if parts == 1 else partial.sum(0)
    launch(
        linear_attention_input_gradient,
        (b * heads, -(-n // options["N"])),
        qkv.device,
        flat,
        grad,
        into,
        context,
        dcontext,
        normaliser,
        n,
        heads,
        *flat.stride(),
        *grad.stride(),
        *into.stride(),
        scale,
        **options,
    )
    return dqkv
