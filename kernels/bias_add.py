"""The end of a residual block: the last convolution's bias, the shortcut's bias and the addition, in one pass.

torch runs cuDNN's convolutions without bias and adds the bias in a kernel of its own, which reads and writes the whole
result once more. Here the bias is added in the pass that adds the residual.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import triton_for, use_triton
from fastdiff.kernels.group_norm import FUNCTIONS
from fastdiff.kernels.layout import empty_images, promoted
from fastdiff.kernels.library import Kernels, register

OP = "bias_add"


def bias_add(x: Tensor, residual: Tensor, bias: Tensor | None = None, residual_bias: Tensor | None = None) -> Tensor:
    """x + bias + residual + residual_bias, the biases over channels. Differentiable.

    The Triton kernel computes in float32.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        residual: as x.
        bias: (C,), or None.
        residual_bias: (C,), or None.

    Returns:
        (B, C, H, W), in the dtype that torch promotes the arguments to; from Triton in channels_last.

    Raises:
        ValueError: for other shapes, integer dtypes, or tensors on several devices.
    """
    checks.tensors(OP, x=x, residual=residual, bias=bias, residual_bias=residual_bias)
    checks.images(OP, x)
    checks.shape(OP, "residual", residual, tuple(x.shape))
    checks.shape(OP, "bias", bias, (x.shape[1],))
    checks.shape(OP, "residual_bias", residual_bias, (x.shape[1],))
    return _bias_add(x, residual, bias, residual_bias)


def bias_add_reference(
    x: Tensor, residual: Tensor, bias: Tensor | None = None, residual_bias: Tensor | None = None
) -> Tensor:
    """`bias_add` in plain torch."""
    for one in (bias, residual_bias):
        if one is not None:
            x = x + one.view(-1, 1, 1)
    return x + residual


def conv_ending(
    x: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    after: str | None,
    residual: Tensor | None = None,
    residual_bias: Tensor | None = None,
    channels: int | None = None,
) -> Tensor:
    """after(x + bias + added) + residual + residual_bias: all that follows a library's convolution. Not differentiable.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        bias: (C,), or None.
        added: (B, C) or (1, C), either with (1, 1) after it, such as a time bias, or None.
        after: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as x, or None.
        residual_bias: (C,), or None.
        channels: of the result, C or more; those beyond C are zeros. None is C.

    Returns:
        (B, channels, H, W), in the dtype that torch promotes the arguments to; from Triton in channels_last.
    """
    if use_triton(x):
        from fastdiff.kernels import bias_add_triton

        return bias_add_triton.forward(x, bias, added, after, residual, residual_bias, channels)
    for one in (bias, added):
        if one is not None:
            x = x + one.reshape(-1, x.shape[1], 1, 1)
    x = FUNCTIONS[after](x)
    for other in (residual, None if residual_bias is None else residual_bias.view(-1, 1, 1)):
        if other is not None:
            x = x + other
    return x if channels is None else F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


def _launch(x: Tensor, residual: Tensor, bias: Tensor | None, residual_bias: Tensor | None) -> Tensor:
    from fastdiff.kernels import bias_add_triton

    return bias_add_triton.forward(x, bias, None, None, residual, residual_bias, None)


class _BiasAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, residual, bias, residual_bias):  # type: ignore[override]
        ctx.dtypes = [None if t is None else t.dtype for t in (x, residual, bias, residual_bias)]
        return _launch(x, residual, bias, residual_bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        total = dy.sum((0, 2, 3), dtype=torch.float32) if any(ctx.dtypes[2:]) else None
        given = (dy, dy, total, total)
        return tuple(None if t is None or d is None else t.to(d) for t, d in zip(given, ctx.dtypes, strict=True))


_bias_add = register(
    "bias_add(Tensor x, Tensor residual, Tensor? bias=None, Tensor? residual_bias=None) -> Tensor",
    bias_add_reference,
    Kernels(
        take=lambda x, *_: triton_for(x.device, x.dtype),
        launch=_launch,
        empty=lambda x, *others: empty_images(x, dtype=promoted(x, *others)),
        differentiable=_BiasAdd.apply,
    ),
)
