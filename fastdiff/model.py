"""A network together with everything needed to sample from it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fastdiff.capture.graph import SELF_CONDITION
from fastdiff.data.values import check_range
from fastdiff.errors import InputError, check_int, unknown_name, wrong_type
from fastdiff.images import from_unit
from fastdiff.samplers.prediction import PREDICTION_TYPES, Clip, check_clip
from fastdiff.samplers.samplers import DEFAULT, find_sampler, make_table
from fastdiff.samplers.schedule import Schedule
from fastdiff.samplers.table import TIMES, StepTable

UNSAID: Any = None
LARGEST_SIDE = 2**20


class Scheduler(Protocol):
    """What makes a model's step tables where no sampler is named."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int: ...

    def config(self) -> dict[str, Any]: ...

    def table(
        self,
        steps: int | None = None,
        *,
        eta: float = 0.0,
        timesteps: Sequence[float] | None = None,
        strength: float = 1.0,
        learned_variance: bool = False,
    ) -> StepTable: ...


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """What `fastdiff.sample` takes: any nn.Module that maps (x, t) or (x, t, context) to a prediction.

    Attributes:
        network: x (B, C, H, W) float in [-1, 1], t (B,), context (B, K) float32, or (B,) int64 class numbers, or (B,
            ...) float32 → the prediction, (B, C, H, W); of other libraries' 2 C channels the first C are taken.
        schedule: the training schedule.
        prediction_type: epsilon, sample or v_prediction.
        image_shape: (C, H, W) of one image.
        time: what the network is given as t: "index", the integer timestep, or "fraction", timestep / T.
        class_names: names of the K context entries, or of the classes that have numbers; empty where the network takes
            no context or they have no names.
        num_classes: how many class numbers the network takes, with the null class; None if it takes none, or it is
            unknown.
        null_class: the class number that stands for no class, for guidance; None if there is none.
        clip: the default clipping of the predicted x0: None (off), a bound, or ("dynamic", quantile).
        learned_variance: whether the network's output is (B, 2 C, H, W), of which the second half chooses the noise's
            variance (Nichol and Dhariwal 2021, eq. 15) where the sampler leaves that to it, as ddpm does.
        self_condition: whether each step gives the network as `x_self_cond`, by name, the x0 that the step before
            predicted, (B, C, H, W), zeros in the first (Chen et al. 2023, section 3.2); unless said, whether the
            network's own attribute self_condition is True, and its forward takes that argument.
        scheduler: what makes its table unless a sampler is named; None is the sampler DEFAULT.
        value_range: (low, high), the values of the training data that -1 and 1 stand for, see `values`; None for usual
            pictures of 8 bits.

    Raises:
        InputError: for values outside these.
    """

    network: nn.Module
    schedule: Schedule
    _: KW_ONLY
    prediction_type: str = "epsilon"
    image_shape: tuple[int, int, int] = (1, 28, 28)
    time: str = "index"
    class_names: Sequence[str] = ()
    num_classes: int | None = None
    null_class: int | None = None
    clip: Clip = None
    learned_variance: bool = False
    self_condition: bool = UNSAID
    scheduler: Scheduler | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.network, nn.Module):
            raise InputError(f"network = {self.network!r}; accepted: an nn.Module")
        if not isinstance(self.schedule, Schedule):
            raise InputError(f"schedule = {self.schedule!r}; accepted: a Schedule, see fastdiff.make_schedule")
        if self.prediction_type not in PREDICTION_TYPES:
            raise unknown_name("prediction type", self.prediction_type, PREDICTION_TYPES)
        if self.time not in TIMES:
            raise unknown_name("time convention", self.time, TIMES)
        shape = tuple(self.image_shape) if isinstance(self.image_shape, Sequence) else ()
        if len(shape) != 3 or any(not isinstance(size, int) or not 1 <= size <= LARGEST_SIDE for size in shape):
            accepted = f"(channels, height, width), each from 1 to {LARGEST_SIDE}"
            raise InputError(f"image_shape = {self.image_shape!r}; accepted: {accepted}")
        width = context_width(self.network)
        if self.class_names and width is not None and len(self.class_names) != width:
            raise InputError(f"{len(self.class_names)} class names {list(self.class_names)}; the network takes {width}")
        if self.num_classes is not None:
            object.__setattr__(self, "num_classes", check_int("num_classes", self.num_classes, 1, 2**31))
            if width is not None:
                raise InputError("num_classes with a network that declares K; accepted: one of them")
            if self.class_names and len(self.class_names) not in (self.num_classes - 1, self.num_classes):
                raise InputError(
                    f"{len(self.class_names)} class names for {self.num_classes} classes; accepted: a name for each, "
                    "or for each but the last, which is the null class"
                )
        if self.null_class is not None:
            limit = (self.num_classes or 2**31) - 1
            object.__setattr__(self, "null_class", check_int("null_class", self.null_class, 0, limit))
        if not isinstance(self.learned_variance, bool):
            raise InputError(f"learned_variance = {self.learned_variance!r}; accepted: True or False")
        object.__setattr__(self, "value_range", check_range(self.value_range))
        self._settle_self_condition()
        object.__setattr__(self, "image_shape", shape)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "clip", check_clip(self.clip))

    def _settle_self_condition(self) -> None:
        taken = inspect.signature(self.network.forward).parameters
        named = SELF_CONDITION in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())
        if self.self_condition is UNSAID:
            own = getattr(self.network, "self_condition", False) is True
            object.__setattr__(self, "self_condition", own and named)
        if not isinstance(self.self_condition, bool):
            raise InputError(f"self_condition = {self.self_condition!r}; accepted: True or False")
        if self.self_condition and not named:
            raise InputError(
                f"self_condition with a network whose forward takes {', '.join(taken)}; accepted: one that takes "
                f"{SELF_CONDITION}, the x0 before"
            )

    @property
    def context_width(self) -> int | None:
        """K of the network's contexts: 0 if it takes none, None if the network does not declare it."""
        width = context_width(self.network)
        if width is None and self.num_classes is None and self.class_names:
            return len(self.class_names)
        return width

    @property
    def needs_context(self) -> str | None:
        """The name of an argument besides x and t without which the network cannot be called; None if there is none."""
        argument = context_argument(self.network)
        return argument.name if argument is not None and argument.default is argument.empty else None

    def values(self, images: Tensor) -> Tensor:
        """Images as `fastdiff.sample` returns them → the same in the values of the training data.

        Args:
            images: float in [-1, 1], of any shape.

        Returns:
            float32 in value_range, not clamped; images themselves where the model has none.
        """
        return images if self.value_range is None else from_unit(images, self.value_range)

    def default_steps(self, sampler: str | None = None) -> int:
        """The number of steps of `table` where none is asked for."""
        if sampler is None and self.scheduler is not None:
            return self.scheduler.steps
        return find_sampler(DEFAULT if sampler is None else sampler).default_steps(self.schedule.num_timesteps)

    def table(
        self,
        sampler: str | None = None,
        steps: int | None = None,
        *,
        eta: float = 0.0,
        spacing: str | None = None,
        sigmas: str | None = None,
        timesteps: Sequence[float] | None = None,
        strength: float = 1.0,
        resample: int = 1,
    ) -> StepTable:
        """The step table of a sampler for this model.

        Args:
            sampler: a name out of SAMPLERS; None takes the model's scheduler, or DEFAULT where it has none.
            steps, eta, spacing, sigmas, timesteps, strength, resample: see make_table; a scheduler has spacing and
                sigmas of its own.
        """
        if sampler is None and self.scheduler is not None:
            for name, value in (("spacing", spacing), ("sigmas", sigmas)):
                if value is not None:
                    raise InputError(f"{name} = {value!r} with the model's scheduler, which has its own; leave it out")
            made = self.scheduler.table(
                steps, eta=eta, timesteps=timesteps, strength=strength, learned_variance=self.learned_variance
            )
            return made.resampled(resample)
        return make_table(
            DEFAULT if sampler is None else sampler,
            self.schedule,
            steps,
            eta=eta,
            spacing=spacing,
            sigmas=sigmas,
            timesteps=timesteps,
            strength=strength,
            resample=resample,
            prediction_type=self.prediction_type,
            time=self.time,
            learned_variance=self.learned_variance,
        )

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.network.parameters())
        shape = "x".join(map(str, self.image_shape))
        sampled = "" if self.scheduler is None else f",\n      sampled by {self.scheduler.name} of diffusers"
        contexts = ", ".join(self.class_names) or {None: "unknown", 0: "none"}.get(self.context_width, "unnamed")
        if self.num_classes is not None and not self.class_names:
            contexts = f"numbers of {self.num_classes} classes"
        predicts = f"{self.prediction_type} and a variance" if self.learned_variance else self.prediction_type
        predicts += ", with self-conditioning" if self.self_condition else ""
        return (
            f"Model({type(self.network).__name__}, {parameters:,} parameters, images {shape},\n"
            f"      {self.schedule!r},\n"
            f"      predicts {predicts}, time {self.time!r}, clip {self.clip}, contexts: {contexts}{sampled})"
        )


def context_width(network: nn.Module) -> int | None:
    """K of the contexts that a network takes, its attribute n_cfeat: 0 for none, None if it does not say."""
    width = getattr(network, "n_cfeat", None)
    return None if width is None else int(width)


def context_argument(network: nn.Module) -> inspect.Parameter | None:
    """The first argument that a network takes by place besides x, t and x_self_cond; None if there is none."""
    taken = inspect.signature(network.forward).parameters.values()
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [one for one in taken if one.kind in places and one.name != SELF_CONDITION]
    return named[2] if len(named) > 2 else None


def check_model(model: object) -> Model:
    """The Model that was given; raises InputError for anything else."""
    if isinstance(model, Model):
        return model
    accepted = "fastdiff.Model(network, schedule, image_shape=...), or fastdiff.load(...)"
    if isinstance(model, nn.Module):
        raise InputError(f"model = an nn.Module, {type(model).__name__}; accepted: {accepted}")
    raise wrong_type("model", model, accepted)
