"""Activations and their derivatives inside Triton kernels, in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, KIND: tl.constexpr):
    """KIND: "none", "gelu" (erf), "gelu_tanh", "silu" or "relu"."""
    if KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # (1 + tanh y) / 2 = sigmoid(2 y)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "silu":
        x = x * tl.sigmoid(x)
    elif KIND == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def activation_slope(x, KIND: tl.constexpr):
    """d activate(x) / dx."""
    if KIND == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif KIND == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        slope = s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    elif KIND == "silu":
        s = tl.sigmoid(x)
        slope = s * (1.0 + x * (1.0 - s))
    elif KIND == "relu":
        slope = tl.where(x > 0.0, 1.0, 0.0)
    else:
        slope = tl.full(x.shape, 1.0, tl.float32)
    return slope
