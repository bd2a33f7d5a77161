"""The weights of attention_block, folded together as attention_block.py describes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.kernels import checks

OP = "attention_block"


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
