"""The nodes that a run visits: all that a sampler's formula sees."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.spacing import spaced


@dataclass(frozen=True, eq=False)
class Path:
    """Nodes and their noise levels, one row for each network evaluation; columns are (rows,).

    With alphas_cumprod abar, a noisy image at a node is alpha x0 + sigma noise, alpha = sqrt(abar) and
    sigma = sqrt(1 - abar). After the last row all is clean: alpha_next = 1, sigma_next = 0.

    Attributes:
        schedule: where the nodes come from.
        timestep: int64, falling.
        timestep_next: the next row's; one below the schedule's first after the last row.
        alpha, sigma: float64, at the node.
        alpha_next, sigma_next: float64, at the next node.
    """

    schedule: Schedule
    timestep: np.ndarray
    timestep_next: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray

    @classmethod
    def of(cls, schedule: Schedule, steps: int, spacing: str) -> Path:
        """The nodes of `steps` steps; see spacing.spaced."""
        timestep = spaced(schedule.num_timesteps, steps, spacing) + schedule.first
        abar = schedule.alphas_cumprod[timestep]
        abar_next = np.append(abar[1:], 1.0)
        return cls(
            schedule=schedule,
            timestep=timestep,
            timestep_next=np.append(timestep[1:], schedule.first - 1),
            alpha=np.sqrt(abar),
            sigma=np.sqrt(1 - abar),
            alpha_next=np.sqrt(abar_next),
            sigma_next=np.sqrt(1 - abar_next),
        )

    def tail(self, start: int) -> Path:
        """From row `start` on."""
        columns = {one.name: getattr(self, one.name)[start:] for one in fields(self) if one.name != "schedule"}
        return Path(schedule=self.schedule, **columns)
