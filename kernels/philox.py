"""Philox4x32-10 and the normals made from it, in plain torch.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The integers are the same bits
on every device. The normals use IEEE additions, multiplications and square roots only, no library's logarithm or sine,
so in eager torch they too are the same bits for every batch, thread count and vector width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.kernels import checks
from fastdiff.kernels.dispatch import c_for, triton_for
from fastdiff.kernels.library import Kernels, register

MASK = 0xFFFFFFFF
MULTIPLIERS = _M0, _M1 = 0xD2511F53, 0xCD9E8D57
KEY_INCREMENTS = _W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl sequences

# Cephes' logf on [sqrt(1/2), sqrt(2)), sinf and cosf on +-pi/4; highest power first. ln 2 = LN2_HIGH - LN2_LOW:
# LN2_HIGH has so few bits that its products with exponents are exact.
LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2_HIGH, LN2_LOW = 0.693359375, 2.12194440e-4
SIN_POLYNOMIAL = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS_POLYNOMIAL = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[int | Tensor, int | Tensor], rounds: int = 10) -> Words:
    """Four 32-bit words for each counter.

    A round maps (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)) and adds the
    increments to the key.

    Args:
        counter: four int64 tensors that broadcast, values in [0, 2^32), least significant first.
        key: two integers or int64 tensors in [0, 2^32).
        rounds: 10 in Philox4x32-10.

    Returns:
        Four int64 tensors with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The int64 product wraps modulo 2^64, so its bits are those of the unsigned product.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + _W0) & MASK, (k1 + _W1) & MASK
    return c0, c1, c2, c3


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of float32 u in (0, 1), by Cephes' logf; relative error below 2e-7."""
    f, e = torch.frexp(u)  # u = f 2^e, f in [0.5, 1)
    small = f < math.sqrt(0.5)
    x = torch.where(small, f + f, f) - 1.0  # in [sqrt(1/2) - 1, sqrt(2) - 1)
    e = (e - small.to(e.dtype)).to(torch.float32)
    y = torch.full_like(x, LOG_POLYNOMIAL[0])
    for c in LOG_POLYNOMIAL[1:]:
        y = y * x
        y = y + c
    z = x * x
    y = y * x
    y = y * z
    y = y - e * LN2_LOW
    y = y - z * 0.5
    return (x + y) + e * LN2_HIGH


def _sin_cos_turns(odd: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of 2 pi u for u = odd 2^-24, odd an int64 tensor in [0, 2^24).

    The quadrant and the remainder are exact, being integers; then Cephes' sinf and cosf polynomials on +-pi/4.
    """
    quadrant = (odd + (1 << 21)) >> 22  # nearest multiple of a quarter turn, 0..4
    y = (odd - (quadrant << 22)).to(torch.float32) * (2.0**-22 * (math.pi / 2))
    z = y * y
    s, c = SIN_POLYNOMIAL, COS_POLYNOMIAL
    sin = ((z * s[0] + s[1]) * z + s[2]) * z * y + y
    cos = ((z * c[0] + c[1]) * z + c[2]) * (z * z)
    cos = (cos - z * 0.5) + 1.0
    swap = (quadrant & 1) == 1
    sin, cos = torch.where(swap, cos, sin), torch.where(swap, sin, cos)
    return torch.where((quadrant & 2) == 2, -sin, sin), torch.where(((quadrant + 1) & 2) == 2, -cos, cos)


def box_muller(words: Words) -> Words:
    """Four standard normals (float32) from four 32-bit words (int64), by Box and Muller (1958).

    u = ((word >> 9) + 1/2) 2^-23, exact in float32; z0, z1 = sqrt(-2 ln u0) (cos, sin)(2 pi u1), and z2, z3
    likewise from u2, u3.
    """
    w0, w1, w2, w3 = (((w >> 9) << 1) | 1 for w in words)  # u = w 2^-24, w odd
    out = []
    for radius_word, angle_word in ((w0, w1), (w2, w3)):
        # torch's float32 square root on many CPUs is MKL's, whose last place is wrong for a seventh of its arguments.
        # The float64 square root rounded to float32 is the IEEE one.
        radius = (_log(radius_word.to(torch.float32) * 2.0**-24) * -2.0).double().sqrt().float()
        sin, cos = _sin_cos_turns(angle_word)
        out += [radius * cos, radius * sin]
    return tuple(out)  # type: ignore[return-value]


def words(
    seed: int | Tensor, draw: int | Tensor, first: int | Tensor, samples: int, elements: int, device: torch.device
) -> Words:
    """The Philox words of samples first .. first + samples - 1 for one draw.

    The counter is (element // 4, draw, sample low, sample high), the key (seed low, seed high).

    Args:
        seed: 0 <= seed < 2^63. Like draw and first it may be an int64 tensor of one element on the device, which the
            host then never reads.
        draw: 0 <= draw < 2^32.
        first: the first sample's index; first + samples < 2^63.
        samples: number of samples.
        elements: of each sample.
        device: of the result.

    Returns:
        Four int64 tensors (samples, ceil(elements / 4)); element e takes word e % 4.
    """
    sample = torch.arange(samples, dtype=torch.int64, device=device)[:, None] + first
    block = torch.arange((elements + 3) // 4, dtype=torch.int64, device=device)[None, :]
    counter = (block, torch.zeros_like(block) + draw, sample & MASK, sample >> 32)
    return philox4x32(counter, (seed & MASK, seed >> 32))


def key_of(seed: int, first: int, device: torch.device) -> Tensor:
    """The key of `normals` and of denoise_step: (2,) int64 on the device.

    Args:
        seed: 0 <= seed < 2^63.
        first: the first sample's index; first + samples < 2^63.
        device: of the result.
    """
    return torch.tensor([seed, first], dtype=torch.int64, device=device)


def normals(key: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normals; row r is a function of (seed, draw, first + r) alone.

    Args:
        key: (2,) int64, the seed and the first sample, see `key_of`; the host never reads it.
        draw: 0 <= draw < 2^32.
        shape: (samples, ...); elements are counted in row-major order.

    Returns:
        The shape, contiguous, float32, on the key's device.

    Raises:
        ValueError: for another key; where Triton runs, for 2^33 elements or more.
    """
    checks.integers("normals", "key", key, (torch.int64,), (2,))
    return _normals(key, draw, shape)


def normals_reference(key: Tensor, draw: int | Tensor, shape: Sequence[int]) -> Tensor:
    """`normals` in plain torch; the draw as in `words`."""
    samples, elements = shape[0], math.prod(shape[1:])
    z = box_muller(words(key[0], draw, key[1], samples, elements, key.device))
    return torch.stack(z, dim=-1).flatten(1)[:, :elements].reshape(shape)


def _empty(key: Tensor, draw: int, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=key.device)


def _launch(key: Tensor, draw: int, shape: Sequence[int]) -> Tensor:
    from fastdiff.kernels import philox_triton

    out = _empty(key, draw, shape)
    if out.numel():
        philox_triton.normals(out.view(shape[0], -1), key.contiguous(), draw)
    return out


def _launch_c(key: Tensor, draw: int, shape: Sequence[int]) -> Tensor:
    from fastdiff.kernels.cpu.philox import key_view, normals
    from fastdiff.kernels.cpu.plan import View, run

    out = _empty(key, draw, shape)
    if out.numel():
        run([normals(key_view(key.contiguous()), View.of(out), draw)])
    return out


_normals = register(
    "normals(Tensor key, SymInt draw, SymInt[] shape) -> Tensor",
    normals_reference,
    Kernels(take=lambda key, *_: triton_for(key.device, torch.float32), launch=_launch, empty=_empty),
    Kernels(take=lambda key, *_: c_for(key), launch=_launch_c, empty=_empty),
)
