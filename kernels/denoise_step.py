"""One sampler step: from the network's output to the next x.

out = out_u + g (out_c - out_u)      classifier-free guidance (Ho and Salimans 2022, eq. 6, g = 1 + w)
x0  = clip(p x + q out)
x  <- a x + b x0 + c x0_prev + s noise
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import c_for, triton_for
from fastdiff.kernels.library import Kernels, register
from fastdiff.kernels.philox import normals_reference

OP = "denoise_step"


def denoise_step(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    index: Tensor,
    x0: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    clip: None | float | Tensor = None,
    guidance_scale: Tensor | None = None,
) -> None:
    """The update of row `index` of a step table, in place; see the equations at the top of this file.

    Whatever changes between steps or runs is read from device memory, so that a captured step can be replayed.

    Args:
        x: (n, C, H, W) float32, any memory format; overwritten with the next x.
        out: the network's output, x's shape, any float dtype and memory format; with a guidance_scale
            (2 n, C, H, W), the n predictions without a context before the n with it.
        rows: (R, 6) float32, the columns p, q, a, b, c, s.
        index: one int32 or int64 on x's device, the row.
        x0: x's shape, float32: the previous x0, overwritten with this one; read only where c is not 0, so it may be
            uninitialised until then.
        noise: x's shape, float32. At most one of noise and key; with neither, s counts as 0.
        key: (2,) int64, the seed and the first sample; the noise is then draw index + 1 of kernels.philox, which the
            Triton kernel makes in registers.
        clip: None; a bound, x0 is clamped to [-clip, clip]; or (n,) float32, a bound for each sample, x0 is clamped
            to it and divided by it (dynamic thresholding, Saharia et al. 2022, section 2.3; see x0_bound).
        guidance_scale: one float32 on x's device, g; None without guidance.

    Raises:
        ValueError: for other shapes, dtypes or devices, a bound that is not positive, or both noise and key.
    """
    limit, bound = (None, clip) if isinstance(clip, Tensor) else (clip, None)
    _check(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale)
    _denoise_step(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale)


def _check(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale) -> None:
    """Raise ValueError for arguments that denoise_step cannot take."""
    checks.tensors(OP, x=x, out=out, rows=rows, x0=x0, noise=noise, guidance_scale=guidance_scale, clip=bound)
    checks.images(OP, x)
    n = x.shape[0]
    factor = 1 if guidance_scale is None else 2
    checks.shape(OP, "out", out, (factor * n, *x.shape[1:]))
    checks.shape(OP, "x0", x0, tuple(x.shape))
    checks.shape(OP, "noise", noise, tuple(x.shape))
    checks.shape(OP, "clip", bound, (n,))
    checks.shape(OP, "guidance_scale", guidance_scale, (), (1,))
    if rows.ndim != 2 or rows.shape[1] != 6 or not len(rows):
        raise ValueError(f"{OP}: rows has shape {tuple(rows.shape)}; accepted: (R, 6), R at least 1")
    checks.integers(OP, "index", index, (torch.int64, torch.int32), (), (1,))
    checks.integers(OP, "key", key, (torch.int64,), (2,))
    for name, tensor in (("index", index), ("key", key)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{OP}: {name} is on {tensor.device} and the others on {x.device}")
    if noise is not None and key is not None:
        raise ValueError(f"{OP}: both noise and key were given; accepted: one of them, or neither")
    if limit is not None and not limit > 0:
        raise ValueError(f"{OP}: clip = {limit}; accepted: None, a positive bound, or a bound for each sample")


def _row(rows: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """p, q, a, b, c, s as tensors on the device; rows[index] would make the host wait for the index."""
    return rows.index_select(0, index.reshape(1))[0].unbind()


def predicted_x0(x: Tensor, out: Tensor, rows: Tensor, index: Tensor, guidance_scale: Tensor | None = None) -> Tensor:
    """p x + q out with guidance, before clipping, in plain torch."""
    p, q = _row(rows, index)[:2]
    out = out.to(x.dtype)
    if guidance_scale is not None:
        unconditional, conditional = out.chunk(2)
        out = unconditional + guidance_scale * (conditional - unconditional)
    return x * p + out * q


def x0_bound(
    x: Tensor, out: Tensor, rows: Tensor, index: Tensor, quantile: float, guidance_scale: Tensor | None = None
) -> Tensor:
    """Dynamic thresholding's bound for each sample, (n,): max(1, quantile of |x0|), by linear interpolation."""
    size = predicted_x0(x, out, rows, index, guidance_scale).abs().flatten(1).sort(dim=1).values
    place = quantile * (size.shape[1] - 1)  # torch.quantile takes at most 2^24 elements
    low = int(place)
    high = min(low + 1, size.shape[1] - 1)
    return torch.lerp(size[:, low], size[:, high], place - low).clamp(min=1.0)


def denoise_step_reference(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    index: Tensor,
    x0_prev: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    clip: None | float | Tensor = None,
    guidance_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`denoise_step` in plain torch, not in place; returns the next x and x0."""
    a, b, c, s = _row(rows, index)[2:]
    x0 = predicted_x0(x, out, rows, index, guidance_scale)
    if isinstance(clip, Tensor):
        bound = clip.view(-1, 1, 1, 1)
        x0 = x0.clamp(-bound, bound) / bound
    elif clip is not None:
        x0 = x0.clamp(-clip, clip)
    following = x * a + x0 * b
    if x0_prev is not None:
        following = following + torch.where(c != 0, x0_prev * c, 0.0)
    if key is not None:
        noise = normals_reference(key, index.reshape(()) + 1, x.shape)
    if noise is not None:
        following = following + noise * s
    return following, x0


def _reference(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale) -> None:
    following, now = denoise_step_reference(
        x,
        out,
        rows,
        index,
        x0,
        noise=noise,
        key=key,
        clip=limit if bound is None else bound,
        guidance_scale=guidance_scale,
    )
    x.copy_(following)
    if x0 is not None:
        x0.copy_(now)


def _launch(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale) -> None:
    from fastdiff.kernels import denoise_step_triton

    # The kernel keeps the state in float32; the reference takes any dtype.
    float32 = {"x": x, "rows": rows, "x0": x0, "noise": noise, "guidance_scale": guidance_scale, "clip": bound}
    for name, tensor in float32.items():
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{OP}: {name} is {tensor.dtype}; accepted: float32")
    denoise_step_triton.forward(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale)


def _c_takes(x, *others) -> bool:
    if not c_for(x):
        return False
    from fastdiff.kernels.cpu.denoise_step import takes

    return takes(x, *others)


def _launch_c(*args) -> None:
    from fastdiff.kernels.cpu.denoise_step import step

    step(*args)


_denoise_step = register(
    "denoise_step(Tensor(a!) x, Tensor out, Tensor rows, Tensor index, Tensor(b!)? x0=None, Tensor? noise=None,"
    " Tensor? key=None, float? limit=None, Tensor? bound=None, Tensor? guidance_scale=None) -> ()",
    _reference,
    Kernels(take=lambda x, *_: triton_for(x.device, x.dtype), launch=_launch, empty=lambda *_: None),
    Kernels(take=_c_takes, launch=_launch_c, empty=lambda *_: None),
)
