"""Convolutions of any kernel in C, by a product with what each output sees."""

from __future__ import annotations

from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import Call, View, dense
from fastdiff.kernels.cpu.weights import panels, wide
from fastdiff.kernels.cpu.window import steps


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


def convolution(given: Operands, weight: View) -> Call:
    """activation(conv2d(norm(x), w, bias)) + residual, the weight from convolution_weight.

    Raises:
        ValueError: for operands that lie otherwise in memory than Operands says, or the weight of another kernel.
    """
    op, (x, out, norm, ending) = "convolution", (given.x, given.out, given.norm, given.ending)
    numbers = given.window.numbers(op, x, out)
    (b, c), o = x.shape[:2], out.shape[1]
    depth = given.window.taps * c
    few = _few(depth, o)
    dense(op, "weight", weight, depth * (o if few else wide(o)))
    if norm is not None and c > 1 and norm.strides[2] != 1:
        raise ValueError(f"{op}: norm has strides {norm.strides}; accepted: a picture's scales and shifts side by side")
    normed = (0, 0) if norm is None else norm.strides[:2]
    other = steps(op, "residual", ending.residual, *out.shape)
    numbers += o, *normed, *other, *ending.numbers(op, b, o), int(few)
    return Call(op, (x, norm, weight, ending.bias, ending.residual), (out,), numbers)
