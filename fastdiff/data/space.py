"""Where arrays lie: in memory, or where they are large in a file that is mapped into it. Imports no torch."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastdiff.errors import InputError

LARGE = 2**30  # bytes from which on an array is mapped, not held
BLOCK = 2**24  # bytes that are looked at together
MOST_TIMES, MOST_MORE = 10, 2**26  # memory that a compressed file may take: so many times its bytes, and so many more


def room(shape: tuple[int, ...], dtype: np.dtype | type, large: int = LARGE) -> np.ndarray:
    """An array to be filled; a large one lies in a temporary file, which ends with the process.

    Args:
        shape: of any number of sizes.
        dtype: of the elements.
        large: the bytes from which on it is large.

    Returns:
        The array, writable, in C order; what it holds is not said.

    Raises:
        InputError: if there is no room for the file.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size <= min(large, LARGE):
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:  # the mapping keeps what it holds
            if hasattr(os, "posix_fallocate"):  # a full disk is said here, and does not kill the process later
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"no room for an array of {size / 2**30:,.1f} GiB in {tempfile.gettempdir()!r} ({error.strerror}); the "
            "variable TMPDIR names another folder"
        ) from error


def most_memory(path: str | Path) -> int:
    """The bytes of memory that a compressed file's content may take."""
    return MOST_TIMES * os.path.getsize(path) + MOST_MORE


def check_classes(name: str, count: int, classes: int, held: int) -> None:
    """Raises InputError where a weight for each class of each picture takes far more than the pictures themselves.

    Args:
        name: the data's.
        count: of the pictures.
        classes: how many there are.
        held: bytes of the pictures.
    """
    size = 4 * count * classes
    if size > MOST_TIMES * held + MOST_MORE:
        raise InputError(
            f"data {name!r} has {classes:,} classes for {count:,} pictures, which take {held:,} bytes; their weights "
            f"would take {size:,}; accepted: up to {MOST_TIMES} times as much"
        )


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis, each of some 16 MiB, so that a mapped array is never in memory at once."""
    each = max(1, BLOCK * len(array) // max(1, array.nbytes))
    return (slice(start, start + each) for start in range(0, len(array), each))
