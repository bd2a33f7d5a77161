"""Depthwise convolution with its bias and the block's time bias, as in the Annotated U-Net's ConvNeXt block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.grad import conv2d_weight

from fastdiff.kernels import checks
from fastdiff.kernels.cpu.compiled import build_error
from fastdiff.kernels.dispatch import has_no_memory, on_a_cpu_in_c, triton_for, use_triton
from fastdiff.kernels.layout import empty_images
from fastdiff.kernels.library import Kernels, register
from fastdiff.kernels.statistics import statistics_of


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, time_bias: Tensor | None = None) -> Tensor:
    """conv2d(x, weight, bias, padding=K // 2, groups=C) + time_bias. Differentiable.

    The Triton kernels compute in float32.

    Args:
        x: (B, C, H, W), any float dtype and memory format.
        weight: (C, 1, K, K), K odd.
        bias: (C,), or None.
        time_bias: (B, C) or (1, C), either with (1, 1) after it, or None.

    Returns:
        x's shape and dtype; from Triton in channels_last.

    Raises:
        ValueError: for other shapes, integer dtypes, or tensors on several devices.
    """
    op = "depthwise_conv"
    checks.tensors(op, x=x, weight=weight, bias=bias, time_bias=time_bias)
    checks.images(op, x)
    b, c = x.shape[:2]
    size = weight.shape[-1]
    if size % 2 == 0:
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}; accepted: an odd kernel size")
    checks.shape(op, "weight", weight, (c, 1, size, size))
    checks.shape(op, "bias", bias, (c,))
    checks.per_sample(op, "time_bias", time_bias, b, c)
    if use_triton(x) and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))  # as torch's own convolutions do, the reference's among them
    return _depthwise_conv(x, weight, bias, time_bias)


def depthwise_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, time_bias: Tensor | None = None
) -> Tensor:
    """`depthwise_conv` in plain torch."""
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])
    return y if time_bias is None else y + time_bias.reshape(-1, x.shape[1], 1, 1)


def fused_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    second: Tensor | None = None,
    emit: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """depthwise_conv of two inputs as if concatenated, with the result's statistics. Not differentiable.

    Args:
        x: (B, C1, H, W), any float dtype and memory format.
        weight: (C1 + C2, 1, K, K), K odd, as taps_first gives it.
        bias: (C1 + C2,), or None.
        added: the time bias of depthwise_conv.
        second: (B, C2, H, W), or None.
        emit: None, "whole" or "channels", as fused_conv's.

    Returns:
        (B, C1 + C2, H, W); with emit a pair, the second as fused_conv's.
    """
    if use_triton(x):
        from fastdiff.kernels import depthwise_conv_triton

        y, emitted = depthwise_conv_triton.forward(x, weight, bias, added, second, emit)
        return y if emitted is None else (y, emitted)
    whole = x if second is None else torch.cat((x, second), dim=1)
    y = depthwise_conv_reference(whole, weight, bias, added)
    return y if emit is None else (y, statistics_of(y, emit))


def taps_first(weight: Tensor) -> Tensor:
    """The same weight (C, 1, K, K) with each tap's channels adjacent in memory, as the Triton kernel reads it.

    A weight in another layout is copied in every call.
    """
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, time_bias: Tensor | None) -> Tensor:
    from fastdiff.kernels import depthwise_conv_triton

    return depthwise_conv_triton.forward(x, weight, bias, time_bias)[0]


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, time_bias):  # type: ignore[override]
        ctx.save_for_backward(x, weight, bias, time_bias)
        return _launch(x, weight, bias, time_bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        from fastdiff.kernels import depthwise_conv_triton

        x, weight, bias, time_bias = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            # The gradient of a correlation is the correlation with the kernel rotated by 180 degrees.
            dx = _launch(dy, weight.flip(2, 3), None, None).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dweight = depthwise_conv_triton.weight_gradient(dy, x, weight)
        return dx, dweight, *_bias_gradients(dy, bias, time_bias)


def _bias_gradients(dy: Tensor, bias: Tensor | None, time_bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if bias is None and time_bias is None:
        return None, None
    rows, dbias, dtime = dy.sum((2, 3), dtype=torch.float32), None, None  # (B, C)
    if bias is not None:
        dbias = rows.sum(0).to(bias.dtype)
    if time_bias is not None:
        rows = rows.sum(0, keepdim=True) if len(time_bias) == 1 else rows
        dtime = rows.reshape(time_bias.shape).to(time_bias.dtype)
    return dbias, dtime


class _DepthwiseConvOnCpu(torch.autograd.Function):
    """torch's own convolutions, but for the weight's gradient, which takes torch twenty times as long as ours."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, time_bias):  # type: ignore[override]
        cast = torch.is_autocast_enabled("cpu")
        ctx.computed = torch.get_autocast_dtype("cpu") if cast else x.dtype
        ctx.save_for_backward(x, weight, bias, time_bias)
        bias = None if bias is None else bias.to(ctx.computed)
        return depthwise_conv_reference(x.to(ctx.computed), weight.to(ctx.computed), bias, time_bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        x, weight, bias, time_bias = ctx.saved_tensors
        dx, dweight, padding = None, None, weight.shape[-1] // 2
        dy = dy.to(ctx.computed)
        if ctx.needs_input_grad[0]:
            flipped = weight.flip(2, 3).to(ctx.computed)
            dx = F.conv2d(dy, flipped, padding=padding, groups=x.shape[1]).to(x.dtype)
        if ctx.needs_input_grad[1]:
            seen = x.to(ctx.computed)
            if torch.is_grad_enabled() or not _in_memory(dy):  # of gradients of gradients, and of many at once
                dweight = conv2d_weight(seen, weight.shape, dy, padding=padding, groups=x.shape[1])
            else:
                dweight = _weight_gradient(seen, dy, padding)
            dweight = dweight.to(weight.dtype)
        return dx, dweight, *_bias_gradients(dy, bias, time_bias)


def _weight_gradient(x: Tensor, dy: Tensor, padding: int) -> Tensor:
    """(C, 1, K, K) float32, in C; the sum over the pictures does not depend on the number of threads."""
    from fastdiff.kernels.cpu.depthwise import depthwise_gradient
    from fastdiff.kernels.cpu.plan import View, run
    from fastdiff.kernels.cpu.window import Window

    size = 2 * padding + 1
    x, dy = (one.float().contiguous(memory_format=torch.channels_last) for one in (x, dy))
    dw = x.new_empty(len(x), size, size, x.shape[1])
    window = Window((size, size), padding=(padding, padding))
    run([depthwise_gradient(View.of(x), View.of(dy), View.of(dw), window)])
    return dw.sum(0).permute(2, 0, 1)[:, None]


def _in_memory(x: Tensor) -> bool:
    """Whether x is a tensor of its own, neither of a trace nor of torch.func's transforms, and nothing watches."""
    alone = torch._C._functorch.peek_interpreter_stack() is None and torch._C._len_torch_dispatch_stack() == 0
    return alone and not has_no_memory(x) and not torch._C._functorch.is_legacy_batchedtensor(x)


def _on_cpu(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a gradient is needed, and C computes it: not in forward mode, which torch's own operations have."""
    cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0
    needed = torch.is_grad_enabled() and torch._C._any_requires_grad(x, *others) and forward_ad._current_level < 0
    return cpu and needed and _in_memory(x) and on_a_cpu_in_c() and build_error() is None


_depthwise_conv = register(
    "depthwise_conv(Tensor x, Tensor weight, Tensor? bias=None, Tensor? time_bias=None) -> Tensor",
    depthwise_conv_reference,
    Kernels(
        take=lambda x, *_: triton_for(x.device, x.dtype),
        launch=_launch,
        empty=lambda x, *_: empty_images(x),
        differentiable=_DepthwiseConv.apply,
    ),
    Kernels(
        take=_on_cpu,
        launch=depthwise_conv_reference,
        empty=depthwise_conv_reference,
        differentiable=_DepthwiseConvOnCpu.apply,
    ),
)
