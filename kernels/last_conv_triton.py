"""Triton kernel of denoise_step_of: fused_conv's products, and denoise_step's update of each channel of the result.

C, O: channels of the convolution's input, and of the pictures
DEEP, OP, WIDE, STRIDE, NEAREST, ROWS, COLUMNS, DEEP_STEP: as DEPTH and others in fused_conv
CHANNELS_FIRST, GUIDED, LIMITED, DEPTH, NOISE, NEXT: as in denoise_step; LIMITED is its CLIP "limit"
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.conv_weight import Window, depth, padded, tile
from fastdiff.kernels.denoise_step_triton import dense, ended, in_one_format, moved, ring
from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.fused_conv_triton import accumulate
from fastdiff.kernels.layout import contiguous, positions_last
from fastdiff.kernels.philox_triton import four_normals


# These may be any element of a vector.
@triton.jit(do_not_specialize_on_alignment=["index", "next_index"])
def last_conv_forward(
    given,  # (n, H, W, C) any float dtype; if GUIDED 2 n, without a context before with it
    weight,  # (1, TALL, WIDE, DEEP, OP) the network's dtype, padded with zeros
    bias,  # (O,) any float dtype, or None
    x,  # (n, O, H', W') float32, overwritten
    history,  # (DEPTH, n, O, H', W') float32, each with x's strides; or None
    noise,  # x's shape and strides, float32, or None
    rows,  # (R, 12) float32
    index,  # one int32 or int64
    next_index,  # as index, written; or None
    guidance,  # one float32, or None
    key,  # (2,) int64; or None
    samples,  # n
    apart,  # elements from one of history's to the next
    limit,
    height,  # H NEAREST
    width,
    taps,  # TALL WIDE, not known to the compiler, which would unroll the loop
    tiles,  # of positions
    top,  # rows before the position, of the first that a window sees
    left,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    DEEP: tl.constexpr,
    OP: tl.constexpr,
    WIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    NEAREST: tl.constexpr,
    W: tl.constexpr,
    HW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEEP_STEP: tl.constexpr,
    BIAS: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    GUIDED: tl.constexpr,
    LIMITED: tl.constexpr,
    DEPTH: tl.constexpr,
    NOISE: tl.constexpr,
    NEXT: tl.constexpr,
):
    """The update of ROWS positions of a sample."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    start = (tl.program_id(0) % tiles) * ROWS
    p = start + tl.arange(0, ROWS)
    present = p < HW
    o = tl.arange(0, COLUMNS)
    h, w = (p // W) * STRIDE - top, (p % W) * STRIDE - left
    sample = (height // NEAREST) * (width // NEAREST) * C
    weight += o[None, :]
    zeros = tl.zeros((ROWS, COLUMNS), tl.float32)
    # fmt: off
    total = accumulate(
        zeros, given + b * sample, weight, None, None, h, w, present, height, width, taps,
        C, DEEP, DEEP, OP, WIDE, NEAREST, DEEP_STEP, False, "none",
    )
    if GUIDED:
        conditional = accumulate(
            zeros, given + (samples + b) * sample, weight, None, None, h, w, present, height, width, taps,
            C, DEEP, DEEP, OP, WIDE, NEAREST, DEEP_STEP, False, "none",
        )
        total += tl.load(guidance) * (conditional - total)
    # fmt: on
    i = tl.load(index)
    row = rows + i * 12
    for c in tl.static_range(O):
        prediction = tl.sum(tl.where((o == c)[None, :], total, 0.0), axis=1)
        if BIAS:  # guidance leaves it as it is
            prediction += tl.load(bias + c).to(tl.float32)
        at = (b * O + c) * HW + p if CHANNELS_FIRST else (b * HW + p) * O + c
        v = tl.load(x + at, present, 0.0)
        v, remembered = moved(
            v, prediction, row, i, history, apart, at, present, limit, "limit" if LIMITED else "off", DEPTH
        )
        deviation = tl.load(row + 5)
        if NOISE == "given":
            v += tl.load(noise + at, present, 0.0) * deviation
        elif NOISE == "philox":
            if deviation != 0:
                block = (c * HW + start) // 4 + tl.arange(0, ROWS // 4)[:, None]
                z = four_normals(tl.load(key), tl.load(key + 1) + b, (i + 1).to(tl.int32), block)
                v += tl.reshape(z, (ROWS,)) * deviation
        ended(v, remembered, i, x, history, next_index, apart, at, present, DEPTH, NEXT)


def forward(
    x: Tensor,
    given: Tensor,
    weight: Tensor,
    window: Window,
    bias: Tensor | None,
    rows: Tensor,
    index: Tensor,
    history: Tensor | None,
    noise: Tensor | None,
    key: Tensor | None,
    clip: float | None,
    guidance_scale: Tensor | None,
    next_index: Tensor | None,
) -> None:
    """denoise_step_of the same arguments; given, weight, window and bias: those of LastConv, given its x."""
    n, o, h, w = x.shape
    c, height, width = given.shape[1:]
    state = in_one_format(x)
    kept, places, apart = ring(history, state)
    deep = padded(c)
    positions, columns = tile(h * w, o)
    tiles = -(-h * w // positions)
    kernel = weight.shape[1:3]
    launch(
        last_conv_forward,
        (n * tiles,),
        x.device,
        *(positions_last(given), weight, contiguous(bias), state, kept),
        None if noise is None else dense(noise, state),
        *(rows.contiguous(), index, next_index, guidance_scale, contiguous(key)),
        *(n, apart, 0.0 if clip is None else clip),
        *(height * window.nearest, width * window.nearest, kernel[0] * kernel[1], tiles, *window.before),
        C=c,
        O=o,
        DEEP=deep,
        OP=weight.shape[-1],
        WIDE=kernel[1],
        STRIDE=window.step,
        NEAREST=window.nearest,
        W=w,
        HW=h * w,
        ROWS=positions,
        COLUMNS=columns,
        DEEP_STEP=depth(deep),
        BIAS=bias is not None,
        CHANNELS_FIRST=state.is_contiguous(),
        GUIDED=guidance_scale is not None,
        LIMITED=clip is not None,
        DEPTH=places,
        NOISE="given" if noise is not None else "philox" if key is not None else "off",
        NEXT=next_index is not None,
        num_warps=4,
        num_stages=3,
    )
    if state is not x:
        x.copy_(state)
    if history is not None and kept is not None and kept is not history:
        history.copy_(kept)
