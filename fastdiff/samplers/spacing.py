"""Which of a schedule's timesteps a run of fewer steps visits."""

from __future__ import annotations

import numpy as np

from fastdiff.errors import InputError, check_int, unknown_name

SPACINGS = ("trailing", "leading", "linspace", "course")


def spaced(num_timesteps: int, steps: int, spacing: str) -> np.ndarray:
    """The nodes of a run, as diffusers' DDIMScheduler.set_timesteps spaces them (Lin et al. 2023, table 2).

    Args:
        num_timesteps: T, the schedule's.
        steps: n, 1 to T.
        spacing: "trailing": round(T, T - T/n, ...) - 1. "leading": multiples of T // n. "linspace":
            round(linspace(0, T - 1, n)). "course": from T - 1 down by T // n, where n must divide T.

    Returns:
        (n,) int64 within 0 .. T - 1, falling.

    Raises:
        InputError: for values outside these.
    """
    t, n = num_timesteps, check_int("steps", steps, 1, num_timesteps)
    if spacing == "trailing":
        return np.round(np.arange(t, 0, -t / n))[:n].astype(np.int64) - 1
    if spacing == "leading":
        return np.arange(n)[::-1] * (t // n)
    if spacing == "linspace":
        return np.linspace(0, t - 1, n).round()[::-1].astype(np.int64)
    if spacing == "course":
        if t % n:
            raise InputError(f"steps = {n} with spacing 'course'; accepted: a divisor of {t}")
        return np.arange(t, 0, -(t // n)) - 1
    raise unknown_name("spacing", spacing, SPACINGS)
