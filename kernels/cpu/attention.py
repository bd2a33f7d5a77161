"""attention_block in C, as three calls: the pre-norm's statistics, each head's context, and the output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.cpu.norm import norm_statistics
from fastdiff.kernels.cpu.plan import Call, View, dense, images
from fastdiff.kernels.cpu.weights import panels, wide
from fastdiff.kernels.folded_attention import FoldedAttention
from fastdiff.kernels.linear_attention import output_scale


@dataclass(frozen=True)
class PackedAttention:
    """A FoldedAttention as the C kernels read it, d and most C rounded up to whole vectors."""

    folded: FoldedAttention
    w_q: Tensor  # (heads d, C), transposed, in the order of `panels`
    w_k: Tensor  # (heads, C, d)
    q_bias: Tensor  # (heads d,)
    first: Tensor  # A^T (heads, C, C), or where there is a second W_v^T (heads, C, d)
    second: Tensor | None  # W_out^T (heads, d, C)
    gain: Tensor | None  # (C,)

    def numbers_shape(self, pictures: int) -> tuple[int, ...]:
        """The size of `attention_block`'s numbers."""
        return pictures, 2, self.folded.w_q.shape[1]

    def context_shape(self, pictures: int) -> tuple[int, ...]:
        """The size of `attention_block`'s context."""
        return pictures, len(self.q_bias), wide(self.folded.w_q.shape[1])


def _widened(x: Tensor, dim: int, value: float = 0.0) -> Tensor:
    """x with whole vectors of entries in that dimension, the new ones of that value."""
    missing = wide(x.shape[dim]) - x.shape[dim]
    return F.pad(x.movedim(dim, -1), (0, missing), value=value).movedim(-1, dim).contiguous()


def pack(folded: FoldedAttention) -> PackedAttention:
    """The packed weights; folded must be float32 on the CPU.

    Entries beyond a head's width have a bias of -inf, so that softmax makes next to nothing (e^-87) of them.
    """
    w_q, w_k, q_bias = (one.unflatten(0, (folded.heads, -1)) for one in (folded.w_q, folded.w_k, folded.q_bias))
    last, *rest = (matrix.transpose(1, 2) for matrix in folded.values)
    last = _widened(last, 2)
    return PackedAttention(
        folded,
        w_q=panels(_widened(w_q, 1).flatten(0, 1).t()[None])[0],
        w_k=_widened(w_k.transpose(1, 2), 2),
        q_bias=_widened(q_bias, 1, -math.inf).flatten(),
        first=_widened(rest[0], 2) if rest else last,
        second=_widened(last, 1) if rest else None,
        gain=None if folded.gain is None else folded.gain.flatten().contiguous(),
    )


def attention_block(x: View, packed: PackedAttention, out: View, numbers: View, context: View) -> tuple[Call, ...]:
    """kernels.attention_block.attention_block: x + channel_norm(out), or out alone where the gain is None.

    Args:
        x: (B, C, H, W), NHWC.
        packed: from `pack`.
        out: as x.
        numbers: memory for the norm's scale and shift, contiguous, of numbers_shape.
        context: memory for the contexts, contiguous, of context_shape.

    Returns:
        The calls, in their order.

    Raises:
        ValueError: for anything else.
    """
    op, (b, _, h, w), folded = "attention_block", x.shape, packed.folded
    width, c = folded.w_q.shape
    ld, to = images(op, "x", x, b, c, h, w), images(op, "out", out, b, c, h, w)
    dense(op, "context", context, *packed.context_shape(b))
    scale = output_scale(width // folded.heads, h * w, folded.divide_by_n)
    constant = folded.bias + scale * folded.shift
    w_q, w_k, first, q_bias, added = map(View.of, (packed.w_q, packed.w_k, packed.first, packed.q_bias, constant))
    second, gain = (None if one is None else View.of(one) for one in (packed.second, packed.gain))
    sizes = b, h * w, c, folded.heads, len(packed.q_bias) // folded.heads, ld
    return (
        norm_statistics(x, numbers, 1, eps=folded.eps),
        Call("attention_context", (x, numbers, w_k, first, second), (context,), (*sizes, float(scale))),
        Call("attention_output", (x, numbers, w_q, q_bias, context, added, gain), (out,), (*sizes, to)),
    )
