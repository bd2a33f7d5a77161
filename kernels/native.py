"""The CPU kernels as operators: Winograd convolution and norm. Float32, computed and returned in channels_last.

Threads are as many as torch's, of the very OpenMP runtime that torch has loaded.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.compiled import library, vector_width

ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4}


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def empty(x: Tensor, channels: int) -> Tensor:
    b, _, h, w = x.shape
    return torch.empty((b, channels, h, w), memory_format=torch.channels_last)


# G of Winograd's F(4x4, 3x3), Lavin and Gray (2016), section 4.3.
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
      [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip


def winograd_weight(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) → G w G^T as (36, C, O rounded up to vectors), float32, computed in float64."""
    o, c = weight.shape[:2]
    g = torch.tensor(_G, dtype=torch.float64)
    packed = torch.zeros(36, c, -(-o // vector_width()) * vector_width())
    flat = weight.detach().double().permute(2, 3, 1, 0).reshape(9, c * o)
    packed[:, :, :o] = (torch.kron(g, g) @ flat).view(36, c, o)  # G w G^T, row by row
    return packed


def winograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, channels: int, activation: str | None = None,
    residual: Tensor | None = None, norm: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """activation(conv2d(x scale + shift, w, bias, padding=1)) + residual, w a 3x3 kernel, by Winograd's F(4x4, 3x3).

    x: (B, C, H, W) float32 on the CPU; weight: from winograd_weight; channels: O; residual: (B, O, H, W); norm: scale
    and shift, (B, C) each, from norm_statistics, or None. C and O are at least vector_width(). Returns (B, O, H, W) in
    channels_last. It rounds some 3 times as much as the direct form (1e-6 relative). Raises ValueError for anything
    else.
    """
    op = "winograd"
    checks.images(op, x)
    b, c, h, w = x.shape
    vl = vector_width()
    scale, shift = norm or (None, None)
    checks.shape(op, "weight", weight, (36, c, -(-channels // vl) * vl))
    checks.shape(op, "bias", bias, (channels,))
    checks.shape(op, "scale", scale, (b, c))
    checks.shape(op, "shift", shift, (b, c))
    checks.shape(op, "residual", residual, (b, channels, h, w))
    checks.activation(op, "activation", activation)
    check(op, x, c, channels, weight=weight, bias=bias, residual=residual, scale=scale, shift=shift)
    x, out, threads = nhwc(x), empty(x, channels), torch.get_num_threads()
    residual = None if residual is None else nhwc(residual)
    space = torch.empty(threads * library().winograd_space(c, channels))
    library().winograd(
        pointer(x), pointer(scale), pointer(shift), pointer(weight), pointer(bias), pointer(residual), pointer(out),
        b, h, w, c, channels, ACTIVATIONS[activation], threads, pointer(space),
    )  # fmt: skip
    return out


def norm_statistics(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """scale and shift, (B, C) each, with x scale + shift = GroupNorm(x) weight + bias; arguments as in group_norm."""
    _check_norm("norm_statistics", x, groups, weight, bias)
    b, c, h, w = x.shape
    x = nhwc(x)
    scale, shift = torch.empty(2, b, c)
    library().norm_statistics(
        pointer(x), b, h * w, c, groups, pointer(weight), pointer(bias), ctypes.c_float(eps), torch.get_num_threads(),
        pointer(scale), pointer(shift),
    )  # fmt: skip
    return scale, shift


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, after: str | None = None
) -> Tensor:
    """after(norm(x) weight + bias) over a group's channels and positions, float32 on the CPU, in channels_last.

    x: (B, C, H, W), C at least vector_width() and a multiple of groups. Raises ValueError for anything else.
    """
    _check_norm("group_norm", x, groups, weight, bias)
    checks.activation("group_norm", "after", after)
    b, c, h, w = x.shape
    x, out = nhwc(x), empty(x, c)
    scale, shift = torch.empty(2, b, c)
    library().group_norm(
        pointer(x), pointer(out), b, h * w, c, groups, pointer(weight), pointer(bias), ctypes.c_float(eps),
        ACTIVATIONS[after], torch.get_num_threads(), pointer(scale), pointer(shift),
    )  # fmt: skip
    return out


def _check_norm(op: str, x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> None:
    checks.images(op, x)
    c = x.shape[1]
    if groups < 1 or c % groups:
        raise ValueError(f"{op}: groups = {groups} with {c} channels; accepted: a divisor of the channels")
    checks.shape(op, "weight", weight, (c,))
    checks.shape(op, "bias", bias, (c,))
    check(op, x, c, weight=weight, bias=bias)


def check(op: str, x: Tensor, *channels: int, **others: Tensor | None) -> None:
    if min(channels) < vector_width():
        raise ValueError(f"{op}: {min(channels)} channels; accepted: at least {vector_width()} on this processor")
    for name, tensor in {"x": x, **others}.items():
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f"{op}: {name} is {tensor.dtype} on {tensor.device}; accepted: float32 on the CPU")
        if tensor is not None and name not in ("x", "residual") and not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} is not contiguous")
