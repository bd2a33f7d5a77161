"""Whole sampling: from noise to images on the host, by every contender's own loop.

Parity is asked of the same noise and the same nodes. Timed is each with the noise that its users have: torch.randn in
the others' loops, Philox in fastdiff's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench import networks
from fastdiff.bench.case import Case
from fastdiff.bench.contender import DIFFUSERS, PUBLISHED, Contender, Ready, Role
from fastdiff.bench.contenders import evaluations
from fastdiff.bench.peers import others, predictors, schedulers
from fastdiff.bench.peers.predictors import Predict, time_of
from fastdiff.bench.peers.reference import AnnotatedLoop, CourseLoop, Noise, ddim_loop, dpmpp_2m_loop
from fastdiff.engine.engine import Engine
from fastdiff.engine.noise import PhiloxNoise
from fastdiff.errors import InputError

Loop = Callable[[Predict, Noise], Tensor]


def table_of(model: fastdiff.Model, sampler: str, steps: int) -> fastdiff.StepTable:
    return fastdiff.make_table(
        sampler, model.schedule, steps, prediction_type=model.prediction_type, time=model.time
    )  # trailing: where the steps divide T these are the nodes of the course's stride too


def published_loop(
    model: fastdiff.Model, sampler: str, steps: int, n: int, device: torch.device, frames: bool = False
) -> Loop:
    """The loop of the system's own publication, or of the sampler's where the system has none.

    frames: keep those of every step on the host, as the Annotated tutorial does; the others are spared that.
    """
    schedule = model.schedule
    whole = steps == schedule.num_timesteps
    if isinstance(model.network, fastdiff.AnnotatedUnet) and sampler == "ddpm" and whole:
        annotated = AnnotatedLoop(torch.from_numpy(schedule.betas.copy()).float().to(device))
        if frames:
            return lambda predict, noise: annotated.p_sample_loop(predict, noise)[-1]
        return lambda predict, noise: annotated.p_sample_last(predict, noise).cpu()
    if isinstance(model.network, fastdiff.ContextUnet) and sampler == "ddpm_large" and whole:
        course = CourseLoop(steps).to(device)
        return lambda predict, noise: course.sample_ddpm(lambda x, t, context: predict(x, t), noise).cpu()
    if sampler not in ("ddim", "dpmpp_2m"):
        raise InputError(f"{sampler} {steps} is published for no network like this one")
    table = table_of(model, sampler, steps)
    nodes = [int(t) for t in table.timestep]
    times = {t: time_of(model, value, n, device) for t, value in zip(nodes, table.time, strict=True)}
    abar = torch.from_numpy(schedule.alphas_cumprod.copy()).float().to(device)
    loop = ddim_loop if sampler == "ddim" else dpmpp_2m_loop
    return lambda predict, noise: loop(lambda x, t: predict(x, times[t]), abar, nodes, noise).cpu()


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    for one in predictors.contenders(case, cold, partial(_by_loop, case, frames=False)):
        if one.name == PUBLISHED:
            one.make = lambda: _by_loop(
                case, predictors.published(case.network, torch.device(case.device)), frames=True
            )
        yield one
    yield Contender(DIFFUSERS, partial(_by_scheduler, case), needs=("diffusers",))
    for name, form in evaluations.own_forms(case):
        yield Contender(name, partial(_by_engine, case, form.name), Role.FASTDIFF)
    for name, make, needs in evaluations.other_networks(case) if case.others else ():
        yield Contender(name, partial(_other, case, make), Role.OTHER_NETWORK, needs=needs)


def _sources(case: Case) -> tuple[Noise, Noise]:
    """Noise as functions of the draw: the shared one, and torch's own."""
    device = torch.device(case.device)
    shape = (case.batch, *networks.load(case.network).image_shape)
    philox = PhiloxNoise(0, device)
    return lambda draw: philox(draw, 0, shape), lambda draw: torch.randn(shape, device=device)


def _by_loop(case: Case, predict: Predict, frames: bool) -> Ready:
    model, device = networks.load(case.network), torch.device(case.device)
    loop = published_loop(model, case.sampler, case.steps, case.batch, device, frames)
    shared, own = _sources(case)
    return Ready(lambda: loop(predict, own), lambda: loop(predict, shared))


def _by_scheduler(case: Case) -> Ready:
    device, model = torch.device(case.device), networks.load(case.network)
    predict = predictors.tuned(case.network, device, getattr(torch, case.dtype))
    shape = (case.batch, *model.image_shape)
    shared, _ = _sources(case)

    def sample(noise: Noise | None) -> Tensor:
        timed = lambda x, value: predict(x, time_of(model, value, case.batch, device))  # noqa: E731
        return schedulers.sample(model, case.sampler, case.steps, timed, noise, shape, device).cpu()

    return Ready(lambda: sample(None), lambda: sample(shared))


def _by_engine(case: Case, form: str) -> Ready:
    model = networks.load(case.network)
    table, dtype = table_of(model, case.sampler, case.steps), getattr(torch, case.dtype)
    engine = Engine(model, table, batch_size=case.batch, dtype=dtype, device=case.device, form=form)

    facts: dict[str, str] = {}

    def sample() -> Tensor:
        images = engine.sample(case.batch)
        facts["remark"] = "; ".join([*engine.notes, *engine.holds()["steps"].values()])  # smaller batches, captures
        return images

    return Ready(sample, sample, facts=facts)


def _other(case: Case, make: Callable[[], others.Other]) -> Ready:
    other = make()
    return Ready(
        lambda: other.sample(case.sampler, case.steps, case.batch).cpu(), facts=evaluations.size_of(case, other)
    )
