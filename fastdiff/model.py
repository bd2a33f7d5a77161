"""A network together with everything needed to sample from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from fastdiff.errors import InputError, unknown_name
from fastdiff.samplers.prediction import PREDICTION_TYPES, Clip, check_clip
from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.table import TIMES, StepTable


@dataclass(frozen=True, eq=False)
class Model:
    """What `fastdiff.sample` takes. Any nn.Module fits that maps (x, t) or (x, t, context) to a prediction.

    network: x (B, C, H, W) float in [-1, 1], t (B,), context (B, K) → the prediction, (B, C, H, W).
    schedule: the training schedule. prediction_type: epsilon, sample or v_prediction.
    image_shape: (C, H, W) of one image.
    time: what the network is given as t: "index" (the integer timestep) or "fraction" (timestep / T).
    class_names: names of the K context entries; empty where the network takes no context or they have no names.
    clip: the default clipping of the predicted x0: None (off), a bound, or ("dynamic", quantile).
    """

    network: nn.Module
    schedule: Schedule
    prediction_type: str = "epsilon"
    image_shape: tuple[int, int, int] = (1, 28, 28)
    time: str = "index"
    class_names: Sequence[str] = ()
    clip: Clip = None

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise unknown_name("prediction type", self.prediction_type, PREDICTION_TYPES)
        if self.time not in TIMES:
            raise unknown_name("time convention", self.time, TIMES)
        shape = tuple(self.image_shape)
        if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
            raise InputError(f"image_shape = {shape}; accepted: (channels, height, width), each at least 1")
        width = getattr(self.network, "n_cfeat", None)
        if self.class_names and width is not None and len(self.class_names) != width:
            raise InputError(f"{len(self.class_names)} class names {list(self.class_names)}; the network takes {width}")
        object.__setattr__(self, "image_shape", shape)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "clip", check_clip(self.clip))


def check_table(model: Model, table: StepTable) -> StepTable:
    """The table, if it is one for this model; raises InputError."""
    if not isinstance(table, StepTable):
        raise InputError(f"table = {table!r}; accepted: a StepTable, see make_table")
    if table.prediction_type != model.prediction_type:
        raise InputError(
            f"a table for prediction type {table.prediction_type!r}; the model's is {model.prediction_type!r}"
        )
    low, high = model.schedule.first, model.schedule.first + model.schedule.num_timesteps - 1
    if table.timestep.min() < low or table.timestep.max() > high:
        raise InputError(
            f"a table with timesteps {table.timestep.min():g} to {table.timestep.max():g}; the model's schedule "
            f"has {low} to {high}"
        )
    expected = table.timestep / (model.schedule.num_timesteps if model.time == "fraction" else 1)
    if not np.allclose(table.time, expected):
        raise InputError(
            f"a table that gives the network times up to {table.time.max():g}; this model's time is "
            f"{model.time!r}: make the table with time={model.time!r}"
        )
    return table
