"""Linear attention, at a cost linear in the number of positions n: with q, k, v (d, n) of one head,

    out = context^T softmax_d(q) d^-1/2,    context = softmax_n(k) v^T    (d, d)

Shen et al., "Efficient attention: attention with linear complexities" (2018), as the Annotated U-Net uses it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import triton_for
from fastdiff.kernels.layout import empty_images
from fastdiff.kernels.library import Kernels, register

MAX_HEAD_WIDTH = 64  # the Triton kernels keep a head's (d, d) context in registers; wider heads take the reference


def linear_attention(qkv: Tensor, heads: int, divide_by_n: bool) -> Tensor:
    """Linear attention of every head; see the equation at the top of this file. Differentiable.

    The Triton kernels keep maxima, sums and accumulators in float32 and round the operands of matrix products to qkv's
    dtype.

    Args:
        qkv: (B, 3 heads d, H, W), any float dtype and memory format: all heads' queries, then keys, then values.
        heads: number of heads.
        divide_by_n: whether v is divided by n = H W, as two of the published editions do.

    Returns:
        (B, heads d, H, W) in qkv's dtype; from Triton in channels_last.

    Raises:
        ValueError: for other shapes, or an integer dtype.
    """
    checks.tensors("linear_attention", qkv=qkv)
    width = qkv.shape[1] if qkv.ndim == 4 else 0
    if heads < 1 or width == 0 or width % (3 * heads):
        raise ValueError(
            f"linear_attention: qkv has shape {tuple(qkv.shape)} with heads = {heads}; "
            "accepted: (B, 3 heads d, H, W) with heads and d at least 1"
        )
    checks.images("linear_attention", qkv, "qkv")
    return _linear_attention(qkv, heads, divide_by_n)


def linear_attention_reference(qkv: Tensor, heads: int, divide_by_n: bool) -> Tensor:
    """`linear_attention` in plain torch."""
    b, c, h, w = qkv.shape
    d, n = c // (3 * heads), h * w
    q, k, v = qkv.reshape(b, 3, heads, d, n).unbind(1)
    q = q.softmax(dim=-2)
    k = k.softmax(dim=-1)
    context = k @ v.transpose(-1, -2)  # (B, heads, d, d)
    # Both scalings are applied to the context, which is smaller than q and v.
    context = context * output_scale(d, n, divide_by_n)
    return (context.transpose(-1, -2) @ q).reshape(b, heads * d, h, w)


def output_scale(d: int, n: int, divide_by_n: bool) -> float:
    """d^-1/2, and 1 / n where values are divided by the number of positions."""
    return d**-0.5 / n if divide_by_n else d**-0.5


def _scale(qkv: Tensor, heads: int, divide_by_n: bool) -> float:
    return output_scale(qkv.shape[1] // (3 * heads), qkv.shape[2] * qkv.shape[3], divide_by_n)


def _launch(qkv: Tensor, heads: int, divide_by_n: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and for the gradient the contexts and their normalisers."""
    from fastdiff.kernels import linear_attention_triton

    return linear_attention_triton.forward(qkv, heads, _scale(qkv, heads, divide_by_n))


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv, heads, divide_by_n):  # type: ignore[override]
        ctx.heads, ctx.scale = heads, _scale(qkv, heads, divide_by_n)
        out, context, normaliser = _launch(qkv, heads, divide_by_n)
        ctx.save_for_backward(qkv, context, normaliser)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        from fastdiff.kernels import linear_attention_gradient_triton

        qkv, context, normaliser = ctx.saved_tensors
        dqkv = linear_attention_gradient_triton.backward(dy, qkv, context, normaliser, ctx.heads, ctx.scale)
        return dqkv, None, None


_linear_attention = register(
    "linear_attention(Tensor qkv, int heads, bool divide_by_n) -> Tensor",
    linear_attention_reference,
    Kernels(
        take=lambda qkv, heads, _: triton_for(qkv.device, qkv.dtype) and qkv.shape[1] // (3 * heads) <= MAX_HEAD_WIDTH,
        launch=lambda *args: _launch(*args)[0],
        empty=lambda qkv, *_: empty_images(qkv, qkv.shape[1] // 3),
        differentiable=_LinearAttention.apply,
    ),
)
