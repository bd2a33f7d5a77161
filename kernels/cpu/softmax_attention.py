"""Attention by the C kernel, float32: softmax(scale q k^T) v, Vaswani et al. (2017), eq. 1."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdiff.kernels.cpu.compiled import library
from fastdiff.kernels.cpu.operators import pointer, scratch


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """As torch's scaled_dot_product_attention without a mask.

    Args:
        q: (B, H, N, D) float32 on the CPU, any strides.
        k: (B, H, M, D), likewise.
        v: (B, H, M, E), likewise.
        scale: above 0; None is 1 / sqrt(D).

    Returns:
        (B, H, N, E) float32, of which (B, N, H, E) is contiguous.

    Raises:
        ValueError: for anything else.
    """
    shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
    if q.ndim != 4 or k.shape != (*q.shape[:2], k.shape[2], q.shape[3]) or v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"softmax_attention: q, k, v have shapes {shapes}; accepted: (B, H, N, D), (B, H, M, D), (B, H, M, E)"
        )
    if any(one.dtype != torch.float32 or one.device.type != "cpu" for one in (q, k, v)):
        raise ValueError(f"softmax_attention: q is {q.dtype} on {q.device}; accepted: float32 on the CPU, as k and v")
    (b, heads, queries, d), keys, e = q.shape, k.shape[2], v.shape[3]
    scale = d**-0.5 if scale is None else scale
    if not scale > 0 or min(keys, d) < 1:
        raise ValueError(f"softmax_attention: scale = {scale} and {keys} keys of {d}; accepted: more than 0")
    out = torch.empty(b, queries, heads, e, dtype=torch.float32, device="cpu")
    threads = torch.get_num_threads()
    places = (ctypes.c_long * 12)(*q.stride(), *k.stride(), *v.stride())
    space = scratch(library().softmax_attention_space(keys, d, e, threads))
    library().softmax_attention(
        *map(pointer, (q, k, v)), places, pointer(out), b, heads, queries, keys, d, e, scale, threads, space
    )
    return out.transpose(1, 2)
