"""Triton kernel of begin_step: the first programs copy the pictures, an element after another in channels_last order,
and the last ones the row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.denoise_step_triton import in_one_format, ring
from fastdiff.kernels.dispatch import launch

BLOCK = 1024


@triton.jit
def _copied(
    images,  # (n, C, H, W) float32
    into,  # (n or 2 n, H, W, C) any float dtype, written
    r,  # (BLOCK,) elements of `into`'s first n
    elements,  # of n pictures
    E: tl.constexpr,
    C: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    TWICE: tl.constexpr,
):
    mask = r < elements
    e = r % E
    at = (r // E) * E + (e % C) * (E // C) + e // C if CHANNELS_FIRST else r
    v = tl.load(images + at, mask, 0.0).to(into.dtype.element_ty)
    tl.store(into + r, v, mask)
    if TWICE:
        tl.store(into + elements + r, v, mask)


@triton.jit(do_not_specialize_on_alignment=["index", "current"])  # they may be any element of a vector
def begin_step_forward(
    x,  # (n, C, H, W) float32
    x_into,  # (n or 2 n, H, W, C) any float dtype, written
    history,  # (DEPTH, n, C, H, W) float32, each with x's strides; or None
    history_into,  # as x_into, written; or None
    index,  # one int64
    current,  # one int64, written
    table,  # (R, words) int64, or None
    row,  # (words,) int64, written; or None
    elements,  # of n pictures
    apart,  # elements from one of history's to the next
    words,
    programs,  # that copy pictures
    E: tl.constexpr,
    C: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    TWICE: tl.constexpr,
    DEPTH: tl.constexpr,
    TABLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    i = tl.load(index)
    if pid < programs:
        r = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        _copied(x, x_into, r, elements, E, C, CHANNELS_FIRST, TWICE)
        if DEPTH:
            before = history + ((i + DEPTH - 1) % DEPTH).to(tl.int64) * apart
            _copied(before, history_into, r, elements, E, C, CHANNELS_FIRST, TWICE)
    elif TABLE:
        w = (pid - programs) * BLOCK + tl.arange(0, BLOCK)
        tl.store(row + w, tl.load(table + i * words + w, w < words, 0), w < words)
    if pid == 0:
        tl.store(current, i)


def forward(
    x: Tensor,
    index: Tensor,
    current: Tensor,
    dtype: torch.dtype,
    history: Tensor | None,
    twice: bool,
    table: Tensor | None,
    row: Tensor | None,
) -> tuple[Tensor, ...]:
    """begin_step of the same arguments."""
    n, c, h, w = x.shape
    state = in_one_format(x)
    kept, places, apart = ring(history, state)
    shape = (1 + twice) * n, c, h, w
    into = [
        torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        for one in (x, history)
        if one is not None
    ]
    programs = -(-x.numel() // BLOCK)
    wide, narrow = (None if one is None else one.view(torch.int64) for one in (table, row))
    words = 0 if wide is None else wide.shape[1]
    launch(
        begin_step_forward,
        (programs + -(-words // BLOCK),),
        x.device,
        *(state, into[0], kept, into[1] if into[1:] else None, index, current, wide, narrow),
        *(x.numel(), apart, words, programs),
        E=c * h * w,
        C=c,
        CHANNELS_FIRST=state.is_contiguous(),
        TWICE=twice,
        DEPTH=places,
        TABLE=wide is not None,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return tuple(into)
