"""What a sampler is: an entry, with a formula from a path of nodes to coefficients, and what users are told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.path import Path
from fastdiff.samplers.schedule import Schedule

STEPS = 25
SAMPLERS: dict[str, Sampler] = {}

Column = np.ndarray | float


class Coefficients(NamedTuple):
    """What a formula returns: columns (rows,) float64, or one number for all rows; see table.py.

    Attributes:
        a, b, c, d, e: of x, x0, and what was remembered one, two and three rows before.
        s: of the noise.
        o: of the network's output itself.
        u, v: of x and x0 in what is remembered.
        S: of the noise where the network learned the variance and asks for the most; None for s. It counts for models
            with a learned variance alone.
        init_noise_sigma: what the noise that the run begins with is multiplied by.
        path: the rows' nodes and where they lead, if they are not those that the formula was given.
    """

    a: Column
    b: Column
    c: Column = 0.0
    s: Column = 0.0
    o: Column = 0.0
    d: Column = 0.0
    e: Column = 0.0
    u: Column = 0.0
    v: Column = 1.0
    S: Column | None = None
    init_noise_sigma: float = 1.0
    path: Path | None = None


@dataclass(frozen=True)
class Sampler:
    """An entry.

    Attributes:
        name: the formula's own.
        formula: Path → Coefficients; (path, eta) where takes_eta.
        title: what it is, in a few words.
        paper: authors, year and equation.
        steps: the default number of steps; None for all of the schedule's.
        takes_eta: whether it has DDIM's parameter eta.
        nodes: (schedule, steps) → the path of one with nodes of its own; None where spacing and sigmas choose them.
        preserves_mean: whether a constant x0 is kept exactly, which the table then checks.
        preserves_variance: whether its noise brings x to the next node's level exactly, which the table then checks.
        collapses: whether samples of an ordinary model lose their variety; such a one is not offered on the page.
    """

    name: str
    formula: Callable[..., Coefficients]
    title: str
    paper: str
    steps: int | None = STEPS
    takes_eta: bool = False
    nodes: Callable[[Schedule, int], Path] | None = None
    preserves_mean: bool = True
    preserves_variance: bool = True
    collapses: bool = False

    def default_steps(self, num_timesteps: int) -> int:
        """The number of steps where none is asked for, at most the schedule's num_timesteps."""
        return num_timesteps if self.steps is None else min(self.steps, num_timesteps)


def sampler(title: str, paper: str, **more) -> Callable[[Callable[..., Coefficients]], Callable[..., Coefficients]]:
    """Enter the function below as a sampler under its own name; the arguments are Sampler's."""

    def enter(formula: Callable[..., Coefficients]) -> Callable[..., Coefficients]:
        if formula.__name__ in SAMPLERS:
            raise InputError(f"a second sampler {formula.__name__!r}; accepted: a name of its own")
        SAMPLERS[formula.__name__] = Sampler(formula.__name__, formula, title, paper, **more)
        return formula

    return enter
