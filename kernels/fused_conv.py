"""A convolution with all that stands before and after it in a block, as one pass over the picture. For inference.

    y = (after(norm(x) * weight + bias + added) + residual) factor

The norm in front costs no pass of its own, because the statistics of x come from what wrote x (see
kernels.statistics). With one group, (x - mean) rstd is the same for all of a sample, so that it can follow the
convolution: with the norm's gain in the weight, W' = W gain, and its shift b,

    conv(norm(x)) = rstd (W' * x - mean (W' * 1)) + W * b

where W' * 1 and W * b depend on the position at the border alone, for there some taps see padding, which a norm does
not shift: a table. A scale and a shift of each channel, and an activation after them, apply to x as it is read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.conv_weight import Window, unpack
from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.group_norm import FUNCTIONS
from fastdiff.kernels.statistics import merged, statistics_of

Result = Tensor | tuple[Tensor, Tensor]


def fused_conv(
    x: Tensor,
    weight: Tensor,
    window: Window,
    channels: int,
    bias: Tensor | None = None,
    *,
    second: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    before: str | None = None,
    statistics: Tensor | None = None,
    borders: Tensor | None = None,
    eps: float = 1e-5,
    added: Tensor | None = None,
    after: str | None = None,
    residual: Tensor | None = None,
    residual_second: Tensor | None = None,
    shortcut: Tensor | None = None,
    factor: float = 1.0,
    emit: str | None = None,
) -> Result:
    """The convolution at the top of this file. Not differentiable.

    The Triton kernel accumulates in float32, and rounds what it multiplies to the weight's dtype.

    Args:
        x: (B, C, H, W), float32, bfloat16 or float16.
        weight: as conv_weight.pack gives it; with statistics, of W'.
        window: of the convolution.
        channels: O.
        bias: (O,), or None.
        second: (B, C2, H, W), channels that follow x's, as if concatenated; or None.
        scale: (B, C + C2) or (1, C + C2): before(x scale + shift) is what is read; scale and shift come together.
        shift: as scale.
        before: None, "gelu" (erf), "gelu_tanh", "silu" or "relu"; with scale alone.
        statistics: (B, parts, 3) float32, x's as a whole; see kernels.statistics. Without scale.
        borders: with statistics, (2, kinds down, kinds across, O) float32, as fold_norm gives it.
        eps: the norm's, with statistics.
        added: (B, O) or (1, O), either with (1, 1) after it, such as a time bias; or None.
        after: as before.
        residual: (B, O, H', W'), or with a shortcut (B, R, H', W'); or None.
        residual_second: (B, R2, H', W'), channels that follow the residual's, with a shortcut; or None.
        shortcut: (R padded + R2 padded, O padded), a 1x1 convolution of the residual, packed; or None.
        factor: of the result.
        emit: whether the result's statistics are wanted: None, "whole" (of each sample) or "channels" (of each of its
            channels).

    Returns:
        (B, O, H', W'), x's dtype, channels_last; with emit a pair, the second (B, parts, 3) or (B, parts, O, 3)
        float32.
    """
    # fmt: off
    given = (
        x, weight, window, channels, bias, second, scale, shift, before, statistics, borders, eps, added, after,
        residual, residual_second, shortcut, factor, emit,
    )
    # fmt: on
    if not use_triton(x):
        return fused_conv_reference(*given)
    from fastdiff.kernels import fused_conv_triton

    y, emitted = fused_conv_triton.forward(*given)
    return y if emitted is None else (y, emitted)


def fused_conv_reference(
    x: Tensor,
    weight: Tensor,
    window: Window,
    channels: int,
    bias: Tensor | None = None,
    second: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    before: str | None = None,
    statistics: Tensor | None = None,
    borders: Tensor | None = None,
    eps: float = 1e-5,
    added: Tensor | None = None,
    after: str | None = None,
    residual: Tensor | None = None,
    residual_second: Tensor | None = None,
    shortcut: Tensor | None = None,
    factor: float = 1.0,
    emit: str | None = None,
) -> Result:
    """`fused_conv` in plain torch: at least in float32, rounded once."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs = x.shape[1], 0 if second is None else second.shape[1]
    whole = (x if second is None else torch.cat((x, second), dim=1)).to(dtype)
    if scale is not None and shift is not None:
        whole = FUNCTIONS[before](whole * scale[..., None, None] + shift[..., None, None])
    if window.nearest > 1:
        whole = F.interpolate(whole, scale_factor=window.nearest, mode="nearest")
    kernel = unpack(weight, window, channels, inputs).to(dtype)
    if window.transposed:
        y = F.conv_transpose2d(whole, kernel, None, window.stride, window.padding)
    else:
        y = F.conv2d(whole, kernel, None, window.stride, window.padding)
    if statistics is not None and borders is not None:
        mean, variance = (one.to(dtype).view(-1, 1, 1, 1) for one in merged(statistics))
        of_mean, of_shift = (_at_borders(one, *y.shape[2:]).to(dtype) for one in borders)
        y = (variance + eps).rsqrt() * (y - mean * of_mean) + of_shift
    for one in (bias, added):
        if one is not None:
            y = y + one.to(dtype).reshape(-1, channels, 1, 1)
    y = FUNCTIONS[after](y)
    if residual is not None:
        if shortcut is not None:
            both = [one for one in (residual, residual_second) if one is not None]
            sizes = both[0].shape[1], both[1].shape[1] if both[1:] else 0
            taps = unpack(shortcut[None, None, None], Window((1, 1)), channels, sizes)
            residual = F.conv2d(torch.cat(both, dim=1).to(dtype), taps.to(dtype))
        y = y + residual
    y = (y * factor).to(x.dtype)
    return y if emit is None else (y, statistics_of(y, emit))


def _at_borders(table: Tensor, height: int, width: int) -> Tensor:
    """(kinds down, kinds across, O) → (O, height, width)."""
    down, across = (
        torch.arange(size).clamp(max=1).where(torch.arange(size) < size - 1, torch.tensor(kinds - 1))
        for size, kinds in ((height, table.shape[0]), (width, table.shape[1]))
    )
    return table[down][:, across].permute(2, 0, 1)


def fold_norm(
    weight: Tensor, gain: Tensor | None, shift: Tensor | None, size: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weight and the border table of a convolution after a norm of one group.

    Args:
        weight: (O, C, K, K), K 1 or 3; the convolution has stride 1 and keeps the picture's size.
        gain, shift: (C,), the norm's, or None.
        size: of the picture.
        dtype: what the weight is rounded to.

    Returns:
        The weight, (O, C, K, K), and the table, (2, kinds down, kinds across, O) float32, made of the rounded weight:
        what a mean is multiplied by, and what the shift amounts to.
    """
    exact = weight.double()
    folded = (exact if gain is None else exact * gain.double()[:, None, None]).to(dtype)
    ones = exact.new_ones(1, weight.shape[1], *(min(3, one) for one in size))
    constant = torch.zeros_like(ones) if shift is None else ones * shift.double()[:, None, None]
    padding = weight.shape[-1] // 2
    table = [F.conv2d(one, kernel, padding=padding) for one, kernel in ((ones, folded.double()), (constant, exact))]
    return folded, torch.cat(table).permute(0, 2, 3, 1).float().contiguous()
