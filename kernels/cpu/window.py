"""The numbers of window.h: which positions of a picture each output of a convolution or a pooling sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from fastdiff.kernels.cpu.plan import View, images

Pair = tuple[int, int]  # down and across
_LEAST = {"kernel": 0, "stride": 1, "padding": 1 - 2**31, "dilation": 1}


@dataclass(frozen=True)
class Window:
    """What each output sees. All that it sees outside of the picture is 0, unless a kernel says otherwise.

    Attributes:
        kernel: taps down and across.
        stride: at least 1.
        padding: positions above the picture and left of it that the first output sees, or fewer than 0; how many the
            last one sees below it and right of it follows from the size of the result.
        dilation: at least 1.

    Raises:
        ValueError: for anything else.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), _LEAST[field.name]
            if not all(least <= one < 2**31 for one in value):
                raise ValueError(f"window: {field.name} = {value}; accepted: from {least} to 2^31 - 1")

    @property
    def taps(self) -> int:
        """Of the whole kernel."""
        return math.prod(self.kernel)

    def axes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Kernel, stride, padding and dilation, down and across."""
        down, across = zip(self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return down, across

    def numbers(self, op: str, x: View, out: View, each: bool = False) -> tuple[int, ...]:
        """What window_of reads.

        Args:
            op: the kernel's name, for messages.
            x: (B, C, H, W), NHWC.
            out: (B, any channels, any height, any width), a position's channels side by side.
            each: whether out has x's channels.

        Raises:
            ValueError: for anything else.
        """
        if len(x.shape) != 4 or len(out.shape) != 4 or min(out.shape[2:]) < 1:
            raise ValueError(f"{op}: x has shape {x.shape} and out {out.shape}; accepted: (B, C, H, W), out not empty")
        (b, c, *size), (_, o, *outputs) = x.shape, out.shape
        ld, to = images(op, "x", x, *x.shape), steps(op, "out", out, b, c if each else o, *outputs)
        down, across = (
            (pixels, results, kernel, stride, dilation, padding)
            for pixels, results, (kernel, stride, padding, dilation) in zip(size, outputs, self.axes(), strict=True)
        )
        return b, c, ld, *down, *across, *to


def steps(op: str, name: str, view: View | None, *shape: int) -> tuple[int, int, int]:
    """How far apart pictures, rows and positions lie; (0, 0, 0) without a view.

    Raises:
        ValueError: unless it is of that shape, (B, C, H, W), with a position's channels side by side.
    """
    if view is None:
        return 0, 0, 0
    if view.shape != shape or (shape[1] > 1 and view.strides[1] != 1):
        raise ValueError(
            f"{op}: {name} has shape {view.shape} and strides {view.strides}; accepted: {shape} with a position's "
            "channels side by side"
        )
    return view.strides[0], view.strides[2], view.strides[3]
