"""Which of a schedule's timesteps a run of fewer steps visits."""

from __future__ import annotations

import numpy as np

from fastdiff.errors import InputError, check_float, check_int, unknown_name

SPACINGS = ("trailing", "leading", "linspace", "course")
SPACING = "trailing"  # unless given
STRENGTH = 0.6  # of what begins with a picture, unless given


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


def first_row(strength: float, steps: int) -> int:
    """The first row of a run's last int(strength steps), as diffusers counts them.

    Args:
        strength: above 0 to 1, how far the samples may go from the pictures that they begin as.
        steps: of the whole run.

    Raises:
        InputError: for another strength, and one that leaves no step.
    """
    strength = check_float("strength", strength, 0, 1)
    kept = int(steps * strength)
    if not kept:
        raise InputError(f"strength = {strength:g} of {steps} steps leaves none; accepted: 1 / {steps} to 1")
    return steps - kept
