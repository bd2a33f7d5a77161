"""DDIM and DDPM: a step to the next node by way of x0, with none, some or all of the posterior's noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastdiff.samplers.entry import Coefficients, sampler
from fastdiff.samplers.path import Path


@sampler("deterministic; eta up to 1 adds noise", "Song et al. 2021, eq. 12 and 16", takes_eta=True)
def ddim(path: Path, eta: float = 0.0) -> Coefficients:
    alpha, sigma, alpha_next, sigma_next = path.alpha, path.sigma, path.alpha_next, path.sigma_next
    s = eta * (sigma_next / sigma) * np.sqrt(np.maximum(1 - (alpha / alpha_next) ** 2, 0))
    # sigma'^2 - s^2 is never negative; where eta = 1 rounding can leave it a few ulp below zero.
    a = np.sqrt(np.maximum(sigma_next**2 - s**2, 0)) / sigma
    return Coefficients(a, b=alpha_next - a * alpha, s=s)


@sampler("noise of the posterior's variance; wants many steps", "Ho et al. 2020, eq. 6 and 7", steps=None)
def ddpm(path: Path) -> Coefficients:
    # A learned variance lies between this and ddpm_large's (Nichol and Dhariwal 2021, eq. 15).
    return ddim(path, eta=1.0)._replace(S=np.where(path.sigma_next > 0, np.sqrt(_betas(path)), 0.0))


@sampler(
    "noise of variance beta, the fixed large one; wants many steps",
    "Ho et al. 2020, section 3.2",
    steps=None,
    preserves_variance=False,
)
def ddpm_large(path: Path) -> Coefficients:
    schedule = path.schedule
    if schedule is not None and schedule.first and path.timestep[-1] == schedule.first:
        # The course's last row, in which alpha'^2 is 1 - betas[0] = 0.9999; with 1 its whole loop would be 9e-4 off.
        alpha_next, sigma_next = path.alpha_next.copy(), path.sigma_next.copy()
        alpha_next[-1], sigma_next[-1] = np.sqrt(1 - schedule.betas[0]), np.sqrt(schedule.betas[0])
        path = replace(path, alpha_next=alpha_next, sigma_next=sigma_next)
    s = np.sqrt(_betas(path))
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
