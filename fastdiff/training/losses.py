"""The training loss of a diffusion model, and its weights over the noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastdiff.errors import unknown_name
from fastdiff.samplers.prediction import target
from fastdiff.samplers.schedule import Schedule

if TYPE_CHECKING:  # the command line reads names without torch
    from torch import Tensor

__all__ = ["denoising_loss", "snr_weight", "weighted_loss"]

# name → function of torch.nn.functional
LOSSES = {
    "huber": "smooth_l1_loss",  # beta = 1, as in the Annotated tutorial
    "l1": "l1_loss",
    "l2": "mse_loss",
}


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: Schedule,
    *,
    loss: str = "l2",
    prediction_type: str = "epsilon",
    p2_gamma: float = 0.0,
    min_snr: float | None = None,
    course_perturbation: bool = False,
) -> Tensor:
    """The mean error of a network that denoises a batch, as in DDPM (Ho et al. 2020)::

        x_t = α x_0 + σ ε          with α = sqrt(abar_t), σ = sqrt(1 - abar_t)              (eq. 4)
        L = mean of w(t) ℓ(f(x_t, t), y)                            (eq. 14: w = 1, ℓ the square, y = ε)
        y = ε, x_0, or v = α ε - σ x_0                              by prediction type

    Args:
        predict: f, (x_t, t) → the network's output, of x0's shape, in float32.
        x0: (B, C, H, W) clean images in [-1, 1].
        t: (B,) timesteps of the schedule, int64.
        noise: ε, standard normals of x0's shape.
        schedule: gives abar_t.
        loss: ℓ, one of huber, l1 and l2.
        prediction_type: what y is: epsilon, sample or v_prediction.
        p2_gamma: see snr_weight.
        min_snr: see snr_weight.
        course_perturbation: noise (1 - abar_t) in place of its square root, as the course's code has it.

    Returns:
        The loss, a scalar.

    Raises:
        InputError: for an unknown loss or prediction type.
    """
    alpha, sigma = schedule.alpha_sigma(t, x0)  # (B, 1, 1, 1)
    x = alpha * x0 + (sigma**2 if course_perturbation else sigma) * noise
    wanted = target(prediction_type, x0, noise, alpha, sigma)
    weight = snr_weight(alpha, sigma, prediction_type, p2_gamma=p2_gamma, min_snr=min_snr)
    return weighted_loss(loss, predict(x, t), wanted, weight)


def snr_weight(
    alpha: Tensor, sigma: Tensor, prediction_type: str, *, p2_gamma: float = 0.0, min_snr: float | None = None
) -> Tensor:
    """The weight of each sample's loss by its signal-to-noise ratio, SNR = α² / σ² = abar / (1 - abar).

    Args:
        alpha: sqrt(abar), one for each sample.
        sigma: sqrt(1 - abar), above 0.
        prediction_type: epsilon, sample or v_prediction.
        p2_gamma: p2 weighting (Choi et al. 2022, eq. 8 with k = 1): times (1 + SNR)^-gamma; 0 is off.
        min_snr: min-SNR weighting (Hang et al. 2023, section 3.4): times min(SNR, gamma), over SNR for epsilon, over 1
            for sample, over SNR + 1 for v_prediction; None is off.

    Returns:
        The weights, of alpha's shape.
    """
    snr = (alpha / sigma) ** 2
    weight = (1 + snr) ** -float(p2_gamma)
    if min_snr is not None:
        over = {"epsilon": snr, "sample": snr.new_ones(()), "v_prediction": snr + 1}[prediction_type]
        weight = weight * snr.clamp(max=float(min_snr)) / over
    return weight


def weighted_loss(loss: str, prediction: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """The mean over all elements of weight times loss.

    Args:
        loss: huber, l1 or l2.
        prediction: (B, ...).
        wanted: of prediction's shape.
        weight: one for each sample, of a shape that broadcasts.

    Returns:
        A scalar.

    Raises:
        InputError: for a loss that is not huber, l1 or l2.
    """
    from torch.nn import functional

    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    return (getattr(functional, LOSSES[loss])(prediction, wanted, reduction="none") * weight).mean()
