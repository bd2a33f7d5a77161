"""Transposed convolutions as ordinary ones: Dumoulin and Visin, "A guide to convolution arithmetic" (2016), chapter 4.

Input i and tap k of a transposed convolution add to output i stride - padding + k dilation. The outputs that leave one
remainder when divided by the stride, a phase, hence see only every few taps, each the inputs side by side: for them it
is an ordinary convolution of stride 1 with those taps in reverse.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.window import Window


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


def _phases(window: Window) -> list[tuple[Axis, Axis]]:
    """As many as the product of the strides."""
    rows, columns = ([_axis(first, *axis) for first in range(axis[1])] for axis in window.axes())
    return [(row, column) for row in rows for column in columns]


def phase_taps(weight: Tensor, window: Window) -> list[Tensor]:
    """(C, O, KH, KW) of a transposed convolution → for each phase (O, C, its taps down, its taps across)."""
    weight = weight.transpose(0, 1)
    return [weight[:, :, down.taps][:, :, :, across.taps] for down, across in _phases(window)]


def in_phases(whole: Operands) -> list[Operands]:
    """The ordinary convolutions that a transposed one consists of, each with its taps; some may have no outputs.

    The padding of a transposed one is the rows and columns left out before the first output; how many are left out
    after the last one, or added, follows from the size of out.
    """

    tall, wide = whole.window.stride

    def part(view: View, down: Axis, across: Axis) -> View:
        return view.part(2, down.first, step=tall).part(3, across.first, step=wide)

    residual = whole.ending.residual
    return [
        replace(
            whole,
            out=part(whole.out, down, across),
            window=Window(
                kernel=(len(down.taps), len(across.taps)),
                padding=(down.padding, across.padding),
                dilation=(down.dilation, across.dilation),
            ),
            ending=whole.ending._replace(residual=None if residual is None else part(residual, down, across)),
        )
        for down, across in _phases(whole.window)
    ]
