"""attention_block in C, as three calls: the pre-norm's statistics, each head's context, and the output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.norm import norm_statistics
from fastdiff.kernels.cpu.plan import Call, View, dense, images
from fastdiff.kernels.cpu.weights import panels, wide
from fastdiff.kernels.folded_attention import FoldedAttention
from fastdiff.kernels.linear_attention import output_scale


@dataclass(frozen=True)
class PackedAttention:
    """A FoldedAttention as the C kernels read it; the values' matrices and w_q in the order of `panels`."""

    folded: FoldedAttention
    w_q: Tensor
    w_k: Tensor  # (heads, C, d)
    first: Tensor  # A^T of each head, or where there is a second W_v^T
    second: Tensor | None  # W_out^T
    gain: Tensor | None  # (C,)

    @property
    def head_width(self) -> int:
        """d."""
        return int(self.folded.w_q.shape[0]) // self.folded.heads

    def numbers_shape(self, pictures: int) -> tuple[int, ...]:
        """The size of `attention_block`'s numbers."""
        return pictures, 2, self.folded.w_q.shape[1]

    def context_shape(self, pictures: int) -> tuple[int, ...]:
        """The size of `attention_block`'s context."""
        width, c = self.folded.w_q.shape
        return pictures, width, wide(c)


def pack(folded: FoldedAttention) -> PackedAttention:
    """The packed weights; folded must be float32 on the CPU."""
    last, *rest = (matrix.transpose(1, 2) for matrix in folded.values)
    return PackedAttention(
        folded,
        panels(folded.w_q.t()[None])[0],
        folded.w_k.unflatten(0, (folded.heads, -1)).transpose(1, 2).contiguous(),
        first=panels(rest[0] if rest else last),
        second=panels(last) if rest else None,
        gain=None if folded.gain is None else folded.gain.flatten().contiguous(),
    )


def fits(head_width: int) -> bool:
    """Whether the C kernels take heads of this width."""
    return head_width % vector_width() == 0


def attention_block(x: View, packed: PackedAttention, out: View, numbers: View, context: View) -> tuple[Call, ...]:
    """kernels.attention_block.attention_block: x + channel_norm(out), or out alone where the gain is None.

    Args:
        x: (B, C, H, W), NHWC.
        packed: from `pack`; see `fits`.
        out: as x.
        numbers: memory for the norm's scale and shift, contiguous, of numbers_shape.
        context: memory for the contexts, contiguous, of context_shape.

    Returns:
        The calls, in their order.

    Raises:
        ValueError: for anything else.
    """
    op, (b, c, h, w), folded, d = "attention_block", x.shape, packed.folded, packed.head_width
    channels = folded.w_q.shape[1]
    if not fits(d):
        raise ValueError(f"{op}: heads of width {d}; accepted: a multiple of {vector_width()} on this processor")
    ld, to = images(op, "x", x, b, channels, h, w), images(op, "out", out, b, channels, h, w)
    dense(op, "context", context, *packed.context_shape(b))
    scale = output_scale(d, h * w, folded.divide_by_n)
    constant = folded.bias + scale * folded.shift
    w_q, w_k, first, q_bias, added = map(View.of, (packed.w_q, packed.w_k, packed.first, folded.q_bias, constant))
    second, gain = (None if one is None else View.of(one) for one in (packed.second, packed.gain))
    sizes = b, h * w, c, folded.heads, d, ld
    return (
        norm_statistics(x, numbers, 1, eps=folded.eps),
        Call("attention_context", (x, numbers, w_k, first, second), (context,), (*sizes, float(scale))),
        Call("attention_output", (x, numbers, w_q, q_bias, context, added, gain), (out,), (*sizes, to)),
    )
