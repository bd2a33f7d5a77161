"""One request for samples, checked once, before any long work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypedDict

import numpy as np
from torch import Tensor

from fastdiff.engine.context import Contexts, resolve_context
from fastdiff.engine.noise import LIMIT, Begun, Noise, NoiseSource
from fastdiff.engine.per_sample import Rows
from fastdiff.engine.pictures import Known, resolve_known, resolve_pictures
from fastdiff.errors import FLOAT32_MAX, InputError, check_float, check_int, unknown_name, wrong_type
from fastdiff.samplers.prediction import FRAMES
from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.table import StepTable

DEFAULT_BATCH, MOST_IN_BATCH = 64, 2**24


class Sampled(Protocol):
    """What a request is checked against: a Model, or a file that holds one."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def prediction_type(self) -> str: ...

    @property
    def time(self) -> str: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def context_width(self) -> int | None: ...

    @property
    def num_classes(self) -> int | None: ...

    @property
    def null_class(self) -> int | None: ...

    @property
    def learned_variance(self) -> bool: ...

    @property
    def self_condition(self) -> bool: ...

    @property
    def needs_context(self) -> str | None: ...


class Asked(TypedDict, total=False):
    """What every way to samples takes by name, and hands to Request.of."""

    seed: int
    first: int
    context: Any
    guidance_scale: float | None
    noise: Noise | None


@dataclass(frozen=True)
class Request:
    """Samples first .. first + n - 1 of a seed. Made by `of`, which checks.

    Attributes:
        n, seed, first: 1 <= n, 0 <= seed, first, and all below 2^63.
        contexts: a row for each sample, or None for the zero context.
        guidance_scale: g in out_u + g (out_c - out_u) (Ho and Salimans 2022, eq. 6); None is 1, no guidance.
        noise: where the normals come from; None is Philox's, by seed and index.
        init: pictures that the samples begin as, noised to the table's first row; None is noise alone.
        known: what is known of the samples, which is held; None is nothing.
        frames: after every how many steps x is asked for, besides after the last; None is after the last alone.
        frames_of: "x", or "x0" for the predicted image in place of x in all frames but the last.
        table: the sampler's steps; None where what is sampled from brings its own.
    """

    n: int
    seed: int
    first: int
    contexts: Contexts | None
    guidance_scale: float | None
    noise: NoiseSource | None
    init: Rows | None
    known: Known | None
    frames: int | None
    frames_of: str
    table: StepTable | None

    @classmethod
    def of(
        cls,
        model: Sampled,
        n: int,
        *,
        table: StepTable | None,
        seed: int = 0,
        first: int = 0,
        context: Any = None,
        guidance_scale: float | None = None,
        noise: Noise | None = None,
        init: Any = None,
        mask: Any = None,
        known: Any = None,
        frames: int | None = None,
        frames_of: str = FRAMES[0],
    ) -> Request:
        """The request, checked.

        Args:
            context: (K,) numbers for all samples, (n, K), row r for sample first + r, {class name: weight}, or a
                callable (first sample, count) → (count, K); None is the zero context. Of a model that declares no
                width whole numbers, () or (n,), are classes, and rows may have any shape, (n, L, D).
            noise: x_T, (C, H, W) for all samples or (n, C, H, W); or a source of all that is drawn.
            init: (C, H, W) for all samples or (n, C, H, W), in [-1, 1]; None is noise alone.
            mask: (1 or C, H, W) for all or with n before it, 1 where `known`, which is as init, is held.

        Raises:
            InputError: for the first value that is not accepted.
        """
        n = check_int("n", n, 1, LIMIT - 1)
        seed, first = check_int("seed", seed, 0, LIMIT - 1), check_int("first", first, 0, LIMIT - n)
        if table is not None:
            check_table(model, table)
        if context is None and model.num_classes is not None:
            if model.null_class is None:
                raise InputError(
                    f"no context for a model that takes the number of a class; give one, 0 to {model.num_classes - 1}"
                )
            context = model.null_class
        if context is None and model.needs_context is not None:
            raise InputError(
                f"no context for a network that takes {model.needs_context!r}; give one, such as tokens (n, L, D)"
            )
        contexts = resolve_context(model.context_width, model.class_names, model.num_classes, context, n, first)
        if guidance_scale is not None:
            guidance_scale = check_float("guidance_scale", guidance_scale, -FLOAT32_MAX, FLOAT32_MAX)
            if contexts is None:
                raise InputError(
                    f"guidance_scale = {guidance_scale} without a context; give a context to guide towards"
                )
            if contexts.kind.classes is not None and model.null_class is None:
                raise InputError(
                    f"guidance_scale = {guidance_scale} with class numbers, of which none stands for no class; give "
                    "the Model its null_class"
                )
        if isinstance(noise, (Tensor, np.ndarray)):
            noise = Begun(resolve_pictures("noise", noise, (model.image_shape,), n, first), seed)
        if noise is not None and not callable(noise):
            raise wrong_type("noise", noise, "x_T, or a callable (draw, first sample, shape) → normals")
        frames = None if frames is None else check_int("frames", frames, 1, LIMIT - 1)
        if frames_of not in FRAMES:
            raise unknown_name("kind of frames", frames_of, FRAMES)
        if frames_of == "x0" and table is not None and not table.remembers_x0:
            raise InputError(f"frames of x0 by {table.sampler!r}, which remembers something else; accepted: x")
        pictures = None if init is None else resolve_pictures("init", init, (model.image_shape,), n, first)
        held = resolve_known(mask, known, model.image_shape, n, first)
        return cls(n, seed, first, contexts, guidance_scale, noise, pictures, held, frames, frames_of, table)

    def part(self, begin: int, end: int) -> Request:
        """Samples begin .. end - 1 of these, with nothing left to check."""
        return replace(self, first=begin, n=end - begin)

    def keeps(self, row: int, steps: int) -> bool:
        """Whether x after that row of the table, out of so many, is asked for."""
        return row + 1 == steps or (self.frames is not None and (row + 1) % self.frames == 0)

    @property
    def end(self) -> int:
        """One past the last sample."""
        return self.first + self.n

    @property
    def guided(self) -> bool:
        """Whether each step evaluates the network twice."""
        return self.guidance_scale not in (None, 1)


def check_batch_size(size: int | None, n: int = DEFAULT_BATCH) -> int:
    """The batch size: the one given, else min(n, DEFAULT_BATCH). Raises InputError."""
    return min(n, DEFAULT_BATCH) if size is None else check_int("batch_size", size, 1, MOST_IN_BATCH)


def check_table(model: Sampled, table: StepTable) -> StepTable:
    """The table, if it is one for this model; raises InputError."""
    if not isinstance(table, StepTable):
        raise wrong_type("table", table, "a StepTable, see Model.table")
    if table.prediction_type != model.prediction_type:
        raise InputError(
            f"a table for prediction type {table.prediction_type!r}; the model's is {model.prediction_type!r}"
        )
    if table.learned_variance and not model.learned_variance:
        raise InputError(
            f"a table of {table.sampler!r} with a learned variance (S differs from s) for a model without one; "
            "accepted: a table with S = s, or a Model with learned_variance=True"
        )
    if model.self_condition and not table.remembers_x0:
        raise InputError(
            f"a table of {table.sampler!r}, which remembers something else than x0, with self-conditioning; "
            "accepted: one that remembers x0, as all of fastdiff's own samplers do"
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
