"""3x3 convolutions in C, by Winograd's F(4x4, 3x3): Lavin and Gray (2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.plan import Call, View, activation_code, dense, images, per_channel
from fastdiff.kernels.cpu.weights import panels, wide

# G of Winograd's F(4x4, 3x3), section 4.3.
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
TILE, POINTS = 4, 36  # outputs down and across; points of its transform


def winograd_weight(weight: Tensor) -> Tensor:
    """G w G^T of (O, C, 3, 3), computed in float64: (36, C times O rounded up to whole vectors), float32.

    Each point's (C, O) is stored as product_panels in product.h reads it.
    """
    g = torch.tensor(_G, dtype=torch.float64, device="cpu")
    transformed = torch.einsum("ia,ocab,jb->ijco", g, weight.detach().double(), g)
    return panels(transformed.flatten(0, 1))


def fits(channels: int, out: int) -> bool:
    """Whether `winograd` takes so many channels."""
    return min(channels, out) >= vector_width()


def winograd(
    x: View,
    weight: View,
    out: View,
    bias: View | None = None,
    activation: str | None = None,
    residual: View | None = None,
    norm: View | None = None,
) -> Call:
    """activation(conv2d(norm(x), w, bias, padding=1)) + residual, w a 3x3 kernel, by Winograd's F(4x4, 3x3).

    The rounding error is some 3 times that of a direct convolution (1e-6, relative).

    Args:
        x: (B, C, H, W), NHWC; see `fits` for C and O.
        weight: from winograd_weight.
        out: (B, O, H, W), NHWC.
        bias: (O,), (1, O) or (B, O), or None.
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as out, or None.
        norm: (B, 2, C) from norm_statistics, applied to x; the padding around the result is 0.

    Raises:
        ValueError: for anything else.
    """
    op, (b, c, h, w), o = "winograd", x.shape, out.shape[1]
    if not fits(c, o):
        raise ValueError(f"{op}: {c} channels to {o}; accepted: at least {vector_width()} on this processor")
    dense(op, "weight", weight, POINTS, c * wide(o))
    if norm is not None:
        dense(op, "norm", norm, b, 2, c)
    ld = images(op, "x", x, b, c, h, w)
    steps = ld, images(op, "residual", residual, b, o, h, w), images(op, "out", out, b, o, h, w)
    apart = per_channel(op, "bias", bias, b, o)
    numbers = b, h, w, c, o, *steps, apart, activation_code(op, "activation", activation)
    return Call(op, (x, norm, weight, bias, residual), (out,), numbers)
