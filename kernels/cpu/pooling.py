"""Max and average pooling in C."""

from __future__ import annotations

from fastdiff.kernels.cpu.plan import Call, View
from fastdiff.kernels.cpu.window import Window


def _numbers(op: str, x: View, out: View, window: Window) -> tuple[int, ...]:
    """The numbers of window.h; raises ValueError for what torch's pooling refuses, and for another size of out."""
    numbers = window.numbers(op, x, out, each=True)
    for size, outputs, (taps, stride, before, dilation) in zip(x.shape[2:], out.shape[2:], window.axes(), strict=True):
        if taps < 1 or not 0 <= before <= taps // 2:
            raise ValueError(f"{op}: {window}; accepted: padding from 0 to half of the kernel, which is at least 1")
        if outputs != (size + 2 * before - (taps - 1) * dilation - 1) // stride + 1:
            raise ValueError(
                f"{op}: out has shape {out.shape} for x of {x.shape}; accepted: whole windows only, not ceil_mode"
            )
    return numbers


def max_pool(x: View, out: View, window: Window) -> Call:
    """max_pool2d: the largest number that each window sees of a channel, NaN where one is NaN.

    Args:
        x: (B, C, H, W), NHWC.
        out: (B, C, and torch's height and width), a position's channels side by side.
        window: its padding is on all sides, at most half of the kernel, and not seen.

    Raises:
        ValueError: for anything else.
    """
    return Call("max_pool", (x,), (out,), _numbers("max_pool", x, out, window))


def average_pool(x: View, out: View, window: Window, count_include_pad: bool = True) -> Call:
    """avg_pool2d: the mean of what each window sees of a channel, over padding as zeros too if count_include_pad.

    x, out, window and what is raised: as of `max_pool`.
    """
    return Call("average_pool", (x,), (out,), (*_numbers("average_pool", x, out, window), int(count_include_pad)))
