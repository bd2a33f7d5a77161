"""The Fréchet distance between pictures, by features of the project's own classifiers."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.quality.classifier import Features
from fastdiff.data.images import ImageData
from fastdiff.errors import InputError

BATCH = 250  # pictures whose features are taken at once
FLOORS = 5  # draws of training pictures


class Distance:
    """The Fréchet distance of pictures, uint8 (n, C, H, W), to the real ones, by torchmetrics."""

    def __init__(self, network: Features, real: Tensor, device: torch.device) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise InputError(f"the Fréchet distance needs torchmetrics ({error}); pip install torchmetrics") from error
        channels, height, width = real.shape[1:]
        self.metric = FrechetInceptionDistance(
            network, False, normalize=True, input_img_size=(channels, height, width)
        ).to(device)
        self.device = device
        self._take(real, True)

    def _take(self, images: Tensor, real: bool) -> None:
        for part in images.split(BATCH):
            self.metric.update(part.to(self.device).float() / 255, real=real)

    def __call__(self, images: Tensor) -> float:
        self.metric.reset()  # of these, not of the real ones
        self._take(images, False)
        return float(self.metric.compute())


def evenly(labels: Tensor, n: int, seed: int) -> Tensor:
    """Up to n rows at random, as many of each class; fewer where a class has no more."""
    generator = torch.Generator().manual_seed(seed)
    kinds = labels.argmax(dim=1)
    own = [(kinds == k).nonzero()[:, 0] for k in range(labels.shape[1])]
    own = [rows[torch.randperm(len(rows), generator=generator)] for rows in own if len(rows)]
    each = min(-(-n // len(own)), *map(len, own))
    return torch.stack([rows[:each] for rows in own], dim=1).flatten()[:n]


def floor(data: ImageData, distance: Distance, n: int) -> dict[str, Any]:
    """Of n training pictures, drawn `FLOORS` times."""
    drawn = [evenly(data.labels, n, seed) for seed in range(FLOORS)]
    found = [distance(data.images[rows]) for rows in drawn]
    spread = {"distance": statistics.mean(found), "lowest": min(found), "highest": max(found)}
    return {"pictures": len(drawn[0]), "draws": FLOORS, **spread}
