"""DDIM backwards: from an image to the noise that gives it."""

from __future__ import annotations

from fastdiff.errors import InputError, check_int
from fastdiff.samplers.path import Path
from fastdiff.samplers.prediction import coefficients
from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.table import StepTable


def inversion_table(
    schedule: Schedule, steps: int, *, spacing: str = "trailing", prediction_type: str = "epsilon", time: str = "index"
) -> StepTable:
    """The table of DDIM's nodes from the first to the last (Song et al. 2021, section 4.3).

    Each row leads to the next noisier node by the prediction for that node's time, as DDIM's own row leads back from
    it, so that of the two predictions only x differs. Images take the place of x at the first node.

    Args:
        schedule, spacing, prediction_type, time: as in make_table.
        steps: those of the DDIM run that is to lead back, 2 to the schedule's T; the table has a row less.

    Raises:
        InputError: for values outside these, and where the last node is pure noise and the network predicts epsilon.
    """
    check_int("steps", steps, 2, schedule.num_timesteps)
    path = Path.of(schedule, steps, spacing)
    timestep, alpha, sigma = path.timestep[::-1], path.alpha[::-1], path.sigma[::-1]
    if not alpha[-1] and prediction_type == "epsilon":
        raise InputError(
            "a last timestep of alphas_cumprod = 0 with prediction type 'epsilon', from which no image follows"
        )
    p, q = coefficients(prediction_type, alpha[:-1], sigma[:-1])
    a = sigma[1:] / sigma[:-1]
    return StepTable(
        sampler="inverted ddim",
        prediction_type=prediction_type,
        timestep=timestep[1:],
        time=timestep[1:] / (schedule.num_timesteps if time == "fraction" else 1),
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        alpha_next=alpha[1:],
        sigma_next=sigma[1:],
        p=p,
        q=q,
        a=a,
        b=alpha[1:] - a * alpha[:-1],
        c=0 * a,
        s=0 * a,
    )
