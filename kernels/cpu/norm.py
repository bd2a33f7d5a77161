"""GroupNorm in C, as two calls: the statistics, and their application, which a convolution may do as it reads."""

from __future__ import annotations

from fastdiff.kernels.cpu.plan import Call, View, activation_code, dense, images, per_channel


def norm_statistics(
    x: View,
    out: View,
    groups: int,
    weight: View | None = None,
    bias: View | None = None,
    eps: float = 1e-5,
    gain: View | None = None,
    offset: View | None = None,
) -> Call:
    """The scale and the shift of each channel that make group_norm(x) (1 + gain) + offset of x.

    Args:
        x: (B, C, H, W), NHWC.
        out: (B, 2, C), contiguous: scales, then shifts.
        groups: a divisor of C.
        weight, bias: (C,), (1, C) or (B, C), a picture's numbers side by side; both of one shape.
        eps: added to the variance.
        gain, offset: likewise, such as what a time embedding says.

    Raises:
        ValueError: for anything else.
    """
    op, (b, c, h, w) = "norm_statistics", x.shape
    if groups < 1 or c % groups:
        raise ValueError(f"{op}: groups = {groups} with {c} channels; accepted: a divisor of the channels")
    ld = images(op, "x", x, b, c, h, w)
    dense(op, "out", out, b, 2, c)
    apart = per_channel(op, "weight", weight, b, c)
    if weight is not None and bias is not None and per_channel(op, "bias", bias, b, c) != apart:
        raise ValueError(f"{op}: weight has shape {weight.shape} and bias {bias.shape}; accepted: one shape")
    if weight is None:
        apart = per_channel(op, "bias", bias, b, c)
    further = per_channel(op, "gain", gain, b, c), per_channel(op, "offset", offset, b, c)
    return Call(op, (x, weight, bias, gain, offset), (out,), (b, h * w, c, ld, groups, float(eps), apart, *further))


def scale_shift(x: View, numbers: View, out: View, activation: str | None = None) -> Call:
    """activation(x scale + shift).

    Args:
        x: (B, C, H, W), NHWC.
        numbers: (B, 2, C) from norm_statistics.
        out: as x.
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".

    Raises:
        ValueError: for anything else.
    """
    op, (b, c, h, w) = "scale_shift", x.shape
    ld, to = images(op, "x", x, b, c, h, w), images(op, "out", out, b, c, h, w)
    dense(op, "numbers", numbers, b, 2, c)
    code = activation_code(op, "activation", activation)
    return Call(op, (x, numbers), (out,), (b, h * w, c, ld, to, code))
