"""What a sampler's graph does to pixels: clipping and conversion to uint8."""

from __future__ import annotations

import math

import numpy as np

from fastdiff.export.graph import UINT8, Graph
from fastdiff.samplers.prediction import Clip


def clipped(g: Graph, x0: str, clip: Clip, shape: tuple[int, ...]) -> str:
    """x0 clamped to a bound, or by dynamic thresholding (see kernels.denoise_step)."""
    if clip is None:
        return x0
    if not isinstance(clip, tuple):
        return g("Clip", x0, g.constant(-clip, np.float32), g.constant(clip, np.float32))
    elements = math.prod(shape)
    place = clip[1] * (elements - 1)
    low = int(place)
    high = min(low + 1, elements - 1)
    size = g("Reshape", g("Abs", x0), g.constant([-1, elements]))
    largest = g.several("TopK", 2, size, g.constant([elements - low]), axis=1)[
        0
    ]  # descending, so the last has index `low`
    low_value, high_value = (g("Gather", largest, g.constant([elements - 1 - at]), axis=1) for at in (low, high))
    step = g("Mul", g("Sub", high_value, low_value), g.constant(place - low, np.float32))
    bound = g("Max", g("Add", low_value, step), g.constant(1, np.float32))  # (n, 1)
    bound = g("Reshape", bound, g.constant([-1, 1, 1, 1]))
    return g("Div", g("Max", g("Min", x0, bound), g("Neg", bound)), bound)


def to_pictures(g: Graph, x: str) -> str:
    """[-1, 1] float32 (n, C, H, W) → uint8 (n, H, W, C), as fastdiff.images.to_uint8: NaN is 0."""
    whole = g("Where", g("IsNaN", x), g.constant(-1, np.float32), x)
    scaled = g("Mul", g("Add", whole, g.constant(1, np.float32)), g.constant(127.5, np.float32))
    rounded = g("Round", g("Clip", scaled, g.constant(0, np.float32), g.constant(255, np.float32)))
    return g("Cast", g("Transpose", rounded, perm=[0, 2, 3, 1]), to=UINT8)
