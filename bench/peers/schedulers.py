"""Whole sampling loops by diffusers' schedulers around any predictor, as their users write them.

diffusers numbers T timesteps from 0 and multiplies betas itself. The course's T + 1 points fit by one shift: its
timestep i is diffusers' i - 1, and the first beta takes in the factor that the course leaves in all later products.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.errors import unknown_name

SAMPLERS = ("ddim", "ddpm", "ddpm_large", "dpmpp_2m")

Predict = Callable[[Tensor, int | float], Tensor]  # (x, the model's time) → the prediction, in x's dtype
Noise = Callable[[int], Tensor]  # 0 → x_T, k → the k-th noise added after that


def required(module: str, packages: tuple[str, ...], said: str) -> ModuleType:
    """The module, or an ImportError of that sentence where one of the packages is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in packages:  # they are there, and something that they need is not
            raise
        raise ImportError(said) from error


def diffusers() -> ModuleType:
    return required("diffusers", ("diffusers",), "diffusers is not installed; pip install diffusers")


def spacing_of(model: fastdiff.Model, sampler: str) -> str:
    """The spacing at which both make the same steps, for fastdiff.make_table.

    ddpm_large: diffusers leaves the noise out at timestep 0 only, our table in its last row; leading ends at 0.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    return "leading" if sampler == "ddpm_large" else "trailing"


def _betas(schedule: fastdiff.Schedule) -> np.ndarray:
    """The betas of the T noisy timesteps, whose running product is the schedule's alphas_cumprod."""
    betas = schedule.betas[schedule.first :].copy()
    betas[0] = 1 - schedule.alphas_cumprod[schedule.first]
    return betas


@lru_cache(maxsize=8)  # users make it once, and call set_timesteps for every run
def scheduler(model: fastdiff.Model, sampler: str) -> Any:
    """For models that clip nothing, as the shipped ones."""
    library, schedule = diffusers(), model.schedule
    options: dict[str, Any] = dict(
        num_train_timesteps=schedule.num_timesteps,
        trained_betas=_betas(schedule),
        prediction_type=model.prediction_type,
        timestep_spacing=spacing_of(model, sampler),
    )
    if sampler == "ddim":
        return library.DDIMScheduler(**options, clip_sample=False, set_alpha_to_one=True)
    if sampler == "dpmpp_2m":
        return library.DPMSolverMultistepScheduler(
            **options,
            solver_order=2,
            algorithm_type="dpmsolver++",
            solver_type="midpoint",
            final_sigmas_type="zero",
            lower_order_final=True,
            euler_at_final=True,
        )
    variance = "fixed_large" if sampler == "ddpm_large" else "fixed_small"
    made = library.DDPMScheduler(**options, clip_sample=False, variance_type=variance)
    if sampler == "ddpm_large" and schedule.first == 1:
        # The course's last step divides by its own alpha and leaves 1 - betas[0]; see samplers.ddpm_large.
        made.one = torch.tensor(1 - schedule.betas[0], dtype=torch.float32)
    return made


@contextmanager
def noise_of(noise: Noise | None, device: torch.device) -> Iterator[None]:
    """Has DDPMScheduler, which takes no noise, add noise(1), noise(2), ... in place of its own."""
    if noise is None:
        yield
        return
    module: Any = importlib.import_module("diffusers.schedulers.scheduling_ddpm")
    own, draws = module.randn_tensor, count(1)
    module.randn_tensor = lambda *_, **__: noise(next(draws)).to(device)
    try:
        yield
    finally:
        module.randn_tensor = own


@torch.no_grad()
def sample(
    model: fastdiff.Model,
    sampler: str,
    steps: int,
    predict: Predict,
    noise: Noise | None,
    shape: tuple[int, ...],
    device: torch.device | str,
) -> Tensor:
    """Images of that shape, float32 on the device; `model` gives the schedule and the prediction type.

    noise: None draws each by torch, as their users do. With a given one the images are those of fastdiff.sample with
    the same noise and spacing_of, where diffusers takes the same timesteps: ddim has to divide T, and dpmpp_2m rounds
    some numbers of steps. Timesteps stay on the CPU, as in diffusers' pipelines, so nothing waits for a GPU.
    """
    device = torch.device(device)
    made = scheduler(model, sampler)
    made.set_timesteps(steps)
    first, total = model.schedule.first, model.schedule.num_timesteps
    x = torch.randn(shape, device=device) if noise is None else noise(0).to(device)
    with noise_of(noise, device):
        for t in made.timesteps:
            index = int(t) + first
            out = predict(x, index / total if model.time == "fraction" else index)
            x = made.step(out, t, x).prev_sample
    return x
