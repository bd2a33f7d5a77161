"""Philox4x32-10 and its normals as ONNX operators: those of kernels.philox, bit for bit.

They are int64 operators without shifts, which ONNX Runtime 1.20 and onnxruntime-web both have. A 32-bit word is an
int64 in [0, 2^32); multipliers are split into two limbs of 16 bits, so that no intermediate result reaches 2^50.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from fastdiff.export.graph import FLOAT, INT64, Graph
from fastdiff.kernels.philox import (
    COS_POLYNOMIAL,
    KEY_INCREMENTS,
    LN2_HIGH,
    LN2_LOW,
    LOG_POLYNOMIAL,
    MASK,
    MULTIPLIERS,
    SIN_POLYNOMIAL,
)

ROUNDS = 10
LIMB = 1 << 16


@dataclass(frozen=True)
class Streams:
    """All that a batch's noise depends on besides the draw, as values of a graph; loops inside it may use them too.

    Attributes:
        low, high: (n, 1), the halves of the sample indices.
        keys: two scalars for each round.
    """

    low: str
    high: str
    keys: list[tuple[str, str]]


def _halves(g: Graph, value: str) -> tuple[str, str]:
    """The low and the high 32 bits of an int64."""
    mask, two32 = g.constant(MASK), g.constant(1 << 32)
    low = g("BitwiseAnd", value, mask)
    # Div rounds towards zero; an exact quotient makes it right for negative values too.
    return low, g("BitwiseAnd", g("Div", g("Sub", value, low), two32), mask)


def streams(g: Graph, seed: str, first: str, n: str) -> Streams:
    """The streams of samples first .. first + n - 1 of the seed; the arguments are int64 scalars."""
    indices = g("Add", first, g("Range", g.constant(0), n, g.constant(1)))
    low, high = _halves(g, g("Unsqueeze", indices, g.constant([1])))
    columns = []
    for half, increment in zip(_halves(g, seed), KEY_INCREMENTS, strict=True):
        steps = g.constant([i * increment & MASK for i in range(ROUNDS)])
        keys = g("BitwiseAnd", g("Add", half, steps), g.constant(MASK))  # (ROUNDS,)
        parts = g.several("Split", ROUNDS, keys, num_outputs=ROUNDS, axis=0)
        columns.append([g("Squeeze", part, g.constant([0])) for part in parts])
    return Streams(low, high, list(zip(*columns, strict=True)))


def _product(g: Graph, x: str, multiplier: int) -> tuple[str, str]:
    """The high and the low 32 bits of x times the multiplier."""
    limb, mask = g.constant(LIMB), g.constant(LIMB - 1)
    upper, lower = g.constant(multiplier // LIMB), g.constant(multiplier % LIMB)
    low = g("Mul", x, lower)  # < 2^48
    middle = g("Add", g("Mul", x, upper), g("Div", low, limb))  # < 2^49
    word = g("Add", g("Mul", g("BitwiseAnd", middle, mask), limb), g("BitwiseAnd", low, mask))
    return g("Div", middle, limb), word


def words(g: Graph, stream: Streams, draw: str, elements: int) -> list[str]:
    """The four words of each block of four elements: int64, (n, ceil(elements / 4)). draw: int64 scalar."""
    counter = [g.constant(np.arange((elements + 3) // 4)[None]), draw, stream.low, stream.high]
    for key in stream.keys:
        (high0, low0), (high1, low1) = (_product(g, counter[i], m) for i, m in zip((0, 2), MULTIPLIERS, strict=True))
        counter = [
            g("BitwiseXor", g("BitwiseXor", high1, counter[1]), key[0]),
            low1,
            g("BitwiseXor", g("BitwiseXor", high0, counter[3]), key[1]),
            low0,
        ]
    return counter


def normals(g: Graph, stream: Streams, draw: str, image_shape: tuple[int, ...]) -> str:
    """Standard normals, float32 (n, C, H, W), by Box and Muller.

    The same bits as kernels.philox, because each of its IEEE operations is repeated, in the same order.
    """
    elements = math.prod(image_shape)

    def odd(*pair: str) -> str:  # (n, blocks, 2): u = odd 2^-24
        both = g("Concat", *(g("Unsqueeze", word, g.constant([2])) for word in pair), axis=2)
        return g("Add", g("Mul", g("Div", both, g.constant(1 << 9)), g.constant(2)), g.constant(1))

    w0, w1, w2, w3 = words(g, stream, draw, elements)
    # As in kernels.philox the square root is taken in float64: ONNX Runtime 1.20's float32 one is not IEEE's either.
    squared = g("Cast", g("Mul", _log(g, odd(w0, w2)), _float(g, -2)), to=TensorProto.DOUBLE)
    radius = g("Cast", g("Sqrt", squared), to=FLOAT)
    sides = [g("Unsqueeze", g("Mul", radius, side), g.constant([3])) for side in _cos_sin_turns(g, odd(w1, w3))]
    rows = g("Reshape", g("Concat", *sides, axis=3), g.constant([-1, -(-elements // 4) * 4]))
    if elements % 4:
        rows = g("Slice", rows, g.constant([0]), g.constant([elements]), g.constant([1]))
    return g("Reshape", rows, g.constant([-1, *image_shape]))


def _float(g: Graph, value: float | list[float]) -> str:
    return g.constant(value, np.float32)


def _to_float(g: Graph, integers: str) -> str:
    return g("Cast", integers, to=FLOAT)


def _log(g: Graph, odd: str) -> str:
    """The logarithm of odd 2^-24, odd in [1, 2^24), as in kernels.philox."""
    w = _to_float(g, odd)
    # w has floor(log2(w)) + 1 bits. The runtime's logarithm, raised slightly, gives that or one more; a comparison with
    # the power of two decides.
    guess = g("Floor", g("Add", g("Mul", g("Log", w), _float(g, 1 / math.log(2))), _float(g, 1e-4)))
    bits = g("Cast", guess, to=INT64)
    below = g("Cast", g("Less", w, g("Gather", _float(g, [2.0**k for k in range(26)]), bits)), to=INT64)
    bits = g("Add", g("Sub", bits, below), g.constant(1))
    f = g("Mul", w, g("Gather", _float(g, [2.0**-k for k in range(27)]), bits))  # in [1/2, 1), exact
    small = g("Less", f, _float(g, math.sqrt(0.5)))
    x = g("Sub", g("Where", small, g("Add", f, f), f), _float(g, 1))
    e = g("Sub", g("Cast", g("Sub", bits, g.constant(24)), to=FLOAT), g("Cast", small, to=FLOAT))
    y = g("Add", g("Mul", x, _float(g, LOG_POLYNOMIAL[0])), _float(g, LOG_POLYNOMIAL[1]))
    for c in LOG_POLYNOMIAL[2:]:
        y = g("Add", g("Mul", y, x), _float(g, c))
    z = g("Mul", x, x)
    y = g("Mul", g("Mul", y, x), z)
    y = g("Sub", y, g("Mul", e, _float(g, LN2_LOW)))
    y = g("Sub", y, g("Mul", z, _float(g, 0.5)))
    return g("Add", g("Add", x, y), g("Mul", e, _float(g, LN2_HIGH)))


def _cos_sin_turns(g: Graph, odd: str) -> tuple[str, str]:
    """The cosine and sine of 2 pi odd 2^-24, as in kernels.philox."""
    quarter = g.constant(1 << 22)
    quadrant = g("Div", g("Add", odd, g.constant(1 << 21)), quarter)
    rest = g("Sub", odd, g("Mul", quadrant, quarter))
    y = g("Mul", _to_float(g, rest), _float(g, 2.0**-22 * (math.pi / 2)))
    z = g("Mul", y, y)

    def polynomial(coefficients: tuple[float, ...]) -> str:
        value = g("Add", g("Mul", z, _float(g, coefficients[0])), _float(g, coefficients[1]))
        return g("Add", g("Mul", value, z), _float(g, coefficients[2]))

    def bit(value: str, mask: int) -> str:
        return g("Equal", g("BitwiseAnd", value, g.constant(mask)), g.constant(mask))

    sin = g("Add", g("Mul", g("Mul", polynomial(SIN_POLYNOMIAL), z), y), y)
    cos = g("Mul", polynomial(COS_POLYNOMIAL), g("Mul", z, z))
    cos = g("Add", g("Sub", cos, g("Mul", z, _float(g, 0.5))), _float(g, 1))
    swap = bit(quadrant, 1)
    sin, cos = g("Where", swap, cos, sin), g("Where", swap, sin, cos)
    sin = g("Where", bit(quadrant, 2), g("Neg", sin), sin)
    return g("Where", bit(g("Add", quadrant, g.constant(1)), 2), g("Neg", cos), cos), sin
