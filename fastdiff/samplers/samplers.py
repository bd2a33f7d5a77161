"""The samplers by name, and their tables.

    x0 = clip(p x + q out);  m = u x + v x0
    x <- a x + b x0 + o out + c m_1 + d m_2 + e m_3 + s noise

To add one, write its function in one of the files imported here under `@sampler(...)`, see entry.py: the command, the
export, its page, the error messages and docs/samplers.md take names, titles and default steps from the entry, and
StepTable checks the coefficients.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastdiff.errors import InputError, check_float, check_int, unknown_name
from fastdiff.samplers import ddim, euler, integrators, lcm  # noqa: F401  in this order they are listed to users
from fastdiff.samplers.entry import SAMPLERS, STEPS, Coefficients, Column, Sampler, sampler
from fastdiff.samplers.path import Path, check_timesteps
from fastdiff.samplers.prediction import coefficients
from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.spacing import SPACING, first_row
from fastdiff.samplers.table import TIMES, StepTable

__all__ = [
    "DEFAULT",
    "SAMPLERS",
    "STEPS",
    "Coefficients",
    "Sampler",
    "find_sampler",
    "make_table",
    "sampler",
    "tabulate",
]

# What `fastdiff bench quality` found nearest to the data at its number of steps, on both shipped models: noise undoes
# errors that a deterministic sampler carries to the end (Karras et al. 2022, section 4).
DEFAULT = "dpmpp_2m_sde"


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
    spacing: str | None = None,
    sigmas: str | None = None,
    timesteps: Any = None,
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
        steps: 1 to the schedule's T, counted as diffusers' num_inference_steps: a row of the table each, but with heun
            and edm two for each step but the last. None takes the sampler's default.
        eta: 0 to 1, for ddim and edm.
        spacing: see spacing.spaced; trailing unless given.
        sigmas: "karras" or "exponential" spreads the noise levels sigma / alpha anew, from that of the first node to
            that of the last, see sigmas.spread. The nodes then lie between timesteps, by linear interpolation of
            log(sigma / alpha), as in diffusers' EulerDiscreteScheduler.
        timesteps: the nodes themselves in place of steps, spacing and sigmas: falling numbers within the schedule's
            timesteps, which may lie between two of them.
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
        takers = " and ".join(name for name, other in SAMPLERS.items() if other.takes_eta)
        raise InputError(f"eta = {eta} with sampler {sampler!r}; accepted: 0, for eta belongs to {takers}")
    if time not in TIMES:
        raise unknown_name("time convention", time, TIMES)
    path = _nodes(entry, schedule, steps, spacing, sigmas, timesteps)
    path = path.tail(first_row(strength, len(path)))
    made = entry.formula(path, eta) if entry.takes_eta else entry.formula(path)
    if not isinstance(made, Coefficients):
        raise InputError(f"sampler {sampler!r} returned {type(made).__name__}; accepted: Coefficients")
    table = tabulate(
        sampler,
        path,
        made if learned_variance else made._replace(S=None),
        prediction_type=prediction_type,
        divisor=schedule.num_timesteps if time == "fraction" else 1,
        preserves_mean=entry.preserves_mean,
        preserves_variance=entry.preserves_variance,
    )
    return table.resampled(resample)


def _nodes(
    entry: Sampler, schedule: Schedule, steps: int | None, spacing: str | None, sigmas: str | None, timesteps: Any
) -> Path:
    """The path through the nodes that were asked for; raises InputError."""
    if timesteps is not None:
        if any(one is not None for one in (steps, spacing, sigmas)):
            raise InputError("timesteps with steps, spacing or sigmas, in whose place they are; leave those out")
        return Path.at(schedule, check_timesteps(schedule, timesteps))
    if steps is None:
        steps = entry.default_steps(schedule.num_timesteps)
    if entry.nodes is None:
        path = Path.of(schedule, steps, SPACING if spacing is None else spacing)
        return path if sigmas is None else path.spread(sigmas)
    for name, value in (("spacing", spacing), ("sigmas", sigmas)):
        if value is not None:
            raise InputError(f"{name} = {value!r} with sampler {entry.name!r}, which has its own nodes; leave it out")
    return entry.nodes(schedule, check_int("steps", steps, 1, schedule.num_timesteps))


def tabulate(
    sampler: str,
    path: Path,
    made: Coefficients,
    *,
    prediction_type: str,
    divisor: float = 1,
    preserves_mean: bool = True,
    preserves_variance: bool = True,
) -> StepTable:
    """The table of a formula's coefficients on a path.

    Args:
        sampler: its name, for messages.
        path: what the formula was given.
        made: what it returned.
        prediction_type: epsilon, sample or v_prediction; what the network predicts.
        divisor: the network is given timestep / divisor.
        preserves_mean, preserves_variance: see StepTable.

    Raises:
        InputError: for a table that does not hold what StepTable checks.
    """
    nodes = path if made.path is None else made.path

    def column(value: Column) -> np.ndarray:
        return np.full_like(nodes.alpha, value) if np.ndim(value) == 0 else np.asarray(value)

    names = ("a", "b", "c", "s", "o", "d", "e", "u", "v", "S")
    p, q = coefficients(prediction_type, nodes.alpha, nodes.sigma)
    return StepTable(
        sampler=sampler,
        prediction_type=prediction_type,
        timestep=nodes.timestep,
        time=nodes.timestep / divisor,
        alpha=nodes.alpha,
        sigma=nodes.sigma,
        alpha_next=nodes.alpha_next,
        sigma_next=nodes.sigma_next,
        p=p,
        q=q,
        **{name: column(getattr(made, name)) for name in names if getattr(made, name) is not None},
        init_noise_sigma=made.init_noise_sigma,
        preserves_mean=preserves_mean,
        preserves_variance=preserves_variance,
    )
