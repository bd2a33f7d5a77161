"""`invert`: the noise from which a deterministic sampler makes given images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.checkpoints.load import load
from fastdiff.engine.pictures import resolve_pictures
from fastdiff.errors import check_int, wrong_type
from fastdiff.model import check_model
from fastdiff.samplers.inversion import inversion_table
from fastdiff.sampling import Source, sample


def invert(
    model: Source,
    images: Any,
    *,
    steps: int = 50,
    spacing: str = "trailing",
    context: Any = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    form: str | None = None,
    progress: bool = False,
) -> Tensor:
    """The noise x_T from which DDIM makes given images, by DDIM backwards (Song et al. 2021, section 4.3).

    >>> noise = fastdiff.invert(model, images, steps=100)
    >>> again = fastdiff.sample(model, len(images), "ddim", steps=100, noise=noise, clip=None)

    `again` is near the images: the distance halves where the steps double. What lies between two images' noise lies
    between the images; see docs/sampling.md.

    Args:
        model: as in `sample`.
        images: (n, C, H, W) or (C, H, W) in [-1, 1].
        steps: of the DDIM run that leads back, from 2.
        spacing: of that run.
        context: of the images, as in `sample`.
        batch_size, device, dtype, form, progress: as in `sample`.

    Returns:
        (n, C, H, W) float32 on the CPU.

    Raises:
        InputError: for values outside these.
    """
    model = load(model) if isinstance(model, (str, Path)) else check_model(model)
    try:
        given = torch.as_tensor(images, device="cpu")
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise wrong_type("images", images, "numbers (n, C, H, W) or (C, H, W)") from None
    n = len(given) if given.ndim == 4 else 1
    resolve_pictures("images", given, (model.image_shape,), check_int("the number of images", n, 1, 2**31), 0)
    table = inversion_table(
        model.schedule, steps, spacing=spacing, prediction_type=model.prediction_type, time=model.time
    )
    return sample(
        model,
        n,
        table,
        clip=None,
        context=context,
        init=given,
        noise=torch.zeros(n, *model.image_shape, device="cpu", dtype=torch.float32),
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        form=form,
        progress=progress,
    )
