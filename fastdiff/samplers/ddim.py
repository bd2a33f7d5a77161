"""DDIM and DDPM: a step to the next node by way of x0, with none, some or all of the posterior's noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastdiff.samplers.entry import Coefficients, sampler
from fastdiff.samplers.path import Path
from fastdiff.samplers.prediction import noise_coefficients


@sampler("deterministic; eta up to 1 adds noise", "Song et al. 2021, eq. 12 and 16", takes_eta=True)
def ddim(path: Path, eta: float = 0.0) -> Coefficients:
    direction, s = _split(path, eta)
    a = direction / path.sigma
    return Coefficients(a, b=path.alpha_next - a * path.alpha, s=s)


def ddim_keeping_noise(path: Path, eta: float = 0.0, *, prediction_type: str) -> Coefficients:
    """DDIM where a clip of x0 leaves the predicted noise as it is, diffusers' default; without a clip the same.

    Args:
        path: the nodes.
        eta: 0 to 1.
        prediction_type: what the network predicts, since its output is used beside the clipped x0.
    """
    direction, s = _split(path, eta)
    of_x, of_out = noise_coefficients(prediction_type, path.alpha, path.sigma)
    return Coefficients(direction * of_x, b=path.alpha_next, o=direction * of_out, s=s)


def _split(path: Path, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """The next node's noise as what is kept of the present noise and what is new."""
    s = eta * (path.sigma_next / path.sigma) * np.sqrt(np.maximum(1 - (path.alpha / path.alpha_next) ** 2, 0))
    # sigma'^2 - s^2 is never negative; where eta = 1 rounding can leave it a few ulp below zero.
    return np.sqrt(np.maximum(path.sigma_next**2 - s**2, 0)), s


@sampler("noise of the posterior's variance; wants many steps", "Ho et al. 2020, eq. 6 and 7", steps=None)
def ddpm(path: Path) -> Coefficients:
    return ddim(path, eta=1.0)


def ddpm_learned(path: Path) -> Coefficients:
    """DDPM whose network chooses the noise between ddpm's and ddpm_large's (Nichol and Dhariwal 2021, eq. 15)."""
    return ddpm(path)._replace(S=np.where(path.sigma_next > 0, np.sqrt(_betas(path)), 0.0))


@sampler(
    "noise of variance beta, the fixed large one; wants many steps",
    "Ho et al. 2020, section 3.2",
    steps=None,
    preserves_variance=False,
)
def ddpm_large(path: Path, *, noise_at_end: bool = False) -> Coefficients:
    """noise_at_end: whether the last row has noise too, as in diffusers' DDPMScheduler unless it is timestep 0's."""
    schedule = path.schedule
    if schedule is not None and schedule.first and path.timestep[-1] == schedule.first:
        # The course's last row, in which alpha'^2 is 1 - betas[0] = 0.9999; with 1 its whole loop would be 9e-4 off.
        alpha_next, sigma_next = path.alpha_next.copy(), path.sigma_next.copy()
        alpha_next[-1], sigma_next[-1] = np.sqrt(1 - schedule.betas[0]), np.sqrt(schedule.betas[0])
        path = replace(path, alpha_next=alpha_next, sigma_next=sigma_next)
    s = np.sqrt(_betas(path))
    if not noise_at_end:
        s[-1] = 0.0
    return ddim(path, eta=1.0)._replace(s=s, path=path)


@sampler(
    "ddpm_large without its noise, the course's demonstration that it is needed",
    "How Diffusion Models Work",
    steps=None,
    preserves_variance=False,
    collapses=True,
)
def ddpm_no_noise(path: Path) -> Coefficients:
    return ddpm_large(path)._replace(s=0.0)


def _betas(path: Path) -> np.ndarray:
    """The variance that the forward process adds between a step's end and its node; the schedule's on unit strides."""
    return 1 - (path.alpha / path.alpha_next) ** 2
