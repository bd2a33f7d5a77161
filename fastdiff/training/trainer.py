"""Training, one step at a time; the caller logs, samples and saves."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastdiff.checkpoints.config import build_network, model_from_config
from fastdiff.checkpoints.tensors import check_fits, default_dtype, made_for
from fastdiff.data.images import ImageData
from fastdiff.errors import InputError, check_int, wrong_type
from fastdiff.model import Model, check_model, context_width
from fastdiff.networks.registry import network_class
from fastdiff.samplers.prediction import usual_clip
from fastdiff.training.averaging import averaged
from fastdiff.training.batch import Draws, Labels, Predictor, generator
from fastdiff.training.checkpoint import TrainingCheckpoint, read_checkpoint, restore, write_checkpoint
from fastdiff.training.group import Group
from fastdiff.training.losses import denoising_loss
from fastdiff.training.recipe import OPTIMIZERS, Recipe

VAL_IMAGES = 2000
VAL_BATCH = 250


class Trainer:
    """Trains a network by a recipe on data.

    Iterating over it trains: each optimizer step yields its loss, a scalar tensor on the device, which costs nothing
    until it is read. All randomness in a step is a function of the recipe's seed and the step's number, so a resumed
    run takes the same steps as an uninterrupted one, and several processes the same as one: each evaluates its share of
    the batch. (A BatchNorm has the statistics of what is evaluated at once: of a process' part of its share; on CUDA
    of all processes' parts.)

    Args:
        recipe: how to train.
        data: what `load_data` returns; its pictures stay where they are, and a step's go to the device.
        device: None is the CUDA device if there is one, else the CPU.
        init: a model to start from: its network with its weights, its schedule and its prediction type take the place
            of the recipe's. It stays as it is.
        accumulate: in how many parts, one after another, each process evaluates its share of a batch, to save memory.

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
        recipe: how it trains; without network, schedule and prediction type where they are those of init.
        network: the network in training, on the device.
        group: the processes that train together, see Group.
        steps_done: optimizer steps taken.
        steps_per_epoch: steps in which each picture is seen once.
        total_steps: of the whole recipe.

    Raises:
        InputError: for options or a picture size that the network cannot take, an unknown device, or a model that
            cannot be trained on such pictures.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        *,
        device: torch.device | str | None = None,
        init: Model | None = None,
        accumulate: int = 1,
    ) -> None:
        if not isinstance(recipe, Recipe):
            raise wrong_type("recipe", recipe, "a fastdiff.Recipe, such as Recipe.preset('annotated')")
        if not isinstance(data, ImageData):
            raise wrong_type("data", data, "what fastdiff.load_data returns")
        self.recipe = recipe if init is None else recipe.without_network()
        self.data, self.group, self.accumulate = data, Group(device), check_int("accumulate", accumulate, 1, 2**31)
        model = new_model(recipe, data) if init is None else started_from(check_model(init), data)
        self._labels = Labels(model, data, dropout=recipe.context_dropout > 0)
        self.network = model.network.to(device=self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self._model = replace(model, network=self.network)
        self.averaged: AveragedModel | None = None
        if recipe.ema_decay:
            self.averaged = averaged(self.network, recipe.ema_decay)
        optimizer = getattr(torch.optim, OPTIMIZERS[recipe.optimizer])
        self.optimizer: torch.optim.Optimizer = optimizer(
            self.network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        self.steps_per_epoch = math.ceil(len(data) / recipe.batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.steps_done = 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, device="cpu"))
        self._check_picture_size()
        self._shared = self.group.wrap(self.network)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.group.device

    def _check_picture_size(self) -> None:
        """Evaluate once, so that a size that the network cannot take is refused before the run."""
        labels = torch.zeros(1, self._labels.given, device="cpu", dtype=torch.float32)
        kept = torch.zeros(1, dtype=torch.bool, device="cpu")
        x = torch.zeros(1, *self.data.image_shape, device=self.device, dtype=torch.float32)
        t = torch.ones(1, dtype=torch.int64, device="cpu")
        with torch.inference_mode():
            self._predictor(self.network.eval(), labels, kept, conditioned=False)(x, t)
        self.network.train()

    @property
    def takes_context(self) -> bool:
        """Whether the network is given the labels."""
        return bool(self._labels)

    @property
    def model(self) -> Model:
        """The averaged network (without EMA, the network itself) as a Model; training changes its weights."""
        return replace(self._model, network=self.averaged.module if self.averaged else self.network)

    def __iter__(self) -> Iterator[Tensor]:
        """Take the remaining steps; see step."""
        while self.steps_done < self.total_steps:
            yield self.step()

    def __len__(self) -> int:
        """The remaining steps."""
        return self.total_steps - self.steps_done

    def step(self) -> Tensor:
        """Take one optimizer step.

        Returns:
            Its loss, a detached scalar on the device.

        Raises:
            InputError: if all steps are done, or another process of the group is gone.
        """
        if self.steps_done >= self.total_steps:
            raise InputError(f"all {self.total_steps} steps are done")
        step = self.steps_done
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(step)
        with self.group.together():
            loss = self.group.total(loss)
        if self.recipe.max_grad_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.steps_done += 1
        return loss

    def _backward(self, step: int) -> Tensor:
        """The gradients of this process' share of the batch; returns what it adds to the batch's loss."""
        rows, recipe = self.batch_rows(step), self.recipe
        draws = Draws.of(
            self._model,
            len(rows),
            generator(recipe.seed, "step", step),
            flip=recipe.flip,
            context_dropout=recipe.context_dropout,
        )
        found = torch.zeros((), device=self.device, dtype=torch.float32)
        parts = self.group.share(len(rows), self.accumulate)
        for part in parts or [slice(0, 1)]:  # with more processes than rows, a row that counts nothing
            share = (part.stop - part.start) / len(rows) if parts else 0.0
            with self.group.accumulating(self._shared, last=part is parts[-1] if parts else True):
                loss = self._loss(self._shared, *self.data.take(rows[part]), draws.part(part)) * share
                with self.group.together():
                    (loss * self.group.world).backward()  # processes' gradients are averaged
            found += loss.detach()
        return found

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, 0 .. total_steps - 1."""
        return self.recipe.learning_rate(step, self.steps_per_epoch)

    def batch_rows(self, step: int) -> Tensor:
        """The pictures of a step, 0 .. total_steps - 1, of all processes: (B,) int64 on the CPU."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            random = generator(self.recipe.seed, "epoch", epoch)
            self._order = (epoch, torch.randperm(len(self.data), generator=random, device="cpu"))
        size = self.recipe.batch_size
        return self._order[1][within * size : (within + 1) * size]

    def _predictor(self, network: nn.Module, labels: Tensor, drop: Tensor, conditioned: bool) -> Predictor:
        contexts = tuple(context.to(self.device) for context in self._labels.contexts(labels, drop))
        return Predictor(self._model, network, contexts, conditioned, self.recipe.bf16)

    def _loss(self, network: nn.Module, pixels: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """The loss of some rows, see denoising_loss. pixels: (B, C, H, W) as in the data; labels: (B, K)."""
        x0 = self.data.unit(pixels.to(self.device))
        if self.recipe.flip:
            x0 = torch.where(draws.flip.to(self.device).view(-1, 1, 1, 1), x0.flip(-1), x0)
        return denoising_loss(
            self._predictor(network, labels, draws.drop, draws.conditioned),
            x0,
            draws.t,
            draws.noise.to(self.device),
            self._model.schedule,
            loss=self.recipe.loss,
            prediction_type=self._model.prediction_type,
            p2_gamma=self.recipe.p2_gamma,
            min_snr=self.recipe.min_snr,
            course_perturbation=self.recipe.course_perturbation,
        )

    def validate(self) -> float:
        """The averaged network's mean loss on up to 2,000 held-out pictures, with the same noise every time."""
        network = self.model.network
        training, total = network.training, torch.zeros((), dtype=torch.float64, device="cpu")
        images, labels = self.data.val_images[:VAL_IMAGES], self.data.val_labels[:VAL_IMAGES]
        network.eval()
        with torch.inference_mode(), self.group.together():
            for start in range(self.group.rank * VAL_BATCH, len(images), self.group.world * VAL_BATCH):
                rows = slice(start, start + VAL_BATCH)
                draws = Draws.of(self._model, len(images[rows]), generator(0, "validation", start))
                total += float(self._loss(network, images[rows], labels[rows], draws)) * len(images[rows])
            total = self.group.total(total.to(self.device))
        network.train(training)
        return float(total) / len(images)

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
        epochs: int | None = None,
        accumulate: int = 1,
    ) -> Trainer:
        """A trainer that continues where a saved one stopped, with the same steps.

        On one process on a CPU the results are the same bits, with as many threads and parts. Otherwise the pictures,
        noise and learning rates are the same, and sums are rounded differently.

        Args:
            checkpoint: the file that save wrote, the folder of a run, or what read_checkpoint returned.
            data: the data that the run began with.
            device: None is the CUDA device if there is one, else the CPU.
            epochs: of the whole run from its beginning, in place of the recipe's; the learning rate's course is that
                of so many epochs from here on.
            accumulate: as in Trainer.

        Returns:
            The trainer, its steps_done that of the checkpoint.

        Raises:
            InputError: if the checkpoint is missing or damaged, the data is not what the run began with, or more epochs
                are done than asked for.
        """
        kept = checkpoint if isinstance(checkpoint, TrainingCheckpoint) else read_checkpoint(checkpoint)
        init = None
        if kept.recipe.network is None:
            network = made_for(kept.part("model."), kept.path, build_network, config=kept.config["network"])
            init = model_from_config(kept.config, network)
        recipe = kept.recipe if epochs is None else replace(kept.recipe, epochs=epochs)
        if init is None:
            check_fits(kept.part("model."), kept.path, build_network, config=network_for(recipe, data))
        trainer = cls(recipe, data, device=device, init=init, accumulate=accumulate)
        if trainer.fingerprint != kept.fingerprint:
            raise InputError(f"data {data.name!r} has changed since the run began; a resumed run needs the same")
        if kept.steps_done > trainer.total_steps:
            done = kept.steps_done / trainer.steps_per_epoch
            raise InputError(f"epochs = {epochs}, but {done:.3g} are done; accepted: {math.ceil(done)} and more")
        restore(trainer, kept)
        return trainer


def new_model(recipe: Recipe, data: ImageData) -> Model:
    """The recipe's network with fresh weights, which the seed decides, as a model of such pictures."""
    # The caller's generator stays as it was, and its defaults do not count.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), default_dtype(torch.float32):
        torch.manual_seed(generator(recipe.seed, "init", 0).initial_seed())
        network = build_network(network_for(recipe, data))
    schedule, prediction_type = recipe.make_schedule(), recipe.prediction_type
    assert prediction_type is not None
    numbered = getattr(network, "num_classes", None)
    return Model(
        network,
        schedule,
        prediction_type=prediction_type,
        image_shape=data.image_shape,
        value_range=data.own_range,
        time=str(network.time),
        class_names=data.class_names if context_width(network) or numbered else (),
        num_classes=numbered,
        null_class=getattr(network, "null_class", None),
        clip=usual_clip(prediction_type, schedule.alphas_cumprod),
    )


def started_from(init: Model, data: ImageData) -> Model:
    """A copy of a model, for such pictures; a variance that it has learned is not trained on, and forgotten."""
    channels, wanted = data.image_shape[0], init.image_shape[0]
    if channels != wanted:
        raise InputError(f"pictures of {channels} channels for a model of {wanted}; accepted: {wanted}")
    return replace(
        init,
        network=copy.deepcopy(init.network),
        image_shape=data.image_shape,
        value_range=data.own_range,
        class_names=_class_names(init, data) if init.context_width or init.num_classes else (),
        learned_variance=False,
    )


def _class_names(init: Model, data: ImageData) -> Sequence[str]:
    """The data's, in the model's order if they are the same; the model's where the data has no names of its own."""
    own = init.class_names
    other = len(data.class_names) == len(own) and not data.unnamed and set(data.class_names) != set(own)
    return data.class_names if other or not own else own


def network_for(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """The recipe's network options, completed by what the data decides; raises InputError if it has none."""
    if recipe.network is None:
        raise InputError("a recipe without a network; accepted: with init, a model to start from")
    network = network_class(recipe.network["name"])
    return {**recipe.network, **network.options_for(data.image_shape, data.labels.shape[1])}  # type: ignore[attr-defined]
