"""Depthwise convolutions in C, one kernel for each channel, and the gradient of their weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import Call, View, dense
from fastdiff.kernels.cpu.window import Window, steps


def depthwise_weight(weight: Tensor) -> Tensor:
    """(C, 1, KH, KW) → vectors of channels, KH, KW, a vector's channels: flat, float32, as `depthwise` takes it.

    The last vector overlaps the one before it. A phase's taps may be (1, C, KH, KW).
    """
    width, taps = vector_width(), weight.detach().float().flatten(0, 1).permute(1, 2, 0)
    c = taps.shape[2]
    taps = F.pad(taps, (0, max(0, width - c)))
    starts = [min(start, taps.shape[2] - width) for start in range(0, c, width)]
    return torch.stack([taps[:, :, start : start + width] for start in starts]).flatten()


def depthwise_gradient(x: View, dy: View, dw: View, window: Window) -> Call:
    """The gradient of a depthwise convolution with respect to its weight, each picture's by itself.

    Args:
        x: (B, C, H, W), NHWC.
        dy: (B, C, any height, any width), a position's channels side by side.
        dw: (B, KH, KW, C), contiguous.
        window: the convolution's.

    Raises:
        ValueError: for operands that lie otherwise in memory.
    """
    op = "depthwise_gradient"
    numbers = window.numbers(op, x, dy, each=True)
    dense(op, "dw", dw, x.shape[0], *window.kernel, x.shape[1])
    return Call(op, (x, dy), (dw,), numbers)


def depthwise(given: Operands, weight: View) -> Call:
    """activation(conv2d(x, w, bias, groups=C)) + residual, the weight from depthwise_weight.

    Raises:
        ValueError: for operands that lie otherwise in memory than Operands says, other channels out than in, a norm,
            or the weight of another kernel.
    """
    op, (x, out, ending), width = "depthwise", (given.x, given.out, given.ending), vector_width()
    numbers = given.window.numbers(op, x, out, each=True)
    if given.norm is not None:
        raise ValueError(f"{op}: norm has shape {given.norm.shape}; accepted: None")
    b, c = x.shape[:2]
    dense(op, "weight", weight, -(-c // width) * width * given.window.taps)
    numbers += *steps(op, "residual", ending.residual, *out.shape), *ending.numbers(op, b, c)
    return Call(op, (x, weight, ending.bias, ending.residual), (out,), numbers)
