"""One evaluation of a network: (x, time) → the prediction, no gradients, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench import networks, others, predictors
from fastdiff.bench.cases import Case
from fastdiff.bench.contender import FASTDIFF, Contender, Ready, end_of
from fastdiff.bench.predictors import Predict
from fastdiff.bench.traffic import count_flop
from fastdiff.engine.engine import Engine, Kind
from fastdiff.engine.forms import FORMS, Form
from fastdiff.engine.graphs import CapturedStep

ROWS = (0, 12, 24)  # of DDIM's table of 25 steps; the second is timed


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    """The reference first. cold: whether torch.compile may take its minutes."""
    for label, make in predictors.makers(case, cold):
        precision = predictors.precision(label, case.dtype)
        yield Contender(label, lambda make=make: _ready(case, make()), precision=precision)
    for label, form in own_forms(case):
        yield Contender(label, partial(_by_engine, case, form.name))
    for label, make in other_networks(case):
        yield Contender(label, partial(_other, case, make), other_network=True)


def own_forms(case: Case) -> Iterator[tuple[str, Form]]:
    """The forms of fastdiff that run there, by contender's name; the first is what users get."""
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    forms = [form for form in FORMS.values() if form.build_error(device, dtype) is None]
    for form in forms:
        yield FASTDIFF if form is forms[0] else f"{FASTDIFF}, {form.name}", form


def other_networks(case: Case) -> Iterator[tuple[str, Callable[[], others.Other]]]:
    """Other libraries' own networks for the case's pictures, with about as many parameters as its network."""
    model = networks.load(case.network)
    channels, size, _ = model.image_shape
    where = (channels, size, others.count(model.network), case.device, getattr(torch, case.dtype))
    yield "diffusers' UNet2DModel", partial(others.diffusers_unet, *where)
    yield "denoising-diffusion-pytorch's Unet", partial(others.lucidrains_unet, *where)


def inputs(case: Case) -> tuple[Tensor, list[Tensor]]:
    """x and the times of ROWS."""
    device, model = torch.device(case.device), networks.load(case.network)
    x = torch.randn(case.batch, *model.image_shape, generator=torch.Generator().manual_seed(1)).to(device)
    table = ddim(model)
    return x, [predictors.time_of(model, table.time[row], case.batch, device) for row in ROWS]


def ddim(model: fastdiff.Model) -> fastdiff.StepTable:
    return fastdiff.make_table("ddim", model.schedule, 25, prediction_type=model.prediction_type, time=model.time)


def _ready(case: Case, predict: Predict) -> Ready:
    x, times = inputs(case)
    return Ready(
        lambda: predict(x, times[1]),
        lambda: torch.stack([predict(x, time).clone() for time in times]),
        end=end_of(x.device),
    )


def _by_engine(case: Case, form: str | None) -> Ready:
    """What a step of the engine calls, on the engine's own buffers; `form` as users choose it."""
    x, _ = inputs(case)
    model = networks.load(case.network)
    table = ddim(model)
    engine = Engine(model, table, batch_size=case.batch, dtype=getattr(torch, case.dtype), device=x.device, form=form)
    prediction, _ = engine._step(Kind(guided=False, context=None, noise="none", history=False), table)
    with engine._settings():
        prediction.load_context(None)

    out = torch.empty_like(engine.x, dtype=engine.dtype)

    def body() -> None:
        out.copy_(prediction(engine.x, engine.index))
        engine.index.add_(1)  # as every step does

    captured = CapturedStep(body, engine.index, engine.device) if engine.form.captured else None
    if captured is not None:
        with engine._settings():
            captured.ready()

    def call(row: int) -> Tensor:
        with engine._settings():
            engine.x.copy_(x)
            engine.index.fill_(row)
            if captured is None:
                return prediction(engine.x, engine.index)
            captured()
            return out

    return Ready(
        lambda: call(ROWS[1]),
        lambda: torch.stack([call(row).float().clone() for row in ROWS]),
        end=end_of(x.device),
    )


def size_of(case: Case, other: others.Other) -> dict[str, float]:
    """What is told of another network; its operations are those of one image and evaluation."""
    x, _ = inputs(case)
    flop = count_flop(lambda: other.predict(x[:1], torch.full((1,), 7, device=x.device)))
    return {"parameters": other.parameters, "gflop_of_an_image": flop / 1e9}


def _other(case: Case, make: Callable[[], others.Other]) -> Ready:
    x, _ = inputs(case)
    other = make()
    time = torch.full((case.batch,), 7, device=x.device)
    return Ready(
        lambda: other.predict(x, time),
        told=size_of(case, other),
        end=end_of(x.device),
    )
