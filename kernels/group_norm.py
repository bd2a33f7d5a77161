"""GroupNorm with its neighbours: the convolution's bias, an activation on either side, a scale and a shift.

Wu and He, "Group normalization" (2018), eq. 1: xh = (x - mean) / sqrt(var + eps), mean and biased variance over the
channels of a group and all positions. In the Annotated U-Net's ConvNeXt block GELU comes before the norm, in its
ResNet block and in ContextUnet the activation comes after it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import triton_for, use_triton
from fastdiff.kernels.layout import empty_images, power_of_2
from fastdiff.kernels.library import Kernels, register
from fastdiff.kernels.statistics import merged

FUNCTIONS = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    input_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    before: str | None = None,
    after: str | None = None,
) -> Tensor:
    """after((norm(before(x + input_bias)) weight + bias) (scale + 1) + shift). Differentiable.

    The Triton kernels compute in float32.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        groups: a divisor of C.
        weight: (C,); weight and bias come together or not at all.
        bias: (C,).
        eps: added to the variance.
        input_bias: (C,), such as the bias of the convolution before, or None.
        scale: (B, C) or (1, C), either with (1, 1) after it; scale and shift come together or not at all.
        shift: as scale.
        before: the activation before the norm: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        after: the activation at the end, likewise.

    Returns:
        x's shape and dtype; from Triton in channels_last.

    Raises:
        ValueError: for other shapes, integer dtypes, tensors on several devices, or another activation.
    """
    op = "group_norm"
    checks.tensors(op, x=x, weight=weight, bias=bias, input_bias=input_bias, scale=scale, shift=shift)
    checks.images(op, x)
    b, c = x.shape[:2]
    if groups < 1 or c % groups:
        raise ValueError(f"{op}: groups = {groups} with {c} channels; accepted: a divisor of the channels")
    if (weight is None) != (bias is None) or (scale is None) != (shift is None):
        raise ValueError(f"{op}: weight and bias come together or not at all, and so do scale and shift")
    checks.shape(op, "weight", weight, (c,))
    checks.shape(op, "bias", bias, (c,))
    checks.shape(op, "input_bias", input_bias, (c,))
    checks.per_sample(op, "scale", scale, b, c)
    checks.per_sample(op, "shift", shift, b, c)
    checks.activation(op, "before", before)
    checks.activation(op, "after", after)
    return _group_norm(x, groups, weight, bias, eps, input_bias, scale, shift, before, after)


MAX_CHANNELS = 4096  # a tile of the Triton kernels holds all channels of a position


def group_norm_reference(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    input_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    before: str | None = None,
    after: str | None = None,
) -> Tensor:
    """`group_norm` in plain torch."""
    if input_bias is not None:
        x = x + input_bias.view(-1, 1, 1)
    y = F.group_norm(FUNCTIONS[before](x), groups, weight, bias, eps)
    if scale is not None and shift is not None:
        c = x.shape[1]
        y = (y * (scale.reshape(-1, c, 1, 1) + 1) + shift.reshape(-1, c, 1, 1)).to(y.dtype)
    return FUNCTIONS[after](y)


def group_norm_of(
    x: Tensor,
    statistics: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    after: str | None = None,
    second: Tensor | None = None,
    second_statistics: Tensor | None = None,
) -> Tensor:
    """group_norm of images whose statistics are known, in one pass; of two inputs as if concatenated.

    Not differentiable.

    Args:
        x: (B, C1, H, W), any float dtype and memory format.
        statistics: (B, parts, C1, 3) float32, x's by channels; see kernels.statistics.
        groups, weight, bias, eps, scale, shift, after: as in group_norm, over C1 + C2 channels.
        second: (B, C2, H, W), in x's dtype; or None.
        second_statistics: (B, parts, C2, 3) float32, or None.

    Returns:
        (B, C1 + C2, H, W), x's dtype; from Triton in channels_last.
    """
    if use_triton(x):
        from fastdiff.kernels import group_norm_triton

        given = weight, bias, None, scale, shift, groups, eps, None, after
        return group_norm_triton.apply(x, statistics, second, second_statistics, *given)[0]
    whole = x if second is None else torch.cat((x, second), dim=1)
    return group_norm_reference(whole, groups, weight, bias, eps, None, scale, shift, None, after)


def can_widen(channels: int, groups: int, wide: int) -> bool:
    """Whether group_norm_wide takes a norm of so many channels and groups."""
    return groups == 1 and wide <= power_of_2(channels) <= MAX_CHANNELS


def group_norm_wide(
    channels: int,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    input_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    before: str | None = None,
    after: str | None = None,
) -> Tensor:
    """group_norm with zeros after its channels. Not differentiable.

    Args:
        channels: of the result, at least C, as can_widen accepts it.
        x, groups, weight, bias, eps, input_bias, scale, shift, before, after: as in group_norm.

    Returns:
        (B, channels, H, W), x's dtype; from Triton in channels_last.
    """
    if use_triton(x):
        from fastdiff.kernels import group_norm_triton

        given = x, weight, bias, input_bias, scale, shift, groups, eps, before, after
        return group_norm_triton.forward(*given, channels)[0]
    y = group_norm_reference(x, groups, weight, bias, eps, input_bias, scale, shift, before, after)
    return F.pad(y, (0, 0, 0, 0, 0, channels - x.shape[1]))


def group_norm_rows(
    statistics: Tensor,
    positions: int,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    second_statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What group_norm multiplies each channel by and adds to it, for who normalises as it reads. Not differentiable.

    Args:
        statistics: (B, parts, C1, 3) float32, by channels; see kernels.statistics.
        positions: H W.
        groups, weight, bias, eps, scale, shift: as in group_norm, over C1 + C2 channels.
        second_statistics: (B, parts, C2, 3) float32, of channels that follow, or None.

    Returns:
        Two of (B, C1 + C2) float32.
    """
    if use_triton(statistics):
        from fastdiff.kernels import group_norm_triton

        given = weight, bias, scale, shift, groups, eps
        return group_norm_triton.rows(statistics, second_statistics, positions, *given)
    parts = [merged(one) for one in (statistics, second_statistics) if one is not None]
    mean, var = (torch.cat(both, dim=1).unflatten(1, (groups, -1)) for both in zip(*parts, strict=True))
    of_group = mean.mean(2, keepdim=True)
    rstd = ((var + (mean - of_group).square()).mean(2, keepdim=True) + eps).rsqrt()
    gain, offset = rstd.expand_as(mean).flatten(1), (-of_group * rstd).expand_as(mean).flatten(1)
    if weight is not None and bias is not None:
        gain, offset = gain * weight, offset * weight + bias
    if scale is not None and shift is not None:
        scale, shift = (one.reshape(-1, gain.shape[1]) for one in (scale, shift))
        gain, offset = gain * (scale + 1), offset * (scale + 1) + shift
    return gain.float(), offset.float()


def _launch(x, groups, weight, bias, eps, input_bias, scale, shift, before, after):
    """The result, and for the gradient each group's mean and 1 / standard deviation."""
    from fastdiff.kernels import group_norm_triton

    return group_norm_triton.forward(x, weight, bias, input_bias, scale, shift, groups, eps, before, after)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, groups, weight, bias, eps, input_bias, scale, shift, before, after):  # type: ignore[override]
        y, mean, rstd = _launch(x, groups, weight, bias, eps, input_bias, scale, shift, before, after)
        ctx.save_for_backward(x, weight, bias, input_bias, scale, shift, mean, rstd)
        ctx.options = groups, before, after
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        from fastdiff.kernels import group_norm_gradient_triton

        gradients = group_norm_gradient_triton.backward(dy, *ctx.saved_tensors, *ctx.options)
        dx, dweight, dbias, dinput_bias, dscale, dshift = gradients
        return dx, None, dweight, dbias, None, dinput_bias, dscale, dshift, None, None


_group_norm = register(
    "group_norm(Tensor x, int groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-5, "
    "Tensor? input_bias=None, Tensor? scale=None, Tensor? shift=None, str? before=None, str? after=None) -> Tensor",
    group_norm_reference,
    Kernels(
        take=lambda x, *_: triton_for(x.device, x.dtype) and x.shape[1] <= MAX_CHANNELS,
        launch=lambda *args: _launch(*args)[0],
        empty=lambda x, *_: empty_images(x),
        differentiable=_GroupNorm.apply,
    ),
)
