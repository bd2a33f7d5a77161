"""What a foreign file says beside the network's weights: a wrapper's buffers, such as those of a GaussianDiffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastdiff.checkpoints.tensors import fill
from fastdiff.errors import InputError, warn_caller
from fastdiff.model import Model
from fastdiff.samplers.prediction import usual_clip
from fastdiff.samplers.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class Said:
    """What is known of a model besides its weights, by its file or its user; None where nothing is.

    Attributes:
        schedule: the training schedule.
        image_size: side or (height, width), in pixels.
        prediction_type: epsilon, sample or v_prediction.
        version: of the library that saved the file.
    """

    schedule: Schedule | None = None
    image_size: int | tuple[int, int] | None = None
    prediction_type: str | None = None
    version: str | None = None

    def before(self, other: Said) -> Said:
        """This, and the other where this says nothing."""
        return Said(
            *(getattr(self if getattr(self, one.name) is not None else other, one.name) for one in fields(self))
        )

    def required(self, path: Path) -> None:
        """Raises InputError where one of them is not known."""
        unsaid = [name for name in _BY if getattr(self, name) is None]
        if unsaid:
            raise InputError(
                f"{str(path)!r} does not say the {_listed(unsaid)} of its model; give "
                f"{' and '.join(_BY[name] for name in unsaid)}"
            )

    def model(
        self, path: Path, network: nn.Module, tensors: Mapping[str, Tensor], channels: int, usual: Said, **more: Any
    ) -> Model:
        """The Model of a network, filled with a file's weights; where nothing is said, the usual, with a warning.

        Args:
            path: the file, for messages.
            network: has the names of `tensors`.
            tensors: the weights.
            channels: of the images.
            usual: what is assumed; prediction_type without a warning.
            more: of Model.
        """
        fill(network, tensors, path)
        unsaid = [name for name in ("image_size", "schedule") if getattr(self, name) is None]
        if unsaid:
            assumed = {"image_size": f"{usual.image_size} pixels a side", "schedule": f"{usual.schedule}"}
            warn_caller(
                f"{path.name} does not say the {_listed(unsaid)} of its model; assumed: "
                f"{', '.join(assumed[name] for name in unsaid)}; for another give "
                f"{' and '.join(_BY[name] for name in unsaid)}"
            )
        all_ = self.before(usual)
        size, schedule, kind = all_.image_size, all_.schedule, all_.prediction_type
        assert size is not None and schedule is not None and kind is not None
        height, width = size if isinstance(size, tuple) else (size, size)
        return Model(
            network,
            schedule,
            prediction_type=kind,
            image_shape=(channels, height, width),
            **{"clip": usual_clip(kind, schedule.alphas_cumprod), **more},
        )


_BY = {
    "image_size": "image_size (--image-size)",
    "schedule": "schedule (--schedule, --timesteps)",
    "prediction_type": "prediction_type (--prediction-type)",
}


def _listed(names: list[str]) -> str:
    return " nor the ".join(name.replace("_", " ") for name in names)


def said_in(tensors: Mapping[str, Tensor], path: Path, schedule: Schedule | None) -> Said:
    """By a file's tensors, under any prefix; `schedule` is the user's, which comes before the file's.

    The schedule is the buffer `betas`, or `alphas_cumprod`, or else `alphabar_t` and `sqrt_beta_t` of T + 1 points.
    denoising-diffusion-pytorch weights the loss of a prediction of epsilon, sample or v by 1, snr or snr / (snr + 1),
    snr = abar / (1 - abar), each with at most some number above 1 in place of snr: `loss_weight`.

    Raises:
        InputError: if the buffers make no schedule.
    """
    buffers: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        last = name.rpartition(".")[2]
        if (
            last in ("betas", "alphas_cumprod", "alphabar_t", "sqrt_beta_t", "loss_weight")
            and value.ndim == 1
            and value.is_floating_point()
        ):
            buffers.setdefault(last, value.double().numpy())
    weight, betas = buffers.get("loss_weight"), buffers.get("betas")
    schedule = _schedule(buffers, path) if schedule is None else schedule
    if weight is None or betas is None or weight.shape != betas.shape:
        return Said(schedule)
    abar = np.cumprod(1 - betas)  # of the file, whatever schedule the user gives
    snr = abar / (1 - abar)
    kinds = {"epsilon": np.ones_like(snr), "sample": snr, "v_prediction": snr / (snr + 1)}
    noisy = (snr > 0.1) & (snr < 0.9)  # where the three differ, and no limit is reached
    if not noisy.any():
        return Said(schedule)
    far = {kind: float(np.abs(weight - expected)[noisy].max()) for kind, expected in kinds.items()}
    nearest = min(far, key=far.__getitem__)
    return Said(schedule, prediction_type=nearest if far[nearest] < 1e-2 else None)


def _schedule(buffers: Mapping[str, np.ndarray], path: Path) -> Schedule | None:
    try:
        if "betas" in buffers:
            return Schedule(buffers["betas"])
        if "alphas_cumprod" in buffers:
            return Schedule(_betas(buffers["alphas_cumprod"]))
        if "alphabar_t" in buffers:
            return _of_points(buffers["alphabar_t"], buffers.get("sqrt_beta_t"))
    except InputError as error:
        raise InputError(f"{str(path)!r} keeps a schedule that cannot be used: {error}") from error
    return None


def _betas(abar: np.ndarray) -> np.ndarray:
    return 1 - abar / np.append(1.0, abar[:-1])


def _of_points(abar: np.ndarray, sqrt_beta: np.ndarray | None) -> Schedule:
    """Of T + 1 points, the first of which is no timestep: the course's, if it is that one to float32's rounding.

    Roots of betas, where the file has them, are more exact than ratios of alphabar near 1.
    """
    usual = make_schedule("course", len(abar) - 1)
    if np.allclose(abar[1:], usual.alphas_cumprod[1:], rtol=1e-4):
        return usual
    betas = _betas(abar) if sqrt_beta is None or sqrt_beta.shape != abar.shape else sqrt_beta**2
    return Schedule(betas, first=1)
