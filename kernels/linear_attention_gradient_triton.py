"""Triton kernels of linear_attention's gradient.

With tiles (positions, features), Q = softmax_d(q), K = softmax_n(k), out = scale Q context:

    d context = scale Q^T d out,   dQ = scale d out context^T,   dK = v d context^T,   dv = K d context
    dq = Q (dQ - sum_d Q dQ),      dk = K (dK - sum_n K dK)

As sum_n K dK = sum_e d context[:, e] context[:, e], no further pass over the positions is needed.

    s_b, s_c, s_p (and dy_*, d_*): strides of batch, channel and position, in elements, s_* of qkv, d_* of dqkv
    D: width of a head; DP: D padded to a power of two, at least 16; N: positions at a time
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import empty_images, positions, split
from fastdiff.kernels.linear_attention_triton import options_of, softmax_features, square_of
from fastdiff.kernels.products import dot


@triton.jit
def linear_attention_context_gradient(
    qkv,  # (B, 3 heads D, n) any float dtype
    dy,  # (B, heads D, n) qkv's dtype
    partial,  # (parts, B, heads, D, D) float32, written
    count,  # n, positions
    heads,
    span,  # positions of a part
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
    """d context summed over one part of the positions."""
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
    square, inside = square_of(D, DP)
    tl.store(partial + (part * tl.num_programs(0) + index) * D * D + square, total * scale, inside)


@triton.jit
def linear_attention_input_gradient(
    qkv,  # (B, 3 heads D, n) any float dtype
    dy,  # (B, heads D, n) qkv's dtype
    dqkv,  # (B, 3 heads D, n) qkv's dtype, written
    context,  # (B, heads, D, D) float32, from the forward pass
    dcontext,  # (B, heads, D, D) float32
    normaliser,  # (B, heads, D) float32, from the forward pass
    count,  # n, positions
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
    """dq, dk and dv at N positions."""
    index = tl.program_id(0).to(tl.int64)
    h = index % heads
    c = tl.arange(0, DP)
    p = tl.program_id(1) * N + tl.arange(0, N)
    valid = (p < count)[:, None] & (c < D)[None, :]
    q = qkv + (index // heads) * s_b + h * D * s_c + p[:, None] * s_p + c[None, :] * s_c
    into = dqkv + (index // heads) * d_b + h * D * d_c + p[:, None] * d_p + c[None, :] * d_c
    d = tl.load(dy + (index // heads) * dy_b + h * D * dy_c + p[:, None] * dy_p + c[None, :] * dy_c, valid, 0.0)
    square, inside = square_of(D, DP)
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


def backward(dy: Tensor, qkv: Tensor, context: Tensor, normaliser: Tensor, heads: int, scale: float) -> Tensor:
    """The gradient of qkv."""
    b, c, h, w = qkv.shape
    d, n = c // (3 * heads), h * w
    dqkv = empty_images(qkv)
    options = options_of(d, n, qkv.dtype)
    flat, grad, into = positions(qkv), positions(dy.to(qkv.dtype)), positions(dqkv)
    parts, span = split(b * heads, n, options["N"], 4 * options["N"])
    partial = torch.empty((parts, b, heads, d, d), dtype=torch.float32, device=qkv.device)
    grid = b * heads, parts
    numbers = n, heads, span, *flat.stride(), *grad.stride(), scale
    launch(linear_attention_context_gradient, grid, qkv.device, flat, grad, partial, *numbers, **options)
    dcontext = partial[0] if parts == 1 else partial.sum(0)
    grid = b * heads, -(-n // options["N"])
    tensors = flat, grad, into, context, dcontext, normaliser
    numbers = n, heads, *flat.stride(), *grad.stride(), *into.stride(), scale
    launch(linear_attention_input_gradient, grid, qkv.device, *tensors, *numbers, **options)
    return dqkv
