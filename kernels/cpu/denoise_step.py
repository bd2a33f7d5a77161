"""A sampler's step in C; the equations stand at the top of kernels.denoise_step."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels.cpu.plan import Call, Prepared, View, check_shape, dense, images

_UNCLIPPED, _LIMIT, _SAMPLE, _DYNAMIC = range(4)  # enum clip


def denoise_step(
    x: View,
    out: View,
    row: View,
    x0: View | None = None,
    *,
    noise: View | None = None,
    key: View | None = None,
    clip: None | float | tuple[str, float] | View = None,
    guidance_scale: View | None = None,
    ahead: int = 0,
) -> Call:
    """The update of one row of a step table, in place.

    Args:
        x: (n, C, H, W), NHWC and dense; overwritten with the next x.
        out: (n, C, H, W), NHWC, the network's output; with a guidance_scale (m + n, C, H, W), m at least n: the n
            pictures that come first have no context, and the n that come last have it.
        row: (6,): p, q, a, b, c, s; of a Table, the row that is run.
        x0: as x: the previous x0, read only where c is not 0, and overwritten with this one.
        noise: as x. At most one of noise and key; with neither, s counts as 0.
        key: (2,) from philox.key_view; the noise is then draw r + 1 for row r of the table.
        clip: None; a bound; ("dynamic", quantile), which makes a bound for each sample; or (n,), these bounds.
        guidance_scale: () or (1,), g.
        ahead: how many samples after the key's first one x begins.

    Raises:
        ValueError: for anything else.
    """
    op, (n, c, h, w) = "denoise_step", x.shape
    for name, one in (("x", x), ("x0", x0), ("noise", noise)):
        if one is not None and images(op, name, one, n, c, h, w) != c:
            raise ValueError(f"{op}: {name} has strides {one.strides}; accepted: NHWC, dense")
    pictures = n if guidance_scale is None else max(2 * n, out.shape[0])
    ld = images(op, "out", out, pictures, c, h, w)
    dense(op, "row", row, 6)
    if noise is not None and key is not None:
        raise ValueError(f"{op}: both noise and key were given; accepted: one of them, or neither")
    if key is not None:
        dense(op, "key", key, 2)
    check_shape(op, "guidance_scale", guidance_scale, (), (1,))
    if ahead < 0:
        raise ValueError(f"{op}: ahead = {ahead}; accepted: 0 or more")
    bounds = clip if isinstance(clip, View) else None
    reads = x, out, row, x0, noise, key, bounds, guidance_scale
    numbers = n, c, h * w, ld, pictures - n, ahead, *_clipping(op, clip, n)
    return Call(op, reads, (x,) if x0 is None else (x, x0), numbers)


def _clipping(op: str, clip: None | float | tuple[str, float] | View, n: int) -> tuple[int, float]:
    """How x0 is clipped, and by which number; raises ValueError for what it cannot be clipped by."""
    if clip is None:
        return _UNCLIPPED, 0.0
    if isinstance(clip, View):
        dense(op, "clip", clip, n)
        return _SAMPLE, 0.0
    if isinstance(clip, tuple):
        if len(clip) == 2 and clip[0] == "dynamic" and 0 < clip[1] <= 1:
            return _DYNAMIC, float(clip[1])
    elif clip > 0:
        return _LIMIT, float(clip)
    raise ValueError(
        f"{op}: clip = {clip!r}; accepted: None, a positive bound, ('dynamic', quantile in (0, 1]) or ({n},)"
    )


def takes(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale) -> bool:
    """Whether `step` runs on these tensors: on the CPU, float32, and x, x0, noise and out NHWC."""
    floats = [one for one in (x, out, rows, x0, noise, bound, guidance_scale) if one is not None]
    return (
        all(one.dtype is torch.float32 and one.is_cpu for one in floats)
        and all(_nhwc(one) for one in (x, x0, noise) if one is not None)
        and (_nhwc(out) or View.of(out).pictures() is not None)
        and all(one is None or one.is_contiguous() for one in (rows, bound))
        and (key is None or (key.dtype is torch.int64 and key.is_cpu and key.is_contiguous()))
        and index.is_cpu
    )


def step(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale) -> None:
    """kernels.denoise_step of tensors that `takes` accepts, on the calling thread."""
    row = int(index)
    if not 0 <= row < len(rows):
        raise IndexError(f"denoise_step: index = {row}; accepted: 0 to {len(rows) - 1}")
    tensors = x, out, rows, x0, noise, key, bound, guidance_scale
    shapes = tuple([None if one is None else one.shape for one in tensors])
    addresses = [0 if one is None else one.data_ptr() for one in tensors]
    addresses[2] += rows.element_size() * row * rows.shape[1]
    _prepared(shapes, out.stride(), limit)(addresses, row)


def _nhwc(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=64)
def _prepared(shapes: tuple[torch.Size | None, ...], strides: tuple[int, ...], limit: float | None) -> Prepared:
    """The call for tensors of these shapes, in the order of `step`; the strides are those of out."""

    def view(place: int) -> Any:
        shape = shapes[place]
        return None if shape is None else View(place, tuple(shape), _strides(shape))

    x, out, rows, x0, noise, key, bound, guidance_scale = map(view, range(len(shapes)))
    out = out._replace(strides=strides)
    row = rows._replace(shape=rows.shape[1:], strides=rows.strides[1:])
    clip = limit if bound is None else bound
    return Prepared(denoise_step(x, out, row, x0, noise=noise, key=key, clip=clip, guidance_scale=guidance_scale))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of dense memory; of four dimensions, NHWC."""
    if len(shape) == 4:
        _, c, h, w = shape
        return h * w * c, 1, w * c, c
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
