"""The samplers. Each is an entry: a formula from a path of nodes to coefficients, its title, paper and default steps.

    x0 = clip(p x + q out)
    x  <- a x + b x0 + c x0_prev + s noise;  x0_prev <- x0

To add one, write its function here under `@sampler(...)`: the command, the export, its page, the error messages and
docs/samplers.md take names, titles and default steps from the entry, and StepTable checks the coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastdiff.errors import InputError, check_float, unknown_name
from fastdiff.samplers.path import Path
from fastdiff.samplers.prediction import coefficients
from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.spacing import first_row
from fastdiff.samplers.table import TIMES, StepTable

# What `fastdiff bench quality` found nearest to the data at its number of steps, on both shipped models: noise undoes
# errors that a deterministic sampler carries to the end (Karras et al. 2022, section 4).
DEFAULT = "dpmpp_2m_sde"
STEPS = 25
SAMPLERS: dict[str, Sampler] = {}

Column = np.ndarray | float


class Coefficients(NamedTuple):
    """What a formula returns: columns (rows,) float64, or one number for all rows.

    Attributes:
        a, b, c, s: of x, x0, x0_prev and the noise.
        alpha_next, sigma_next: where a row leads, if not to the path's next node.
        S: the largest share of the noise, where the network's learned variance chooses between s and it; None is s.
    """

    a: Column
    b: Column
    c: Column = 0.0
    s: Column = 0.0
    alpha_next: Column | None = None
    sigma_next: Column | None = None
    S: Column | None = None


@dataclass(frozen=True)
class Sampler:
    """An entry.

    Attributes:
        name: the formula's own.
        formula: Path → Coefficients; (path, eta) where takes_eta, (path, learned_variance) where takes_variance.
        title: what it is, in a few words.
        paper: authors, year and equation.
        steps: the default number of steps; None for all of the schedule's.
        takes_eta: whether it has DDIM's parameter eta.
        takes_variance: whether its formula takes learned_variance, and then returns an S.
        preserves_variance: whether its noise brings x to the next node's level exactly, which the table then checks.
        collapses: whether its samples lose their variety; such a one is not offered on the page.
    """

    name: str
    formula: Callable[..., Coefficients]
    title: str
    paper: str
    steps: int | None = STEPS
    takes_eta: bool = False
    takes_variance: bool = False
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


@sampler("deterministic; eta up to 1 adds noise", "Song et al. 2021, eq. 12 and 16", takes_eta=True)
def ddim(path: Path, eta: float = 0.0) -> Coefficients:
    alpha, sigma, alpha_next, sigma_next = path.alpha, path.sigma, path.alpha_next, path.sigma_next
    s = eta * (sigma_next / sigma) * np.sqrt(np.maximum(1 - (alpha / alpha_next) ** 2, 0))
    # sigma'^2 - s^2 is never negative; where eta = 1 rounding can leave it a few ulp below zero.
    a = np.sqrt(np.maximum(sigma_next**2 - s**2, 0)) / sigma
    return Coefficients(a, b=alpha_next - a * alpha, s=s)


@sampler(
    "noise of the posterior's variance; wants many steps",
    "Ho et al. 2020, eq. 6 and 7",
    steps=None,
    takes_variance=True,
)
def ddpm(path: Path, learned_variance: bool = False) -> Coefficients:
    made = ddim(path, eta=1.0)
    # Nichol and Dhariwal 2021, eq. 15: from the posterior's variance to beta, that of the step.
    largest = np.sqrt(1 - (path.alpha / path.alpha_next) ** 2)
    return made._replace(S=largest) if learned_variance else made


@sampler(
    "noise of variance beta, the fixed large one; wants many steps",
    "Ho et al. 2020, section 3.2",
    steps=None,
    preserves_variance=False,
)
def ddpm_large(path: Path) -> Coefficients:
    # abar' is abar / (1 - beta) with the schedule's own beta on unit strides. In the course's last row that leaves
    # abar' = 1 - betas[0] = 0.9999, not 1; with 1 its whole loop would be 9e-4 off.
    unit = path.timestep_next == path.timestep - 1
    beta = np.where(unit, path.schedule.betas[path.timestep], 1 - (path.alpha / path.alpha_next) ** 2)
    abar_next = np.divide(path.alpha**2, 1 - beta, out=path.alpha_next**2, where=beta < 1)
    abar_next = np.minimum(abar_next, 1.0)
    alpha_next, sigma_next = np.sqrt(abar_next), np.sqrt(1 - abar_next)
    mean = ddim(replace(path, alpha_next=alpha_next, sigma_next=sigma_next), eta=1.0)
    last = path.timestep == path.timestep[-1]
    return Coefficients(mean.a, mean.b, 0.0, np.where(last, 0.0, np.sqrt(beta)), alpha_next, sigma_next)


@sampler(
    "ddpm_large without its noise, the course's demonstration that it is needed",
    "How Diffusion Models Work",
    steps=None,
    preserves_variance=False,
    collapses=True,
)
def ddpm_no_noise(path: Path) -> Coefficients:
    return ddpm_large(path)._replace(s=0.0)


@sampler("second order, deterministic", "Lu et al. 2022, algorithm 2")
def dpmpp_2m(path: Path) -> Coefficients:
    e = path.alpha * path.sigma_next / (path.sigma * path.alpha_next)  # exp(-h), h the step in log(alpha / sigma)
    return _second_order(path, e, a=path.sigma_next / path.sigma, w=path.alpha_next * (1 - e))


@sampler("second order, with noise, which undoes the errors of few steps", "Lu et al. 2022, appendix A, midpoint form")
def dpmpp_2m_sde(path: Path) -> Coefficients:
    e = path.alpha * path.sigma_next / (path.sigma * path.alpha_next)
    made = _second_order(path, e, a=path.sigma_next / path.sigma * e, w=path.alpha_next * (1 - e * e))
    return made._replace(s=path.sigma_next * np.sqrt(1 - e * e))


def _second_order(path: Path, e: np.ndarray, a: np.ndarray, w: np.ndarray) -> Coefficients:
    """x0 extrapolated through the one before, by k = h / (2 h_last); w: the weight of x0 in a first-order step."""
    k = np.zeros_like(e)  # 0, hence first order, in the first row (no history) and in the last (h is infinite)
    with np.errstate(divide="ignore"):  # from pure noise h is infinite, and k in the row after it 0
        h = -np.log(e[:-1])
    k[1:-1] = h[1:] / (2 * h[:-1])
    return Coefficients(a, b=w * (1 + k), c=-w * k)


def find_sampler(name: str) -> Sampler:
    """The entry of that name; raises InputError."""
    if not isinstance(name, str) or name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def make_table(
    sampler: str,
    schedule: Schedule,
    steps: int | None = None,
    *,
    eta: float = 0.0,
    spacing: str = "trailing",
    strength: float = 1.0,
    resample: int = 1,
    prediction_type: str = "epsilon",
    time: str = "index",
    learned_variance: bool = False,
) -> StepTable:
    """The step table of a sampler; for a Model, `model.table(...)` fills in what the model says.

    Args:
        sampler: a name out of SAMPLERS.
        schedule: the model's.
        steps: network evaluations, 1 to the schedule's T; None takes the sampler's default.
        eta: 0 to 1, for ddim alone.
        spacing: see spacing.spaced.
        strength: above 0 to 1, the share of the steps that is kept, the last ones: for pictures to begin with.
        resample: see StepTable.resampled.
        prediction_type: epsilon, sample or v_prediction; what the network predicts.
        time: what the network is given: "index", the timestep, or "fraction", timestep / T.
        learned_variance: whether the network's output chooses the noise's variance, for samplers that leave it to it.

    Raises:
        InputError: for values outside these.
    """
    if not isinstance(schedule, Schedule):
        raise InputError(f"schedule = {schedule!r}; accepted: a Schedule, see make_schedule")
    entry = find_sampler(sampler)
    eta = check_float("eta", eta, 0, 1)
    if eta and not entry.takes_eta:
        takers = ", ".join(name for name, other in SAMPLERS.items() if other.takes_eta)
        raise InputError(f"eta = {eta} with sampler {sampler!r}; accepted: 0, for eta belongs to {takers}")
    if time not in TIMES:
        raise unknown_name("time convention", time, TIMES)
    path = Path.of(schedule, entry.default_steps(schedule.num_timesteps) if steps is None else steps, spacing)
    path = path.tail(first_row(strength, len(path.timestep)))
    options: dict[str, Any] = {"eta": eta} if entry.takes_eta else {}
    if entry.takes_variance:
        options["learned_variance"] = learned_variance
    made = entry.formula(path, **options)
    if not isinstance(made, Coefficients):
        raise InputError(f"sampler {sampler!r} returned {type(made).__name__}; accepted: Coefficients")

    def column(value: Column) -> np.ndarray:
        return np.full_like(path.alpha, value) if np.ndim(value) == 0 else np.asarray(value)

    p, q = coefficients(prediction_type, path.alpha, path.sigma)
    table = StepTable(
        sampler=sampler,
        prediction_type=prediction_type,
        timestep=path.timestep,
        time=path.timestep / (schedule.num_timesteps if time == "fraction" else 1),
        alpha=path.alpha,
        sigma=path.sigma,
        alpha_next=path.alpha_next if made.alpha_next is None else column(made.alpha_next),
        sigma_next=path.sigma_next if made.sigma_next is None else column(made.sigma_next),
        p=p,
        q=q,
        a=column(made.a),
        b=column(made.b),
        c=column(made.c),
        s=column(made.s),
        S=None if made.S is None else column(made.S),
        preserves_variance=entry.preserves_variance,
    )
    return table.resampled(resample)
