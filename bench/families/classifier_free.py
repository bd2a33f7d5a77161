"""denoising-diffusion-pytorch's classifier-free edition, in the loops of its GaussianDiffusion.

With guidance as published (Ho and Salimans 2022): unless told otherwise the library leaves out of it what is parallel
to the prediction, and rescales it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.families.family import Family, Loop, drawn, normals, settled
from fastdiff.bench.families.lucidrains import NEEDS, as_predicted, ddim_nodes
from fastdiff.bench.peers import others

SIZE, CLASSES = 16, 5
LABELS = torch.tensor([1, 3])


class Configuration(NamedTuple):
    """The objective, the schedule of betas, T, the steps, of DDIM where there are fewer, the guidance, and clipping."""

    objective: str
    schedule: str
    timesteps: int
    steps: int
    scale: float
    clipped: bool = True


CONFIGURATIONS = (
    Configuration("pred_noise", "cosine", 50, 50, 1),
    Configuration("pred_noise", "cosine", 50, 50, 3),
    Configuration("pred_noise", "linear", 50, 50, 1),
    Configuration("pred_x0", "cosine", 50, 50, 3),
    Configuration("pred_v", "cosine", 50, 50, 1),
    Configuration("pred_v", "linear", 50, 50, 3),
    Configuration("pred_v", "cosine", 1000, 20, 3),
    Configuration("pred_x0", "linear", 1000, 20, 1),
    Configuration("pred_noise", "cosine", 1000, 20, 3),
    Configuration("pred_noise", "linear", 1000, 20, 3, clipped=False),
    Configuration("pred_v", "linear", 1000, 20, 1, clipped=False),
)


def _loops() -> Iterator[Loop]:
    library: Any = others.lucidrains("classifier_free_guidance")
    library.tqdm = lambda steps, *given, **options: steps  # which cannot be turned off in its loops
    torch.manual_seed(0)
    network = library.Unet(16, CLASSES, dim_mults=(1, 2))
    settled(network, (3, SIZE, SIZE), torch.zeros(1, dtype=torch.int64))
    network.forward_with_cond_scale = partial(_guided, network.forward_with_cond_scale)
    for made in CONFIGURATIONS:
        loop = library.GaussianDiffusion(
            network,
            image_size=SIZE,
            timesteps=made.timesteps,
            sampling_timesteps=made.steps,
            objective=made.objective,
            beta_schedule=made.schedule,
            ddim_sampling_eta=0.0,
        )
        words = f"DDIM of {made.steps} steps" if made.steps < made.timesteps else "DDPM"
        words = f"{made.objective}, {made.schedule}, T = {made.timesteps}, {words}, guidance {made.scale:g}"
        yield Loop(
            words + ("" if made.clipped else ", unclipped"),
            made.clipped,
            partial(drawn, partial(_theirs, loop, made)),
            partial(_ours, loop, made),
        )


def _guided(guided: Any, *given: Any, cond_scale: float, **options: Any) -> Any:
    """Its method without what it leaves out of guidance; without guidance it returns one value where it takes two."""
    out = guided(*given, cond_scale=cond_scale, **{**options, "remove_parallel_component": False})
    return (out, out) if cond_scale == 1 else out


def _theirs(loop: Any, made: Configuration) -> Tensor:
    options: dict[str, Any] = {"cond_scale": made.scale, "rescaled_phi": 0.0}
    if made.clipped:
        images: Tensor = loop.sample(LABELS, **options)
    else:
        images = loop.ddim_sample(LABELS, (len(LABELS), 3, SIZE, SIZE), clip_denoised=False, **options)
    return images * 2 - 1


def _ours(loop: Any, made: Configuration) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(loop.state_dict(), path)
        model = fastdiff.load(path, image_size=SIZE)
    table = model.table("ddpm")
    if made.steps < made.timesteps:
        table = model.table("ddim", timesteps=ddim_nodes(made.timesteps, made.steps))
        table = as_predicted(table) if made.objective == "pred_noise" else table
    return fastdiff.sample(
        model,
        len(LABELS),
        table,
        context=LABELS,
        guidance_scale=made.scale,
        clip="model" if made.clipped else None,
        noise=normals,
        device="cpu",
    )


FAMILIES = (Family("denoising-diffusion-pytorch's classifier-free Unet", _loops, NEEDS, "classifier-free@32"),)
