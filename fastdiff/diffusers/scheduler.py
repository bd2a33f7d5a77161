"""A scheduler of diffusers as what a model is sampled with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from fastdiff.diffusers.package import plain, scheduler_of
from fastdiff.diffusers.unit_vectors import NotLinearError, Plan, preconditions, table_of
from fastdiff.edm import Denoiser, Preconditioned
from fastdiff.errors import InputError, check_float, check_int, first_line, shown
from fastdiff.samplers.path import check_timesteps
from fastdiff.samplers.prediction import Clip
from fastdiff.samplers.schedule import MAX_TIMESTEPS, Schedule, make_schedule
from fastdiff.samplers.spacing import first_row
from fastdiff.samplers.table import StepTable

LARGE = 100  # a bound of dynamic thresholding that no x0 of images reaches
KEPT = 8  # tables
STEPS = 50  # of most of its pipelines


@dataclass(frozen=True)
class Scheduler:
    """A scheduler by its class and its options, which makes step tables with its own nodes.

    Attributes:
        kind: the class.
        options: its config, plain values.
        steps: how many are taken unless said, at most the schedule's.

    Raises:
        InputError: for a scheduler without betas, unless it is EDM's, or with an option that no table holds.
    """

    kind: type
    options: Mapping[str, Any]
    steps: int = STEPS

    @classmethod
    def of(cls, scheduler: Any, steps: int | None = None) -> Scheduler:
        """That of an object; it is left as it is."""
        options = getattr(scheduler, "config", None)
        if not isinstance(options, Mapping) or not hasattr(scheduler, "set_timesteps"):
            raise InputError(f"scheduler of type {type(scheduler).__name__}; accepted: one of diffusers")
        return cls(type(scheduler), plain(options), STEPS if steps is None else steps)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Scheduler:
        """The inverse of `config`; raises InputError for values that make no scheduler."""
        try:
            steps = check_int("steps", config["steps"], 1, MAX_TIMESTEPS)
            return cls(scheduler_of(config["name"]), dict(config["options"]), steps)
        except InputError:
            raise
        except Exception as error:  # of another package, for options of any kind
            raise InputError(f"scheduler {shown(dict(config))} cannot be made: {first_line(error)}") from error

    def config(self) -> dict[str, Any]:
        """Plain values (JSON); raises InputError for a class that is not one of diffusers' own."""
        if not self.kind.__module__.startswith("diffusers."):
            raise InputError(f"a scheduler of class {self.name}, which diffusers does not have, cannot be saved")
        return {"name": self.name, "options": dict(self.options), "steps": self.steps}

    def __post_init__(self) -> None:
        if not hasattr(self._made, "betas") and not preconditions(self._made):
            raise InputError(
                f"{self.name} has no betas; accepted: schedulers of a variance-preserving schedule, or EDM's"
            )
        if self.options.get("variance_type") == "learned":
            raise InputError(f"{self.name} with variance_type 'learned'; accepted: learned_range, or a fixed one")
        object.__setattr__(self, "steps", min(self.steps, self.schedule.num_timesteps))
        _ = self.clip  # which may be refused

    @property
    def name(self) -> str:
        return self.kind.__name__

    @cached_property
    def _tables(self) -> dict[str, StepTable]:
        """Those that were made last, since a thousand steps take a second."""
        return {}

    @cached_property
    def _made(self) -> Any:
        try:
            return self._new()
        except Exception as error:  # of another package, for options of any kind
            raise InputError(f"{self.name} cannot be made with its options: {first_line(error)}") from error

    def _new(self) -> Any:
        return self.kind.from_config(dict(self.options))  # type: ignore[attr-defined]

    def _has(self, option: str) -> bool:
        """Whether the class has an option: configs also keep what is meant for others."""
        return option in inspect.signature(self.kind).parameters and bool(self.options.get(option))

    @cached_property
    def denoiser(self) -> Denoiser | None:
        """What makes a network one of (x0 + sigma noise, sigma), for EDM's schedulers; a Denoiser without one yet."""
        if not preconditions(self._made):
            return None
        low, high = (check_float(name, self.options[name], 0, 1e6) for name in ("sigma_min", "sigma_max"))
        return Denoiser(nn.Identity(), low, high, None)

    def around(self, network: nn.Module) -> nn.Module:
        """The network as the tables are for: as it is, or of EDM's schedulers with their preconditioning."""
        if self.denoiser is None:
            return network
        sign = -1.0 if self.options.get("prediction_type") == "v_prediction" else 1.0
        inner = Preconditioned(network, float(self.options["sigma_data"]), sign)
        return Denoiser(inner, self.denoiser.sigma_min, self.denoiser.sigma_max, None)

    @property
    def prediction_type(self) -> str:
        if self.denoiser is not None:
            return "sample"
        return str(self.options.get("prediction_type", "epsilon"))

    @cached_property
    def schedule(self) -> Schedule:
        """Of its betas: by name, in float64, where it is one of ours; of EDM's schedulers, of their noise levels."""
        if self.denoiser is not None:
            return self.denoiser.schedule()
        betas = np.asarray(self._made.betas, dtype=np.float64)
        name = str(self.options.get("beta_schedule"))
        params = {"rescale_zero_snr": True} if self._has("rescale_betas_zero_snr") else {}
        if name in ("linear", "scaled_linear", "sigmoid"):
            params |= {key: self.options[key] for key in ("beta_start", "beta_end")}
        if name in ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"):
            named = make_schedule(name, check_int("timesteps", len(betas), 1, MAX_TIMESTEPS), **params)
            if np.allclose(named.betas, betas, rtol=1e-4, atol=1e-7):
                return named
        return Schedule(betas)

    @property
    def clip(self) -> Clip:
        """What it does to the predicted image."""
        if self._has("thresholding"):
            most = float(self.options.get("sample_max_value", 1.0))
            if most == 1:
                return 1.0
            if most < LARGE:
                raise InputError(f"{self.name} with sample_max_value = {most:g}; accepted: 1, or at least {LARGE}")
            return ("dynamic", float(self.options["dynamic_thresholding_ratio"]))
        return float(self.options.get("clip_sample_range", 1.0)) if self._has("clip_sample") else None

    def _checked(self, timesteps: Sequence[float], steps: int | None) -> list[int]:
        """The timesteps that were asked for; raises InputError where the scheduler cannot take them."""
        if steps is not None:
            raise InputError(f"steps = {steps} with timesteps, in whose place they are; leave one of them out")
        if "timesteps" not in inspect.signature(self.kind.set_timesteps).parameters:  # type: ignore[attr-defined]
            raise InputError(f"timesteps with {self.name}, which takes none; accepted: steps")
        given = check_timesteps(self.schedule, timesteps)
        if (given % 1).any():
            raise InputError(f"timesteps with {given[given % 1 != 0][0]:g} for {self.name}; accepted: whole numbers")
        return given.astype(int).tolist()

    def table(
        self,
        steps: int | None = None,
        *,
        eta: float = 0.0,
        timesteps: Sequence[float] | None = None,
        strength: float = 1.0,
        learned_variance: bool = False,
    ) -> StepTable:
        """The table of a run: its own timesteps, coefficients and noise.

        Args:
            steps: num_inference_steps, 1 to T; Heun's and some others evaluate the network more often.
            eta: 0 to 1, for those whose step takes it.
            timesteps: in place of steps, for those that take them; falling whole numbers.
            strength: above 0 to 1, the share of the steps that is kept, the last ones.
            learned_variance: whether the network's second output chooses the variance.

        Raises:
            InputError: for values outside these, and for a scheduler whose steps no table holds.
        """
        nodes: dict[str, Any]
        if timesteps is not None:
            given = self._checked(timesteps, steps)
            steps, nodes = len(given), {"timesteps": given}
        else:
            steps = self.steps if steps is None else check_int("steps", steps, 1, self.schedule.num_timesteps)
            nodes = {"num_inference_steps": steps}
        eta = check_float("eta", eta, 0, 1)
        if eta and "eta" not in inspect.signature(self.kind.step).parameters:  # type: ignore[attr-defined]
            raise InputError(f"eta = {eta} with {self.name}, which has none; accepted: 0")

        def made() -> Any:
            scheduler = self._new()
            scheduler.set_timesteps(**nodes)
            return scheduler

        learned = learned_variance and self.options.get("variance_type") == "learned_range"
        begin = first_row(strength, steps) * getattr(self.kind, "order", 1)
        key = str((nodes, begin, learned, eta))
        if key in self._tables:
            return self._tables[key]
        try:
            time = None if self.denoiser is None else self.denoiser.timesteps
            table = table_of(Plan(self.name, made, begin, self.clip, learned, {"eta": eta} if eta else {}, time))
        except InputError:
            raise
        except NotLinearError as error:
            raise InputError(
                f"{self.name} with these options cannot be a table: {error}; accepted: another scheduler, such as "
                "DDIMScheduler or DPMSolverMultistepScheduler"
            ) from error
        except Exception as error:  # of another package, for options of any kind
            raise InputError(f"{self.name} with steps = {steps} raised {first_line(error)}") from error
        while len(self._tables) >= KEPT:
            self._tables.pop(next(iter(self._tables)))
        self._tables[key] = table
        return table
