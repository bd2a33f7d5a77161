"""Dimensions of views, as the C kernels for any strides take them."""

from __future__ import annotations

from collections.abc import Sequence


def wrapped(op: str, dim: int, rank: int) -> int:
    """A dimension counted from the first; raises ValueError unless there are so many."""
    if not -rank <= dim < rank:
        raise ValueError(f"{op}: dimension {dim} of {rank}; accepted: {-rank} .. {rank - 1}")
    return dim % rank


def filled(sizes: Sequence[int], *strides: Sequence[int], rank: int) -> list[int]:
    """The sizes, then each list of strides, all with dimensions of size 1 before them, up to `rank` of them."""
    missing = rank - len(sizes)
    return [*[1] * missing, *sizes, *(one for each in strides for one in (*[0] * missing, *each))]
