"""Depthwise convolutions in C, also transposed: one kernel for each channel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.phases import phase_calls, phase_weights
from fastdiff.kernels.cpu.plan import Call, View, activation_code, dense, per_channel
from fastdiff.kernels.cpu.window import Pair, pair, steps, window


def depthwise_weight(weight: Tensor) -> Tensor:
    """(C, 1, KH, KW) → vectors of channels, KH, KW, a vector's channels: flat, float32, as `depthwise` takes it.

    The last vector overlaps the one before it.
    """
    width, taps = vector_width(), weight.detach().float()[:, 0].permute(1, 2, 0)
    taps = F.pad(taps, (0, max(0, width - taps.shape[2])))
    starts = [min(start, taps.shape[2] - width) for start in range(0, len(weight), width)]
    return torch.stack([taps[:, :, start : start + width] for start in starts]).flatten()


def depthwise(
    x: View,
    weight: View,
    out: View,
    kernel: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    bias: View | None = None,
    activation: str | None = None,
    residual: View | None = None,
) -> Call:
    """activation(conv2d(x, w, bias, groups=C)) + residual with as many channels out as in.

    Args:
        x: (B, C, H, W), NHWC.
        weight: from depthwise_weight.
        out: (B, C, any height, any width), a position's channels side by side. All that its outputs see outside of x
            is 0, which makes the padding below x and right of it.
        kernel: KH and KW.
        stride: at least 1.
        padding: above x and left of it.
        dilation: at least 1.
        bias: (C,), (1, C) or (B, C), or None.
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as out, or None.

    Raises:
        ValueError: for anything else.
    """
    op, c, width = "depthwise", x.shape[1] if len(x.shape) > 1 else 0, vector_width()
    numbers = window(op, x, out, c, kernel, stride, padding, dilation)
    dense(op, "weight", weight, -(-c // width) * width * math.prod(pair(op, "kernel", kernel, 0)))
    other, apart = steps(op, "residual", residual, *out.shape), per_channel(op, "bias", bias, x.shape[0], c)
    numbers += *other, apart, activation_code(op, "activation", activation)
    return Call(op, (x, weight, bias, residual), (out,), numbers)


def transposed_depthwise_weights(weight: Tensor, stride: Pair, padding: Pair = 0, dilation: Pair = 1) -> list[Tensor]:
    """(C, 1, KH, KW) as `transposed_depthwise` takes it: for each of stride times stride phases its taps."""
    return phase_weights("transposed_depthwise", weight, stride, padding, dilation, depthwise_weight)


def transposed_depthwise(
    x: View,
    weights: list[View],
    out: View,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    dilation: Pair = 1,
    bias: View | None = None,
    activation: str | None = None,
    residual: View | None = None,
) -> list[Call]:
    """activation(conv_transpose2d(x, w, bias, groups=C)) + residual with as many channels out as in.

    Args:
        x: (B, C, H, W), NHWC.
        weights: from transposed_depthwise_weights with the same stride, padding and dilation.
        out: (B, C, any height, any width), a position's channels side by side; its size implies the output_padding.
        kernel: KH and KW of w.
        stride: at least 1.
        padding: rows and columns left out before the first output.
        dilation: at least 1.
        bias, activation, residual: as of `depthwise`.

    Raises:
        ValueError: for anything else.
    """
    given = x, weights, out, kernel, stride, padding, dilation, residual
    return phase_calls(depthwise, "transposed_depthwise", *given, bias=bias, activation=activation)
