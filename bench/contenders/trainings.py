"""One step of training: a batch's loss, its gradients and the optimizer's update, on random pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdiff
from fastdiff.bench import compiling, networks
from fastdiff.bench.case import Case
from fastdiff.bench.contender import COMPILED, FASTDIFF, PUBLISHED, TUNED, Contender, Ready, Role, end_of
from fastdiff.data.images import ImageData
from fastdiff.training.batch import generator
from fastdiff.training.recipe import Recipe
from fastdiff.training.trainer import Trainer

STEPS = 100_000  # more than a benchmark takes
CHECKED = 3  # steps whose losses are compared: the second and third see what the updates before them did


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    bf16 = case.dtype == "bfloat16"
    yield Contender(PUBLISHED, partial(_published, case), Role.REFERENCE, "float32" if bf16 else None)
    yield Contender(TUNED, partial(_published, case, layout=torch.channels_last, bf16=bf16))
    yield Contender(COMPILED, partial(_published, case, cold=cold, compile=True, bf16=bf16), Role.COMPILED)
    yield Contender(FASTDIFF, partial(_ours, case), Role.FASTDIFF)


def trainer(case: Case) -> Trainer:
    """fastdiff's own, on as many pictures as a batch has, from the model's weights."""
    random, names = torch.Generator().manual_seed(2), case.model.class_names
    pictures = torch.randint(0, 256, (case.batch, *case.model.image_shape), dtype=torch.uint8, generator=random)
    labels = F.one_hot(torch.arange(case.batch) % max(1, len(names)), max(1, len(names))).float()[:, : len(names)]
    data = ImageData("random pictures", pictures, labels, tuple(names), pictures, labels)
    return Trainer(_recipe(case), data, device=case.device, init=case.model)


def _recipe(case: Case) -> Recipe:
    preset = "annotated" if isinstance(case.model.network, fastdiff.AnnotatedUnet) else "course"
    bf16 = case.dtype == "bfloat16"
    return Recipe.preset(preset, batch_size=case.batch, epochs=STEPS, flip=False, context_dropout=0.0, bf16=bf16)


def _ours(case: Case) -> Ready:
    made = trainer(case)
    return Ready(made.step, lambda: torch.stack([made.step() for _ in range(CHECKED)]), end=end_of(made.device))


def _published(
    case: Case,
    layout: torch.memory_format = torch.contiguous_format,
    compile: bool = False,
    cold: bool = False,
    bf16: bool = False,
) -> Ready:
    """The tutorials' step (their recipe's loss and Adam), each drawing its timesteps and noise anew.

    bf16: the network under autocast, as in fastdiff's own step.
    """
    like, model, device = trainer(case), case.model, case.place
    network: Any = networks.published(model)
    network = network.to(device, memory_format=layout).train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=like.recipe.lr)
    call = network
    if compile:
        key = ("train", case.network, case.batch, case.dtype, case.device, case.threads)
        call = compiling.compiled(network, key, None, cold)
    annotated = model.time == "index"
    criterion = F.smooth_l1_loss if annotated else F.mse_loss
    schedule = model.schedule
    abar = torch.from_numpy(schedule.alphas_cumprod.copy()).float().to(device)
    pictures, labels = like.data.unit(like.data.images).to(device), like.data.labels.to(device)

    def step(rows: Tensor, t: Tensor, noise: Tensor, rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate
        shape = (-1, 1, 1, 1)
        x0 = pictures[rows]
        x = abar[t].sqrt().view(shape) * x0 + (1 - abar[t]).sqrt().view(shape) * noise
        x = x.contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = call(x, t) if annotated else call(x, (t / schedule.num_timesteps).view(shape), labels[rows])
        loss = criterion(out.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    low, high = schedule.first, schedule.first + schedule.num_timesteps

    def as_fastdiff(number: int) -> Tensor:
        """The step with the timesteps, noise and rate of fastdiff's own."""
        random = generator(like.recipe.seed, "step", number)
        t = torch.randint(low, high, (case.batch,), generator=random)
        noise = torch.randn(pictures.shape, generator=random)
        return step(like.batch_rows(number), t.to(device), noise.to(device), like.learning_rate(number))

    everything = torch.arange(case.batch, device=device)

    def own() -> Tensor:
        t = torch.randint(low, high, (case.batch,), device=device)
        return step(everything, t, torch.randn_like(pictures), like.recipe.lr)

    return Ready(own, lambda: torch.stack([as_fastdiff(k) for k in range(CHECKED)]), end=end_of(device))
