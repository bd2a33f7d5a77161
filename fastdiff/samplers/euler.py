"""The samplers of Karras et al. 2022, whose ODE is dX/dsigma = (X - x0) / sigma for X = x / alpha and sigma / alpha.

They begin with noise of the first node's level, not of variance 1 as the others do: less, where the schedule ends short
of pure noise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.entry import Coefficients, sampler
from fastdiff.samplers.path import Path
from fastdiff.samplers.schedule import Schedule

CHURN = 2**0.5 - 1  # the most by which algorithm 2 raises the noise level before a step


@sampler("first order, deterministic; ddim from the first node's noise level", "Karras et al. 2022, algorithm 1")
def euler(path: Path) -> Coefficients:
    # (x/alpha - x0) / sigma is constant along a step of DDIM: Euler's method is that step (Karras et al., C.1).
    return ddim(path)._replace(init_noise_sigma=float(path.sigma[0]))


@sampler("Euler's method to below the next node, then noise up to it", "Song et al. 2021, eq. 16; k-diffusion")
def euler_ancestral(path: Path) -> Coefficients:
    # sigma_up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2 is the posterior's variance: DDIM's eta = 1.
    return ddim(path, eta=1.0)._replace(init_noise_sigma=float(path.sigma[0]))


@sampler("second order, deterministic; two evaluations a step", "Karras et al. 2022, algorithm 1")
def heun(path: Path) -> Coefficients:
    return _heun(path, path)


def _whole_range(schedule: Schedule, steps: int) -> Path:
    last = schedule.first + schedule.num_timesteps - 1
    return Path.at(schedule, np.linspace(last, schedule.first, steps).round()).spread("karras")


@sampler(
    "heun on noise levels of its own, two evaluations a step; eta up to 1 adds noise",
    "Karras et al. 2022, algorithm 2",
    takes_eta=True,
    nodes=_whole_range,
)
def edm(path: Path, eta: float = 0.0) -> Coefficients:
    """eta: gamma of algorithm 2 as a share of its largest, sqrt(2) - 1; no level is raised above the first node's."""
    finite = path.alpha > 0
    ratio = path.sigma[finite] / path.alpha[finite]
    return _heun(path, path.moved(finite, np.minimum(ratio * (1 + eta * CHURN), ratio[:1])) if eta else path)


def _heun(path: Path, raised: Path) -> Coefficients:
    """Heun's method, a row for each evaluation: one at the node, one at the next node with the mean of both slopes.

    A step from pure noise and one to what is clean are Euler's alone: at an infinite sigma and at 0 there is no slope.

    Args:
        path: the nodes.
        raised: the same with noise added, where the steps begin; the row before adds it.
    """
    begin = replace(raised, alpha_next=path.alpha_next, sigma_next=path.sigma_next)
    twice = begin.decay > 0
    twice[-1] = False
    step = np.repeat(np.arange(len(path)), 1 + twice)  # of each row
    last = np.append(step[1:] != step[:-1], True)
    second = np.append(False, ~last[:-1])

    # x/alpha + (sigma' - sigma)(slope' - slope) / 2, and slope' - slope = (x0_before - x0) / sigma'.
    half = path.alpha_next * (1 / np.where(twice, begin.decay, 1.0) - 1) / 2
    plain = ddim(begin)
    up = np.where(last, (raised.alpha_next / path.alpha_next)[step], 1.0)
    sigma_next = np.where(last, raised.sigma_next[step], path.sigma_next[step])
    rows = Path(
        timestep=np.where(second, path.timestep[step + second], begin.timestep[step]),
        alpha=np.where(second, path.alpha_next[step], begin.alpha[step]),
        sigma=np.where(second, path.sigma_next[step], begin.sigma[step]),
        alpha_next=up * path.alpha_next[step],
        sigma_next=sigma_next,
        schedule=path.schedule,
    )
    return Coefficients(
        a=up * np.where(second, 1.0, np.asarray(plain.a)[step]),
        b=up * np.where(second, half[step], np.asarray(plain.b)[step]),
        c=up * np.where(second, -half[step], 0.0),
        s=np.sqrt(np.maximum(sigma_next**2 - (up * path.sigma_next[step]) ** 2, 0)),
        init_noise_sigma=float(path.sigma[0]),
        path=rows,
    )
