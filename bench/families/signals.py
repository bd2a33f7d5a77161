"""denoising-diffusion-pytorch's Unet1D, as a network of pictures of one row, in the loops of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.families.family import IMAGES, Family, Loop, drawn, normals, settled
from fastdiff.bench.families.lucidrains import NEEDS, as_predicted, ddim_nodes
from fastdiff.bench.peers import others
from fastdiff.bench.peers.wrapped import Signals

LENGTH, CHANNELS = 32, 2
# The objective, the schedule of betas, T, and the steps; with fewer than T it runs DDIM.
CONFIGURATIONS = (
    ("pred_noise", "linear", 50, 50),
    ("pred_noise", "cosine", 50, 50),
    ("pred_x0", "cosine", 50, 50),
    ("pred_v", "cosine", 50, 50),
    ("pred_x0", "linear", 50, 50),
    ("pred_v", "linear", 50, 50),
    ("pred_x0", "cosine", 1000, 20),
    ("pred_v", "cosine", 1000, 30),
    ("pred_noise", "cosine", 1000, 20),
    ("pred_v", "linear", 1000, 20),
)
KINDS = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}


def _loops() -> Iterator[Loop]:
    library: Any = others.lucidrains("denoising_diffusion_pytorch_1d")
    library.tqdm = lambda steps, *given, **options: steps  # which cannot be turned off in its loops
    torch.manual_seed(0)
    network = Signals(library.Unet1D(16, dim_mults=(1, 2), channels=CHANNELS))
    settled(network, (CHANNELS, 1, LENGTH))
    for objective, schedule, timesteps, steps in CONFIGURATIONS:
        loop = library.GaussianDiffusion1D(
            network.network,
            seq_length=LENGTH,
            timesteps=timesteps,
            sampling_timesteps=steps,
            objective=objective,
            beta_schedule=schedule,
        )
        words = f"DDIM of {steps} steps" if steps < timesteps else "DDPM"
        yield Loop(
            f"{objective}, {schedule}, T = {timesteps}, {words}",
            True,
            partial(drawn, partial(_theirs, loop)),
            partial(_ours, network, loop, KINDS[objective], timesteps, steps),
        )


def _theirs(loop: Any) -> Tensor:
    signals: Tensor = loop.sample(batch_size=IMAGES) * 2 - 1
    return signals[:, :, None]


def _ours(network: Signals, loop: Any, kind: str, timesteps: int, steps: int) -> Tensor:
    model = fastdiff.Model(
        network,
        fastdiff.Schedule(loop.betas.double().numpy()),
        prediction_type=kind,
        image_shape=(CHANNELS, 1, LENGTH),
        clip=1.0,
    )
    table = model.table("ddpm") if steps == timesteps else model.table("ddim", timesteps=ddim_nodes(timesteps, steps))
    if steps < timesteps and kind == "epsilon":
        table = as_predicted(table)
    return fastdiff.sample(
        model,
        IMAGES,
        table,
        noise=normals,
        device="cpu",
    )


FAMILIES = (Family("denoising-diffusion-pytorch's Unet1D, wrapped", _loops, NEEDS, "unet1d@64"),)
