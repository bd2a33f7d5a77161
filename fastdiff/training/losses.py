"""Training losses and their weights over the noise level."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES: dict[str, Callable[..., Tensor]] = {
    "huber": F.smooth_l1_loss,  # beta = 1, as in the Annotated tutorial
    "l1": F.l1_loss,
    "l2": F.mse_loss,
}


def snr_weight(alpha: Tensor, sigma: Tensor, prediction_type: str, p2_gamma: float, min_snr: float | None) -> Tensor:
    """The loss weight of each sample, from alpha = sqrt(abar) and sigma = sqrt(1 - abar).

    p2 (Choi et al. 2022, eq. 8, k = 1): (1 + SNR)^-gamma. min-SNR (Hang et al. 2023, section 3.4): min(SNR, gamma)
    over SNR for epsilon, over 1 for sample, over SNR + 1 for v_prediction. SNR = abar / (1 - abar).
    """
    snr = (alpha / sigma) ** 2
    weight = (1 + snr) ** -p2_gamma
    if min_snr is not None:
        over = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}[prediction_type]
        weight = weight * snr.clamp(max=min_snr) / over
    return weight


def weighted_loss(kind: str, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over all elements of weight x loss; weight broadcasts, one per sample."""
    return (LOSSES[kind](prediction, target, reduction="none") * weight).mean()
