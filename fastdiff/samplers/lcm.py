"""Latent consistency models: from noise to x0 in one evaluation, and noised again for the next (Luo et al. 2023)."""

from __future__ import annotations

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.entry import Coefficients, sampler
from fastdiff.samplers.path import Path
from fastdiff.samplers.schedule import Schedule

ORIGINAL_STEPS = 50
SIGMA_DATA = 0.5


def lcm_timesteps(num_timesteps: int, steps: int, original_steps: int = ORIGINAL_STEPS) -> np.ndarray:
    """The nodes, as diffusers' LCMScheduler chooses them: `steps` out of those on which the model was distilled.

    Args:
        num_timesteps: T, the schedule's.
        steps: 1 to original_steps, and to T.
        original_steps: of the distillation, which visited multiples of T // original_steps, less 1; T if that is less.

    Returns:
        (steps,) int64 within 0 .. T - 1, falling.

    Raises:
        InputError: for another number of steps.
    """
    original_steps = min(original_steps, num_timesteps)
    if not 1 <= steps <= original_steps:
        raise InputError(f"steps = {steps} with sampler 'lcm'; accepted: 1 to {original_steps}")
    distilled = np.arange(original_steps, 0, -1) * (num_timesteps // original_steps) - 1
    return distilled[np.floor(np.linspace(0, original_steps, steps, endpoint=False)).astype(np.int64)]


def _distilled(schedule: Schedule, steps: int) -> Path:
    return Path.at(schedule, lcm_timesteps(schedule.num_timesteps, steps) + schedule.first)


# Exempt from the table's checks: near t = 0 the boundary condition leaves a share of x as it is, noise and all.
@sampler(
    "for models distilled to be consistent, in a few steps",
    "Luo et al. 2023, algorithm 2",
    steps=4,
    nodes=_distilled,
    preserves_mean=False,
    preserves_variance=False,
    collapses=True,
)
def lcm(path: Path, *, timestep_scaling: float = 10.0) -> Coefficients:
    """timestep_scaling: of the timestep in c_skip and c_out (Luo et al. 2023, eq. 9)."""
    time = timestep_scaling * path.timestep
    c_skip = SIGMA_DATA**2 / (time**2 + SIGMA_DATA**2)
    c_out = time / np.sqrt(time**2 + SIGMA_DATA**2)
    s = path.sigma_next.copy()
    s[-1] = 0.0
    return Coefficients(path.alpha_next * c_skip, path.alpha_next * c_out, s=s)
