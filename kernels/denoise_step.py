"""One sampler step: from the network's output to the next x.

out = out_u + g (out_c - out_u)      classifier-free guidance (Ho and Salimans 2022, eq. 6, g = 1 + w)
x0  = clip(p x + q out)
x  <- a x + b x0 + c x0_prev + s noise
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.philox import normals_reference

OP = "denoise_step"


def denoise_step(
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
    keep_x0: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The update of row `index` of a step table; see the equations at the top of this file. Not differentiable.

    Whatever changes between steps or runs is read from device memory, so that a captured step can be replayed.

    Args:
        x: (n, C, H, W) float32, any memory format.
        out: the network's output, x's shape, any float dtype and memory format; with a guidance_scale
            (2 n, C, H, W), the n predictions without a context before the n with it.
        rows: (R, 6) float32, the columns p, q, a, b, c, s.
        index: one int32 or int64 on x's device, the row.
        x0_prev: x's shape, float32; read only where c is not 0, so it may be uninitialised until then.
        noise: x's shape, float32. At most one of noise and key; with neither, s counts as 0.
        key: (2,) int64, the seed and the first sample; the noise is then draw index + 1 of kernels.philox, which the
            Triton kernel makes in registers.
        clip: None; a bound, x0 is clamped to [-clip, clip]; or (n,) float32, a bound for each sample, x0 is clamped
            to it and divided by it (dynamic thresholding, Saharia et al. 2022, section 2.3; see x0_bound).
        guidance_scale: one float32 on x's device, g; None without guidance.
        keep_x0: also return x0.
        inplace: overwrite x, and x0_prev where x0 is kept.

    Returns:
        The next x, and x0 if keep_x0, else None; both x's shape, float32.

    Raises:
        ValueError: for other shapes, dtypes or devices, a bound that is not positive, or both noise and key.
    """
    _check(x, out, rows, index, x0_prev, noise, key, clip, guidance_scale)
    if use_triton(x):
        from fastdiff.kernels import denoise_step_triton

        _check_float32(x=x, rows=rows, x0_prev=x0_prev, noise=noise, guidance_scale=guidance_scale, clip=clip)
        return denoise_step_triton.forward(
            x, out, rows, index, x0_prev, noise, key, clip, guidance_scale, keep_x0, inplace
        )
    following, x0 = denoise_step_reference(
        x, out, rows, index, x0_prev, noise=noise, key=key, clip=clip, guidance_scale=guidance_scale
    )
    if inplace:
        following = x.copy_(following)
        if keep_x0 and x0_prev is not None:
            x0 = x0_prev.copy_(x0)
    return following, x0 if keep_x0 else None


def _check(x, out, rows, index, x0_prev, noise, key, clip, guidance_scale) -> None:
    """Raise ValueError for arguments that denoise_step cannot take."""
    bound = clip if isinstance(clip, Tensor) else None
    checks.tensors(OP, x=x, out=out, rows=rows, x0_prev=x0_prev, noise=noise, guidance_scale=guidance_scale, clip=bound)
    checks.images(OP, x)
    n = x.shape[0]
    factor = 1 if guidance_scale is None else 2
    checks.shape(OP, "out", out, (factor * n, *x.shape[1:]))
    checks.shape(OP, "x0_prev", x0_prev, tuple(x.shape))
    checks.shape(OP, "noise", noise, tuple(x.shape))
    checks.shape(OP, "clip", bound, (n,))
    checks.shape(OP, "guidance_scale", guidance_scale, (), (1,))
    if rows.ndim != 2 or rows.shape[1] != 6 or not len(rows):
        raise ValueError(f"{OP}: rows has shape {tuple(rows.shape)}; accepted: (R, 6), R at least 1")
    _check_integers(x, index=(index, (), (1,)), key=(key, (2,)))
    if noise is not None and key is not None:
        raise ValueError(f"{OP}: both noise and key were given; accepted: one of them, or neither")
    if isinstance(clip, (int, float)) and not clip > 0:
        raise ValueError(f"{OP}: clip = {clip}; accepted: None, a positive bound, or a bound for each sample")


def _check_float32(**given: Tensor | float | None) -> None:
    """The Triton kernel keeps the state in float32; the reference takes any dtype."""
    for name, tensor in given.items():
        if isinstance(tensor, Tensor) and tensor.dtype != torch.float32:
            raise ValueError(f"{OP}: {name} is {tensor.dtype}; accepted: float32")


def _check_integers(x: Tensor, **given: tuple) -> None:
    for name, (tensor, *accepted) in given.items():
        if tensor is None:
            continue
        if tensor.dtype not in (torch.int64, torch.int32) or (name == "key" and tensor.dtype != torch.int64):
            raise ValueError(f"{OP}: {name} is {tensor.dtype}; accepted: int64{', int32' * (name == 'index')}")
        checks.shape(OP, name, tensor, *accepted)
        if tensor.device != x.device:
            raise ValueError(f"{OP}: {name} is on {tensor.device} and the others on {x.device}")


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
    """`denoise_step` in plain torch, never in place; returns the next x and x0."""
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
        noise = normals_reference(key[0], index.reshape(()) + 1, key[1], tuple(x.shape), x.device)
    if noise is not None:
        following = following + noise * s
    return following, x0
