"""Triton kernel of denoise_step: x and each prediction are read once, x is written once, noise stays in registers.

A program takes BLOCK groups of LANES elements that are adjacent in a picture's row-major order; a group is one or two
Philox blocks. Where a tensor is channels_last, a program takes the groups at the same positions of all channels one
after another, so that it uses every element of the cache lines it reads.

    E, C: elements and channels of a sample
    out_b, out_c, out_p: strides of batch, channel and position of the predictions, in elements; var_*: of the variance
    CHANNELS_FIRST: whether x is in row-major order (else channels_last)
    OUT_FIRST, VAR_FIRST: whether the predictions and the variance are in row-major order (else any strides)
    GUIDED: whether there are two predictions; DEPTH: of the history, 0 without one
    CLIP: "off", "limit" or "sample" (a bound for each sample); NOISE: "off", "given" or "philox"
    VARIANCE: whether there is one
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


@triton.jit
def _place(
    sample, e, c, p, of_batch: tl.constexpr, of_channel: tl.constexpr, of_position: tl.constexpr, FIRST: tl.constexpr
):
    """Where channel c and position p of a sample lie, element e in row-major order."""
    return sample * of_batch + (e if FIRST else c * of_channel + p * of_position)


@triton.jit
def _deviation(row, variance, at, mask, VARIANCE: tl.constexpr):
    """The noise's standard deviation: s, or with a variance s^(1 - f) S^f; 0 where s is, of which the log is none."""
    s = tl.load(row + 5)
    if VARIANCE:
        f = (tl.load(variance + at, mask, 0.0).to(tl.float32) + 1) / 2
        ratio = tl.where(s != 0, tl.load(row + 11), 1.0) / tl.where(s != 0, s, 1.0)
        return tl.where(s != 0, s * tl.exp(f * tl.log(ratio)), 0.0)
    else:
        return s


@triton.jit
def moved(
    v,  # x
    o,  # the prediction, any shape; v and what follows likewise
    row,
    i,  # its number
    history,
    apart,
    at,  # where v lies in x, and in each of history's
    mask,
    bound,  # of x0, if CLIP is not "off"
    CLIP: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """x after a row but for its noise, and what the row remembers."""
    x0 = v * tl.load(row) + o * tl.load(row + 1)
    if CLIP != "off":
        x0 = _clamp(x0, bound)
    if CLIP == "sample":
        x0 = x0 / bound
    remembered = x0
    if DEPTH:
        remembered = x0 * tl.load(row + 10)
        u = tl.load(row + 9)
        if u != 0:
            remembered += v * u
    v = v * tl.load(row + 2) + x0 * tl.load(row + 3)
    share = tl.load(row + 6)
    if share != 0:  # while o is 0, a prediction that is infinite may be clipped
        v += o * share
    for back in tl.static_range(1, DEPTH + 1):
        weight = tl.load(row + (4 if back == 1 else 5 + back))  # c, d, e
        if weight != 0:  # else what lies there may be uninitialised memory
            slot = ((i + DEPTH - back) % DEPTH).to(tl.int64)
            v += tl.load(history + slot * apart + at, mask, 0.0) * weight
    return v, remembered


@triton.jit
def ended(
    v,  # x after the row
    remembered,
    i,
    x,
    history,
    next_index,
    apart,
    at,
    mask,
    DEPTH: tl.constexpr,
    NEXT: tl.constexpr,
):
    """Writes both, and the first program the next row's number."""
    tl.store(x + at, v, mask)
    if DEPTH:
        tl.store(history + (i % DEPTH).to(tl.int64) * apart + at, remembered, mask)
    if NEXT:
        if tl.program_id(0) == 0:
            tl.store(next_index, i + 1)


# These may be any element of a vector.
@triton.jit(do_not_specialize_on_alignment=["index", "next_index"])
def denoise_step_forward(
    x,  # (n, C, H, W) float32, overwritten
    out,  # (n, C, H W) any float dtype; if GUIDED without the context
    conditional,  # likewise with the context, or None
    history,  # (DEPTH, n, C, H, W) float32, each with x's strides, the one of row % DEPTH overwritten; or None
    noise,  # x's shape and strides, float32, or None
    variance,  # (n, C, H, W) any float dtype, or None
    rows,  # (R, 12) float32: p, q, a, b, c, s, o, d, e, u, v, S
    index,  # one int32 or int64
    next_index,  # as index, written: the next row; or None
    guidance,  # one float32, or None
    bound,  # (n,) float32, or None
    key,  # (2,) int64: seed, first sample; or None
    samples,  # n
    apart,  # elements from one of history's to the next
    limit,  # the bound if CLIP is "limit", float
    out_b: tl.constexpr,
    out_c: tl.constexpr,
    out_p: tl.constexpr,
    var_b: tl.constexpr,
    var_c: tl.constexpr,
    var_p: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    OUT_FIRST: tl.constexpr,
    VAR_FIRST: tl.constexpr,
    GUIDED: tl.constexpr,
    CLIP: tl.constexpr,
    DEPTH: tl.constexpr,
    NOISE: tl.constexpr,
    VARIANCE: tl.constexpr,
    NEXT: tl.constexpr,
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
    at_out = _place(sample, e, c, p, out_b, out_c, out_p, OUT_FIRST)

    i = tl.load(index)
    row = rows + i * 12
    o = tl.load(out + at_out, mask, 0.0).to(tl.float32)
    if GUIDED:
        o += tl.load(guidance) * (tl.load(conditional + at_out, mask, 0.0).to(tl.float32) - o)
    v = tl.load(x + at, mask, 0.0)
    most = tl.load(bound + sample, sample < samples, 1.0) if CLIP == "sample" else limit
    v, remembered = moved(v, o, row, i, history, apart, at, mask, most, CLIP, DEPTH)
    at_var = _place(sample, e, c, p, var_b, var_c, var_p, VAR_FIRST)
    if NOISE == "given":
        v += tl.load(noise + at, mask, 0.0) * _deviation(row, variance, at_var, mask, VARIANCE)
    elif NOISE == "philox":
        if tl.load(row + 5) != 0:
            block = start // 4 + tl.arange(0, LANES // 4)[None, :]
            z = four_normals(tl.load(key), tl.load(key + 1) + sample, (i + 1).to(tl.int32), block)
            v += tl.reshape(z, (BLOCK, LANES)) * _deviation(row, variance, at_var, mask, VARIANCE)
    ended(v, remembered, i, x, history, next_index, apart, at, mask, DEPTH, NEXT)


def dense(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory format of `like`, contiguous or channels_last."""
    first = like.is_contiguous()
    return x.contiguous(memory_format=torch.contiguous_format if first else torch.channels_last)


def ring(history: Tensor | None, like: Tensor) -> tuple[Tensor | None, int, int]:
    """history with each of its tensors in the memory format of `like`; how many; elements from one to the next."""
    if history is None:
        return None, 0, 0
    one = history[0]
    if dense(one, like) is not one:
        history = dense(history.flatten(0, 1), like).unflatten(0, history.shape[:2])
    return history, len(history), history.stride(0) if len(history) > 1 else 0


def _flat(images: Tensor) -> tuple[Tensor, bool]:
    """(B, C, H W), and whether a picture is in row-major order."""
    flat = positions(images)
    _, channels, size = flat.shape
    return flat, flat.stride(2) == 1 and (channels == 1 or flat.stride(1) == size)


def in_one_format(x: Tensor) -> Tensor:
    """x, or a copy where it is in neither memory format."""
    return x if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def forward(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance, next_index) -> None:
    """denoise_step of the same arguments."""
    n, c, h, w = x.shape
    state = in_one_format(x)
    first = state.is_contiguous()
    flat, out_first = _flat(out)
    flat_variance, variance_first = (None, False) if variance is None else _flat(variance)
    elements = c * h * w
    # A thread reads 16 bytes at once: eight elements of a 16-bit prediction, four of float32.
    lanes = 8 if out.element_size() == 2 and elements % 8 == 0 else 4
    groups = n * -(-elements // lanes)
    if groups >= 2**31:
        raise ValueError(f"denoise_step: x has {n * elements} elements; accepted: fewer than {2**31 * lanes}")
    kept, places, apart = ring(history, state)
    block = 1024 // lanes
    launch(
        denoise_step_forward,
        (-(-groups // block),),
        x.device,
        *(state, flat, None if guidance_scale is None else flat[n:], kept),
        None if noise is None else dense(noise, state),
        flat_variance,
        *(rows.contiguous(), index, next_index, guidance_scale, contiguous(bound), contiguous(key)),
        n,
        apart,
        0.0 if limit is None else limit,
        *flat.stride(),
        *((0, 0, 0) if flat_variance is None else flat_variance.stride()),
        E=elements,
        C=c,
        LANES=lanes,
        BLOCK=block,
        CHANNELS_FIRST=first,
        OUT_FIRST=out_first,
        VAR_FIRST=variance_first,
        GUIDED=guidance_scale is not None,
        CLIP="limit" if limit is not None else "sample" if bound is not None else "off",
        DEPTH=places,
        NOISE="given" if noise is not None else "philox" if key is not None else "off",
        VARIANCE=variance is not None,
        NEXT=next_index is not None,
        num_warps=4,
    )
    for given, written in ((x, state), (history, kept)):
        if written is not given:
            given.copy_(written)
