"""Linear layers and 1x1 convolutions in C."""

from __future__ import annotations

import math

from torch import Tensor

from fastdiff.kernels.cpu.ending import PLAIN, Ending
from fastdiff.kernels.cpu.plan import Call, View, check_shape, dense, evenly
from fastdiff.kernels.cpu.weights import panels, wide


def linear_weight(weight: Tensor) -> Tensor:
    """(O, C) or (O, C, 1, ...) → (C times O rounded up to whole vectors,), as `linear` takes it."""
    return panels(weight.flatten(1).t()[None])[0]


def linear(x: View, weight: View, out: View, ending: Ending = PLAIN) -> Call:
    """activation(x W^T + bias) + residual over the last dimension.

    A 1x1 convolution is this of (B, H, W, C).

    Args:
        x: (B, ..., C), rows of channels evenly spaced.
        weight: from linear_weight.
        out: (B, ..., O), likewise.
        ending: the bias, the activation and the residual.

    Raises:
        ValueError: for anything else.
    """
    op, (*outer, c), o, residual = "linear", x.shape, out.shape[-1], ending.residual
    check_shape(op, "out", out, (*outer, o))
    check_shape(op, "residual", residual, (*outer, o))
    dense(op, "weight", weight, c * wide(o))
    dims = range(len(x.shape))
    steps = [evenly(op, name, one, *dims) for name, one in (("x", x), ("residual", residual), ("out", out))]
    n, rows = outer[0] if outer else 1, math.prod(outer)
    numbers = rows, c, o, *steps, max(1, rows // max(1, n)), *ending.numbers(op, n, o)
    return Call(op, (x, weight, ending.bias, residual), (out,), numbers)
