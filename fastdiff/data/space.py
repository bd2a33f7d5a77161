"""Where arrays lie: in memory, or where they are large in a file that is mapped into it. Imports no torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator

import numpy as np

LARGE = 2**30  # bytes from which on an array is mapped, not held
BLOCK = 2**24  # bytes that are looked at together


def room(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An array to be filled; a large one lies in a temporary file, which ends with the process.

    Args:
        shape: of any number of sizes.
        dtype: of the elements.

    Returns:
        The array, writable, in C order; what it holds is not said.

    Raises:
        OSError: if the file cannot be made. It lies in the folder that the variable TMPDIR names, or in /tmp.
    """
    dtype = np.dtype(dtype)
    if math.prod(shape) * dtype.itemsize <= LARGE:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="fastdiff-") as file:  # the mapping keeps what it holds
        return np.memmap(file, dtype, "w+", shape=shape)


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis, each of some 16 MiB, so that a mapped array is never in memory at once."""
    each = max(1, BLOCK * len(array) // max(1, array.nbytes))
    return (slice(start, start + each) for start in range(0, len(array), each))
