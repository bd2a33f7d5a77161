"""The MNIST network that the course's ContextUnet comes from, in a loop written from how its code works."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.families.family import Family, Loop, drawn, normals

CLASSES = 10
# T, and the guidance w; 400 is the script's own T.
CONFIGURATIONS = tuple((timesteps, w) for timesteps in (25, 50, 100, 400) for w in (0.0, 0.5, 2.0))
LABELS = torch.eye(CLASSES)[[7, 3]]


def _loops() -> Iterator[Loop]:
    torch.manual_seed(0)
    network = fastdiff.ContextUnet(1, 32, CLASSES, 28, edition="mnist").eval()
    for timesteps, w in CONFIGURATIONS:
        schedule = fastdiff.make_schedule("course", timesteps)
        model = fastdiff.Model(network, schedule, image_shape=(1, 28, 28), time="fraction")
        yield Loop(
            f"T = {timesteps}, w = {w:g}",
            False,
            partial(drawn, partial(_theirs, network, torch.from_numpy(schedule.betas.copy()), w)),
            partial(
                fastdiff.sample,
                model,
                len(LABELS),
                "ddpm_large",
                context=LABELS,
                guidance_scale=1 + w,
                noise=normals,
                device="cpu",
            ),
        )


def _theirs(network: torch.nn.Module, betas: Tensor, w: float) -> Tensor:
    """Its sample(): betas[0] is kept in alphabar, and step 1 is the last."""
    timesteps = len(betas) - 1
    alphabar = torch.cumprod(1 - betas, dim=0)
    x = torch.randn(len(LABELS), 1, 28, 28)
    for i in range(timesteps, 0, -1):
        t = torch.full((len(LABELS),), i / timesteps)
        within, without = network(x, t, LABELS), network(x, t, 0 * LABELS)
        eps = (1 + w) * within - w * without
        mean = (x - betas[i] / (1 - alphabar[i]).sqrt() * eps) / (1 - betas[i]).sqrt()
        x = (mean + (betas[i].sqrt() * torch.randn(x.shape) if i > 1 else 0)).float()
    return x


FAMILIES = (Family("the MNIST network with classes, its own loop", _loops, measured="mnist@28"),)
