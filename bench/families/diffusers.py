"""diffusers' networks, in loops of its schedulers with the options that people use most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.bench.families.family import IMAGES, Family, Loop, drawn, normals, settled
from fastdiff.bench.networks import DDPM_CIFAR10
from fastdiff.bench.peers.schedulers import diffusers

STEPS, SIZE = 20, 16
TOKENS = (IMAGES, 7, 32)
# Each scheduler's options beside its defaults.
CONFIGURATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDPM", {}),
    ("DDPM", {"clip_sample": False, "variance_type": "fixed_large"}),
    ("DDIM", {}),
    ("DDIM", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIM", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "beta_schedule": "scaled_linear"}),
    ("UniPCMultistep", {}),
    ("EulerDiscrete", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscrete", {"timestep_spacing": "trailing"}),
    ("HeunDiscrete", {}),
    ("LCM", {}),
    ("EDMEuler", {}),
    ("EDMDPMSolverMultistep", {"prediction_type": "v_prediction"}),
)


def _loops(make: Callable[[], nn.Module], context: Callable[[], Tensor] | None = None) -> Iterator[Loop]:
    torch.manual_seed(0)
    given = () if context is None else (context(),)
    network = settled(make(), (3, SIZE, SIZE), *given)
    for name, options in CONFIGURATIONS:
        scheduler = getattr(diffusers(), f"{name}Scheduler")(**options)
        model = fastdiff.from_diffusers(network, scheduler)
        words = ", ".join(f"{key}={value}" for key, value in options.items())
        yield Loop(
            f"{name}Scheduler({words})",
            model.clip is not None,
            partial(drawn, partial(_theirs, scheduler, network, model.image_shape, given)),
            partial(
                fastdiff.sample,
                model,
                IMAGES,
                steps=STEPS,
                context=given[0] if given else None,
                noise=normals,
                device="cpu",
            ),
        )


def _theirs(scheduler: Any, network: nn.Module, image_shape: tuple[int, ...], given: tuple[Tensor, ...]) -> Tensor:
    scheduler.set_timesteps(STEPS)
    x = torch.randn(IMAGES, *image_shape) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t, *given).sample
        x = scheduler.step(out, t, x).prev_sample
    return x


def _unet(**options: Any) -> nn.Module:
    made: nn.Module = diffusers().UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    )
    return made


def _conditional() -> nn.Module:
    made: nn.Module = diffusers().UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=TOKENS[-1],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return made


NEEDS = ("diffusers",)
FAMILIES = (
    Family("diffusers' UNet2DModel", partial(_loops, _unet), NEEDS, "unet2d@32"),
    Family(
        "diffusers' UNet2DModel with the options of ddpm-cifar10",
        partial(_loops, partial(_unet, **DDPM_CIFAR10)),
        NEEDS,
        "ddpm-cifar10@32",
    ),
    Family(
        "diffusers' UNet2DConditionModel, with tokens",
        partial(_loops, _conditional, partial(torch.randn, TOKENS)),
        NEEDS,
        "tokens@32",
    ),
)
