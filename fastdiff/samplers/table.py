"""Every sampler is a StepTable: float64 columns, one row per network evaluation, made by a pure function.

    x0 = clip(p x + q out)
    x  <- a x + b x0 + c x0_prev + s noise;  x0_prev <- x0

With alpha = sqrt(abar), sigma = sqrt(1 - abar) at the row's node, and alpha', sigma' at the next one (sigma' = 0 at
the end). Adding a sampler is adding one function that returns a table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fastdiff.errors import InputError, check_float, check_int, unknown_name
from fastdiff.samplers.prediction import PREDICTION_TYPES, coefficients
from fastdiff.samplers.schedule import Schedule

SPACINGS = ("trailing", "leading", "linspace", "course")
TIMES = ("index", "fraction")


@dataclass(frozen=True, eq=False)
class StepTable:
    """The coefficients of one sampler run; columns are (rows,) float64, read-only.

    timestep: the schedule's node (whole numbers). time: what the network is given (the timestep, or timestep / T).
    alpha, sigma: of the node; alpha_next, sigma_next: of the next one. p, q, a, b, c, s: see above.
    preserves_variance: False for the samplers whose added noise is not that of the next node.

    Raises InputError unless a alpha + b + c = alpha' (the mean is right where x0 is constant) and, with
    preserves_variance, a^2 sigma^2 + s^2 = sigma'^2; unless c[0] = 0; and unless all is finite.
    """

    sampler: str
    prediction_type: str
    timestep: np.ndarray
    time: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray
    p: np.ndarray
    q: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    s: np.ndarray
    preserves_variance: bool = True

    def __post_init__(self) -> None:
        columns = [f.name for f in fields(self) if f.name not in ("sampler", "prediction_type", "preserves_variance")]
        for name in columns:
            column = np.array(getattr(self, name), dtype=np.float64)
            if column.ndim != 1 or len(column) != len(self.timestep) or len(column) == 0:
                raise InputError(f"table column {name} has shape {column.shape}; accepted: ({len(self.timestep)},)")
            if not np.isfinite(column).all():
                raise InputError(
                    f"table column {name} holds {column[~np.isfinite(column)][0]}; accepted: finite values"
                )
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        if self.prediction_type not in PREDICTION_TYPES:
            raise unknown_name("prediction type", self.prediction_type, PREDICTION_TYPES)
        if self.c[0] != 0:
            raise InputError(f"c = {self.c[0]} in the first row; accepted: 0, for there is no x0_prev yet")
        self._require("a alpha + b + c = alpha'", self.a * self.alpha + self.b + self.c - self.alpha_next)
        if self.preserves_variance:
            drift = (self.a * self.sigma) ** 2 + self.s**2 - self.sigma_next**2
            self._require("a^2 sigma^2 + s^2 = sigma'^2", drift)

    def _require(self, equation: str, error: np.ndarray) -> None:
        row = int(np.abs(error).argmax())
        if abs(error[row]) > 1e-9:
            raise InputError(f"table row {row} breaks {equation} by {error[row]:.3g}")

    def __len__(self) -> int:
        return len(self.timestep)

    def row(self, i: int) -> tuple[float, float, float, float, float, float]:
        """(p, q, a, b, c, s) of row i."""
        return tuple(float(column[i]) for column in (self.p, self.q, self.a, self.b, self.c, self.s))  # type: ignore[return-value]


def spaced(num_timesteps: int, steps: int, spacing: str) -> np.ndarray:
    """The `steps` nodes of 0 .. T-1 in falling order, by the formulas of diffusers' DDIMScheduler.set_timesteps.

    trailing: round(T, T - T/n, ...) - 1; leading: multiples of T // n; linspace: round(linspace(0, T-1, n)) (Lin et
    al. 2023, table 2). course: stride T // n from T - 1 down, where n must divide T.
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


@dataclass(frozen=True, eq=False)
class _Path:
    """The nodes that a run visits, and their alphas and sigmas; the single source for every builder."""

    schedule: Schedule
    timestep: np.ndarray  # (rows,) falling
    following: np.ndarray  # (rows,) the next node; first - 1 after the last row, where all is clean
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray

    @classmethod
    def of(cls, schedule: Schedule, steps: int, spacing: str) -> _Path:
        timestep = spaced(schedule.num_timesteps, steps, spacing) + schedule.first
        abar = schedule.alphas_cumprod[timestep]
        abar_next = np.append(abar[1:], 1.0)
        following = np.append(timestep[1:], schedule.first - 1)
        roots = np.sqrt(abar), np.sqrt(1 - abar), np.sqrt(abar_next), np.sqrt(1 - abar_next)
        return cls(schedule, timestep, following, *roots)

    def table(
        self,
        sampler,
        prediction_type,
        time,
        a,
        b,
        c=None,
        s=None,
        alpha_next=None,
        sigma_next=None,
        preserves_variance=True,
    ) -> StepTable:
        if time not in TIMES:
            raise unknown_name("time convention", time, TIMES)
        zero = np.zeros_like(self.alpha)
        p, q = coefficients(prediction_type, self.alpha, self.sigma)
        return StepTable(
            sampler=sampler,
            prediction_type=prediction_type,
            timestep=self.timestep,
            time=self.timestep / (self.schedule.num_timesteps if time == "fraction" else 1),
            alpha=self.alpha,
            sigma=self.sigma,
            alpha_next=self.alpha_next if alpha_next is None else alpha_next,
            sigma_next=self.sigma_next if sigma_next is None else sigma_next,
            p=p,
            q=q,
            a=a,
            b=b,
            c=zero if c is None else c,
            s=zero if s is None else s,
            preserves_variance=preserves_variance,
        )


def _ddim_coefficients(alpha, sigma, alpha_next, sigma_next, eta):
    """a, b, s of DDIM (Song et al. 2021, eq. 12 and 16)."""
    s = eta * (sigma_next / sigma) * np.sqrt(np.maximum(1 - (alpha / alpha_next) ** 2, 0))
    # sigma'^2 - s^2 is never negative; where eta = 1 rounding can leave it a few ulp below zero.
    a = np.sqrt(np.maximum(sigma_next**2 - s**2, 0)) / sigma
    return a, alpha_next - a * alpha, s


def ddim(
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    spacing: str = "trailing",
    prediction_type: str = "epsilon",
    time: str = "index",
) -> StepTable:
    """DDIM (Song et al. 2021, eq. 12): eta = 0 is deterministic, eta = 1 adds the DDPM posterior's noise."""
    return _generalised("ddim", schedule, steps, eta, spacing, prediction_type, time)


def ddpm(
    schedule: Schedule, steps: int, spacing: str = "trailing", prediction_type: str = "epsilon", time: str = "index"
) -> StepTable:
    """DDPM with the posterior variance beta_t (1 - abar_{t-1}) / (1 - abar_t) (Ho et al. 2020, eq. 6 and 7)."""
    return _generalised("ddpm", schedule, steps, 1.0, spacing, prediction_type, time)


def _generalised(name, schedule, steps, eta, spacing, prediction_type, time) -> StepTable:
    eta = check_float("eta", eta, 0, 1)
    path = _Path.of(schedule, steps, spacing)
    a, b, s = _ddim_coefficients(path.alpha, path.sigma, path.alpha_next, path.sigma_next, eta)
    return path.table(name, prediction_type, time, a, b, s=s)


def ddpm_large(
    schedule: Schedule, steps: int, spacing: str = "trailing", prediction_type: str = "epsilon", time: str = "index"
) -> StepTable:
    """DDPM with the "fixed large" variance beta_t, none in the last row (Ho et al. 2020, 3.2; the course)."""
    return _fixed_large("ddpm_large", schedule, steps, spacing, prediction_type, time, noise=True)


def ddpm_no_noise(
    schedule: Schedule, steps: int, spacing: str = "trailing", prediction_type: str = "epsilon", time: str = "index"
) -> StepTable:
    """The course's teaching mode: ddpm_large with the extra noise left out. Its samples collapse."""
    return _fixed_large("ddpm_no_noise", schedule, steps, spacing, prediction_type, time, noise=False)


def _fixed_large(name, schedule, steps, spacing, prediction_type, time, noise: bool) -> StepTable:
    path = _Path.of(schedule, steps, spacing)
    # abar' is abar / (1 - beta) with the schedule's own beta on unit strides. In the course's last row that
    # leaves abar' = 1 - betas[0] = 0.9999, not 1; with 1 the whole loop is 9e-4 off.
    unit = path.following == path.timestep - 1
    beta = np.where(unit, schedule.betas[path.timestep], 1 - (path.alpha / path.alpha_next) ** 2)
    abar_next = np.minimum(path.alpha**2 / (1 - beta), 1.0)
    alpha_next, sigma_next = np.sqrt(abar_next), np.sqrt(1 - abar_next)
    a, b, _ = _ddim_coefficients(path.alpha, path.sigma, alpha_next, sigma_next, 1.0)
    s = np.sqrt(beta) if noise else np.zeros_like(beta)
    s[-1] = 0.0
    return path.table(
        name, prediction_type, time, a, b, s=s, alpha_next=alpha_next, sigma_next=sigma_next, preserves_variance=False
    )


def dpmpp_2m(
    schedule: Schedule, steps: int, spacing: str = "trailing", prediction_type: str = "epsilon", time: str = "index"
) -> StepTable:
    """DPM-Solver++(2M), deterministic, second order (Lu et al. 2022, algorithm 2)."""
    return _multistep("dpmpp_2m", schedule, steps, spacing, prediction_type, time, sde=False)


def dpmpp_2m_sde(
    schedule: Schedule, steps: int, spacing: str = "trailing", prediction_type: str = "epsilon", time: str = "index"
) -> StepTable:
    """SDE-DPM-Solver++(2M), its midpoint form (Lu et al. 2022, appendix A)."""
    return _multistep("dpmpp_2m_sde", schedule, steps, spacing, prediction_type, time, sde=True)


def _multistep(name, schedule, steps, spacing, prediction_type, time, sde: bool) -> StepTable:
    path = _Path.of(schedule, steps, spacing)
    e = path.alpha * path.sigma_next / (path.sigma * path.alpha_next)  # exp(-h), h the step in log(alpha / sigma)
    decay = e * e if sde else e
    a = path.sigma_next / path.sigma * (e if sde else 1.0)
    w = path.alpha_next * (1 - decay)
    k = np.zeros_like(e)  # 0, hence first order, in the first row (no history) and in the last (h is infinite)
    h = -np.log(e[:-1])
    k[1:-1] = h[1:] / (2 * h[:-1])
    s = path.sigma_next * np.sqrt(1 - e * e) if sde else None
    return path.table(name, prediction_type, time, a, w * (1 + k), c=-w * k, s=s)


SAMPLERS: dict[str, Callable[..., StepTable]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "ddpm_large": ddpm_large,
    "ddpm_no_noise": ddpm_no_noise,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
}


def make_table(
    sampler: str,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    spacing: str = "trailing",
    prediction_type: str = "epsilon",
    time: str = "index",
) -> StepTable:
    """The table of a sampler by name. eta belongs to ddim; a value other than 0 with another is an InputError."""
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    builder = SAMPLERS[sampler]
    options: dict[str, Any] = dict(spacing=spacing, prediction_type=prediction_type, time=time)
    if "eta" in inspect.signature(builder).parameters:
        options["eta"] = eta
    elif eta:
        raise InputError(f"eta = {eta} with sampler {sampler!r}; accepted: 0, for eta belongs to ddim")
    return builder(schedule, steps, **options)
