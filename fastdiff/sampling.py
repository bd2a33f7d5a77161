"""`sample`: images from a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff.checkpoints.load import load
from fastdiff.engine.engine import Engine
from fastdiff.engine.noise import Noise
from fastdiff.engine.pictures import check_resample, choose_strength
from fastdiff.engine.request import Asked, Request, check_batch_size
from fastdiff.errors import InputError
from fastdiff.model import Model, check_model
from fastdiff.samplers.prediction import Clip
from fastdiff.samplers.table import StepTable

Source = Model | str | Path


class Options(Asked, total=False):
    """The keywords of `sample` but for frames, for type checkers."""

    steps: int | None
    eta: float
    spacing: str | None
    sigmas: str | None
    timesteps: Sequence[float] | None
    init: Any
    strength: float | None
    mask: Any
    known: Any
    resample: int
    frames_of: str
    clip: Clip | Literal["model"]
    batch_size: int | None
    device: torch.device | str | None
    dtype: torch.dtype | None
    form: str | None
    progress: bool


@overload
def sample(
    model: Source, n: int, sampler: str | StepTable | None = ..., *, frames: None = None, **options: Unpack[Options]
) -> Tensor: ...


@overload
def sample(
    model: Source, n: int, sampler: str | StepTable | None = ..., *, frames: int, **options: Unpack[Options]
) -> tuple[Tensor, Tensor]: ...


def sample(
    model: Source,
    n: int,
    sampler: str | StepTable | None = None,
    *,
    steps: int | None = None,
    eta: float = 0.0,
    spacing: str | None = None,
    sigmas: str | None = None,
    timesteps: Sequence[float] | None = None,
    clip: Clip | Literal["model"] = "model",
    seed: int = 0,
    first: int = 0,
    context: Any = None,
    guidance_scale: float | None = None,
    frames: int | None = None,
    frames_of: str = "x",
    noise: Noise | None = None,
    init: Any = None,
    strength: float | None = None,
    mask: Any = None,
    known: Any = None,
    resample: int = 1,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    form: str | None = None,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Images from a model.

    Args:
        model: a Model, or what `load` takes: a shipped model's name or a checkpoint's path.
        n: how many images.
        sampler: a name out of SAMPLERS, or a StepTable, which brings its own steps, eta, spacing and so on. None takes
            the scheduler of a model of diffusers, and for others dpmpp_2m_sde.
        steps: 1 to the schedule's T, counted as diffusers counts them: heun and edm evaluate the network twice in each
            but the last. None takes the sampler's default.
        eta: 0 to 1, for ddim and edm.
        spacing: trailing, leading, linspace or course; see spacing.spaced. None is trailing, or the scheduler's own.
        sigmas: "karras" or "exponential", to spread the noise levels anew, between those of the first and last node.
        timesteps: the nodes themselves in place of steps, spacing and sigmas, falling numbers such as [999, 749, 499,
            249].
        clip: of the predicted x0: None (off), a bound, or ("dynamic", quantile); "model" takes the model's own.
        seed, first: image r is sample first + r of the seed. Its noise is a function of these two alone: the same bits
            on one kind of device, within 2e-6 between a CPU and a GPU. 0 <= seed, first < 2^63.
        context: (K,) for all, (n, K), row r for sample first + r, or {class name: weight}; None is the zero context.
        guidance_scale: classifier-free guidance, out_u + g (out_c - out_u); None and 1 evaluate once a step.
        frames: also return x after every so many rows of the table, the last included.
        frames_of: "x", or "x0": the image that the network took x for in that row, clipped; of the last, the image.
        noise: x_T, (C, H, W) for all or (n, C, H, W), such as `invert` finds; what is drawn besides is of the seed. Or
            a callable (draw, first, shape) → normals in place of the Philox source; draw 0 is x_T, and row k of the
            table draws number k + 1; with a mask also 2^24 + k + 1, and with resample 2^25 + k + 1.
        init: pictures to begin with, (C, H, W) for all or (n, C, H, W) in [-1, 1]: noised, and denoised from there on
            (SDEdit, Meng et al. 2022). A StepTable is run from its first row, so take one with `strength`.
        strength: with init, how much of the steps is run, above 0 to 1: how far the samples may go from the pictures;
            0.6 unless given.
        mask, known: what is known of the images (RePaint, Lugmayr et al. 2022): (C, H, W) for all or (n, C, H, W) in
            [-1, 1], held where the mask, (1 or C, H, W) for all or with n before it, is 1, and drawn where it is 0.
        resample: with those, how often each step is run, so that what is drawn fits to what is known; 1 unless given.
        batch_size: samples run together; min(n, 64) unless given. With a given one, batches begin at multiples of it
            and are run whole, and a sample's pixels are then the same bits whatever n and first.
        device: where the network runs; None is the CUDA device where there is one, else the CPU.
        dtype: of the network: float32 (the default; TF32 is off), bfloat16 or float16; x itself stays float32.
        form: how the network runs, see forms.FORMS; None is the fastest there is. "eager" is the network as it is, step
            by step, which the others are tested against.
        progress: a bar, on stderr or in a notebook.

    Returns:
        (n, C, H, W) float32 on the CPU in the model's range, [-1, 1]; with `frames`, that and the frames, (m, n, C,
        H, W).

    Raises:
        InputError: for values outside these, before any long work.
    """
    model = load(model) if isinstance(model, (str, Path)) else check_model(model)
    check_resample(resample, mask)
    if isinstance(sampler, StepTable):
        chosen = (steps, spacing, sigmas, timesteps, strength)
        if any(one is not None for one in chosen) or eta or resample != 1:
            raise InputError(
                "steps, eta, spacing, sigmas, timesteps, strength or resample with a StepTable, which has its own; "
                "leave them out"
            )
        table = sampler
    else:
        kept = choose_strength(strength, init)
        table = model.table(
            sampler,
            steps,
            eta=eta,
            spacing=spacing,
            sigmas=sigmas,
            timesteps=timesteps,
            strength=kept,
            resample=resample,
        )
    request = Request.of(
        model,
        n,
        table=table,
        seed=seed,
        first=first,
        context=context,
        guidance_scale=guidance_scale,
        noise=noise,
        init=init,
        mask=mask,
        known=known,
        frames=frames,
        frames_of=frames_of,
    )
    size = check_batch_size(batch_size, request.n)
    engine = Engine(model, table, batch_size=size, device=device, dtype=dtype, clip=clip, form=form)
    # Unless a size is given the batches begin at `first`, so that a small request is a small batch.
    origin = request.first if batch_size is None else 0
    steps = -(-request.n // size) * len(table)
    with tqdm(total=steps, disable=not progress, unit="step", leave=False) as bar:
        batches = list(engine.batches(request, origin=origin, on_steps=bar.update))
    images = torch.cat([kept[-1] for kept in batches])
    if frames is None:
        return images
    return images, torch.stack([torch.cat(frame) for frame in zip(*batches, strict=True)])
