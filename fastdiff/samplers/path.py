"""The nodes that a run visits: all that a sampler's formula sees."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fastdiff.errors import InputError, wrong_type
from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.sigmas import spread
from fastdiff.samplers.spacing import spaced


@dataclass(frozen=True, eq=False)
class Path:
    """Nodes and their noise levels, one row for each step; columns are (rows,).

    A noisy image at a node is alpha x0 + sigma noise: with alphas_cumprod abar, alpha = sqrt(abar) and
    sigma = sqrt(1 - abar). Formulas use sigma / alpha and ratios of alphas alone, so that any scale of x will do.

    Attributes:
        timestep: float64, falling; a node may lie between two timesteps of the schedule.
        alpha, sigma: float64, at the node.
        alpha_next, sigma_next: float64, where the step leads: the next node, and at the end what is clean, 1 and 0.
        schedule: where the nodes come from, if from one.
    """

    timestep: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray
    schedule: Schedule | None = None

    @classmethod
    def through(
        cls,
        timestep: Any,
        alpha: Any,
        sigma: Any,
        *,
        alpha_last: float = 1.0,
        sigma_last: float = 0.0,
        schedule: Schedule | None = None,
    ) -> Path:
        """From each node to the next, and from the last to alpha_last and sigma_last.

        Args:
            timestep, alpha, sigma: (rows,) numbers.
            alpha_last, sigma_last: where the last step leads.
            schedule: where the nodes come from, if from one.
        """
        timestep, alpha, sigma = (np.asarray(column, dtype=np.float64) for column in (timestep, alpha, sigma))
        return cls(timestep, alpha, sigma, np.append(alpha[1:], alpha_last), np.append(sigma[1:], sigma_last), schedule)

    @classmethod
    def at(cls, schedule: Schedule, timestep: np.ndarray) -> Path:
        """Through a schedule's timesteps; between two of them log(sigma / alpha) is linear.

        Args:
            schedule: the model's.
            timestep: (rows,), within the schedule's.

        Raises:
            InputError: for a node between pure noise (alphas_cumprod = 0) and the timestep before.
        """
        timestep = np.asarray(timestep, dtype=np.float64)
        below = np.floor(timestep).astype(np.int64)
        whole = timestep == below
        abar = schedule.alphas_cumprod
        alpha, sigma = np.sqrt(abar[below]), np.sqrt(1 - abar[below])
        if not whole.all():
            between = timestep[~whole]
            if not abar[below[~whole] + 1].all():
                raise InputError(
                    f"timestep {between[0]:g} between {np.floor(between[0]):g} and pure noise, alphas_cumprod = 0; "
                    "accepted: one of the two"
                )
            known, log_ratio = _log_ratios(schedule)
            alpha[~whole], sigma[~whole] = levels(np.exp(np.interp(between, known, log_ratio)))
        return cls.through(timestep, alpha, sigma, schedule=schedule)

    @classmethod
    def of(cls, schedule: Schedule, steps: int, spacing: str) -> Path:
        """The nodes of `steps` steps; see spacing.spaced."""
        return cls.at(schedule, spaced(schedule.num_timesteps, steps, spacing) + schedule.first)

    def spread(self, sigmas: str) -> Path:
        """As many nodes, from the first to the last, spread by their sigma / alpha; see sigmas.spread.

        A first node of pure noise, where that is infinite, stays, and the others are spread.
        """
        finite = self.alpha > 0
        ratio = self.sigma[finite] / self.alpha[finite]
        return self.moved(finite, spread(sigmas, ratio)) if len(ratio) else self

    def moved(self, which: np.ndarray, ratio: np.ndarray) -> Path:
        """The path with other sigma / alpha at some nodes, and the schedule's timesteps for them.

        Args:
            which: (rows,) bool, the nodes.
            ratio: as many numbers, above 0.
        """
        if self.schedule is None:
            raise InputError("nodes moved on a path without a schedule; accepted: a path of one, see Path.at")
        timestep, alpha, sigma = self.timestep.copy(), self.alpha.copy(), self.sigma.copy()
        known, log_ratio = _log_ratios(self.schedule)
        timestep[which] = np.interp(np.log(ratio), log_ratio, known)
        alpha[which], sigma[which] = levels(ratio)
        end = {"alpha_last": self.alpha_next[-1], "sigma_last": self.sigma_next[-1]}
        return Path.through(timestep, alpha, sigma, **end, schedule=self.schedule)

    def tail(self, start: int) -> Path:
        """From row `start` on."""
        columns = {one.name: getattr(self, one.name)[start:] for one in fields(self) if one.name != "schedule"}
        return Path(schedule=self.schedule, **columns)

    @property
    def decay(self) -> np.ndarray:
        """(rows,) sigma / alpha at the step's end over that at its node: exp(-h), h the step in log(alpha / sigma)."""
        return self.alpha * self.sigma_next / (self.sigma * self.alpha_next)

    def __len__(self) -> int:
        return len(self.timestep)


def levels(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma with sigma / alpha = ratio and alpha^2 + sigma^2 = 1."""
    alpha = 1 / np.sqrt(1 + ratio**2)
    return alpha, ratio * alpha


def _log_ratios(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """A schedule's timesteps but one of pure noise, rising, and log(sigma / alpha) at each."""
    timestep = np.arange(schedule.first, len(schedule.alphas_cumprod))
    abar = schedule.alphas_cumprod[timestep]
    timestep, abar = timestep[abar > 0], abar[abar > 0]
    return timestep, np.log(np.sqrt(1 - abar) / np.sqrt(abar))


def check_timesteps(schedule: Schedule, timesteps: Any) -> np.ndarray:
    """The timesteps that were asked for, (rows,) float64.

    Raises:
        InputError: unless they are numbers that fall and lie within the schedule.
    """
    accepted = "numbers that fall, such as [999, 749, 499, 249]"
    try:
        found = np.array(timesteps)
    except (TypeError, ValueError) as error:
        raise wrong_type("timesteps", timesteps, accepted) from error
    if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iuf":
        raise wrong_type("timesteps", timesteps, accepted)
    found = found.astype(np.float64)
    low, high = schedule.first, schedule.first + schedule.num_timesteps - 1
    outside = ~((found >= low) & (found <= high))  # NaN too
    if outside.any():
        raise InputError(f"timesteps with {found[outside][0]:g}; accepted: numbers from {low} to {high}")
    rising = np.flatnonzero(np.diff(found) >= 0)
    if rising.size:
        before, after = found[rising[0]], found[rising[0] + 1]
        raise InputError(f"timesteps with {after:g} after {before:g}; accepted: {accepted}")
    return found
