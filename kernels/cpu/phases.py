"""Transposed convolutions as ordinary ones: Dumoulin and Visin, "A guide to convolution arithmetic" (2016), chapter 4.

Input i and tap k of a transposed convolution add to output i stride - padding + k dilation. The outputs that leave one
remainder when divided by the stride, a phase, hence see only every few taps, each the inputs side by side: for them it
is an ordinary convolution of stride 1 with those taps in reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fastdiff.kernels.cpu.plan import Call, View
from fastdiff.kernels.cpu.window import Pair, pair


class Axis(NamedTuple):
    """A phase's convolution, down or across: its first output, its taps of the kernel, and its own numbers."""

    first: int
    taps: list[int]
    padding: int
    dilation: int


def _axis(first: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    taps = [k for k in reversed(range(kernel)) if (first + padding - k * dilation) % stride == 0]
    sees = (first + padding - taps[0] * dilation) // stride if taps else 0
    return Axis(first, taps, -sees, dilation // math.gcd(stride, dilation))


def phases(
    op: str, kernel: Pair, stride: Pair, padding: Pair = 0, dilation: Pair = 1
) -> tuple[tuple[int, int], list[tuple[Axis, Axis]]]:
    """The stride, down and across, and as many phases as its product."""
    given = (
        pair(op, "kernel", kernel, 1),
        pair(op, "stride", stride, 1),
        pair(op, "padding", padding, 0),
        pair(op, "dilation", dilation, 1),
    )
    down, across = zip(*given, strict=True)
    rows, columns = ([_axis(first, *axis) for first in range(axis[1])] for axis in (down, across))
    return given[1], [(row, column) for row in rows for column in columns]


def phase_weights(
    op: str, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, packed: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What `packed` makes of each phase's taps of (O, C, KH, KW)."""
    _, each = phases(op, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    return [packed(weight[:, :, down.taps][:, :, :, across.taps]) for down, across in each]


def _part(view: View, stride: tuple[int, int], down: int, across: int) -> View:
    """Of (B, O, H, W), the rows and the columns that leave these remainders."""
    return view.part(2, down, step=stride[0]).part(3, across, step=stride[1])


def phase_calls(
    one: Callable[..., Call],
    op: str,
    x: View,
    weights: list[View],
    out: View,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    residual: View | None,
    **more: Any,
) -> list[Call]:
    """A call of `one`, a convolution, for each phase that has outputs."""
    whole, each = phases(op, kernel, stride, padding, dilation)
    if len(weights) != len(each):
        raise ValueError(f"{op}: {len(weights)} weights; accepted: {len(each)}, one for each phase")
    if residual is not None and residual.shape != out.shape:
        raise ValueError(f"{op}: residual has shape {residual.shape}; accepted: {out.shape}")
    return [
        one(
            x,
            weight,
            _part(out, whole, down.first, across.first),
            (len(down.taps), len(across.taps)),
            padding=(down.padding, across.padding),
            dilation=(down.dilation, across.dilation),
            residual=None if residual is None else _part(residual, whole, down.first, across.first),
            **more,
        )
        for weight, (down, across) in zip(weights, each, strict=True)
        if down.first < out.shape[2] and across.first < out.shape[3]
    ]
