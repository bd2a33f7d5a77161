"""The range of the pictures' values that becomes [-1, 1]. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdiff.data.space import blocks, room
from fastdiff.errors import InputError

EIGHT_BITS = (0.0, 255.0)
Range = tuple[float, float]


def check_range(value_range: Sequence[float] | None) -> Range | None:
    """(low, high) as floats; raises InputError unless they are finite and low < high."""
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not (math.isfinite(high - low) and low < high):
        raise InputError(f"value_range = {value_range!r}; accepted: (low, high), two finite numbers, low < high")
    return low, high


def in_float32(array: np.ndarray) -> np.ndarray:
    """The array itself if it is uint8 or float32 of this machine, else its numbers as float32.

    That is exact for 16 bits, and for whole numbers up to 2^24.
    """
    if array.dtype in (np.uint8, np.float32):
        return array
    made = room(array.shape, np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is refused by `choose_range`
        for block in blocks(array):
            made[block] = array[block]
    return made


def choose_range(name: str, arrays: Sequence[np.ndarray], given: Range | None) -> tuple[Range, str]:
    """The range of data, and how it was chosen.

    Args:
        name: the data's, for errors.
        arrays: all of its pictures, each uint8 or float32 and not empty.
        given: the user's range. Without one it is 0 to 255 for uint8; for others 0 to 1 or -1 to 1 if all values lie
            there, else the least and the greatest value.

    Returns:
        (low, high), and a few words for the user, empty where there is no choice.

    Raises:
        InputError: if a value is NaN, infinite or outside of the given range, or all values are one.
    """
    if given is None and all(array.dtype == np.uint8 for array in arrays):
        dark = all(int(array[block].max()) <= 1 for array in arrays for block in blocks(array))
        return EIGHT_BITS, "all values are 0 or 1, nearly black; --range 0,1 takes 1 as white" if dark else ""
    low, high = _extremes(name, arrays)
    if given is not None:
        if low < np.float32(given[0]) or high > np.float32(given[1]):
            outside = sum(int(((a[b] < given[0]) | (a[b] > given[1])).sum()) for a in arrays for b in blocks(a))
            raise InputError(
                f"{outside:,} of {sum(a.size for a in arrays):,} values of data {name!r} lie outside of the range "
                f"{shown(given)}; they go from {shown((low, high))}"
            )
        return given, ""
    for usual in ((0.0, 1.0), (-1.0, 1.0)):
        if usual[0] <= low and high <= usual[1]:
            return usual, ""
    if low == high:
        raise InputError(f"all values of data {name!r} are {low:g}; give the range that they belong to (--range)")
    return (low, high), "these are the least and the greatest value found, --range LOW,HIGH takes others"


def _extremes(name: str, arrays: Sequence[np.ndarray]) -> Range:
    low, high, broken = math.inf, -math.inf, 0
    for array in arrays:
        for block in blocks(array):
            part = array[block]
            broken += part.size - int(np.isfinite(part).sum())
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    if broken:
        raise InputError(
            f"{broken:,} of {sum(array.size for array in arrays):,} values of data {name!r} are NaN, infinite or too "
            "large for float32"
        )
    return low, high


def shown(value_range: Range) -> str:
    """ "0 to 4095"."""
    return " to ".join(f"{value:.7g}" for value in value_range)
