"""Philox normals inside Triton kernels: the integers and the polynomials of philox.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.dispatch import launch


@triton.jit
def _log(u):
    """Natural logarithm of float32 u in (0, 1), as in philox.py."""
    bits = u.to(tl.int32, bitcast=True)
    e = (bits >> 23) - 126
    f = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)  # u = f 2^e, f in [0.5, 1)
    small = f < 0.70710678118654752
    x = tl.where(small, f + f, f) - 1.0
    e = tl.where(small, e - 1, e).to(tl.float32)
    y = x * 7.0376836292e-2 - 1.1514610310e-1
    y = y * x + 1.1676998740e-1
    y = y * x - 1.2420140846e-1
    y = y * x + 1.4249322787e-1
    y = y * x - 1.6668057665e-1
    y = y * x + 2.0000714765e-1
    y = y * x - 2.4999993993e-1
    y = y * x + 3.3333331174e-1
    z = x * x
    y = y * x * z
    y = y - e * 2.12194440e-4
    y = y - z * 0.5
    return (x + y) + e * 0.693359375


@triton.jit
def _sin_cos_turns(odd):
    """Sine and cosine of 2 pi odd 2^-24, odd int32 in [0, 2^24), as in philox.py."""
    quadrant = (odd + (1 << 21)) >> 22
    y = (odd - (quadrant << 22)).to(tl.float32) * 3.7450702829239286e-07  # 2^-22 pi / 2
    z = y * y
    sin = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z - 1.6666654611e-1) * z * y + y
    cos = ((z * 2.443315711809948e-5 - 1.388731625493765e-3) * z + 4.166664568298827e-2) * (z * z)
    cos = (cos - z * 0.5) + 1.0
    swap = (quadrant & 1) == 1
    s, c = tl.where(swap, cos, sin), tl.where(swap, sin, cos)
    return tl.where((quadrant & 2) == 2, -s, s), tl.where(((quadrant + 1) & 2) == 2, -c, c)


@triton.jit
def _pair(radius_word, angle_word):
    """Two normals from two uint32 words, by Box and Muller."""
    radius_odd = ((radius_word >> 9) << 1) | 1
    angle_odd = ((angle_word >> 9) << 1) | 1
    radius = tl.sqrt(_log(radius_odd.to(tl.int32).to(tl.float32) * 5.9604644775390625e-08) * -2.0)
    sin, cos = _sin_cos_turns(angle_odd.to(tl.int32))
    return radius * cos, radius * sin


@triton.jit
def four_normals(seed, sample, draw, block):
    """The normals of elements 4 block .. 4 block + 3 of a sample's draw: float32, block's shape with a last axis of 4.

    seed: int64 scalar. sample: int64, broadcasts to block. draw: int32 scalar. block: int32, two axes.
    """
    zero = tl.zeros_like(block)
    # The counters must be 32 bits wide: with int64 ones tl.philox is Philox4x64.
    low = (sample & 0xFFFFFFFF).to(tl.uint32) + zero.to(tl.uint32)
    high = (sample >> 32).to(tl.uint32) + zero.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), (zero + draw).to(tl.uint32), low, high)
    z0, z1 = _pair(w0, w1)
    z2, z3 = _pair(w2, w3)
    pairs = tl.join(tl.join(z0, z2), tl.join(z1, z3))  # [..., i, j] is z(2 i + j)
    return tl.reshape(pairs, (block.shape[0], block.shape[1], 4))


@triton.jit(do_not_specialize=["draw"])
def philox_normals(out, key, samples, draw, E: tl.constexpr, BLOCK: tl.constexpr):
    """Fills out (samples, E) float32; key (2,) int64: the seed and the first sample."""
    per_sample: tl.constexpr = (E + 3) // 4
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample, block = (g // per_sample).to(tl.int64)[:, None], (g % per_sample)[:, None]
    z = tl.reshape(four_normals(tl.load(key), tl.load(key + 1) + sample, draw, block), (BLOCK, 4))
    e = 4 * block + tl.arange(0, 4)[None, :]
    mask = (sample < samples) & (e < E) if E % 4 else sample < samples
    tl.store(out + sample * E + e, z, mask)


def normals(out: Tensor, key: Tensor, draw: int) -> None:
    """Fill out (samples, elements) float32; key: (2,) int64 on its device, the seed and the first sample."""
    samples, elements = out.shape
    blocks = samples * -(-elements // 4)
    if blocks >= 2**31:
        raise ValueError(f"normals: {samples} samples of {elements} elements; accepted: fewer than {2**33} in all")
    launch(
        philox_normals,
        (-(-blocks // 256),),
        out.device,
        out,
        key,
        samples,
        draw,
        E=elements,
        BLOCK=256,
        num_warps=4,
    )
