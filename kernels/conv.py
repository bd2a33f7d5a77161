"""Convolutions together with the operator that reads their result.

The convolution itself is torch's (cuDNN's on a GPU). Where Triton kernels run, conv_norm and conv_add call it without
its bias, which the norm's or the addition's kernel adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.group_norm import FUNCTIONS, group_norm


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    added: Tensor | None = None,
    after: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """after(conv2d(x, weight, bias) + added) + residual: what a captured network's convolutions become.

    Args:
        x, weight, bias, stride, padding, dilation, groups: as conv2d's.
        added: (B, O, 1, 1) or (1, O, 1, 1), such as a time bias, or None.
        after: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: the result's shape, or None.

    Returns:
        (B, O, H', W').
    """
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    y = FUNCTIONS[after](y if added is None else y + added)
    return y if residual is None else y + residual


def _padding(operator: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """The padding that keeps the picture's size; checks the arguments."""
    checks.tensors(operator, x=x, weight=weight, bias=bias)
    checks.images(operator, x)
    size = weight.shape[-1]
    if size % 2 == 0:
        raise ValueError(f"{operator}: weight has shape {tuple(weight.shape)}; accepted: an odd kernel size")
    checks.shape(operator, "weight", weight, (weight.shape[0], x.shape[1], size, size))
    checks.shape(operator, "bias", bias, (weight.shape[0],))
    return size // 2


def conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    before: str | None = None,
    after: str | None = None,
) -> Tensor:
    """after(group_norm(before(conv2d(x, weight, bias)))), padded so that the picture keeps its size. Differentiable.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        weight: (O, C, K, K), K odd.
        bias: (O,), or None.
        groups, norm_weight, norm_bias, eps, before, after: as in group_norm, over O channels.

    Returns:
        (B, O, H, W).

    Raises:
        ValueError: for other shapes, integer dtypes, or tensors on several devices.
    """
    padding = _padding("conv_norm", x, weight, bias)
    if use_triton(x):
        y, later = F.conv2d(x, weight, padding=padding), bias
    else:
        y, later = F.conv2d(x, weight, bias, padding=padding), None
    return group_norm(y, groups, norm_weight, norm_bias, eps, input_bias=later, before=before, after=after)


def conv_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    residual_weight: Tensor | None = None,
    residual_bias: Tensor | None = None,
) -> Tensor:
    """conv2d(x, weight, bias) + shortcut(residual), padded so that the picture keeps its size. Differentiable.

    The shortcut is a 1x1 convolution where residual_weight is given, else the identity.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        weight: (O, C, K, K), K odd.
        bias: (O,), or None.
        residual: (B, R, H, W); without a residual_weight R must be O.
        residual_weight: (O, R, 1, 1), or None.
        residual_bias: (O,), or None.

    Returns:
        (B, O, H, W).

    Raises:
        ValueError: for other shapes, integer dtypes, or tensors on several devices.
    """
    padding = _padding("conv_add", x, weight, bias)
    if residual_weight is not None:
        _padding("conv_add", residual, residual_weight, residual_bias)
    fused = use_triton(x)
    if residual_weight is not None:
        residual = F.conv2d(residual, residual_weight, None if fused else residual_bias)
    if fused:
        return bias_add(F.conv2d(x, weight, padding=padding), residual, bias, residual_bias)
    return F.conv2d(x, weight, bias, padding=padding) + residual
