"""`sample`: images from a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff.context import resolve_context
from fastdiff.errors import InputError, finite, whole
from fastdiff.model import Model
from fastdiff.noise import LIMIT, NoiseSource, PhiloxNoise
from fastdiff.prediction import check_clip
from fastdiff.prepared import EagerNetwork, ieee_float32, prepare_network
from fastdiff.step import State, advance
from fastdiff.table import StepTable, make_table

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEFAULT_BATCH = 64


def best_device() -> torch.device:
    """The CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sample(
    model: Model,
    n: int,
    sampler: str | StepTable = "ddim",
    steps: int = 25,
    eta: float = 0.0,
    spacing: str = "trailing",
    clip: Any = None,
    seed: int = 0,
    first: int = 0,
    context: Any = None,
    guidance_scale: float | None = None,
    frames: int | None = None,
    noise: NoiseSource | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """n images, (n, C, H, W) float32 on the CPU in the model's range, [-1, 1].

    sampler: ddim, ddpm, ddpm_large, ddpm_no_noise, dpmpp_2m, dpmpp_2m_sde, or a StepTable (then steps, eta and
        spacing are the table's own). steps: 1 to the schedule's T. eta: 0 to 1, for ddim.
    spacing: trailing, leading, linspace or course; see table.spaced.
    clip: clipping of the predicted x0: a bound, ("dynamic", quantile), False for none; None takes the model's own.
    seed, first: sample r of the result is sample first + r of the seed; its noise depends on these two alone,
        bit for bit, never on n, batch_size or the device. 0 <= seed, first < 2^63.
    context: (K,) for all, (n, K), row r for sample first + r, or {class name: weight}. None is the zero context.
    guidance_scale: classifier-free guidance, out_u + g (out_c - out_u); None and 1 are one evaluation a step.
    frames: also return x after every k-th step, the last included: (images, frames (m, n, C, H, W)).
    noise: a callable (draw, first, shape) → normals in place of the default Philox source; draw 0 is x_T.
    device: where the network runs; None is the CUDA device where there is one, else the CPU.
    dtype: of the network: float32 (the default; TF32 is off), bfloat16 or float16; x itself stays float32.
    batch_size: samples run together; 64 unless given. progress: a bar on stderr.

    Raises InputError, before any long work, for values outside these.
    """
    n = whole("n", n, 1, LIMIT - 1)
    seed, first = whole("seed", seed, 0, LIMIT - 1), whole("first", first, 0, LIMIT - n)
    size = min(n, DEFAULT_BATCH if batch_size is None else whole("batch_size", batch_size, 1, LIMIT - 1))
    frames = None if frames is None else whole("frames", frames, 1, LIMIT - 1)
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r}; accepted: {', '.join(map(str, DTYPES))}")
    table = _table(model, sampler, steps, eta, spacing)
    bound = model.clip if clip is None else check_clip(clip)
    rows = resolve_context(model, context, n)
    if guidance_scale is not None:
        guidance_scale = finite("guidance_scale", guidance_scale)
        if rows is None:
            raise InputError(f"guidance_scale = {guidance_scale} without a context; give a context to guide towards")
    device = choose_device(device)

    starts = range(0, n, size)
    images: list[Tensor] = []
    kept: list[Tensor] = []
    with (
        torch.inference_mode(),
        ieee_float32(),
        tqdm(total=len(starts) * len(table), disable=not progress, unit="step", leave=False) as bar,
    ):
        network = prepare_network(model.network, device, dtype)
        form = EagerNetwork(network, device, dtype, table, model.time == "index", rows, guidance_scale)
        for start in starts:
            count = min(size, n - start)
            x, source = _noise(seed if noise is None else noise, first + start, (count, *model.image_shape), device)
            state = State(x, table, source, bound, form.guidance_scale)
            predict = form.batch(slice(start, start + count), count)
            batch_frames: list[Tensor] = []
            for i in range(len(table)):
                advance(state, predict, i)
                if frames is not None and ((i + 1) % frames == 0 or i + 1 == len(table)):
                    batch_frames.append(state.x.to("cpu"))
                bar.update()
            images.append(state.x.to("cpu"))
            if frames is not None:
                kept.append(torch.stack(batch_frames))
    result = torch.cat(images).contiguous()
    return result if frames is None else (result, torch.cat(kept, dim=1))


def _noise(
    seed_or_source: int | NoiseSource, first: int, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor | Callable[[int], Tensor]]:
    """x_T, and what State.noise is: the key of the default noise, or the caller's own source."""
    if isinstance(seed_or_source, int):
        key = torch.tensor([seed_or_source, first], dtype=torch.int64, device=device)
        return PhiloxNoise(seed_or_source, device)(0, first, shape), key
    draw = _Draw(seed_or_source, first, shape, device)
    return draw(0), draw


@dataclass(frozen=True)
class _Draw:
    """A batch's noise from the caller's source: draw number → normals (n, C, H, W), float32 on the device, checked."""

    source: NoiseSource
    first: int
    shape: tuple[int, ...]
    device: torch.device

    def __call__(self, draw: int) -> Tensor:
        normals = torch.as_tensor(self.source(draw, self.first, self.shape))
        if tuple(normals.shape) != self.shape:
            raise InputError(f"the noise source returned shape {tuple(normals.shape)}; it was asked for {self.shape}")
        return normals.to(device=self.device, dtype=torch.float32)


def _table(model: Model, sampler: str | StepTable, steps: int, eta: float, spacing: str) -> StepTable:
    if not isinstance(sampler, StepTable):
        return make_table(sampler, model.schedule, steps, eta, spacing, model.prediction_type, model.time)
    if sampler.prediction_type != model.prediction_type:
        raise InputError(
            f"a table for prediction type {sampler.prediction_type!r}; the model's is {model.prediction_type!r}"
        )
    low, high = model.schedule.first, model.schedule.first + model.schedule.num_timesteps - 1
    if sampler.timestep.min() < low or sampler.timestep.max() > high:
        raise InputError(
            f"a table with timesteps {sampler.timestep.min():g} to {sampler.timestep.max():g}; the model's schedule "
            f"has {low} to {high}"
        )
    expected = sampler.timestep / (model.schedule.num_timesteps if model.time == "fraction" else 1)
    if not np.allclose(sampler.time, expected):
        raise InputError(
            f"a table that gives the network times up to {sampler.time.max():g}; this model's time is "
            f"{model.time!r}: make the table with time={model.time!r}"
        )
    return sampler


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or the best there is; raises InputError for one that cannot be used here."""
    if device is None:
        return best_device()
    try:
        chosen = torch.device(device)
        if chosen.type in ("cpu", "cuda"):
            torch.empty(0, device=chosen)
            return chosen
    except (RuntimeError, AssertionError, TypeError):
        pass
    available = "cpu, cuda" if torch.cuda.is_available() else "cpu"
    raise InputError(f"device = {str(device)!r} cannot be used here; available: {available}")
