"""One sampler step: from the network's output to the next x.

out = out_u + g (out_c - out_u)      classifier-free guidance (Ho and Salimans 2022, eq. 6, g = 1 + w)
x0  = clip(p x + q out);  m = u x + v x0
x  <- a x + b x0 + o out + c m_1 + d m_2 + e m_3 + std noise
std = s, or s^(1 - f) S^f with f = (var + 1) / 2      learned variance (Nichol and Dhariwal 2021, eq. 15)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import c_for, triton_for
from fastdiff.kernels.library import Kernels, register
from fastdiff.kernels.philox import normals_reference
from fastdiff.kernels.step_rows import COLUMNS, DEPTH

OP = "denoise_step"


def denoise_step(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    index: Tensor,
    history: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    clip: None | float | Tensor = None,
    guidance_scale: Tensor | None = None,
    variance: Tensor | None = None,
    next_index: Tensor | None = None,
) -> None:
    """The update of row `index` of a step table, in place; see the equations at the top of this file.

    Whatever changes between steps or runs is read from device memory, so that a captured step can be replayed.

    Args:
        x: (n, C, H, W) float32, any memory format; overwritten with the next x.
        out: the network's output, x's shape, any float dtype and memory format; with a guidance_scale
            (2 n, C, H, W), the n predictions without a context before the n with it.
        rows: (R, 12) float32, the columns p, q, a, b, c, s, o, d, e, u, v, S.
        index: one int32 or int64 on x's device, the row.
        history: (k, n, C, H, W) float32, k from 1 to 3, a ring: row r writes its m to history[r % k], where m_k lay,
            and m_j lies in history[(r - j) % k]. What is further back than k counts as 0; what has weight 0 is not
            read, so that it may be uninitialised.
        noise: x's shape, float32. At most one of noise and key; with neither, std counts as 0.
        key: (2,) int64, the seed and the first sample; the noise is then draw index + 1 of kernels.philox, which the
            Triton kernel makes in registers.
        clip: None; a bound, x0 is clamped to [-clip, clip]; or (n,) float32, a bound for each sample, x0 is clamped
            to it and divided by it (dynamic thresholding, Saharia et al. 2022, section 2.3; see x0_bound).
        guidance_scale: one float32 on x's device, g; None without guidance.
        variance: var, x's shape, any float dtype and strides, between -1 and 1 if the network is right; with guidance
            that of the predictions with the context. Where s is 0 std is 0, whatever it holds. None: std is s.
        next_index: as index, but not index itself, which all of the kernel reads; overwritten with index + 1. None:
            nothing is.

    Raises:
        ValueError: for other shapes, dtypes or devices, a bound that is not positive, both noise and key, or index as
            next_index.
    """
    limit, bound = (None, clip) if isinstance(clip, Tensor) else (clip, None)
    _check(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance, next_index)
    _denoise_step(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance, next_index)


def _check(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance, next_index) -> None:
    """Raise ValueError for arguments that denoise_step cannot take."""
    floats = dict(x=x, out=out, rows=rows, history=history, noise=noise, guidance_scale=guidance_scale, clip=bound)
    checks.tensors(OP, **floats, variance=variance)
    checks.images(OP, x)
    n = x.shape[0]
    factor = 1 if guidance_scale is None else 2
    checks.shape(OP, "out", out, (factor * n, *x.shape[1:]))
    checks.shape(OP, "history", history, *((k, *x.shape) for k in range(1, DEPTH + 1)))
    checks.shape(OP, "noise", noise, tuple(x.shape))
    checks.shape(OP, "variance", variance, tuple(x.shape))
    checks.shape(OP, "clip", bound, (n,))
    checks.shape(OP, "guidance_scale", guidance_scale, (), (1,))
    if rows.ndim != 2 or rows.shape[1] != COLUMNS or not len(rows):
        raise ValueError(f"{OP}: rows has shape {tuple(rows.shape)}; accepted: (R, {COLUMNS}), R at least 1")
    checks.integers(OP, "index", index, (torch.int64, torch.int32), (), (1,))
    checks.integers(OP, "key", key, (torch.int64,), (2,))
    checks.integers(OP, "next_index", next_index, (index.dtype,), (), (1,))
    if next_index is index:
        raise ValueError(f"{OP}: next_index is index; accepted: another tensor")
    for name, tensor in (("index", index), ("key", key), ("next_index", next_index)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{OP}: {name} is on {tensor.device} and the others on {x.device}")
    if noise is not None and key is not None:
        raise ValueError(f"{OP}: both noise and key were given; accepted: one of them, or neither")
    if limit is not None and not limit > 0:
        raise ValueError(f"{OP}: clip = {limit}; accepted: None, a positive bound, or a bound for each sample")


def _row(rows: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """The row's columns as tensors on the device; rows[index] would make the host wait for the index."""
    return rows.index_select(0, index.reshape(1))[0].unbind()


def _guided(x: Tensor, out: Tensor, guidance_scale: Tensor | None) -> Tensor:
    """The prediction in x's dtype, with guidance that of both."""
    out = out.to(x.dtype)
    if guidance_scale is None:
        return out
    unconditional, conditional = out.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def predicted_x0(x: Tensor, out: Tensor, rows: Tensor, index: Tensor, guidance_scale: Tensor | None = None) -> Tensor:
    """p x + q out with guidance, before clipping, in plain torch."""
    p, q = _row(rows, index)[:2]
    return x * p + _guided(x, out, guidance_scale) * q


def x0_bound(
    x: Tensor, out: Tensor, rows: Tensor, index: Tensor, quantile: float, guidance_scale: Tensor | None = None
) -> Tensor:
    """Dynamic thresholding's bound for each sample, (n,): max(1, quantile of |x0|), by linear interpolation."""
    size = predicted_x0(x, out, rows, index, guidance_scale).abs().flatten(1).sort(dim=1).values
    place = quantile * (size.shape[1] - 1)  # torch.quantile takes at most 2^24 elements
    low = int(place)
    high = min(low + 1, size.shape[1] - 1)
    return torch.lerp(size[:, low], size[:, high], place - low).clamp(min=1.0)


def _weighted(tensor: Tensor, weight: Tensor) -> Tensor:
    """The product, 0 where the weight is 0, whatever the tensor holds."""
    return torch.where(weight != 0, tensor * weight, 0.0)


def _deviation(s: Tensor, largest: Tensor, variance: Tensor | None) -> Tensor:
    """The noise's standard deviation: s, or between s and `largest` as a variance chooses; 0 where s is."""
    if variance is None:
        return s
    ratio = torch.where(s != 0, largest / s, 1.0)
    return torch.where(s != 0, s * torch.exp((variance.to(s.dtype) + 1) / 2 * torch.log(ratio)), 0.0)


def denoise_step_reference(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    index: Tensor,
    history: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    clip: None | float | Tensor = None,
    guidance_scale: Tensor | None = None,
    variance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`denoise_step` in plain torch, not in place; returns the next x and m."""
    p, q, a, b, c, s, o, d, e, u, v, largest = _row(rows, index)
    out = _guided(x, out, guidance_scale)
    x0 = x * p + out * q
    if isinstance(clip, Tensor):
        bound = clip.view(-1, 1, 1, 1)
        x0 = x0.clamp(-bound, bound) / bound
    elif clip is not None:
        x0 = x0.clamp(-clip, clip)
    following = x * a + x0 * b + _weighted(out, o)
    if history is not None:
        for back, weight in enumerate((c, d, e)[: len(history)], start=1):
            slot = history.index_select(0, (index.reshape(1) - back) % len(history))[0]
            following = following + _weighted(slot, weight)
    if key is not None:
        noise = normals_reference(key, index.reshape(()) + 1, x.shape)
    if noise is not None:
        following = following + noise * _deviation(s, largest, variance)
    return following, _weighted(x, u) + x0 * v


def _reference(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance, next_index) -> None:
    following, remembered = denoise_step_reference(
        x,
        out,
        rows,
        index,
        history,
        noise=noise,
        key=key,
        clip=limit if bound is None else bound,
        guidance_scale=guidance_scale,
        variance=variance,
    )
    x.copy_(following)
    if history is not None:
        slot = index.reshape(1).long() % len(history)
        history.index_copy_(0, slot, remembered.to(history.dtype)[None])
    if next_index is not None:
        next_index.copy_(index.reshape(next_index.shape) + 1)


def _launch(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance, next_index) -> None:
    from fastdiff.kernels import denoise_step_triton

    # The kernel keeps the state in float32; the reference takes any dtype.
    float32 = dict(x=x, rows=rows, history=history, noise=noise, guidance_scale=guidance_scale, clip=bound)
    for name, tensor in float32.items():
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{OP}: {name} is {tensor.dtype}; accepted: float32")
    denoise_step_triton.forward(
        x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance, next_index
    )


def _c_takes(x, *others) -> bool:
    if not c_for(x):
        return False
    from fastdiff.kernels.cpu.denoise_step import takes

    return takes(x, *others[:-1])


def _launch_c(*args) -> None:
    from fastdiff.kernels.cpu.denoise_step import step

    *given, next_index = args
    step(*given)
    if next_index is not None:
        next_index.fill_(int(given[3]) + 1)


_denoise_step = register(
    "denoise_step(Tensor(a!) x, Tensor out, Tensor rows, Tensor index, Tensor(b!)? history=None, Tensor? noise=None,"
    " Tensor? key=None, float? limit=None, Tensor? bound=None, Tensor? guidance_scale=None, Tensor? variance=None,"
    " Tensor(c!)? next_index=None) -> ()",
    _reference,
    Kernels(take=lambda x, *_: triton_for(x.device, x.dtype), launch=_launch, empty=lambda *_: None),
    Kernels(take=_c_takes, launch=_launch_c, empty=lambda *_: None),
)
