"""Convolutions of any kernel in C, by a product with what each output sees; also transposed and in groups."""

from __future__ import annotations

import math

from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.phases import phase_calls, phase_weights
from fastdiff.kernels.cpu.plan import Call, View, activation_code, check_shape, dense, per_channel
from fastdiff.kernels.cpu.weights import panels, wide
from fastdiff.kernels.cpu.window import Pair, pair, steps, window


def _few(depth: int, o: int) -> bool:
    """Whether so few outputs are faster as a dot product each: of `depth` numbers, then of a vector's."""
    width = vector_width()
    return o * (depth / width + width) < depth


def convolution_weight(weight: Tensor) -> Tensor:
    """(O, C, KH, KW), flat, as `convolution` takes it.

    For few outputs that is (O, KH KW C), else (KH KW C times O rounded up to whole vectors).
    """
    if _few(weight[0].numel(), len(weight)):
        return weight.detach().float().permute(0, 2, 3, 1).flatten()
    return panels(weight.permute(2, 3, 1, 0).flatten(0, 2)[None])[0]


def convolution(
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
    norm: View | None = None,
) -> Call:
    """activation(conv2d(norm(x), w, bias)) + residual.

    Args:
        x: (B, C, H, W), NHWC.
        weight: from convolution_weight.
        out: (B, O, any height, any width), a position's channels side by side. All that its outputs see outside of x
            is 0, which makes the padding below x and right of it.
        kernel: KH and KW.
        stride: at least 1.
        padding: above x and left of it.
        dilation: at least 1.
        bias: (O,), (1, O) or (B, O), or None.
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as out, or None.
        norm: (B, 2, C) from norm_statistics, applied to x; the padding around the result is 0.

    Raises:
        ValueError: for anything else.
    """
    op = "convolution"
    o = out.shape[1] if len(out.shape) > 1 else 0
    numbers = window(op, x, out, o, kernel, stride, padding, dilation)
    b, c = x.shape[:2]
    depth = math.prod(pair(op, "kernel", kernel, 0)) * c
    few = _few(depth, o)
    dense(op, "weight", weight, depth * (o if few else wide(o)))
    check_shape(op, "norm", norm, (b, 2, c))
    if norm is not None and c > 1 and norm.strides[2] != 1:
        raise ValueError(f"{op}: norm has strides {norm.strides}; accepted: a picture's scales and shifts side by side")
    normed = (0, 0) if norm is None else norm.strides[:2]
    other = steps(op, "residual", residual, *out.shape)
    apart = per_channel(op, "bias", bias, b, o)
    numbers += o, *normed, *other, apart, activation_code(op, "activation", activation), int(few)
    return Call(op, (x, norm, weight, bias, residual), (out,), numbers)


def transposed_weights(weight: Tensor, stride: Pair, padding: Pair = 0, dilation: Pair = 1) -> list[Tensor]:
    """(C, O, KH, KW) as `transposed_convolution` takes it: for each of stride times stride phases its taps."""
    weight = weight.transpose(0, 1)
    return phase_weights("transposed_convolution", weight, stride, padding, dilation, convolution_weight)


def transposed_convolution(
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
    norm: View | None = None,
) -> list[Call]:
    """activation(conv_transpose2d(norm(x), w, bias)) + residual.

    Args:
        x: (B, C, H, W), NHWC.
        weights: from transposed_weights with the same stride, padding and dilation.
        out: (B, O, any height, any width), a position's channels side by side; its size implies the output_padding.
        kernel: KH and KW of w.
        stride: at least 1.
        padding: rows and columns left out before the first output.
        dilation: at least 1.
        bias, activation, residual, norm: as of `convolution`.

    Raises:
        ValueError: for anything else.
    """
    op = "transposed_convolution"
    given = x, weights, out, kernel, stride, padding, dilation, residual
    return phase_calls(convolution, op, *given, bias=bias, activation=activation, norm=norm)


def grouped_weights(weight: Tensor, groups: int) -> list[Tensor]:
    """(O, C / groups, KH, KW) as `grouped_convolution` takes it."""
    return [convolution_weight(part) for part in weight.chunk(groups)]


def grouped_convolution(
    x: View,
    weights: list[View],
    out: View,
    kernel: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    bias: View | None = None,
    activation: str | None = None,
    residual: View | None = None,
    norm: View | None = None,
) -> list[Call]:
    """`convolution` in as many groups of channels as there are weights, from grouped_weights."""
    op, groups = "grouped_convolution", len(weights)
    if not groups or len(x.shape) != 4 or len(out.shape) != 4 or x.shape[1] % groups or out.shape[1] % groups:
        raise ValueError(f"{op}: {groups} groups, x {x.shape}, out {out.shape}; accepted: a divisor of their channels")
    b, c, o = x.shape[0], x.shape[1] // groups, out.shape[1] // groups
    per_channel(op, "bias", bias, b, groups * o)
    check_shape(op, "residual", residual, out.shape)
    check_shape(op, "norm", norm, (b, 2, groups * c))

    def channels(view: View | None, dim: int, group: int, count: int) -> View | None:
        return None if view is None else view.part(dim, group * count, count)

    return [
        convolution(
            x.part(1, group * c, c),
            weight,
            out.part(1, group * o, o),
            kernel,
            stride,
            padding,
            dilation,
            channels(bias, 0 if bias is not None and len(bias.shape) == 1 else 1, group, o),
            activation,
            channels(residual, 1, group, o),
            channels(norm, 2, group, c),
        )
        for group, weight in enumerate(weights)
    ]
