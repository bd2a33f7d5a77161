"""Training recipes: one dataclass of plain values, and two published recipes. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from fastdiff.data import fashion
from fastdiff.errors import FLOAT32_MAX, InputError, check_float, check_int, unknown_name, wrong_type
from fastdiff.networks.registry import NETWORKS
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.schedule import Schedule, make_schedule
from fastdiff.schema import check_arguments
from fastdiff.training.losses import LOSSES

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW"}  # name → class of torch.optim


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained, apart from the data.

    Attributes:
        network: its "name", "annotated" (AnnotatedUnet), "annotated-resnet", "context" (ContextUnet) or "lucidrains"
            (denoising-diffusion-pytorch's), see networks.registry, and options of its constructor.
            Options that follow from the data (channels, picture size, number of classes) are filled in. None, and then
            schedule and prediction_type too, where training starts from a model, whose own they are.
        schedule: noise schedule by name, such as linear, cosine or course; see make_schedule.
        timesteps: T, the timesteps of the schedule, from 1.
        beta_start: first beta, in (0, 1); None is the schedule's own, 1e-4. The cosine schedule has none.
        beta_end: last beta, from beta_start to below 1; None is the schedule's own, 0.02. The cosine schedule has none.
        prediction_type: what the network predicts: epsilon, sample or v_prediction.
        loss: huber (quadratic below 1), l1 or l2, see losses.denoising_loss.
        p2_gamma: exponent of the p2 weighting, at least 0, which is off; see losses.snr_weight.
        min_snr: gamma of the min-SNR weighting, above 0, such as 5; None is off.
        optimizer: adam or adamw.
        weight_decay: of the optimizer, at least 0.
        lr: learning rate at the start, above 0.
        lr_final: learning rate at the end, from 0 to lr.
        lr_decay: how it falls: "cosine" over all steps, "linear-epoch" by epoch as lr (1 - epoch / epochs) (to lr_final
            in place of 0), or "constant".
        lr_warmup: steps over which the learning rate first rises linearly to this course, at least 0, which is off.
        batch_size: pictures in a step, from 1.
        epochs: how many times each picture is seen, from 1.
        max_grad_norm: the norm that the gradients of all weights together are clipped to, above 0; None is off.
        ema_decay: of the averaged weights, which sampling uses; from 0 (no averaging) to below 1, such as 0.999. It
            begins lower, as min(ema_decay, (1 + n) / (10 + n)) at step n.
        flip: whether pictures are mirrored left to right at random, each with probability 1/2.
        context_dropout: share of samples that are trained with a zero context, 0 to 1, for classifier-free guidance.
        bf16: whether the network runs in bfloat16 (autocast); weights and loss stay float32.
        course_perturbation: perturb with noise (1 - abar), as the course's code does, in place of its square root.
        seed: of the initial weights, the order of the pictures, timesteps, noise, flips and dropout; 0 to 2^63 - 1.

    Raises:
        InputError: for values outside these.
    """

    network: dict[str, Any] | None = field(default_factory=lambda: {"name": "annotated"})
    schedule: str | None = "linear"
    timesteps: int = 200
    beta_start: float | None = None
    beta_end: float | None = None
    prediction_type: str | None = "epsilon"
    loss: str = "huber"
    p2_gamma: float = 0.0
    min_snr: float | None = None
    optimizer: str = "adam"
    weight_decay: float = 0.0
    lr: float = 1e-4
    lr_final: float = 1e-7
    lr_decay: str = "cosine"
    lr_warmup: int = 0
    batch_size: int = 16
    epochs: int = 10
    max_grad_norm: float | None = None
    ema_decay: float = 0.0
    flip: bool = False
    context_dropout: float = 0.0
    bf16: bool = False
    course_perturbation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_network()
        for name, value, accepted in (
            ("loss", self.loss, LOSSES),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("lr decay", self.lr_decay, LR_DECAYS),
        ):
            _check_name(name, value, accepted)
        for name, low in (("batch_size", 1), ("epochs", 1), ("lr_warmup", 0)):
            check_int(name, getattr(self, name), low, 2**31)
        check_int("seed", self.seed, 0, 2**63 - 1)
        for name in ("lr", "lr_final", "ema_decay", "context_dropout", "p2_gamma", "weight_decay"):
            check_float(name, getattr(self, name), -FLOAT32_MAX, FLOAT32_MAX)
        for name in ("min_snr", "max_grad_norm"):
            if getattr(self, name) is not None:
                check_float(name, getattr(self, name), -FLOAT32_MAX, FLOAT32_MAX)
        for name in ("flip", "bf16", "course_perturbation"):
            if not isinstance(getattr(self, name), bool):
                raise wrong_type(name, getattr(self, name), "True or False")
        for name, ok, range_ in (
            ("lr", self.lr > 0, "more than 0"),
            ("lr_final", 0 <= self.lr_final <= self.lr, "0 to lr"),
            ("ema_decay", 0 <= self.ema_decay < 1, "0 (off) to below 1"),
            ("context_dropout", 0 <= self.context_dropout <= 1, "0 to 1"),
            ("p2_gamma", self.p2_gamma >= 0, "at least 0"),
            ("min_snr", self.min_snr is None or self.min_snr > 0, "more than 0"),
            ("max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "more than 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
        ):
            if not ok:
                raise InputError(f"{name} = {getattr(self, name)}; accepted: {range_}")

    def _check_network(self) -> None:
        """The network's name, the schedule and the prediction type; all of them are None, or none."""
        if self.network is None:
            for name in ("schedule", "prediction_type"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} = {getattr(self, name)!r} without a network; accepted: None")
            return
        if not isinstance(self.network, Mapping):
            raise InputError(f'network = {self.network!r}; accepted: a dict such as {{"name": "annotated", "dim": 28}}')
        self.make_schedule()
        _check_name("network", self.network.get("name"), NETWORKS)
        _check_name("prediction type", self.prediction_type, PREDICTION_TYPES)

    @classmethod
    def preset(cls, name: str, **options: Any) -> Recipe:
        """A published recipe, with some of its fields changed.

        Args:
            name: annotated (The Annotated Diffusion Model) or course (How Diffusion Models Work).
            options: fields in place of the preset's own.

        Raises:
            InputError: for an unknown preset, or values that a recipe does not take.
        """
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        return replace(PRESETS[name].recipe, **options)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of to_dict.

        Args:
            values: fields; those that are missing, which earlier versions did not have, have their defaults.

        Raises:
            InputError: for unknown fields, or values that a recipe does not take.
        """
        odd = values.keys() - {field_.name for field_ in fields(cls)}
        if odd:
            raise InputError(f"a recipe that this version does not know, with {', '.join(sorted(odd))}")
        return cls(**check_arguments(cls, values, "a recipe"))

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values."""
        return asdict(self)

    def with_options(self, options: Mapping[str, Any]) -> Recipe:
        """A copy with the given fields changed; None leaves a field as it is."""
        return replace(self, **{k: v for k, v in options.items() if v is not None})

    def without_network(self) -> Recipe:
        """A copy for training that starts from a model, which has network, schedule and prediction type of its own."""
        beta: dict[str, Any] = {"beta_start": None, "beta_end": None}
        return replace(self, network=None, schedule=None, prediction_type=None, **beta)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of step 0, 1, ..., by lr_decay and lr_warmup."""
        warm = min(1.0, (step + 1) / max(1, self.lr_warmup))
        return warm * LR_DECAYS[self.lr_decay](self, step, steps_per_epoch)

    def make_schedule(self) -> Schedule:
        """The noise schedule.

        Returns:
            The Schedule of the fields schedule, timesteps, beta_start and beta_end.
        """
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        given: dict[str, Any] = {name: value for name, value in ends.items() if value is not None}
        if self.schedule is None:
            raise InputError("schedule = None; accepted: a name, unless training starts from a model")
        return make_schedule(self.schedule, self.timesteps, **given)


def _check_name(kind: str, value: object, accepted: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in accepted:
        raise unknown_name(kind, value, accepted)


def _cosine(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    share = 0.5 * (1 + math.cos(math.pi * step / (steps_per_epoch * recipe.epochs)))
    return recipe.lr_final + (recipe.lr - recipe.lr_final) * share


def _linear_epoch(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    return recipe.lr_final + (recipe.lr - recipe.lr_final) * (1 - step // steps_per_epoch / recipe.epochs)


# name → (recipe, step, steps per epoch) → the learning rate
LR_DECAYS: dict[str, Callable[[Recipe, int, int], float]] = {
    "cosine": _cosine,
    "linear-epoch": _linear_epoch,
    "constant": lambda recipe, step, steps_per_epoch: recipe.lr,
}


@dataclass(frozen=True)
class Preset:
    """A published recipe.

    Attributes:
        title: where it was published.
        recipe: its values.
        data: what `fastdiff train` takes where no data is named; None has to be told.
    """

    title: str
    recipe: Recipe
    data: str | None = None

    @property
    def network(self) -> dict[str, Any]:
        """The recipe's, which a preset always has."""
        assert self.recipe.network is not None
        return self.recipe.network


PRESETS = {
    # 10 epochs of Fashion-MNIST, 3750 steps each.
    "annotated": Preset(
        "The Annotated Diffusion Model",
        Recipe(
            network={"name": "annotated", "dim": 28, "dim_mults": [1, 2, 4]},
            flip=True,
        ),
        data=fashion.NAME,
    ),
    # shortcut: the trained one; the published network's is drawn anew in every pass.
    "course": Preset(
        "How Diffusion Models Work",
        Recipe(
            network={"name": "context", "n_feat": 64, "shortcut": True},
            schedule="course",
            timesteps=500,
            loss="l2",
            lr=1e-3,
            lr_final=0.0,
            lr_decay="linear-epoch",
            batch_size=100,
            epochs=32,
            context_dropout=0.1,
        ),
    ),
}
