"""The Fréchet distance between pictures, by features of the project's own classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.bench.quality.classifier import Classifier
from fastdiff.errors import InputError, install

BATCH = 250  # pictures whose features are taken at once


@torch.no_grad()
def features(network: Classifier, images: Tensor, device: torch.device) -> Tensor:
    """uint8 pictures (n, C, H, W) → (n, FEATURES) float64 on the CPU; the network is on the device, in eval mode."""
    return torch.cat([network.features(part.to(device)).cpu() for part in images.split(BATCH)]).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """Between two sets of features, each taken as a normal distribution (Heusel et al. 2017), by torchmetrics."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise InputError(f"the Fréchet distance needs torchmetrics ({error}); {install('bench')}") from error
    given = nn.Identity()  # in the place of the network that computes features
    given.num_features = a.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(given)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return float(metric.compute())


def evenly(labels: Tensor, n: int, seed: int) -> Tensor:
    """Up to n rows at random, as many of each class; fewer where a class has no more."""
    generator = torch.Generator().manual_seed(seed)
    kinds = labels.argmax(dim=1)
    own = [(kinds == k).nonzero()[:, 0] for k in kinds.unique()]
    own = [rows[torch.randperm(len(rows), generator=generator)] for rows in own]
    each = min(-(-n // len(own)), *map(len, own))
    return torch.stack([rows[:each] for rows in own], dim=1).flatten()[:n]
