"""LayerNorm over the channels of an image, with a gain and no shift, and the addition of the residual.

Ba, Kiros and Hinton, "Layer normalization" (2016): y = (x - mean) / sqrt(var + eps) gain, here with the mean and the
biased variance over the channels of each position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import triton_for
from fastdiff.kernels.layout import empty_images, promoted
from fastdiff.kernels.library import Kernels, register

MAX_CHANNELS = 4096  # a tile of the Triton kernel holds all channels of a position


def channel_norm(x: Tensor, gain: Tensor, residual: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * gain + residual, mean and variance over channels. Differentiable.

    The Triton kernels compute in float32.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        gain: (1, C, 1, 1).
        residual: as x, or None.
        eps: added to the variance.

    Returns:
        (B, C, H, W), in the dtype that torch promotes the arguments to; from Triton in channels_last.

    Raises:
        ValueError: for other shapes, integer dtypes, or tensors on several devices.
    """
    checks.tensors("channel_norm", x=x, gain=gain, residual=residual)
    checks.images("channel_norm", x)
    checks.shape("channel_norm", "gain", gain, (1, x.shape[1], 1, 1))
    checks.shape("channel_norm", "residual", residual, tuple(x.shape))
    return _channel_norm(x, gain, residual, eps)


def channel_norm_reference(x: Tensor, gain: Tensor, residual: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`channel_norm` in plain torch."""
    var, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    y = (x - mean) * torch.rsqrt(var + eps) * gain
    return y if residual is None else y + residual


def _launch(x: Tensor, gain: Tensor, residual: Tensor | None, eps: float) -> Tensor:
    from fastdiff.kernels import channel_norm_triton

    return channel_norm_triton.forward(x, gain, None, eps, True, None, residual)


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, gain, residual, eps):  # type: ignore[override]
        ctx.save_for_backward(x, gain)
        ctx.eps, ctx.residual_dtype = eps, None if residual is None else residual.dtype
        return _launch(x, gain, residual, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        from fastdiff.kernels import channel_norm_triton

        x, gain = ctx.saved_tensors
        dx, dgain = channel_norm_triton.backward(dy, x, gain, ctx.eps)
        return dx, dgain, None if ctx.residual_dtype is None else dy.to(ctx.residual_dtype), None


_channel_norm = register(
    "channel_norm(Tensor x, Tensor gain, Tensor? residual=None, float eps=1e-5) -> Tensor",
    channel_norm_reference,
    Kernels(
        take=lambda x, *_: triton_for(x.device, x.dtype) and x.shape[1] <= MAX_CHANNELS,
        launch=_launch,
        empty=lambda x, gain, residual, _: empty_images(x, dtype=promoted(x, gain, residual)),
        differentiable=_ChannelNorm.apply,
    ),
)
