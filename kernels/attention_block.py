"""The whole residual linear-attention block for inference: norm, projections, attention, output norm, addition.

With xh the normed input before its affine part, K = softmax_n(W_k xh), Q = softmax_d(W_q xh + c) the block is

    x + norm(sum_h M_h Q_h s + b),    M_h = A_h (xh K_h^T),    A_h = W_out,h W_v,h

The value projection moves behind the sum over positions and meets the output projection there: exactly the same
function, without values and head outputs at every position. Of the pre-norm's affine part the gain goes into the
weights; its shift is a constant of the keys, which their softmax over positions does not see, a bias of the queries,
and through the values a constant of the output, for a column of K and one of Q each sum to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.channel_norm import channel_norm_reference
from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.linear_attention import output_scale

OP = "attention_block"
# The Triton form keeps tiles (channels, head width) in registers and shared memory: more than these, or four bytes for
# an element, and they spill, or exceed the 99 KB of smaller GPUs.
MAX_CHANNELS, MAX_HEAD_WIDTH = 128, 64


class FoldedAttention(NamedTuple):
    """A block's weights, made by `fold`, on one device.

    w_q, w_k: (heads d, C); values: (A,) with A (heads, C, C), or where that costs more operations (W_out, W_v),
    (heads, C, d) and (heads, d, C): all in the network's dtype. q_bias (heads d,), bias (C,), shift (C,): float32 at
    least; shift, times s, is what the pre-norm's own shift adds to the output. gain: (1, C, 1, 1), or None where the
    block ends in another norm, which is then left to the caller, with the addition. eps: the pre-norm's.
    """

    w_q: Tensor
    w_k: Tensor
    q_bias: Tensor
    values: tuple[Tensor, ...]
    bias: Tensor
    shift: Tensor
    gain: Tensor | None
    heads: int
    divide_by_n: bool
    eps: float


def fold(
    norm_weight: Tensor,
    norm_bias: Tensor,
    w_qkv: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    gain: Tensor | None,
    heads: int,
    divide_by_n: bool,
    eps: float = 1e-5,
    precision: torch.dtype = torch.float64,
    dtype: torch.dtype | None = None,
) -> FoldedAttention:
    """The weights of attention_block, folded in that precision and then rounded to dtype, w_qkv's unless given.

    norm_weight, norm_bias: the pre-norm's, (C,), GroupNorm with one group. w_qkv: (3 heads d, C) or with (1, 1) after
    it; w_out: (C, heads d), likewise; b_out: (C,); gain: the output norm's, (1, C, 1, 1), or None.
    Raises ValueError for shapes that do not fit.
    """
    c = norm_weight.numel()
    width = w_qkv.shape[0]
    if heads < 1 or width == 0 or width % (3 * heads):
        raise ValueError(f"{OP}: w_qkv has shape {tuple(w_qkv.shape)} with heads = {heads}; accepted: (3 heads d, C)")
    given = dict(norm_weight=norm_weight, norm_bias=norm_bias, w_qkv=w_qkv, w_out=w_out, b_out=b_out, gain=gain)
    checks.tensors(OP, **given)
    for name in ("norm_weight", "norm_bias", "b_out"):
        checks.shape(OP, name, given[name], (c,))
    checks.shape(OP, "gain", gain, (1, c, 1, 1))
    checks.shape(OP, "w_qkv", w_qkv, (width, c), (width, c, 1, 1))
    checks.shape(OP, "w_out", w_out, (c, width // 3), (c, width // 3, 1, 1))
    dtype, d = w_qkv.dtype if dtype is None else dtype, width // (3 * heads)
    wide = torch.promote_types(dtype, torch.float32)
    shift, scale, qkv, out = (t.detach().to(precision) for t in (norm_bias, norm_weight, w_qkv, w_out))
    q, k, v = qkv.reshape(3, heads * d, c)
    out = out.reshape(c, heads, d).transpose(0, 1)  # (heads, C, d)
    v = v.reshape(heads, d, c)
    # A_h (xh K^T) costs C C d multiply-adds a head, W_out (W_v (xh K^T)) 2 C d^2.
    values = (out @ v * scale,) if c <= 2 * d else (out, v * scale)
    return FoldedAttention(
        w_q=(q * scale).to(dtype).contiguous(),
        w_k=(k * scale).to(dtype).contiguous(),
        q_bias=(q @ shift).to(wide),
        values=tuple(m.to(dtype).contiguous() for m in values),
        bias=b_out.detach().to(wide).contiguous(),
        shift=(out @ (v @ shift)[..., None]).sum(0)[:, 0].to(wide),
        gain=None if gain is None else gain.detach().to(dtype).contiguous(),
        heads=heads,
        divide_by_n=divide_by_n,
        eps=eps,
    )


def fits(dtype: torch.dtype, channels: int, head_width: int) -> bool:
    """Whether the Triton form takes such a block; the others are better left in their parts."""
    return dtype.itemsize == 2 and channels <= MAX_CHANNELS and head_width <= MAX_HEAD_WIDTH


def attention_block(x: Tensor, folded: FoldedAttention) -> Tensor:
    """x + channel_norm(out), or out alone where folded.gain is None; see the top of this file.

    x: (B, C, H, W), any float dtype and memory format; folded: from `fold`, on x's device. Returns x's shape and dtype.
    Not differentiable. The Triton form is for bfloat16 and float16 (see `fits`); it keeps maxima, sums and
    accumulators in float32 and rounds what enters a matrix product to x's dtype. Raises ValueError for anything else.
    """
    tensors = {k: v for k, v in folded._asdict().items() if isinstance(v, Tensor)}
    checks.tensors(OP, x=x, values=folded.values[0], **tensors)
    checks.images(OP, x)
    width, c = folded.w_q.shape
    if x.shape[1] != c:
        raise ValueError(f"{OP}: x has {x.shape[1]} channels and the weights {c}")
    if use_triton(x) and fits(x.dtype, c, width // folded.heads):
        from fastdiff.kernels import attention_block_triton

        return attention_block_triton.forward(x, folded)
    return attention_block_reference(x, folded)


def attention_block_reference(x: Tensor, folded: FoldedAttention) -> Tensor:
    """The same in plain torch."""
    b, c, h, w = x.shape
    heads, n = folded.heads, h * w
    d = folded.w_q.shape[0] // heads
    xh = F.group_norm(x, 1, eps=folded.eps).reshape(b, c, n)
    k = (folded.w_k @ xh).softmax(dim=-1)  # (B, heads d, n)
    q = (folded.w_q @ xh + folded.q_bias.to(x.dtype)[:, None]).view(b, heads, d, n).softmax(dim=-2)
    mixed = (xh @ k.transpose(1, 2)).view(b, c, heads, d).transpose(1, 2)  # (B, heads, C, d)
    for matrix in reversed(folded.values):
        mixed = matrix @ mixed
    scale = output_scale(d, n, folded.divide_by_n)
    constant = (folded.bias + scale * folded.shift).to(x.dtype)
    out = ((mixed @ q).sum(1) * scale + constant[:, None]).view(x.shape)
    return out if folded.gain is None else channel_norm_reference(out, folded.gain, x)
