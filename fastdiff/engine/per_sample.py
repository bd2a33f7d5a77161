"""What belongs to each sample of a request: a row for each, or one for all."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Rows = Callable[[int, int], Tensor]  # (first sample, count) → (count, ...), on the CPU


def rows_of(given: Tensor, first: int) -> Rows:
    """Row r of (n, ...) for sample first + r, or the row of (1, ...) for every sample."""
    if len(given) == 1:
        return lambda at, count: given.expand(count, *given.shape[1:])
    return lambda at, count: given[at - first : at - first + count]
