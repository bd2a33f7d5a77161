"""`sample`: images from a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff.engine.engine import DEFAULT_BATCH, Engine
from fastdiff.engine.noise import LIMIT, NoiseSource
from fastdiff.errors import check_int
from fastdiff.model import Model
from fastdiff.samplers import defaults
from fastdiff.samplers.table import StepTable, make_table


def sample(
    model: Model,
    n: int,
    sampler: str | StepTable = defaults.SAMPLER,
    steps: int = defaults.STEPS,
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
    form: str | None = None,
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
    batch_size: samples run together; at most 64 unless given. With a given one, batches begin at multiples of it and
        are run whole, and a sample's pixels are then the same bits whatever n and first. progress: a bar on stderr.
    form: how the network runs, see forms.FORMS; None is the fastest there is, "eager" the reference.

    Raises InputError, before any long work, for values outside these.
    """
    n = check_int("n", n, 1, LIMIT - 1)
    first = check_int("first", first, 0, LIMIT - n)
    frames = None if frames is None else check_int("frames", frames, 1, LIMIT - 1)
    if isinstance(sampler, StepTable):
        table = sampler
    else:
        table = make_table(sampler, model.schedule, steps, eta, spacing, model.prediction_type, model.time)
    # Unless a size is given the batches begin at `first`, so that a small request is a small batch.
    size, origin = (min(n, DEFAULT_BATCH), first) if batch_size is None else (batch_size, 0)
    engine = Engine(model, table, size, dtype, device, clip, form)
    bar = tqdm(total=-(-n // engine.batch_size) * len(table), disable=not progress, unit="step", leave=False)
    seen: list[Tensor] = []  # frames of the batch at hand

    def on_step(row: int) -> None:
        bar.update()
        if row == 0:
            seen.clear()  # those of a batch that did not fit in memory
        if frames is not None and ((row + 1) % frames == 0 or row + 1 == len(table)):
            seen.append(engine.current())

    watched = on_step if progress or frames is not None else None
    batches, kept = [], []
    with bar:
        for images in engine.stream(
            n, seed, first, context, guidance_scale, noise=noise, origin=origin, on_step=watched
        ):
            batches.append(images)
            if frames is not None:
                kept.append(torch.stack(seen))
    return torch.cat(batches) if frames is None else (torch.cat(batches), torch.cat(kept, dim=1))
