"""Training recipes: one dataclass of plain values, and the two published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from fastdiff.errors import InputError, check_float, unknown_name
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.schedule import Schedule, make_schedule
from fastdiff.training.losses import LOSSES

OPTIMIZERS = ("adam", "adamw")
LR_DECAYS = ("cosine", "linear-epoch", "constant")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    network: options of the network, with its "name"; schedule, timesteps, beta_start, beta_end: see
        schedule.make_schedule; None leaves the schedule's own.
    loss: huber, l1 or l2; p2_gamma, min_snr: see losses.snr_weight (0 and None are off).
    lr falls to lr_final: "cosine" over all steps, "linear-epoch" by epoch as lr (1 - epoch / epochs), or "constant".
    ema_decay: of the averaged weights that are sampled from; 0 is none. flip: random horizontal flips.
    context_dropout: share of samples whose context is zeroed. bf16: autocast the network to bfloat16.
    course_perturbation: perturb with (1 - abar) noise, as the course's code does, in place of its square root.

    Raises InputError for values outside these.
    """

    network: dict[str, Any] = field(default_factory=dict)
    schedule: str = "linear"
    timesteps: int = 200
    beta_start: float | None = None
    beta_end: float | None = None
    prediction_type: str = "epsilon"
    loss: str = "huber"
    p2_gamma: float = 0.0
    min_snr: float | None = None
    optimizer: str = "adam"
    weight_decay: float = 0.0
    lr: float = 1e-4
    lr_final: float = 1e-7
    lr_decay: str = "cosine"
    batch_size: int = 16
    epochs: int = 10
    ema_decay: float = 0.0
    flip: bool = False
    context_dropout: float = 0.0
    bf16: bool = False
    course_perturbation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("loss", self.loss, LOSSES),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("lr decay", self.lr_decay, LR_DECAYS),
            ("prediction type", self.prediction_type, PREDICTION_TYPES),
        ):
            if value not in accepted:
                raise unknown_name(name, value, accepted)
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, float):
                check_float(field_.name, value)
        for name, ok, range_ in (
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", self.lr > 0, "more than 0"),
            ("lr_final", 0 <= self.lr_final <= self.lr, "0 to lr"),
            ("ema_decay", 0 <= self.ema_decay < 1, "0 (off) to below 1"),
            ("context_dropout", 0 <= self.context_dropout <= 1, "0 to 1"),
            ("p2_gamma", self.p2_gamma >= 0, "at least 0"),
            ("min_snr", self.min_snr is None or self.min_snr > 0, "more than 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
        ):
            if not ok:
                raise InputError(f"{name} = {getattr(self, name)}; accepted: {range_}")

    def make_schedule(self) -> Schedule:
        betas = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return make_schedule(self.schedule, self.timesteps, **{k: v for k, v in betas.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def with_options(self, options: Mapping[str, Any]) -> Recipe:
        """A copy with the given fields changed; None leaves a field as it is."""
        return replace(self, **{k: v for k, v in options.items() if v is not None})


PRESETS: dict[str, Recipe] = {
    # The Annotated Diffusion Model: 10 epochs of Fashion-MNIST, 3750 steps each.
    "annotated": Recipe(
        network={"name": "annotated", "dim": 28, "dim_mults": [1, 2, 4]},
        flip=True,
    ),
    # "How Diffusion Models Work". shortcut: the trained one; the published network's is drawn anew in every pass.
    "course": Recipe(
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
}
