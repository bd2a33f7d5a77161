"""Attention between the positions of a picture, of which queries, keys and values are channels.

Vaswani et al., "Attention is all you need" (2017), eq. 1: softmax(q k^T scale) v for each head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """Where a picture's channels hold what a head reads.

    Attributes:
        count: heads.
        width: d, channels of a head.
        apart: channels from one head's to the next one's.
        q, k, v: the first head's first channel.
    """

    count: int
    width: int
    apart: int
    q: int
    k: int
    v: int


def picture_attention(x: Tensor, heads: Heads, scale: float) -> Tensor:
    """softmax(q k^T scale) v of every head, by torch's operator, which reads x where it lies.

    Args:
        x: (B, C, H, W), any float dtype.
        heads: among the C channels.
        scale: of the scores.

    Returns:
        (B, count width, H, W), heads one after another.
    """
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
    size = b, heads.count, h * w, heads.width
    step, along = rows.stride(1), rows.stride(2)
    strides = rows.stride(0), heads.apart * along, step, along
    q, k, v = (
        rows.as_strided(size, strides, rows.storage_offset() + first * along) for first in (heads.q, heads.k, heads.v)
    )
    # Widths that eight divides torch's kernels read as they lie, 16 bytes at once.
    odd = heads.width % 8 == 0 and any(one % 8 for one in (step, heads.apart, heads.q, heads.k, heads.v))
    if odd or along != 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).reshape(b, h, w, heads.count * heads.width).permute(0, 3, 1, 2)
