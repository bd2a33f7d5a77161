"""Triton kernel of denoise_step: x and each prediction are read once, x is written once, noise stays in registers.

A program takes BLOCK groups of LANES elements that are adjacent in a picture's row-major order; a group is one or two
Philox blocks. Where a tensor is channels_last, a program takes the groups at the same positions of all channels one
after another, so that it uses every element of the cache lines it reads.

    E, C: elements and channels of a sample
    out_b, out_c, out_p: strides of batch, channel and position of the predictions, in elements
    CHANNELS_FIRST, OUT_FIRST: whether x and the predictions are in row-major order (else channels_last, any strides)
    GUIDED, HISTORY: whether there are two predictions, an x0
    CLIP: "off", "limit" or "sample" (a bound for each sample); NOISE: "off", "given" or "philox"
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch
from fastdiff.kernels.layout import contiguous, positions
from fastdiff.kernels.philox_triton import four_normals


@triton.jit
def _clamp(x, bound):
    x = tl.maximum(x, -bound, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize_on_alignment=["index"])  # index may be any element of a vector
def denoise_step_forward(
    x,  # (n, C, H, W) float32, overwritten
    out,  # (n, C, H W) any float dtype; if GUIDED without the context
    conditional,  # likewise with the context, or None
    x0_kept,  # x's shape and strides, float32, overwritten: the previous x0, then this one; or None
    noise,  # x's shape and strides, float32, or None
    rows,  # (R, 6) float32: p, q, a, b, c, s
    index,  # one int32 or int64
    guidance,  # one float32, or None
    bound,  # (n,) float32, or None
    key,  # (2,) int64: seed, first sample; or None
    samples,  # n
    limit,  # the bound if CLIP is "limit", float
    out_b: tl.constexpr,
    out_c: tl.constexpr,
    out_p: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    OUT_FIRST: tl.constexpr,
    GUIDED: tl.constexpr,
    CLIP: tl.constexpr,
    HISTORY: tl.constexpr,
    NOISE: tl.constexpr,
):
    """The update of row `index` for BLOCK groups."""
    HW: tl.constexpr = E // C
    GROUPS: tl.constexpr = (E + LANES - 1) // LANES
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    sample = (g // GROUPS).to(tl.int64)
    r = g % GROUPS
    if (HW % LANES == 0) and not (CHANNELS_FIRST and OUT_FIRST):
        channel, place = r % C, LANES * (r // C)
        start = channel * HW + place
        p = place + lane
        c = channel + tl.zeros_like(lane)
    else:
        start = LANES * r
        c, p = (start + lane) // HW, (start + lane) % HW
    e = start + lane
    mask = (sample < samples) & (e < E) if E % LANES else (sample < samples) & (lane >= 0)
    at = sample * E + (e if CHANNELS_FIRST else p * C + c)
    at_out = sample * out_b + (e if OUT_FIRST else c * out_c + p * out_p)

    i = tl.load(index)
    row = rows + i * 6
    o = tl.load(out + at_out, mask, 0.0).to(tl.float32)
    if GUIDED:
        o += tl.load(guidance) * (tl.load(conditional + at_out, mask, 0.0).to(tl.float32) - o)
    v = tl.load(x + at, mask, 0.0)
    x0 = v * tl.load(row) + o * tl.load(row + 1)
    if CLIP == "limit":
        x0 = _clamp(x0, limit)
    elif CLIP == "sample":
        s_bound = tl.load(bound + sample, sample < samples, 1.0)
        x0 = _clamp(x0, s_bound) / s_bound
    v = v * tl.load(row + 2) + x0 * tl.load(row + 3)
    if HISTORY:
        weight = tl.load(row + 4)
        if weight != 0:  # while c is 0, x0_kept may be uninitialised memory
            v += tl.load(x0_kept + at, mask, 0.0) * weight
    if NOISE == "given":
        v += tl.load(noise + at, mask, 0.0) * tl.load(row + 5)
    elif NOISE == "philox":
        deviation = tl.load(row + 5)
        if deviation != 0:
            block = start // 4 + tl.arange(0, LANES // 4)[None, :]
            z = four_normals(tl.load(key), tl.load(key + 1) + sample, (i + 1).to(tl.int32), block)
            v += tl.reshape(z, (BLOCK, LANES)) * deviation
    tl.store(x + at, v, mask)
    if HISTORY:
        tl.store(x0_kept + at, x0, mask)


def _dense(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory format of `like`, contiguous or channels_last."""
    first = like.is_contiguous()
    return x.contiguous(memory_format=torch.contiguous_format if first else torch.channels_last)


def forward(x, out, rows, index, x0, noise, key, limit, bound, guidance_scale) -> None:
    """denoise_step of the same arguments."""
    n, c, h, w = x.shape
    state = x if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
    first = state.is_contiguous()
    flat = positions(out)
    out_first = flat.stride(2) == 1 and (c == 1 or flat.stride(1) == h * w)
    elements = c * h * w
    # A thread reads 16 bytes at once: eight elements of a 16-bit prediction, four of float32.
    lanes = 8 if out.element_size() == 2 and elements % 8 == 0 else 4
    groups = n * -(-elements // lanes)
    if groups >= 2**31:
        raise ValueError(f"denoise_step: x has {n * elements} elements; accepted: fewer than {2**31 * lanes}")
    kept = None if x0 is None else _dense(x0, state)
    block = 1024 // lanes
    launch(
        denoise_step_forward,
        (-(-groups // block),),
        x.device,
        *(state, flat, None if guidance_scale is None else flat[n:], kept),
        None if noise is None else _dense(noise, state),
        *(rows.contiguous(), index, guidance_scale, contiguous(bound), contiguous(key)),
        n,
        0.0 if limit is None else limit,
        *flat.stride(),
        E=elements,
        C=c,
        LANES=lanes,
        BLOCK=block,
        CHANNELS_FIRST=first,
        OUT_FIRST=out_first,
        GUIDED=guidance_scale is not None,
        CLIP="limit" if limit is not None else "sample" if bound is not None else "off",
        HISTORY=kept is not None,
        NOISE="given" if noise is not None else "philox" if key is not None else "off",
        num_warps=4,
    )
    for given, written in ((x, state), (x0, kept)):
        if written is not given:
            given.copy_(written)
