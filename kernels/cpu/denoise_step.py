"""A sampler's step in C; the equations stand at the top of kernels.denoise_step."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels.cpu.plan import Call, Prepared, View, check_shape, dense, images
from fastdiff.kernels.step_rows import COLUMNS, DEPTH

_UNCLIPPED, _LIMIT, _SAMPLE, _DYNAMIC = range(4)  # enum clip
_OUT, _HISTORY, _VARIANCE = 1, 3, 8  # among `step`'s tensors


def denoise_step(
    x: View,
    out: View,
    row: View,
    history: View | None = None,
    *,
    noise: View | None = None,
    key: View | None = None,
    clip: None | float | tuple[str, float] | View = None,
    guidance_scale: View | None = None,
    variance: View | None = None,
    ahead: int = 0,
) -> Call:
    """The update of one row of a step table, in place.

    Args:
        x: (n, C, H, W), NHWC and dense; overwritten with the next x.
        out: (n, C, H, W), NHWC, the network's output; with a guidance_scale (m + n, C, H, W), m at least n: the n
            pictures that come first have no context, and the n that come last have it.
        row: (12,): p, q, a, b, c, s, o, d, e, u, v, S; of a Table, the row that is run.
        history: (k, n, C, H, W), k from 1 to 3, each of them as x, evenly spaced: the ring of kernels.denoise_step.
        noise: as x. At most one of noise and key; with neither, std counts as 0.
        key: (2,) from philox.key_view; the noise is then draw r + 1 for row r of the table.
        clip: None; a bound; ("dynamic", quantile), which makes a bound for each sample; or (n,), these bounds.
        guidance_scale: () or (1,), g.
        variance: (n, C, H, W), NHWC; with guidance that of the predictions with the context.
        ahead: how many samples after the key's first one x begins.

    Raises:
        ValueError: for anything else.
    """
    op, (n, c, h, w) = "denoise_step", x.shape
    check_shape(op, "history", history, *((k, *x.shape) for k in range(1, DEPTH + 1)))
    one_before = None if history is None else _first(history)
    for name, one in (("x", x), ("history", one_before), ("noise", noise)):
        if one is not None and images(op, name, one, n, c, h, w) != c:
            raise ValueError(f"{op}: {name} has strides {one.strides}; accepted: NHWC, dense")
    pictures = n if guidance_scale is None else max(2 * n, out.shape[0])
    ld = images(op, "out", out, pictures, c, h, w)
    dense(op, "row", row, COLUMNS)
    if noise is not None and key is not None:
        raise ValueError(f"{op}: both noise and key were given; accepted: one of them, or neither")
    if key is not None:
        dense(op, "key", key, 2)
    check_shape(op, "guidance_scale", guidance_scale, (), (1,))
    if ahead < 0:
        raise ValueError(f"{op}: ahead = {ahead}; accepted: 0 or more")
    bounds = clip if isinstance(clip, View) else None
    reads = x, out, row, history, noise, key, bounds, guidance_scale, variance
    depth, apart = (0, 0) if history is None else (history.shape[0], history.strides[0])
    ring = depth, apart, images(op, "variance", variance, n, c, h, w)
    numbers = n, c, h * w, ld, pictures - n, ahead, *_clipping(op, clip, n), *ring
    return Call(op, reads, (x,) if history is None else (x, history), numbers)


def _first(history: View) -> View:
    """The images of the ring's first place."""
    return View(history.memory, history.shape[1:], history.strides[1:], history.offset)


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


def takes(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance) -> bool:
    """Whether `step` runs on these tensors: on the CPU, float32, and x, history, noise, out and variance NHWC."""
    floats = [one for one in (x, out, rows, history, noise, bound, guidance_scale, variance) if one is not None]
    return (
        all(one.dtype is torch.float32 and one.is_cpu for one in floats)
        and all(_nhwc(one) for one in (x, None if history is None else history[0], noise) if one is not None)
        and all(_nhwc(one) or View.of(one).pictures() is not None for one in (out, variance) if one is not None)
        and all(one is None or one.is_contiguous() for one in (rows, bound))
        and (key is None or (key.dtype is torch.int64 and key.is_cpu and key.is_contiguous()))
        and index.is_cpu
    )


def step(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance) -> None:
    """kernels.denoise_step of tensors that `takes` accepts, on the calling thread."""
    row = int(index)
    if not 0 <= row < len(rows):
        raise IndexError(f"denoise_step: index = {row}; accepted: 0 to {len(rows) - 1}")
    tensors = x, out, rows, history, noise, key, bound, guidance_scale, variance
    shapes = tuple([None if one is None else one.shape for one in tensors])
    strides = tuple([None if one is None else one.stride() for one in (out, history, variance)])
    addresses = [0 if one is None else one.data_ptr() for one in tensors]
    addresses[2] += rows.element_size() * row * rows.shape[1]
    _prepared(shapes, strides, limit)(addresses, row)


def _nhwc(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=64)
def _prepared(
    shapes: tuple[torch.Size | None, ...], strides: tuple[tuple[int, ...] | None, ...], limit: float | None
) -> Prepared:
    """The call for tensors of these shapes, in the order of `step`; the strides of out, history and variance."""
    given = dict(zip((_OUT, _HISTORY, _VARIANCE), strides, strict=True))

    def view(place: int) -> Any:
        shape = shapes[place]
        return None if shape is None else View(place, tuple(shape), given.get(place) or _strides(shape))

    x, out, rows, history, noise, key, bound, guidance_scale, variance = map(view, range(len(shapes)))
    row = rows._replace(shape=rows.shape[1:], strides=rows.strides[1:])
    more = dict(noise=noise, key=key, guidance_scale=guidance_scale, variance=variance)
    return Prepared(denoise_step(x, out, row, history, clip=limit if bound is None else bound, **more))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of dense memory; of four dimensions, NHWC."""
    if len(shape) == 4:
        _, c, h, w = shape
        return h * w * c, 1, w * c, c
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
