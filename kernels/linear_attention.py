"""Linear attention, softmax_d(q) d^-1/2 (softmax_n(k) v^T): cost linear in the number of positions.

After Shen et al., "Efficient attention: attention with linear complexities" (2018), as the Annotated U-Net uses it.
"""

from __future__ import annotations

from torch import Tensor


def linear_attention(q: Tensor, k: Tensor, v: Tensor, divide_by_n: bool) -> Tensor:
    """q, k, v: (B, heads, d, n) float. Returns (B, heads, d, n).

    q is softmaxed over its d features and scaled by d^-1/2, k over the n positions; divide_by_n divides v by n.
    """
    d, n = q.shape[-2:]
    q = q.softmax(dim=-2)
    k = k.softmax(dim=-1)
    context = k @ v.transpose(-1, -2)  # (B, heads, d, d)
    # Both scalings are applied to the small context instead of to q and v.
    context = context * (d**-0.5 / n if divide_by_n else d**-0.5)
    return context.transpose(-1, -2) @ q
