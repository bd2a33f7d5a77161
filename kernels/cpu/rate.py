"""How fast a core is, for the benchmarks."""

from __future__ import annotations

from fastdiff.kernels.cpu.compiled import library


def multiply_adds(seconds: float = 0.05) -> int:
    """Float32 multiply-adds a second of the calling thread's core, whose vectors wait for no memory.

    Args:
        seconds: how long it is measured, about.
    """
    rate: int = library().multiply_adds(seconds)
    return rate
