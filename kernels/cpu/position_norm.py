"""Norms over the channels of each position in C."""

from __future__ import annotations

import math

from fastdiff.kernels.cpu.plan import Call, View, activation_code, check_shape, evenly, per_channel


def position_norm(
    x: View,
    out: View,
    weight: View | None,
    bias: View | None,
    eps: float,
    centred: bool,
    activation: str | None = None,
    residual: View | None = None,
) -> Call:
    """activation(n(x) weight + bias) + residual, as kernels.position_norm, over the last dimension.

    Args:
        x: (..., C), rows of channels evenly spaced, such as NHWC pictures with the channels moved last.
        out: as x.
        weight, bias: (C,), (1, C) or (1, C, 1, 1), or None.
        eps, centred: see kernels.position_norm.
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as x, or None.

    Raises:
        ValueError: for anything else.
    """
    op, (*outer, c) = "position_norm", x.shape
    check_shape(op, "out", out, x.shape)
    check_shape(op, "residual", residual, x.shape)
    dims = range(len(x.shape))
    steps = [evenly(op, name, one, *dims) for name, one in (("x", x), ("residual", residual), ("out", out))]
    for name, one in (("weight", weight), ("bias", bias)):
        per_channel(op, name, one, 1, c)
    code = activation_code(op, "activation", activation)
    numbers = math.prod(outer), c, *steps, int(centred), float(eps), code
    return Call(op, (x, weight, bias, residual), (out,), numbers)
