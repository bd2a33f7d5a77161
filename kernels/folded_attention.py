"""The weights of attention_block, folded by the equations in attention_block.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.kernels import checks

OP = "attention_block"


class FoldedAttention(NamedTuple):
    """A block's weights, made by `fold`, on one device.

    Attributes:
        w_q: (heads d, C), in the network's dtype.
        w_k: (heads d, C), likewise.
        q_bias: (heads d,), at least float32; c of the equations.
        values: (A,), A (heads, C, C); or, where that takes more operations, (W_out, W_v), (heads, C, d) and
            (heads, d, C). In the network's dtype.
        bias: (C,), at least float32; b of the equations.
        shift: (C,), at least float32; s times it is what the pre-norm's shift adds to the output.
        gain: (1, C, 1, 1), the output norm's, or None where the block ends in another norm: the caller then applies
            that norm and adds x.
        heads: number of heads.
        divide_by_n: whether s includes 1 / n.
        eps: the pre-norm's.
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
    dtype: torch.dtype | None = None,
) -> FoldedAttention:
    """Fold a block's weights for attention_block, in float64.

    Args:
        norm_weight, norm_bias: (C,), of the pre-norm, a GroupNorm with one group.
        w_qkv, w_out: (3 heads d, C) and (C, heads d), or either with (1, 1) after it.
        b_out: (C,).
        gain: (1, C, 1, 1), of the output norm, or None.
        heads: number of heads.
        divide_by_n: whether values are divided by the number of positions.
        eps: the pre-norm's.
        dtype: what the results are rounded to; None is w_qkv's.

    Raises:
        ValueError: for shapes that do not match.
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
    shift, scale, qkv, out = (t.detach().double() for t in (norm_bias, norm_weight, w_qkv, w_out))
    q, k, v = qkv.reshape(3, heads * d, c)
    out = out.reshape(c, heads, d).transpose(0, 1)  # (heads, C, d)
    v = v.reshape(heads, d, c)
    # For each head A_h (xh K^T) takes C C d multiply-adds, W_out (W_v (xh K^T)) 2 C d d.
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
