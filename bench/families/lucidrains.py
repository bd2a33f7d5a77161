"""denoising-diffusion-pytorch's Unet, in the loops of its GaussianDiffusion."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.families.family import IMAGES, Family, Loop, drawn, normals, settled
from fastdiff.bench.peers import others

SIZE = 16
NEEDS = ("denoising_diffusion_pytorch", "einops")
# The objective, the schedule of betas, T, the steps, and eta; with fewer steps than T it runs DDIM.
Configuration = tuple[str, str, int, int, float]
CONFIGURATIONS: tuple[Configuration, ...] = (
    ("pred_noise", "linear", 50, 50, 0.0),
    ("pred_noise", "cosine", 50, 50, 0.0),
    ("pred_noise", "sigmoid", 50, 50, 0.0),
    ("pred_x0", "linear", 50, 50, 0.0),
    ("pred_v", "sigmoid", 50, 50, 0.0),
    ("pred_noise", "linear", 1000, 20, 0.0),
    ("pred_noise", "linear", 1000, 20, 1.0),
    ("pred_noise", "cosine", 1000, 30, 0.0),
    ("pred_x0", "sigmoid", 1000, 30, 0.5),
    ("pred_v", "sigmoid", 1000, 20, 0.0),
)
# Its own loop is chaotic with pred_noise, linear and T = 50: normals that are 1e-7 off change its images by 5e-3.
SELF_CONDITIONED: tuple[Configuration, ...] = (
    ("pred_noise", "cosine", 50, 50, 0.0),
    ("pred_noise", "sigmoid", 50, 50, 0.0),
    ("pred_x0", "cosine", 50, 50, 0.0),
    ("pred_v", "sigmoid", 50, 50, 0.0),
    ("pred_noise", "linear", 1000, 20, 0.0),
    ("pred_noise", "cosine", 1000, 30, 0.0),
    ("pred_v", "sigmoid", 1000, 20, 1.0),
    ("pred_x0", "sigmoid", 100, 100, 0.0),
    ("pred_v", "cosine", 100, 100, 0.0),
    ("pred_v", "linear", 1000, 30, 0.5),
)
LEARNED: tuple[Configuration, ...] = tuple(
    ("pred_noise", schedule, timesteps, timesteps, 0.0)
    for schedule in ("linear", "cosine", "sigmoid")
    for timesteps in (25, 50, 100, 200)
)


def _loops(configurations: tuple[Configuration, ...] = CONFIGURATIONS, **kind: bool) -> Iterator[Loop]:
    """kind: options of the library's Unet."""
    library: Any = others.lucidrains()
    library.tqdm = lambda steps, *given, **options: steps  # which cannot be turned off in its loops
    made = library.GaussianDiffusion
    if kind.get("learned_variance"):
        made = others.lucidrains("learned_gaussian_diffusion").LearnedGaussianDiffusion
    torch.manual_seed(0)
    network = settled(library.Unet(16, dim_mults=(1, 2), **kind), (3, SIZE, SIZE))
    for objective, schedule, timesteps, steps, eta in configurations:
        loop = made(
            network,
            image_size=SIZE,
            timesteps=timesteps,
            sampling_timesteps=steps,
            objective=objective,
            beta_schedule=schedule,
            ddim_sampling_eta=eta,
        )
        options: dict[str, Any] = {"sampler": "ddpm"}
        if steps < timesteps:
            options = {"sampler": "ddim", "timesteps": ddim_nodes(timesteps, steps), "eta": eta}
        words = f"DDIM of {steps} steps, eta {eta:g}" if steps < timesteps else "DDPM"
        yield Loop(
            f"{objective}, {schedule}, T = {timesteps}, {words}",
            True,
            partial(drawn, partial(_theirs, loop)),
            partial(_ours, loop, options),
        )


def ddim_nodes(timesteps: int, steps: int) -> list[int]:
    """The timesteps of its DDIM."""
    return torch.linspace(-1, timesteps - 1, steps + 1).int().tolist()[:0:-1]  # type: ignore[no-any-return]


def as_predicted(table: fastdiff.StepTable) -> fastdiff.StepTable:
    """DDIM that goes on with the noise as the network predicts it, whatever is clipped, as of some editions."""
    zeros = 0 * table.alpha_next
    return replace(table, a=zeros, b=table.alpha_next, o=table.sigma_next)


def _theirs(loop: Any) -> Tensor:
    images: Tensor = loop.sample(batch_size=IMAGES) * 2 - 1
    return images


def _ours(loop: Any, options: dict[str, Any]) -> Tensor:
    """By way of a file, as its trainer writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model-1.pt"
        torch.save({"step": 1, "model": loop.state_dict()}, path)
        model = fastdiff.load(path, image_size=SIZE)
    return fastdiff.sample(model, IMAGES, noise=normals, device="cpu", **options)


FAMILIES = (
    Family("denoising-diffusion-pytorch's Unet", _loops, NEEDS, "lucidrains@32"),
    Family(
        "denoising-diffusion-pytorch's Unet with self-conditioning",
        partial(_loops, SELF_CONDITIONED, self_condition=True),
        NEEDS,
        "self-conditioning@32",
    ),
    Family(
        "denoising-diffusion-pytorch's Unet with a learned variance",
        partial(_loops, LEARNED, learned_variance=True),
        NEEDS,
        "learned-variance@32",
    ),
)
