"""Linear layers and 1x1 convolutions by the C kernel; float32."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels.cpu.compiled import library, vector_width
from fastdiff.kernels.cpu.operators import activation_code, dense, panels, pointer


def linear_weight(weight: Tensor) -> Tensor:
    """(O, C) or (O, C, 1, ...) → (C times O rounded up to whole vectors,), as `linear` takes it."""
    return panels(weight.detach().flatten(1).t()[None])[0]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: int,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x W^T + bias) + residual over the last dimension.

    Args:
        x: (..., C) float32 on the CPU, any strides.
        weight: from linear_weight.
        bias: (O,) float32, contiguous, or None.
        channels: O.
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: (..., O) float32, or None.

    Returns:
        (..., O) float32, contiguous.

    Raises:
        ValueError: for anything else.
    """
    op, shape = "linear", (*x.shape[:-1], channels)
    x = x.contiguous()
    c, width = x.shape[-1], vector_width()
    dense(op, "x", x, *x.shape)
    dense(op, "weight", weight, c * -(-channels // width) * width)
    dense(op, "bias", bias, channels)
    residual = dense(op, "residual", None if residual is None else residual.contiguous(), *shape)
    code = activation_code(op, "activation", activation)
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    addresses = [pointer(one) for one in (x, weight, bias, residual, out)]
    library().linear(*addresses, out.numel() // channels, c, channels, code, torch.get_num_threads())
    return out


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: int,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`linear` over the second dimension: a 1x1 convolution of (B, C, ...), the result (B, O, ...) in channels_last."""
    last = None if residual is None else residual.movedim(1, -1)
    return linear(x.movedim(1, -1), weight, bias, channels, activation, last).movedim(-1, 1)
