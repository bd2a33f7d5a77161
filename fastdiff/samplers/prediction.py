"""What a network's output means, and what is done to the x0 that it implies."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fastdiff.errors import FLOAT32_MAX, InputError, unknown_name

if TYPE_CHECKING:  # the command line reads names without torch
    from torch import Tensor

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# None: off. A float: clamp x0 to [-bound, bound]. ("dynamic", q): see kernels.denoise_step.
Clip = None | float | tuple[str, float]
MODEL = "model"
TINY = float(np.finfo(np.float32).tiny)  # a bound that is less would be 0 as a float32
FRAMES = ("x", "x0")  # what frames may show
Levels = TypeVar("Levels", np.ndarray, "Tensor")


def coefficients(prediction_type: str, alpha: Levels, sigma: Levels) -> tuple[Levels, Levels]:
    """p and q of x0 = p x + q out, as alpha and sigma, arrays or tensors.

    epsilon: x0 = (x - sigma eps) / alpha (Ho et al. 2020, eq. 15). sample: x0 = out. v_prediction:
    x0 = alpha x - sigma v (Salimans and Ho 2022, appendix D).
    """
    if prediction_type == "epsilon":
        if not alpha.all():
            raise InputError(
                "a step from alphas_cumprod = 0 with prediction type 'epsilon', from which no x0 follows; accepted: "
                "v_prediction or sample, or a spacing that leaves the last timestep out"
            )
        return 1.0 / alpha, -sigma / alpha
    if prediction_type == "sample":
        return 0 * alpha, 0 * alpha + 1
    if prediction_type == "v_prediction":
        return +alpha, -sigma
    raise unknown_name("prediction type", prediction_type, PREDICTION_TYPES)


def target(prediction_type: str, x0, noise, alpha, sigma):
    """What the network is trained to output; arguments broadcast against each other."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        return alpha * noise - sigma * x0
    raise unknown_name("prediction type", prediction_type, PREDICTION_TYPES)


def check_clip(clip: object) -> Clip:
    """The clip setting as `Clip` has it; False is off too. Raises InputError for anything else."""
    if clip is None or clip is False:
        return None
    if isinstance(clip, (int, float, np.number)) and not isinstance(clip, bool) and TINY <= clip <= FLOAT32_MAX:
        return float(clip)
    if isinstance(clip, (tuple, list)) and len(clip) == 2 and clip[0] == "dynamic":
        quantile = clip[1]
        if isinstance(quantile, (int, float)) and 0 < quantile <= 1:
            return ("dynamic", float(quantile))
    raise InputError(
        f"clip = {clip!r}; accepted: None, a positive bound up to {FLOAT32_MAX:.3g}, or ('dynamic', quantile in (0, 1])"
    )


def usual_clip(prediction_type: str, alphas_cumprod: np.ndarray) -> float | None:
    """What published code does where the first x0 would be noise: 1 if the network's error counts over 1,000 times.

    That is (x - sigma eps) / alpha at the last timestep: 2e4 with the cosine schedule and T = 1000, 160 with the linear
    one.
    """
    amplified = prediction_type == "epsilon" and alphas_cumprod[-1] < 1e-6
    return 1.0 if amplified else None


def choose_clip(clip: object, own: Clip) -> Clip:
    """The clip setting that was asked for; "model", the default everywhere, is the model's own."""
    return own if isinstance(clip, str) and clip == MODEL else check_clip(clip)
