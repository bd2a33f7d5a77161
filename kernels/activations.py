"""Activations and their derivatives inside Triton kernels, in float32.

GELU (Hendrycks and Gimpel 2016) is x Phi(x), Phi(x) = (1 + erf(x / sqrt(2))) / 2; "gelu_tanh" approximates it by
x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. SiLU is x sigmoid(x).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, NAME: tl.constexpr):
    """NAME: "none", "gelu" (erf), "gelu_tanh", "silu" or "relu"."""
    if NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":  # (1 + tanh y) / 2 = sigmoid(2 y)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif NAME == "silu":
        x = x * tl.sigmoid(x)
    elif NAME == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def activation_slope(x, NAME: tl.constexpr):
    """The derivative of activate at x."""
    if NAME == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif NAME == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        slope = s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    elif NAME == "silu":
        s = tl.sigmoid(x)
        slope = s * (1.0 + x * (1.0 - s))
    elif NAME == "relu":
        slope = tl.where(x > 0.0, 1.0, 0.0)
    else:
        slope = tl.full(x.shape, 1.0, tl.float32)
    return slope
