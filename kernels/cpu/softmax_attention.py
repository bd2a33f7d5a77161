"""Attention in C: softmax(scale q k^T) v, Vaswani et al. (2017), eq. 1."""

from __future__ import annotations

from fastdiff.kernels.cpu.plan import Call, View, check_shape


def softmax_attention(q: View, k: View, v: View, out: View, scale: float | None = None) -> Call:
    """As torch's scaled_dot_product_attention without a mask.

    Args:
        q: (B, H, N, D), any strides.
        k: (B, H, M, D), likewise.
        v: (B, H, M, E), likewise.
        out: (B, H, N, E), a position's channels side by side.
        scale: above 0; None is 1 / sqrt(D).

    Raises:
        ValueError: for anything else.
    """
    op, shapes = "softmax_attention", (q.shape, k.shape, v.shape)
    if {len(shape) for shape in shapes} != {4} or k.shape[2] != v.shape[2] or k.shape[3] != q.shape[3]:
        raise ValueError(f"{op}: q, k, v have shapes {shapes}; accepted: (B, H, N, D), (B, H, M, D), (B, H, M, E)")
    (b, heads, queries, d), keys, e = q.shape, k.shape[2], v.shape[3]
    check_shape(op, "k", k, (b, heads, keys, d))
    check_shape(op, "v", v, (b, heads, keys, e))
    check_shape(op, "out", out, (b, heads, queries, e))
    if out.rows(3) is None:
        raise ValueError(f"{op}: out has strides {out.strides}; accepted: channels of stride 1")
    if min(keys, d) < 1:
        raise ValueError(f"{op}: {keys} keys of {d} channels; accepted: more than 0")
    scale = d**-0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"{op}: scale = {scale}; accepted: more than 0")
    strides = *q.strides, *k.strides, *v.strides, *out.strides
    return Call(op, (q, k, v), (out,), (b, heads, queries, keys, d, e, *strides, float(scale)))
