"""EDM's networks, in the loop of its generate.py, written from how that works: no package index has it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.families.family import IMAGES, Family, Loop, drawn, normals
from fastdiff.bench.peers.edm import Precond, SongUNet

SIZE, RHO = 16, 7
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


class Configuration(NamedTuple):
    """generate.py's options: steps, the share of churn, whether Heun's method or Euler's, and classes."""

    steps: int
    churn: float = 0.0
    heun: bool = True
    labels: bool = False


CONFIGURATIONS = (
    Configuration(18),
    Configuration(8),
    Configuration(32),
    Configuration(40, churn=0.25),
    Configuration(18, churn=0.1),
    Configuration(18, labels=True),
    Configuration(32, churn=0.25, labels=True),
    Configuration(18, heun=False),
    Configuration(40, heun=False),
    Configuration(18, heun=False, labels=True),
)
LABELS = torch.eye(5)[[1, 3]]


def _loops() -> Iterator[Loop]:
    torch.manual_seed(0)
    networks = {}
    for labels in (False, True):
        unet = SongUNet(
            img_resolution=SIZE, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,)
        )
        networks[labels] = Precond(unet, SIZE, label_dim=5 if labels else 0).eval().requires_grad_(False)
    for made in CONFIGURATIONS:
        words = f"{'Heun' if made.heun else 'Euler'}, {made.steps} steps"
        words += f", churn {made.churn:g} of the most" if made.churn else ""
        words += ", a class" if made.labels else ""
        loop = partial(_theirs, networks[made.labels], made)
        yield Loop(words, False, partial(drawn, loop), partial(_ours, networks[made.labels], made))


def _theirs(network: Precond, made: Configuration) -> Tensor:
    """Its edm_sampler, with S_max below the first level, and S_noise = 1."""
    shares = torch.arange(made.steps, dtype=torch.float64) / (made.steps - 1)
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    levels = torch.cat([(high + shares * (low - high)) ** RHO, torch.zeros(1)])
    labels = LABELS if made.labels else None

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        given = sigma.expand(len(x)).to(torch.float32)
        return (x - network(x.to(torch.float32), given, labels).to(torch.float64)) / sigma

    x_next = torch.randn(IMAGES, 3, SIZE, SIZE).to(torch.float64) * levels[0]
    for i, (sigma, sigma_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        raised = sigma + made.churn * (2**0.5 - 1) * sigma if i else sigma
        x = x_next + (raised**2 - sigma**2).sqrt() * torch.randn(x_next.shape)
        d = slope(x, raised)
        x_next = x + (sigma_next - raised) * d
        if made.heun and i < made.steps - 1:
            x_next = x + (sigma_next - raised) * (d + slope(x_next, sigma_next)) / 2
    return x_next.float()


def _ours(network: Precond, made: Configuration) -> Tensor:
    model = fastdiff.from_edm(network)
    context = LABELS if made.labels else None
    if not made.heun:
        table = model.table("euler", made.steps, spacing="linspace", sigmas="karras")
        return fastdiff.sample(model, IMAGES, table, noise=normals, device="cpu", context=context)

    def noise(draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """A step's noise is drawn in the last row of the one before, two of which have gone by for each."""
        return normals(draw // 2 + 1 if draw else 0, first, shape)

    return fastdiff.sample(
        model, IMAGES, "edm", steps=made.steps, eta=made.churn, noise=noise, device="cpu", context=context
    )


FAMILIES = (Family("EDM's SongUNet with its preconditioning, and its loop, written anew", _loops, measured="edm@32"),)
