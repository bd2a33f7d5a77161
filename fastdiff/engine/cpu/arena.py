"""Where results lie: one arena, in which buffers that are not alive together share memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ALIGNED = 16  # floats in a cache line


class Buffer:
    """Memory of a plan; two are never equal.

    Attributes:
        size: in floats.
    """

    def __init__(self, size: int) -> None:
        self.size = size


def layout(uses: Sequence[Iterable[Buffer]], kept: Iterable[Buffer]) -> tuple[dict[Buffer, int], int]:
    """Offsets of the buffers, and the arena's size, in floats.

    The largest buffers are placed first, each at the lowest offset that is free while it is alive.

    Args:
        uses: for each step the buffers that it reads or writes; one is alive from its first use to its last.
        kept: those that are alive to the end.
    """
    alive: dict[Buffer, tuple[int, int]] = {}
    for at, buffers in enumerate(uses):
        for buffer in buffers:
            alive[buffer] = (alive.get(buffer, (at, at))[0], at)
    alive |= {buffer: (alive.get(buffer, (0, 0))[0], len(uses)) for buffer in kept}
    placed: list[tuple[int, int, Buffer]] = []  # begin, end
    for buffer in sorted(alive, key=lambda one: -_lines(one)):  # of equal ones that which is alive first
        first, last = alive[buffer]
        at = 0
        for begin, end, other in sorted(placed, key=lambda one: one[0]):
            if alive[other][0] <= last and first <= alive[other][1] and end > at:
                if begin - at >= buffer.size:
                    break
                at = end
        placed.append((at, at + _lines(buffer) * ALIGNED, buffer))
    return {buffer: begin for begin, _, buffer in placed}, max((end for _, end, _ in placed), default=0)


def _lines(buffer: Buffer) -> int:
    """Cache lines that it takes."""
    return -(-buffer.size // ALIGNED)
