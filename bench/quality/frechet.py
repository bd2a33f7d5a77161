"""The Fréchet distance between pictures, by features of the project's own classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.bench.quality.classifier import Classifier

BATCH = 250  # pictures whose features are taken at once


@torch.no_grad()
def features(network: Classifier, images: Tensor, device: torch.device) -> Tensor:
    """uint8 pictures (n, C, H, W) → (n, FEATURES) float64 on the CPU; the network is on the device, in eval mode."""
    return torch.cat([network.features(part.to(device)).cpu() for part in images.split(BATCH)]).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """Between two sets of features, each taken as a normal distribution (Heusel et al. 2017)."""
    first, second = a.T.cov(), b.T.cov()
    root = torch.linalg.eigvals(first @ second).sqrt().real.sum()  # the trace of the product's square root
    return float((a.mean(dim=0) - b.mean(dim=0)).square().sum() + first.trace() + second.trace() - 2 * root)


def evenly(labels: Tensor, n: int, seed: int) -> Tensor:
    """Up to n rows at random, as many of each class; fewer where a class has no more."""
    generator = torch.Generator().manual_seed(seed)
    kinds = labels.argmax(dim=1)
    own = [(kinds == k).nonzero()[:, 0] for k in kinds.unique()]
    own = [rows[torch.randperm(len(rows), generator=generator)] for rows in own]
    each = min(-(-n // len(own)), *map(len, own))
    return torch.stack([rows[:each] for rows in own], dim=1).flatten()[:n]
