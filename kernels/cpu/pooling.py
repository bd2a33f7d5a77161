"""Max and average pooling in C."""

from __future__ import annotations

from fastdiff.kernels.cpu.plan import Call, View
from fastdiff.kernels.cpu.window import Pair, pair, window


def _pooling(
    op: str, x: View, out: View, kernel: Pair, stride: Pair | None, padding: Pair, dilation: Pair
) -> tuple[int, ...]:
    """The numbers of window.h; raises ValueError for what torch's pooling refuses, and for another size of out."""
    stride = kernel if stride is None else stride
    numbers = window(op, x, out, x.shape[1] if len(x.shape) > 1 else 0, kernel, stride, padding, dilation)
    names = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    for size, outputs, *axis in zip(
        x.shape[2:], out.shape[2:], *(pair(op, name, value, 0) for name, value in names.items()), strict=True
    ):
        taps, step, before, apart = axis
        if taps < 1 or before > taps // 2:
            raise ValueError(f"{op}: padding = {padding}, kernel = {kernel}; accepted: at most half of the kernel")
        if outputs != (size + 2 * before - (taps - 1) * apart - 1) // step + 1:
            raise ValueError(
                f"{op}: out has shape {out.shape} for x of {x.shape}; accepted: whole windows only, not ceil_mode"
            )
    return numbers


def max_pool(
    x: View, out: View, kernel: Pair, stride: Pair | None = None, padding: Pair = 0, dilation: Pair = 1
) -> Call:
    """max_pool2d: the largest number that each window sees of a channel, NaN where one is NaN.

    Args:
        x: (B, C, H, W), NHWC.
        out: (B, C, and torch's height and width), a position's channels side by side.
        kernel: of the window, down and across.
        stride: None for the kernel's.
        padding: on all sides, at most half of the kernel; not seen.
        dilation: at least 1.

    Raises:
        ValueError: for anything else.
    """
    return Call("max_pool", (x,), (out,), _pooling("max_pool", x, out, kernel, stride, padding, dilation))


def average_pool(
    x: View,
    out: View,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    count_include_pad: bool = True,
) -> Call:
    """avg_pool2d: the mean of what each window sees of a channel.

    Args:
        x: (B, C, H, W), NHWC.
        out: (B, C, and torch's height and width), a position's channels side by side.
        kernel: of the window, down and across.
        stride: None for the kernel's.
        padding: on all sides, at most half of the kernel.
        count_include_pad: whether the mean is over padding too, as zeros.

    Raises:
        ValueError: for anything else.
    """
    numbers = _pooling("average_pool", x, out, kernel, stride, padding, 1)
    return Call("average_pool", (x,), (out,), (*numbers, int(count_include_pad)))
