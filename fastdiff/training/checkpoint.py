"""A training run in one safetensors file, from which it continues exactly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastdiff.checkpoints.config import ModelConfig, Training, model_config
from fastdiff.checkpoints.tensors import load_weights, read_tensors, write_tensors
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.schema import check
from fastdiff.training.recipe import Recipe

FILE = "checkpoint.safetensors"
KEPT = {"recipe", "steps_done", "fingerprint"}


class Resumable(Protocol):
    """What is saved of a Trainer."""

    network: nn.Module
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    steps_done: int

    @property
    def model(self) -> Model: ...

    @property
    def fingerprint(self) -> int: ...


@dataclass(frozen=True)
class TrainingCheckpoint:
    """What Trainer.save wrote.

    Attributes:
        path: the file.
        config: the model but for its weights, see checkpoints.config.
        tensors: weights, averaged weights and the optimizer's state, named "model.…", "ema.…" and "optimizer.…".
        recipe: the run's.
        steps_done: optimizer steps taken.
        fingerprint: of the data, see ImageData.
        extra: further plain values that were given to Trainer.save.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    recipe: Recipe
    steps_done: int
    fingerprint: int
    extra: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with the prefix, named without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def scalar(self, name: str) -> Tensor:
        """The tensor of one number of that name; raises InputError if there is none."""
        value = self.tensors.get(name)
        if value is None or value.ndim:
            raise InputError(f"{str(self.path)!r} lacks the number {name!r}")
        return value


def read_checkpoint(path: str | Path) -> TrainingCheckpoint:
    """Read the checkpoint of a training run.

    Args:
        path: the file that Trainer.save wrote, or the folder of a run.

    Raises:
        InputError: if there is none, or the file is another or damaged.
    """
    file = _checkpoint_file(path)
    tensors, config = read_tensors(file)
    if config is None or "training" not in config:
        raise InputError(f"{str(file)!r} is no training checkpoint; accepted: the {FILE} of a run")
    check(ModelConfig, config, repr(str(file)))
    kept = check(Training, config["training"], repr(str(file)))
    try:
        recipe = Recipe.from_dict(kept["recipe"])
    except InputError as error:
        raise InputError(f"{str(file)!r} cannot be resumed: {error}") from error
    extra = {name: value for name, value in kept.items() if name not in KEPT}
    return TrainingCheckpoint(file, config, tensors, recipe, kept["steps_done"], kept["fingerprint"], extra)


def write_checkpoint(path: str | Path, trainer: Resumable, extra: Mapping[str, Any]) -> None:
    """Write a trainer's whole state, atomically; fastdiff.load reads the model from it."""
    tensors = {f"model.{k}": v for k, v in trainer.network.state_dict().items()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    if trainer.averaged is not None:
        tensors |= {f"ema.{k}": v for k, v in trainer.averaged.module.state_dict().items()}
        tensors["averaged"] = trainer.averaged.n_averaged
    tensors = {k: v.detach().to("cpu").clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    kept = {"recipe": trainer.recipe.to_dict(), "steps_done": trainer.steps_done, "fingerprint": trainer.fingerprint}
    write_tensors(path, tensors, {**model_config(trainer.model), "training": {**extra, **kept}})


def restore(trainer: Resumable, checkpoint: TrainingCheckpoint) -> None:
    """Load the state into a trainer of the same recipe and data; raises InputError for one of another network."""
    load_weights(trainer.network, checkpoint.part("model."), checkpoint.path)
    if trainer.averaged is not None:
        load_weights(trainer.averaged.module, checkpoint.part("ema."), checkpoint.path)
        trainer.averaged.n_averaged.copy_(checkpoint.scalar("averaged"))
    state: dict[int, dict[str, Tensor]] = {}
    parameters = list(trainer.network.parameters())
    for name, value in checkpoint.part("optimizer.").items():
        index, _, key = name.partition(".")
        like = parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None
        if like is None or value.shape not in (like.shape, ()):
            raise InputError(f"{str(checkpoint.path)!r} is of another optimizer: its optimizer.{name} fits no weight")
        if value.shape == like.shape:  # a fused optimizer takes it that both lie in memory in one order
            value = torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[key] = value
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    trainer.steps_done = checkpoint.steps_done


def _checkpoint_file(path: str | Path) -> Path:
    accepted = f"the folder of a run, or its {FILE}"
    if os.path.isfile(path):
        return Path(path)
    if not os.path.isdir(path):
        raise InputError(f"no run to resume at {str(path)!r}; accepted: {accepted}")
    if not (Path(path) / FILE).is_file():
        raise InputError(f"no checkpoint to resume from in {str(path)!r}; accepted: {accepted}")
    return Path(path) / FILE
