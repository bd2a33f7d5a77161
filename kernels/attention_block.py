"""The whole residual linear-attention block for inference: norm, projections, attention, output norm, addition.

Let xh (C, n) be the normed input before its gain and shift, K = softmax_n(W_k xh) and Q = softmax_d(W_q xh + c). The
block is then

    x + norm(sum_h M_h Q_h s + b),    M_h = A_h (xh K_h^T),    A_h = W_out,h W_v,h

Products are associative, so W_v can be applied after the sum over positions, where it meets W_out: the same function,
without values and head outputs at every position. The pre-norm's gain is multiplied into the weights. Its shift adds
to the keys a constant that their softmax over positions cancels, to the queries the bias c, and through the values a
constant to the output, because the softmaxes K and Q sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.channel_norm import channel_norm_reference
from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.folded_attention import FoldedAttention
from fastdiff.kernels.linear_attention import output_scale

OP = "attention_block"
# The Triton kernels keep tiles (channels, head width) in registers and shared memory. Larger tiles, or float32, would
# spill or exceed the 99 KB of shared memory that smaller GPUs have.
MAX_CHANNELS, MAX_HEAD_WIDTH = 128, 64


def fits(dtype: torch.dtype, channels: int, head_width: int) -> bool:
    """Whether the Triton kernels take such a block; others run faster as separate operators.

    Args:
        dtype: of the images and weights.
        channels: C.
        head_width: d.

    Returns:
        Whether dtype has 16 bits, and C and d are within MAX_CHANNELS and MAX_HEAD_WIDTH.
    """
    return dtype.itemsize == 2 and channels <= MAX_CHANNELS and head_width <= MAX_HEAD_WIDTH


def attention_block(x: Tensor, folded: FoldedAttention) -> Tensor:
    """The residual linear-attention block, its weights folded; see the equations at the top of this file.

    Not differentiable. The Triton kernels take bfloat16 and float16 (see `fits`); they keep maxima, sums and
    accumulators in float32 and round the operands of matrix products to x's dtype.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        folded: the weights, from `fold`, on x's device.

    Returns:
        x + channel_norm(out), or out alone where folded.gain is None; x's shape and dtype.

    Raises:
        ValueError: for other shapes, integer dtypes, or tensors on several devices.
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


def attention_of(x: Tensor, w_q: Tensor, w_k: Tensor, q_bias: Tensor, values: Sequence[Tensor], *rest: Any) -> Tensor:
    """`attention_block` of the fields of a FoldedAttention one by one, as a graph's node has them."""
    return attention_block(x, FoldedAttention(w_q, w_k, q_bias, tuple(values), *rest))


def attention_block_reference(x: Tensor, folded: FoldedAttention) -> Tensor:
    """`attention_block` in plain torch."""
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
