"""The noise schedule that a wrapper around a network, such as a GaussianDiffusion, keeps beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.samplers.schedule import Schedule


def schedule_in(tensors: Mapping[str, Tensor], path: Path) -> Schedule | None:
    """The Schedule of the buffer `betas`, or else `alphas_cumprod`, under any prefix; None if there is neither.

    Raises:
        InputError: if it makes no schedule.
    """
    for wanted in ("betas", "alphas_cumprod"):
        for name, value in tensors.items():
            if name.rpartition(".")[2] == wanted and value.ndim == 1 and value.is_floating_point():
                numbers = value.double().numpy()
                betas = numbers if wanted == "betas" else 1 - numbers / np.concatenate([[1.0], numbers[:-1]])
                try:
                    return Schedule(betas)
                except InputError as error:
                    raise InputError(f"{str(path)!r} keeps a schedule, {name}, that cannot be used: {error}") from error
    return None
