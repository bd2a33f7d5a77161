"""Matrix products inside Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.kernels.dispatch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def dot(a, b, total):
    """total + a b, accumulated in float32; float32 operands are not cut to TF32."""
    if INTERPRETED:  # Triton's interpreter would multiply bfloat16 numbers' bit patterns
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
