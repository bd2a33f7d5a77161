"""OpenAI's UNetModel, in loops written from how guided-diffusion works, which no package index has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.families.family import IMAGES, Family, Loop, drawn, normals, settled
from fastdiff.networks.openai import OpenaiUnet

SIZE, T, STEPS, CLASSES = 16, 1000, 20, 5


class Configuration(NamedTuple):
    """Its diffusion's options: which variance ("small", "large", "learned", or DDIM's eta), schedule and clipping."""

    variance: str | float
    schedule: str = "linear"
    clipped: bool = True


CONFIGURATIONS = (
    Configuration("small"),
    Configuration("small", clipped=False),
    Configuration("large"),
    Configuration("learned"),
    Configuration("learned", "squaredcos_cap_v2"),
    Configuration("learned", clipped=False),
    Configuration(0.0),
    Configuration(0.0, clipped=False),
    Configuration(1.0),
    Configuration(0.0, "squaredcos_cap_v2"),
)
LABELS = torch.tensor([1, 3])


@cache
def _network(learned: bool) -> OpenaiUnet:
    torch.manual_seed(0)
    network = OpenaiUnet(
        model_channels=32,
        out_channels=6 if learned else 3,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_levels=(1,),
        num_heads=2,
        num_classes=CLASSES,
    )
    settled(network, (3, SIZE, SIZE), torch.zeros(1, dtype=torch.int64))
    return network


def _loops() -> Iterator[Loop]:
    for made in CONFIGURATIONS:
        learned = made.variance == "learned"
        network = _network(learned)
        schedule = fastdiff.make_schedule(made.schedule, T)
        model = fastdiff.Model(
            network,
            schedule,
            image_shape=(3, SIZE, SIZE),
            num_classes=CLASSES,
            clip=1.0 if made.clipped else None,
            learned_variance=learned,
        )
        name = {"small": "ddpm", "large": "ddpm_large", "learned": "ddpm"}.get(str(made.variance), "ddim")
        options: dict[str, Any] = {"spacing": "leading" if name == "ddim" else "linspace"}
        if name == "ddim":
            options["eta"] = made.variance
        words = f"ddim, eta {made.variance:g}" if isinstance(made.variance, float) else f"{made.variance} variance"
        yield Loop(
            f"{words}, {made.schedule}{'' if made.clipped else ', unclipped'}",
            made.clipped,
            partial(drawn, partial(_theirs, network, schedule.betas, made)),
            partial(
                fastdiff.sample,
                model,
                IMAGES,
                name,
                steps=STEPS,
                context=LABELS,
                noise=normals,
                device="cpu",
                **options,
            ),
        )


def _theirs(network: OpenaiUnet, betas: np.ndarray, made: Configuration) -> Tensor:
    """p_sample_loop or ddim_sample_loop of a diffusion that is respaced to STEPS."""
    ddim = isinstance(made.variance, float)
    taken = range(0, T, T // STEPS) if ddim else [round(k * (T - 1) / (STEPS - 1)) for k in range(STEPS)]
    abar = np.cumprod(1 - betas)[list(taken)]
    before = np.append(1.0, abar[:-1])
    beta = 1 - abar / before
    posterior = beta * (1 - before) / (1 - abar)
    shortest = np.log(np.append(posterior[1], posterior[1:]))
    x = torch.randn(IMAGES, 3, SIZE, SIZE)
    for i in reversed(range(STEPS)):
        t = torch.full((IMAGES,), taken[i])
        out, values = (*network(x, t, LABELS).split(3, dim=1), None)[:2]
        x0 = x / abar[i] ** 0.5 - (1 / abar[i] - 1) ** 0.5 * out
        x0 = x0.clamp(-1, 1) if made.clipped else x0
        noise = torch.randn(x.shape)
        if isinstance(made.variance, float):
            eps = (x / abar[i] ** 0.5 - x0) / (1 / abar[i] - 1) ** 0.5
            sigma = made.variance * (posterior[i]) ** 0.5
            x = before[i] ** 0.5 * x0 + (1 - before[i] - sigma**2) ** 0.5 * eps + (sigma * noise if i else 0)
            continue
        if values is not None:
            share = (values + 1) / 2
            log_variance = share * np.log(beta[i]) + (1 - share) * shortest[i]
        else:
            log_variance = torch.tensor(shortest[i] if made.variance == "small" else np.log(beta[i]))
        mean = beta[i] * before[i] ** 0.5 / (1 - abar[i]) * x0
        mean = mean + (1 - before[i]) * (1 - beta[i]) ** 0.5 / (1 - abar[i]) * x
        x = mean + (torch.exp(0.5 * log_variance) * noise if i else 0)
    return x.float()


FAMILIES = (Family("OpenAI's UNetModel, with class labels", _loops, (), "guided@32"),)
