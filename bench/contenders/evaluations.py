"""One evaluation of a network: (x, time) → the prediction, no gradients, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.bench import limits
from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, Contender, Ready, Role, end_of
from fastdiff.bench.peers import others, predictors
from fastdiff.bench.peers.predictors import Predict
from fastdiff.bench.static.traffic import count_flop
from fastdiff.engine.engine import Engine
from fastdiff.engine.forms import FORMS

ROWS = (0, 12, 24)  # of DDIM's table of 25 steps; the second is timed


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    yield from predictors.contenders(case, cold, partial(ready, case))
    yield from own_forms(case, by_engine)
    yield from other_networks(case, _other)


def own_forms(case: Case, ready: Callable[[Case, str], Ready]) -> Iterator[Contender]:
    """The forms of fastdiff that run there; the first is what users get."""
    names = [form.name for form in FORMS.values() if form.build_error(case.place, case.precision) is None]
    for name in names:
        title = FASTDIFF if name == names[0] else f"{FASTDIFF}, {name}"
        yield Contender(title, partial(ready, case, name), Role.FASTDIFF)


def other_networks(case: Case, ready: Callable[[Case, Callable[[], others.Other]], Ready]) -> Iterator[Contender]:
    """Other libraries' networks for the case's pictures, about as many parameters."""
    channels, size, _ = case.model.image_shape
    where = (channels, size, others.count(case.model.network), case.device, case.precision)
    theirs = partial(ready, case, lambda: others.diffusers_unet(*where))
    yield Contender("diffusers' UNet2DModel", theirs, Role.OTHER_NETWORK, needs=("diffusers",))
    theirs = partial(ready, case, lambda: others.lucidrains_unet(*where))
    needs = ("denoising_diffusion_pytorch", "einops")
    yield Contender("denoising-diffusion-pytorch's Unet", theirs, Role.OTHER_NETWORK, needs=needs)


def inputs(case: Case) -> tuple[Tensor, list[Tensor]]:
    """x and the times of ROWS."""
    x = torch.randn(case.batch, *case.model.image_shape, generator=torch.Generator().manual_seed(1)).to(case.place)
    times = ddim(case.model).time
    return x, [predictors.time_of(case.model, times[row], case.batch, case.place) for row in ROWS]


def ddim(model: fastdiff.Model) -> fastdiff.StepTable:
    return model.table("ddim", 25)


def evaluating(table: fastdiff.StepTable) -> fastdiff.StepTable:
    """A table of the same nodes by which a step's result is the prediction itself: x0 = out, x <- x0."""
    zero, one = np.zeros(len(table)), np.ones(len(table))
    return replace(table, p=zero, q=one, a=zero, b=one, c=zero, s=zero, alpha_next=one, sigma_next=zero)


def ready(case: Case, predict: Predict) -> Ready:
    x, times = inputs(case)
    return _of_rows(case, lambda place: predict(x, times[place]))


def _of_rows(case: Case, predict: Callable[[int], Tensor]) -> Ready:
    """predict: the place of one of ROWS → the prediction there."""
    return Ready(
        lambda: predict(1),
        lambda: torch.stack([predict(place).clone() for place in range(len(ROWS))]),
        end=end_of(case.place),
    )


def by_engine(case: Case, form: str | None = None) -> Ready:
    """A step of the engine, x and the row put back before each; `form` as users choose it."""
    x, _ = inputs(case)
    settings: dict[str, Any] = dict(batch_size=case.batch, dtype=case.precision, device=case.place, form=form)
    engine = Engine(case.model, evaluating(ddim(case.model)), clip=None, **settings)

    def step(place: int) -> Tensor:
        engine.x.copy_(x)
        engine.index.fill_(ROWS[place])
        engine.step_once()
        return engine.x

    step(0)  # captures, where steps are
    ready = _of_rows(case, step)
    ready.facts.update(limits.of_plan(engine))
    return ready


def size_of(case: Case, other: others.Other) -> dict[str, float]:
    """Facts about another network; its operations are those of one image and evaluation."""
    x, _ = inputs(case)
    flop = count_flop(lambda: other.predict(x[:1], torch.full((1,), 7, device=x.device)))
    return {"parameters": other.parameters, "gflop_of_an_image": flop / 1e9}


def _other(case: Case, make: Callable[[], others.Other]) -> Ready:
    other, (x, _) = make(), inputs(case)
    time = torch.full((case.batch,), 7, device=x.device)
    return Ready(lambda: other.predict(x, time), facts=size_of(case, other), end=end_of(x.device))
