"""attention_block by the C kernel, one picture at a time, so that intermediate results stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.kernels.cpu.compiled import library, vector_width
from fastdiff.kernels.cpu.operators import empty, images, pointer, scratch
from fastdiff.kernels.folded_attention import FoldedAttention
from fastdiff.kernels.linear_attention import output_scale


@dataclass(frozen=True)
class PackedAttention:
    """A FoldedAttention as the C kernel reads it: transposed, C rounded up to whole vectors (`wide`)."""

    folded: FoldedAttention
    w_q: Tensor  # (C, heads d)
    w_k: Tensor
    first: Tensor  # A^T (heads, C, wide), or where there is a second W_v^T (heads, C, d)
    second: Tensor | None  # W_out^T (heads, d, wide)
    gain: Tensor | None  # (C,)


def pack(folded: FoldedAttention) -> PackedAttention:
    """The packed weights; folded must be float32 on the CPU."""

    def widened(matrix: Tensor) -> Tensor:
        """(heads, C, n) → (heads, n, wide)."""
        out = matrix.new_zeros(matrix.shape[0], matrix.shape[2], -(-matrix.shape[1] // vector_width()) * vector_width())
        out[:, :, : matrix.shape[1]] = matrix.transpose(1, 2)
        return out

    last, *rest = folded.values
    return PackedAttention(
        folded,
        folded.w_q.t().contiguous(),
        folded.w_k.t().contiguous(),
        first=rest[0].transpose(1, 2).contiguous() if rest else widened(last),
        second=widened(last) if rest else None,
        gain=None if folded.gain is None else folded.gain.flatten().contiguous(),
    )


def fits(channels: int, head_width: int) -> bool:
    """Whether the C kernel takes such a block."""
    return channels >= vector_width() and head_width % vector_width() == 0


def attention_block(x: Tensor, packed: PackedAttention) -> Tensor:
    """kernels.attention_block.attention_block in C.

    Args:
        x: (B, C, H, W) float32 on the CPU, any memory format.
        packed: from `pack`; see `fits` for the sizes that it may have.

    Returns:
        x + channel_norm(out), or out alone where the gain is None: x's shape, float32, channels_last.

    Raises:
        ValueError: for another shape, dtype or device.
    """
    folded = packed.folded
    (width, c), (b, _, h, w) = folded.w_q.shape, x.shape if x.ndim == 4 else (-1, -1, -1, -1)
    x = images("attention_block", "x", x, b, c, h, w)
    d = width // folded.heads
    scale = output_scale(d, h * w, folded.divide_by_n)
    constant = folded.bias + scale * folded.shift
    out, threads = empty(b, c, h, w), torch.get_num_threads()
    space = scratch(library().attention_space(h * w, c, folded.heads, d, threads))
    library().attention(
        pointer(x),
        pointer(out),
        b,
        h * w,
        c,
        folded.heads,
        d,
        pointer(packed.w_q),
        pointer(packed.w_k),
        pointer(folded.q_bias),
        pointer(packed.first),
        pointer(packed.second),
        pointer(constant),
        pointer(packed.gain),
        scale,
        folded.eps,
        threads,
        space,
    )
    return out
