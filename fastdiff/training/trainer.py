"""Training, one step at a time; the caller logs, samples and saves."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastdiff.capture.graph import SELF_CONDITION
from fastdiff.checkpoints.config import build_network
from fastdiff.checkpoints.tensors import load_weights
from fastdiff.data.images import ImageData
from fastdiff.engine.placement import choose_device
from fastdiff.errors import InputError, wrong_type
from fastdiff.model import Model, context_width
from fastdiff.networks.registry import network_class
from fastdiff.samplers.prediction import coefficients, usual_clip
from fastdiff.training.averaging import averaged
from fastdiff.training.checkpoint import TrainingCheckpoint, read_checkpoint, restore, write_checkpoint
from fastdiff.training.losses import denoising_loss
from fastdiff.training.recipe import OPTIMIZERS, Recipe

VAL_IMAGES = 2000
VAL_BATCH = 250


class Trainer:
    """Trains a network by a recipe on data.

    Iterating over it trains: each optimizer step yields its loss, a scalar tensor on the device, which costs nothing
    until it is read. All randomness in a step is a function of the recipe's seed and the step's number, so a resumed
    run takes the same steps as an uninterrupted one.

    Args:
        recipe: how to train.
        data: what `load_data` returns; its pictures stay where they are, and a step's go to the device.
        device: None is the CUDA device if there is one, else the CPU.
        init: a model from whose weights to start, in place of random ones.

    Example:
        ::

            import fastdiff

            data = fastdiff.load_data("my_pictures/", size=16)
            recipe = fastdiff.Recipe(epochs=5, batch_size=4, ema_decay=0.999)
            trainer = fastdiff.Trainer(recipe, data)
            for loss in trainer:
                if trainer.steps_done % trainer.steps_per_epoch == 0:
                    print(trainer.steps_done, float(loss), trainer.validate())
            fastdiff.save(trainer.model, "mine.safetensors")
            images = fastdiff.sample(trainer.model, 16)

    Attributes:
        network: the network in training, on the device.
        schedule: the recipe's noise schedule.
        takes_context: whether the network is given the labels.
        self_condition: whether it is given its own guess of x0 in half of the steps.
        time: what it is given as t, see Model.
        steps_done: optimizer steps taken.
        steps_per_epoch: steps in which each picture is seen once.
        total_steps: of the whole recipe.

    Raises:
        InputError: for options or a picture size that the network cannot take, an unknown device, or a model whose
            weights do not fit.
    """

    def __init__(
        self, recipe: Recipe, data: ImageData, *, device: torch.device | str | None = None, init: Model | None = None
    ) -> None:
        if not isinstance(recipe, Recipe):
            raise wrong_type("recipe", recipe, "a fastdiff.Recipe, such as Recipe.preset('annotated')")
        if not isinstance(data, ImageData):
            raise wrong_type("data", data, "what fastdiff.load_data returns")
        self.recipe, self.data, self.device = recipe, data, choose_device(device)
        with torch.random.fork_rng(devices=[]):  # the caller's generator stays as it was
            torch.manual_seed(generator(recipe.seed, "init", 0).initial_seed())
            network = build_network(network_for(recipe, data))
        if init is not None:
            load_weights(network, init.network.state_dict(), "the model to start from")
        self.network = network.to(device=self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.takes_context = bool(context_width(network))
        self.self_condition = bool(getattr(network, "self_condition", False))
        self.time = str(network.time)
        self.averaged: AveragedModel | None = None
        if recipe.ema_decay:
            self.averaged = averaged(self.network, recipe.ema_decay)
        self.schedule = recipe.make_schedule()
        optimizer = getattr(torch.optim, OPTIMIZERS[recipe.optimizer])
        fused = self.device.type == "cuda"
        self.optimizer: torch.optim.Optimizer = optimizer(
            self.network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused
        )
        self.steps_per_epoch = math.ceil(len(data) / recipe.batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.steps_done = 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self._check_picture_size()

    def _contexts(self, labels: Tensor) -> Tensor:
        """Labels on the device, padded with zeros to the network's K: unlabelled data has none, ContextUnet one."""
        width = context_width(self.network) or labels.shape[1]
        return nn.functional.pad(labels, (0, width - labels.shape[1])).to(self.device)

    def _check_picture_size(self) -> None:
        """Evaluate once, so that a size that the network cannot take is refused before the run."""
        with torch.inference_mode():
            x = torch.zeros(1, *self.data.image_shape, device=self.device)
            self.network.eval()(x, torch.ones(1, device=self.device))
        self.network.train()

    @property
    def model(self) -> Model:
        """The averaged network (without EMA, the network itself) as a Model; training changes its weights."""
        return Model(
            network=self.averaged.module if self.averaged else self.network,
            schedule=self.schedule,
            prediction_type=self.recipe.prediction_type,
            image_shape=self.data.image_shape,
            time=self.time,
            class_names=self.data.class_names if self.takes_context else (),
            clip=usual_clip(self.recipe.prediction_type, self.schedule.alphas_cumprod),
            value_range=self.data.own_range,
        )

    def __iter__(self) -> Iterator[Tensor]:
        """Take the remaining steps; see step."""
        while self.steps_done < self.total_steps:
            yield self.step()

    def step(self) -> Tensor:
        """Take one optimizer step.

        Returns:
            Its loss, a detached scalar on the device.

        Raises:
            InputError: if all steps are done.
        """
        if self.steps_done >= self.total_steps:
            raise InputError(f"all {self.total_steps} steps are done")
        step = self.steps_done
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        pixels, labels = self.data.take(self.batch_rows(step))
        random = generator(self.recipe.seed, "step", step)
        self.network.train()
        loss = self._loss(self.network, pixels.to(self.device), self._contexts(labels), random, augment=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.steps_done += 1
        return loss.detach()

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, 0 .. total_steps - 1."""
        return self.recipe.learning_rate(step, self.steps_per_epoch)

    def batch_rows(self, step: int) -> Tensor:
        """The pictures of a step, 0 .. total_steps - 1: (B,) int64 on the CPU."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            random = generator(self.recipe.seed, "epoch", epoch)
            self._order = (epoch, torch.randperm(len(self.data), generator=random))
        size = self.recipe.batch_size
        return self._order[1][within * size : (within + 1) * size]

    def _loss(
        self, network: nn.Module, pixels: Tensor, context: Tensor, random: torch.Generator, augment: bool
    ) -> Tensor:
        """The loss of a batch, see denoising_loss. pixels: (B, C, H, W), see ImageData; context: (B, K)."""
        recipe, schedule, count = self.recipe, self.schedule, len(pixels)
        t = torch.randint(schedule.first, schedule.first + schedule.num_timesteps, (count,), generator=random)
        noise = torch.randn(pixels.shape, generator=random).to(self.device)
        flip = torch.rand(count, generator=random) < 0.5
        drop = torch.rand(count, generator=random) < recipe.context_dropout
        x0 = self.data.unit(pixels)
        if augment and recipe.flip:
            x0 = torch.where(flip.to(self.device).view(-1, 1, 1, 1), x0.flip(-1), x0)
        if augment:
            context = context * ~drop.to(self.device)[:, None]

        clip = usual_clip(recipe.prediction_type, schedule.alphas_cumprod)
        conditioned = self.self_condition and bool(torch.rand((), generator=random) < 0.5)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            time = (t / schedule.num_timesteps if self.time == "fraction" else t).to(self.device)
            contexts = (context,) if self.takes_context else ()

            def evaluated(**x0_before: Tensor) -> Tensor:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
                    out: Tensor = network(x, time, *contexts, **x0_before)
                return out.float()

            if not conditioned:
                return evaluated()
            with torch.no_grad():  # the network's own guess (Chen et al. 2023, algorithm 1)
                p, q = coefficients(recipe.prediction_type, *schedule.alpha_sigma(t, x))
                x0 = p * x + q * evaluated()
                if clip is not None:  # as when it is sampled from
                    x0 = x0.clamp(-clip, clip)
            return evaluated(**{SELF_CONDITION: x0})

        return denoising_loss(
            predict,
            x0,
            t,
            noise,
            schedule,
            loss=recipe.loss,
            prediction_type=recipe.prediction_type,
            p2_gamma=recipe.p2_gamma,
            min_snr=recipe.min_snr,
            course_perturbation=recipe.course_perturbation,
        )

    def validate(self) -> float:
        """The averaged network's mean loss on up to 2,000 held-out pictures, with the same noise every time."""
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

    @cached_property
    def fingerprint(self) -> int:
        """The data's; computing it reads all pictures, once."""
        return self.data.fingerprint()

    def save(self, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
        """Write the whole state to one safetensors file, atomically; fastdiff.load reads the model from it.

        Args:
            path: the file.
            extra: plain values to keep with it, see TrainingCheckpoint.
        """
        write_checkpoint(path, self, extra or {})

    @classmethod
    def resume(
        cls,
        checkpoint: str | Path | TrainingCheckpoint,
        data: ImageData,
        *,
        device: torch.device | str | None = None,
    ) -> Trainer:
        """A trainer that continues where a saved one stopped, with the same steps.

        Args:
            checkpoint: the file that save wrote, the folder of a run, or what read_checkpoint returned.
            data: the data that the run began with.
            device: None is the CUDA device if there is one, else the CPU.

        Returns:
            The trainer, its steps_done that of the checkpoint.

        Raises:
            InputError: if the checkpoint is missing or damaged, or the data is not what the run began with.
        """
        kept = checkpoint if isinstance(checkpoint, TrainingCheckpoint) else read_checkpoint(checkpoint)
        trainer = cls(kept.recipe, data, device=device)
        if trainer.fingerprint != kept.fingerprint:
            raise InputError(f"data {data.name!r} has changed since the run began; a resumed run needs the same")
        restore(trainer, kept)
        return trainer


def network_for(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """The recipe's network options, completed by what the data decides."""
    network = network_class(recipe.network["name"])
    return {**recipe.network, **network.options_for(data.image_shape, data.labels.shape[1])}  # type: ignore[attr-defined]


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator that is a function of its arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
