"""The measures: Fréchet distance, precision and recall, all between two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError, install

NEIGHBOURS = 3  # k of precision and recall, as in the paper
CHUNK = 1000  # rows whose distances to all others are held at once


def frechet(a: Tensor, b: Tensor) -> float:
    """Between two sets of features, each taken as a normal distribution (Heusel et al. 2017), by torchmetrics.

    Args:
        a: (n, D) float64.
        b: (m, D) float64.

    Raises:
        InputError: if torchmetrics is not installed.
    """
    given = nn.Identity()  # in the place of the network that computes features
    given.num_features = a.shape[1]  # type: ignore[assignment]
    metric = frechet_metric()(given)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return float(metric.compute())


def frechet_metric() -> type:
    """torchmetrics' class; raises InputError where it is not installed."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise InputError(f"the Fréchet distance needs torchmetrics ({error}); {install('eval')}") from error
    return FrechetInceptionDistance


def precision_recall(made: Tensor, real: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of samples among real pictures, and of real pictures among samples (Kynkäänniemi et al. 2019).

    A picture lies among others where it is, for one of them, no farther than that one's k-th nearest other (eq. 1).

    Args:
        made: (n, D) features of samples.
        real: (m, D) features of real pictures; the paper has n = m, since both shares fall as either grows.
        k: from 1 to min(n, m) - 1.

    Returns:
        Precision (eq. 2) and recall (eq. 3), each from 0 to 1.
    """
    return _share_among(made, real, k), _share_among(real, made, k)


def _share_among(points: Tensor, others: Tensor, k: int) -> float:
    radii = torch.cat([_distances(part, others).kthvalue(k + 1, dim=1).values for part in others.split(CHUNK)])
    among = torch.cat([(_distances(part, others) <= radii).any(dim=1) for part in points.split(CHUNK)])
    return float(among.double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, D), (m, D) → (n, m), exactly: by products, equal features would be some 1e-7 apart."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
