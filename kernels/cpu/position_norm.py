"""Norms over the channels of each position by the C kernel; float32."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels.cpu.compiled import library
from fastdiff.kernels.cpu.operators import activation_code, dense, pointer


def position_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    after: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """after(n(x) weight + bias) + residual, as kernels.position_norm.

    Args:
        x: (B, C, H, W) float32 on the CPU, any memory format.
        weight: C elements, float32, contiguous, or None.
        bias: likewise.
        eps, centred: see kernels.position_norm.
        after: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as x, or None.

    Returns:
        (B, C, H, W) float32, channels_last.

    Raises:
        ValueError: for anything else.
    """
    op, c = "position_norm", x.shape[1]
    code = activation_code(op, "after", after)
    x = x.movedim(1, -1).contiguous()
    dense(op, "x", x, *x.shape)
    weight, bias = (one if one is None else one.flatten() for one in (weight, bias))
    dense(op, "weight", weight, c)
    dense(op, "bias", bias, c)
    residual = None if residual is None else dense(op, "residual", residual.movedim(1, -1).contiguous(), *x.shape)
    out = torch.empty_like(x)
    addresses = [pointer(one) for one in (x, weight, bias, residual, out)]
    library().position_norm(*addresses, x.numel() // c, c, centred, eps, code, torch.get_num_threads())
    return out.movedim(-1, 1)
