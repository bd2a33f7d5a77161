"""The numbers of window.h: which positions of a picture each output of a convolution or a pooling sees."""

from __future__ import annotations

from fastdiff.kernels.cpu.plan import View, images

Pair = int | tuple[int, int]  # for rows and columns alike, or for each
_LIMIT = 2**31


def pair(op: str, name: str, value: Pair, least: int) -> tuple[int, int]:
    """Two numbers; raises ValueError where one is less than `least`, or larger than any picture."""
    rows, columns = value if isinstance(value, tuple) else (value, value)
    if not (least <= rows < _LIMIT and least <= columns < _LIMIT):
        raise ValueError(f"{op}: {name} = {value}; accepted: from {least} to 2^31 - 1")
    return rows, columns


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


def window(
    op: str, x: View, out: View, channels: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, ...]:
    """What window_of reads.

    Args:
        op: the kernel's name, for messages.
        x: (B, C, H, W), NHWC.
        out: (B, channels, any height, any width), a position's channels side by side.
        channels: of out.
        kernel: taps down and across.
        stride: at least 1.
        padding: positions above the picture and left of it that the first output sees, or fewer than 0.
        dilation: at least 1.

    Raises:
        ValueError: for anything else.
    """
    if len(x.shape) != 4 or len(out.shape) != 4 or min(out.shape[2:]) < 1:
        raise ValueError(f"{op}: x has shape {x.shape} and out {out.shape}; accepted: (B, C, H, W), out not empty")
    (b, c, *size), outputs = x.shape, out.shape[2:]
    ld, to = images(op, "x", x, *x.shape), steps(op, "out", out, b, channels, *outputs)
    each = (
        pair(op, "kernel", kernel, 0),
        pair(op, "stride", stride, 1),
        pair(op, "dilation", dilation, 1),
        pair(op, "padding", padding, 1 - _LIMIT),
    )
    down, across = zip(size, outputs, *each, strict=True)
    return b, c, ld, *down, *across, *to
