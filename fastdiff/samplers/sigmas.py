"""Noise levels spread over a range, in place of timesteps: sigma is here what is added to an unscaled x0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastdiff.errors import unknown_name

RHO = 7.0


def _karras(share: np.ndarray, high: float, low: float) -> np.ndarray:
    """Karras et al. 2022, eq. 5."""
    return (high ** (1 / RHO) + share * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO


def _exponential(share: np.ndarray, high: float, low: float) -> np.ndarray:
    """Equal steps of log sigma."""
    return high * (low / high) ** share


_SPREADS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "karras": _karras,
    "exponential": _exponential,
}
SIGMAS = tuple(_SPREADS)


def spread(name: str, sigmas: np.ndarray) -> np.ndarray:
    """As many noise levels, with the same first and last.

    Args:
        name: "karras", where sigma^(1 / 7) falls in equal steps, or "exponential", where log sigma does.
        sigmas: (n,) falling, above 0.

    Returns:
        (n,) float64, falling.

    Raises:
        InputError: for another name.
    """
    if not isinstance(name, str) or name not in _SPREADS:
        raise unknown_name("spread of sigmas", name, SIGMAS)
    made = _SPREADS[name](np.linspace(0, 1, len(sigmas)), float(sigmas[0]), float(sigmas[-1]))
    made[0], made[-1] = sigmas[0], sigmas[-1]  # to the bit, for the schedule ends there
    return made
