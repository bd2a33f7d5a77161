"""Training: one object that takes one step at a time; the caller logs, samples and saves.

Everything random in a step is a function of (seed, step), so a resumed run takes the very steps that the
uninterrupted one would have taken.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastdiff.checkpoints.config import build_network, model_config
from fastdiff.checkpoints.tensors import load_weights, read_tensors, write_tensors
from fastdiff.data.images import ImageData
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.samplers.prediction import target
from fastdiff.training.losses import snr_weight, weighted_loss
from fastdiff.training.recipe import Recipe

VAL_IMAGES = 2000
VAL_BATCH = 250


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator that is a function of its arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def network_for(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """The recipe's network options, completed by what the data decides."""
    channels, height, width = data.image_shape
    config = dict(recipe.network)
    if config.get("name") == "context":
        if height != width:
            raise InputError(f"pictures of {width}x{height}; ContextUnet takes square ones: give --size")
        width = data.labels.shape[1]
        return {**config, "in_channels": channels, "height": height, "n_cfeat": max(1, width)}
    return {**config, "channels": channels}


def _ema(decay: float):
    """EMA with the usual warm-up, min(decay, (1 + n) / (10 + n)), so that the random start is forgotten."""

    def average(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        n = float(count)
        keep = min(decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:  # BatchNorm's count of batches
            torch._foreach_copy_(averages, values)

    return average


class Trainer:
    """Trains a network by a recipe on data.

    step() takes one optimizer step and returns its loss as a detached scalar tensor (not read back). `model` is the
    averaged model, ready to sample from. save() and restore() keep the whole state in one safetensors file.
    init: a model whose weights to start from, in place of random ones.
    """

    def __init__(self, recipe: Recipe, data: ImageData, device: torch.device, init: Model | None = None) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        with torch.random.fork_rng(devices=[]):  # the caller's generator stays as it was
            torch.manual_seed(generator(recipe.seed, "init", 0).initial_seed())
            network = build_network(network_for(recipe, data))
        if init is not None:
            load_weights(network, init.network.state_dict(), "the model to start from")
        self.network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.averaged: AveragedModel | None = None
        if recipe.ema_decay:
            self.averaged = AveragedModel(self.network, multi_avg_fn=_ema(recipe.ema_decay), use_buffers=True)
        self.schedule = recipe.make_schedule()
        self.conditional = recipe.network["name"] == "context"
        optimizer = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = optimizer(
            self.network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
        )
        self.images, self.labels = data.images.to(device), self._contexts(data.labels)
        self.steps_per_epoch = math.ceil(len(self.images) / recipe.batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.steps_done = 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def _contexts(self, labels: Tensor) -> Tensor:
        """(N, n_cfeat); unlabelled data gets one context entry that is always zero."""
        width = getattr(self.network, "n_cfeat", labels.shape[1])
        return nn.functional.pad(labels, (0, width - labels.shape[1])).to(self.device)

    @property
    def model(self) -> Model:
        """The averaged network (the raw one without EMA) as a Model; its weights go on changing with training."""
        return Model(
            network=self.averaged.module if self.averaged else self.network,
            schedule=self.schedule,
            prediction_type=self.recipe.prediction_type,
            image_shape=self.data.image_shape,
            time="fraction" if self.conditional else "index",
            class_names=self.data.class_names if self.conditional else (),
        )

    def learning_rate(self, step: int) -> float:
        """The rate of step 0 .. total - 1."""
        recipe, span = self.recipe, self.recipe.lr - self.recipe.lr_final
        if recipe.lr_decay == "cosine":
            return recipe.lr_final + span * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        if recipe.lr_decay == "linear-epoch":
            return recipe.lr_final + span * (1 - step // self.steps_per_epoch / recipe.epochs)
        return recipe.lr

    def step(self) -> Tensor:
        """One optimizer step. Raises InputError when the run is over."""
        if self.steps_done >= self.total_steps:
            raise InputError(f"all {self.total_steps} steps are done")
        step = self.steps_done
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        rows = self._batch_rows(step)
        random = generator(self.recipe.seed, "step", step)
        self.network.train()
        loss = self._loss(self.network, self.images[rows], self.labels[rows], random, augment=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.steps_done += 1
        return loss.detach()

    def _batch_rows(self, step: int) -> Tensor:
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            random = generator(self.recipe.seed, "epoch", epoch)
            self._order = (epoch, torch.randperm(len(self.images), generator=random))
        size = self.recipe.batch_size
        return self._order[1][within * size : (within + 1) * size].to(self.device)

    def _loss(self, network: nn.Module, pixels: Tensor, context: Tensor, random: torch.Generator, augment: bool):
        """The loss of a batch. pixels: (B, C, H, W) uint8; context: (B, K)."""
        recipe, schedule, count = self.recipe, self.schedule, len(pixels)
        t = torch.randint(schedule.first, schedule.first + schedule.num_timesteps, (count,), generator=random)
        noise = torch.randn(pixels.shape, generator=random).to(self.device)
        flip = torch.rand(count, generator=random) < 0.5
        drop = torch.rand(count, generator=random) < recipe.context_dropout
        x0 = pixels.float() / 127.5 - 1
        if augment and recipe.flip:
            x0 = torch.where(flip.to(self.device).view(-1, 1, 1, 1), x0.flip(-1), x0)
        if augment:
            context = context * ~drop.to(self.device)[:, None]
        alpha, sigma = schedule.alpha_sigma(t, x0)
        x = alpha * x0 + (sigma**2 if recipe.course_perturbation else sigma) * noise
        x = x.contiguous(memory_format=torch.channels_last)
        time = (t / schedule.num_timesteps if self.conditional else t).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            out = network(x, time, context) if self.conditional else network(x, time)
        weight = snr_weight(alpha, sigma, recipe.prediction_type, recipe.p2_gamma, recipe.min_snr)
        wanted = target(recipe.prediction_type, x0, noise, alpha, sigma)
        return weighted_loss(recipe.loss, out.float(), wanted, weight)

    def validate(self) -> float:
        """The averaged network's mean loss on held-out pictures, the same noise and timesteps every time."""
        network = self.model.network
        training, total = network.training, 0.0
        images = self.data.val_images[:VAL_IMAGES]
        contexts = self._contexts(self.data.val_labels[:VAL_IMAGES])
        network.eval()
        with torch.inference_mode():
            for start in range(0, len(images), VAL_BATCH):
                pixels = images[start : start + VAL_BATCH].to(self.device)
                rows = contexts[start : start + VAL_BATCH]
                random = generator(0, "validation", start)
                total += float(self._loss(network, pixels, rows, random, augment=False)) * len(pixels)
        network.train(training)
        return total / len(images)

    def save(self, path: str | Path, extra: Mapping[str, Any]) -> None:
        """Write the whole state atomically; extra (plain values) comes back from `read_training`."""
        tensors = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        if self.averaged is not None:
            tensors |= {f"ema.{k}": v for k, v in self.averaged.module.state_dict().items()}
            tensors["averaged"] = self.averaged.n_averaged
        tensors = {k: v.detach().to("cpu").clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        training = {"recipe": self.recipe.to_dict(), "steps_done": self.steps_done, **extra}
        write_tensors(path, tensors, {**model_config(self.model), "training": training})

    def restore(self, path: str | Path, tensors: Mapping[str, Tensor], steps_done: int) -> None:
        """Take the state that save() wrote; the recipe and data must be those of the run."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        load_weights(self.network, part("model."), path)
        if self.averaged is not None:
            load_weights(self.averaged.module, part("ema."), path)
            self.averaged.n_averaged.copy_(tensors["averaged"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.steps_done = steps_done


def read_training(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, the "training" configuration) of a training checkpoint. Raises InputError for other files."""
    tensors, config = read_tensors(Path(path))
    kept = config.get("training") if config else None
    wanted = {"recipe", "steps_done", "data", "fingerprint", "command"}
    if not isinstance(kept, dict) or not wanted <= kept.keys() or not isinstance(kept["recipe"], dict):
        raise InputError(f"{str(path)!r} is no training checkpoint; accepted: the checkpoint.safetensors of a run")
    return tensors, kept
