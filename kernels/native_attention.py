"""kernels.attention_block on the CPU: a picture at a time, so that what lies between stays in the cache."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.attention_block import FoldedAttention
from fastdiff.kernels.compiled import library, vector_width
from fastdiff.kernels.linear_attention import output_scale
from fastdiff.kernels.native import check, empty, nhwc, pointer


@dataclass(frozen=True)
class PackedAttention:
    """A FoldedAttention as the kernel reads it: transposed, rows rounded up to vectors."""

    folded: FoldedAttention
    w_q: Tensor  # (C, heads d)
    w_k: Tensor
    first: Tensor  # (heads, C, wide), or with a second (heads, C, d)
    second: Tensor | None  # (heads, d, wide)
    gain: Tensor | None  # (C,)


def pack(folded: FoldedAttention) -> PackedAttention:
    """folded: from attention_block.fold, in float32 on the CPU."""

    def widened(matrix: Tensor) -> Tensor:
        """(heads, C, n) → (heads, n, C rounded up to vectors)"""
        out = torch.zeros(matrix.shape[0], matrix.shape[2], -(-matrix.shape[1] // vector_width()) * vector_width())
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
    """Whether the kernel takes such a block."""
    return channels >= vector_width() and head_width % vector_width() == 0


def attention_block(x: Tensor, packed: PackedAttention) -> Tensor:
    """As kernels.attention_block.attention_block: x + channel_norm(out), or out alone where the gain is None.

    x: (B, C, H, W) float32 on the CPU. Returns x's shape in channels_last. Raises ValueError for anything else.
    """
    op, folded = "attention_block", packed.folded
    checks.images(op, x)
    b, c, h, w = x.shape
    checks.shape(op, "w_q", packed.w_q, (c, folded.w_q.shape[0]))
    check(op, x, c)
    d = folded.w_q.shape[0] // folded.heads
    scale = output_scale(d, h * w, folded.divide_by_n)
    constant = folded.bias + scale * folded.shift
    x, out, threads = nhwc(x), empty(x, c), torch.get_num_threads()
    space = torch.empty(threads * library().attention_space(h * w, c, folded.heads, d))
    library().attention(
        pointer(x), pointer(out), b, h * w, c, folded.heads, d, pointer(packed.w_q), pointer(packed.w_k),
        pointer(folded.q_bias), pointer(packed.first), pointer(packed.second), pointer(constant),
        pointer(packed.gain), ctypes.c_float(scale), ctypes.c_float(folded.eps), threads, pointer(space),
    )  # fmt: skip
    return out
