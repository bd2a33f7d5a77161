"""Operators by the C kernels: Winograd and depthwise convolution, GroupNorm; float32, results in channels_last.

They use as many threads as torch, in torch's own OpenMP runtime. At batch 1 the C code takes 100 microseconds a call,
so the only checks are those that keep a wrong shape from reading memory outside the tensors.
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.cpu.compiled import library, vector_width

ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4}
# a GroupNorm: groups, weight (C,), bias (C,), eps
Norm = tuple[int, Tensor, Tensor, float]

# G of Winograd's F(m x m, 3x3), Lavin and Gray (2016), sections 4.1 and 4.3.
_G = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}


def pointer(x: Tensor | None) -> int | None:
    """The address of x's first element; None is a null pointer."""
    return None if x is None else x.data_ptr()


def images(op: str, name: str, x: Tensor, *shape: int) -> Tensor:
    """x in channels_last; raises ValueError unless float32 on the CPU, of that shape, at least a vector of channels."""
    if x.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; accepted: {shape}")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"{op}: {name} is {x.dtype} on {x.device}; accepted: float32 on the CPU")
    if x.shape[1] < vector_width():
        raise ValueError(f"{op}: {x.shape[1]} channels; accepted: at least {vector_width()} on this processor")
    return x.contiguous(memory_format=torch.channels_last)


def dense(op: str, name: str, x: Tensor | None, *shape: int) -> Tensor | None:
    """x; raises ValueError unless it is None, or contiguous float32 on the CPU and of that shape."""
    if x is None or (x.shape == shape and x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()):
        return x
    how = "" if x.is_contiguous() else ", not contiguous"
    raise ValueError(
        f"{op}: {name} has shape {tuple(x.shape)}, {x.dtype} on {x.device}{how}; "
        f"accepted: {shape}, contiguous float32 on the CPU"
    )


def per_channel(op: str, name: str, x: Tensor | None, batch: int, channels: int) -> int:
    """How far apart the pictures' numbers lie, 0 if all have the same; raises ValueError as `dense` unless None, (C,),
    (1, C) or (B, C)."""
    each = x is not None and x.ndim == 2 and len(x) > 1
    dense(op, name, x, *((batch,) if each else () if x is None or x.ndim == 1 else (1,)), channels)
    return channels if each else 0


def activation_code(op: str, name: str, activation: str | None) -> int:
    """The activation's number in the C code."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: {name} = {activation!r}; accepted: {', '.join(map(repr, ACTIVATIONS))}")
    return ACTIVATIONS[activation]


def _norm(op: str, norm: Norm, c: int) -> Norm:
    groups, weight, bias, _ = norm
    if weight is None or bias is None:
        raise ValueError(f"{op}: a norm without weight or bias; accepted: both")
    if groups < 1 or c % groups:
        raise ValueError(f"{op}: groups = {groups} with {c} channels; accepted: a divisor of the channels")
    dense(op, "the norm's weight", weight, c)
    dense(op, "the norm's bias", bias, c)
    return norm


_kept = threading.local()


def scratch(floats: int) -> int:
    """The address of that many floats, valid until the thread's next call.

    The memory is kept between calls: fresh memory costs a page fault for every 4 KB, which takes longer than the
    convolution itself.
    """
    if getattr(_kept, "space", None) is None or _kept.space.numel() < floats:
        _kept.space = torch.empty(floats, dtype=torch.float32, device="cpu")
    return _kept.space.data_ptr()


def empty(*shape: int) -> Tensor:
    """Uninitialised float32 on the CPU, channels_last."""
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def winograd_tile(b: int, h: int, w: int) -> int:
    """m of F(m x m, 3x3) for b pictures: 4, or 2 where so few tiles share the weights that reading those dominates.

    A 3x3 kernel becomes 36 numbers for m = 4 and 16 for m = 2. Each is multiplied once a tile; reading it takes as long
    as 25 multiplications (measured on 7x7 and 14x14 maps).
    """
    cost = {m: (m + 2) ** 2 * (25 + b * (-(-h // m)) * (-(-w // m))) for m in (4, 2)}
    return min(cost, key=lambda m: cost[m])


def winograd_weight(weight: Tensor, m: int) -> Tensor:
    """G w G^T of (O, C, 3, 3), computed in float64: ((m + 2)^2, C times O rounded up to whole vectors), float32.

    Each point's (C, O) is stored in panels of two vectors of columns.
    """
    o, c = weight.shape[:2]
    g, columns = torch.tensor(_G[m], dtype=torch.float64, device="cpu"), 2 * vector_width()
    square = torch.kron(g, g)  # times w's nine numbers: G w G^T, row by row
    flat = weight.detach().permute(2, 3, 1, 0).reshape(9, c, o)
    made = ((square @ part.flatten(1).double()).view(-1, c, part.shape[2]) for part in flat.split(columns, dim=2))
    return torch.cat([panels(part) for part in made], dim=1)


def panels(matrices: Tensor) -> Tensor:
    """(N, C, O) → (N, C times O rounded up to whole vectors) float32, as product_panels in product.h reads them."""
    width = vector_width()
    parts = matrices.float().split(2 * width, dim=2)
    return torch.cat([F.pad(part, (0, -part.shape[2] % width)).flatten(1) for part in parts], dim=1)


def winograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: int,
    activation: str | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """activation(conv2d(norm(x), w, bias, padding=1)) + residual, w a 3x3 kernel, by Winograd's F(m x m, 3x3).

    With m = 4 the rounding error is some 3 times that of a direct convolution (1e-6, relative).

    Args:
        x: (B, C, H, W) float32 on the CPU, any memory format, C at least vector_width().
        weight: from winograd_weight, which chose m.
        bias: (O,), (1, O) or (B, O) float32, contiguous, or None.
        channels: O, at least vector_width().
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: (B, O, H, W) float32, or None.
        norm: a GroupNorm applied to x; the padding around its result is 0.

    Returns:
        (B, O, H, W) float32, channels_last.

    Raises:
        ValueError: for anything else.
    """
    op = "winograd"
    b, c, h, w = x.shape if x.ndim == 4 else (-1, -1, -1, -1)
    m = 2 if len(weight) == 16 else 4
    x = images(op, "x", x, b, c, h, w)
    dense(op, "weight", weight, (m + 2) ** 2, c * -(-channels // vector_width()) * vector_width())
    apart = per_channel(op, "bias", bias, b, channels)
    code = activation_code(op, "activation", activation)
    residual = None if residual is None else images(op, "residual", residual, b, channels, h, w)
    groups, gain, offset, eps = (0, None, None, 0.0) if norm is None else _norm(op, norm, c)
    out, threads = images(op, "the output", empty(b, channels, h, w), b, channels, h, w), torch.get_num_threads()
    space = scratch(library().winograd_space(m, b, c, channels, threads))
    library().winograd(
        pointer(x),
        groups,
        pointer(gain),
        pointer(offset),
        eps,
        pointer(weight),
        pointer(bias),
        apart,
        pointer(residual),
        pointer(out),
        m,
        b,
        h,
        w,
        c,
        channels,
        code,
        threads,
        space,
    )
    return out


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, after: str | None = None
) -> Tensor:
    """after(norm(x) weight + bias), as kernels.group_norm.

    Args:
        x: (B, C, H, W) float32 on the CPU, any memory format, C at least vector_width().
        groups: a divisor of C.
        weight: (C,), (1, C) or (B, C) float32, contiguous.
        bias: likewise.
        eps: added to the variance.
        after: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".

    Returns:
        (B, C, H, W) float32, channels_last.

    Raises:
        ValueError: for anything else.
    """
    op = "group_norm"
    b, c, h, w = x.shape if x.ndim == 4 else (-1, -1, -1, -1)
    x = images(op, "x", x, b, c, h, w)
    if groups < 1 or c % groups:
        raise ValueError(f"{op}: groups = {groups} with {c} channels; accepted: a divisor of the channels")
    apart = per_channel(op, "weight", weight, b, c)
    if per_channel(op, "bias", bias, b, c) != apart:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)} and bias {tuple(bias.shape)}; accepted: one shape"
        )
    code = activation_code(op, "after", after)
    out = empty(b, c, h, w)
    library().group_norm(
        pointer(x),
        pointer(out),
        b,
        h * w,
        c,
        groups,
        pointer(weight),
        pointer(bias),
        apart,
        eps,
        code,
        torch.get_num_threads(),
        scratch(2 * b * c),
    )
    return out


def depthwise_weight(weight: Tensor) -> Tensor:
    """(C, 1, K, K) → (K, K, C), as `depthwise` takes it."""
    return weight.detach()[:, 0].permute(1, 2, 0).contiguous()


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, w, bias, padding=K // 2, groups=C).

    Args:
        x: (B, C, H, W) float32 on the CPU, any memory format, C at least vector_width().
        weight: (K, K, C), from depthwise_weight, K odd.
        bias: (C,), (1, C) or (B, C) float32, contiguous, or None.

    Returns:
        (B, C, H, W) float32, channels_last.

    Raises:
        ValueError: for anything else.
    """
    op = "depthwise"
    b, c, h, w = x.shape if x.ndim == 4 else (-1, -1, -1, -1)
    size = weight.shape[0]
    if size % 2 == 0:
        raise ValueError(f"{op}: a kernel of size {size}; accepted: an odd size")
    x = images(op, "x", x, b, c, h, w)
    dense(op, "weight", weight, size, size, c)
    apart = per_channel(op, "bias", bias, b, c)
    out, threads = empty(b, c, h, w), torch.get_num_threads()
    space = scratch(library().depthwise_space(h, w, c, size, threads))
    addresses = pointer(x), pointer(weight), pointer(bias), apart, pointer(out)
    library().depthwise(*addresses, b, h, w, c, size, threads, space)
    return out
