"""3x3 convolutions in C, by Winograd's F(4x4, 3x3): Lavin and Gray (2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import Call, View, dense, images
from fastdiff.kernels.cpu.weights import panels, wide
from fastdiff.kernels.cpu.window import Window

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
WINDOW = Window((3, 3), padding=(1, 1))


def winograd_weight(weight: Tensor) -> Tensor:
    """G w G^T of (O, C, 3, 3), computed in float64: (36, C times O rounded up to whole vectors), float32.

    Each point's (C, O) is stored as product_panels in product.h reads it.
    """
    g = torch.tensor(_G, dtype=torch.float64, device="cpu")
    transformed = torch.einsum("ia,ocab,jb->ijco", g, weight.detach().double(), g)
    return panels(transformed.flatten(0, 1))


def fits(given: Operands) -> bool:
    """Whether `winograd` takes the window, the size and so many channels."""
    (_, c, *size), (_, o, *outputs) = given.x.shape, given.out.shape
    return given.window == WINDOW and size == outputs and min(c, o) >= vector_width()


def winograd(given: Operands, weight: View) -> Call:
    """activation(conv2d(norm(x), w, bias, padding=1)) + residual, w a 3x3 kernel, by Winograd's F(4x4, 3x3).

    The rounding error is some 3 times that of a direct convolution (1e-6, relative).

    Args:
        given: see `fits`; out and the residual NHWC as well.
        weight: from winograd_weight.

    Raises:
        ValueError: for anything else.
    """
    op, (x, out, norm, ending) = "winograd", (given.x, given.out, given.norm, given.ending)
    (b, c, h, w), o = x.shape, out.shape[1]
    if not fits(given):
        raise ValueError(
            f"{op}: {given.window}, x has shape {x.shape} and out {out.shape}; accepted: {WINDOW}, one size, and at "
            f"least {vector_width()} channels on this processor"
        )
    dense(op, "weight", weight, POINTS, c * wide(o))
    if norm is not None:
        dense(op, "norm", norm, b, 2, c)
    ld = images(op, "x", x, b, c, h, w)
    steps = ld, images(op, "residual", ending.residual, b, o, h, w), images(op, "out", out, b, o, h, w)
    numbers = b, h, w, c, o, *steps, *ending.numbers(op, b, o)
    return Call(op, (x, norm, weight, ending.bias, ending.residual), (out,), numbers)
