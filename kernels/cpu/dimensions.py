"""Dimensions of views, as the C kernels for any strides take them."""

from __future__ import annotations

from collections.abc import Sequence


def wrapped(op: str, dim: int, rank: int) -> int:
    """A dimension counted from the first; raises ValueError unless there are so many."""
    if not -rank <= dim < rank:
        raise ValueError(f"{op}: dimension {dim} of {rank}; accepted: {-rank} .. {rank - 1}")
    return dim % rank


def joined(*dims: Sequence[int]) -> list[tuple[int, ...]]:
    """The same elements in fewer dimensions, where dimensions are evenly spaced in every view.

    Args:
        dims: each a size and then its strides in every view.

    Returns:
        Such dimensions, but for those of size 1, the last one with the smallest stride in the first view.
    """
    made: list[tuple[int, ...]] = []
    for size, *strides in sorted(dims, key=lambda dim: -dim[1]):
        if made and all(outer == size * stride for outer, stride in zip(made[-1][1:], strides, strict=True)):
            made[-1] = made[-1][0] * size, *strides
        elif size != 1:
            made.append((size, *strides))
    return made


def filled(dims: Sequence[Sequence[int]], rank: int, views: int) -> list[int]:
    """All sizes, then all strides in each view; with dimensions of size 1 before them, up to `rank` of them."""
    whole = [*[(1, *[0] * views)] * (rank - len(dims)), *dims]
    return [number for numbers in zip(*whole, strict=True) for number in numbers]
