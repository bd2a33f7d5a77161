"""Whole sampling: from noise to images on the host, by every contender's own loop.

Parity is asked of the same noise and the same nodes. Timed is each with the noise that its users have: torch.randn in
the others' loops, Philox in fastdiff's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench import limits
from fastdiff.bench.case import Case
from fastdiff.bench.contender import DIFFUSERS, PUBLISHED, Contender, Ready
from fastdiff.bench.contenders import evaluations
from fastdiff.bench.peers import others, predictors, schedulers
from fastdiff.bench.peers.predictors import Predict, time_of
from fastdiff.bench.peers.reference import AnnotatedLoop, CourseLoop, Noise, ddim_loop, dpmpp_2m_loop
from fastdiff.engine.engine import Engine
from fastdiff.engine.noise import PhiloxNoise
from fastdiff.errors import InputError

Loop = Callable[[Predict, Noise], Tensor]


def published_loop(case: Case, frames: bool = False) -> Loop:
    """The loop of the system's own publication, or of the sampler's where the system has none.

    frames: keep those of every step on the host, as the Annotated tutorial does; the others are spared that.
    """
    network, schedule, device = case.model.network, case.model.schedule, case.place
    whole = case.steps == schedule.num_timesteps
    if isinstance(network, fastdiff.AnnotatedUnet) and case.sampler == "ddpm" and whole:
        annotated = AnnotatedLoop(torch.from_numpy(schedule.betas.copy()).float().to(device))
        if frames:
            return lambda predict, noise: annotated.p_sample_loop(predict, noise)[-1]
        return lambda predict, noise: annotated.p_sample_last(predict, noise).cpu()
    if isinstance(network, fastdiff.ContextUnet) and case.sampler == "ddpm_large" and whole:
        course = CourseLoop(case.steps).to(device)
        return lambda predict, noise: course.sample_ddpm(lambda x, t, context: predict(x, t), noise).cpu()
    if case.sampler not in ("ddim", "dpmpp_2m"):
        raise InputError(f"{case.what} is published for no network like this one")
    table = case.table  # where the steps divide T its nodes are those of the course's stride too
    nodes = [int(t) for t in table.timestep]
    times = {t: time_of(case.model, value, case.batch, device) for t, value in zip(nodes, table.time, strict=True)}
    abar = torch.from_numpy(schedule.alphas_cumprod.copy()).float().to(device)
    loop = ddim_loop if case.sampler == "ddim" else dpmpp_2m_loop
    return lambda predict, noise: loop(lambda x, t: predict(x, times[t]), abar, nodes, noise).cpu()


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    for one in predictors.contenders(case, cold, partial(_by_loop, case, False)):
        if one.name == PUBLISHED:
            one.make = lambda: _by_loop(case, True, predictors.published(case.network, case.place))
        yield one
    yield Contender(DIFFUSERS, partial(_by_scheduler, case), needs=("diffusers",))
    yield from evaluations.own_forms(case, by_engine)
    if case.others:
        yield from evaluations.other_networks(case, _other)


def _sources(case: Case) -> tuple[Noise, Noise]:
    """Noise as functions of the draw: the shared one, and torch's own."""
    shape = (case.batch, *case.model.image_shape)
    philox = PhiloxNoise(0, case.place)
    return lambda draw: philox(draw, 0, shape), lambda draw: torch.randn(shape, device=case.place)


def _by_loop(case: Case, frames: bool, predict: Predict) -> Ready:
    loop = published_loop(case, frames)
    shared, own = _sources(case)
    return Ready(lambda: loop(predict, own), lambda: loop(predict, shared))


def _by_scheduler(case: Case) -> Ready:
    model = case.model
    predict = predictors.tuned(case.network, case.place, case.precision)
    shape = (case.batch, *model.image_shape)
    shared, _ = _sources(case)

    def sample(noise: Noise | None) -> Tensor:
        timed = lambda x, value: predict(x, time_of(model, value, case.batch, case.place))  # noqa: E731
        return schedulers.sample(model, case.sampler, case.steps, timed, noise, shape, case.place).cpu()

    return Ready(lambda: sample(None), lambda: sample(shared))


def by_engine(case: Case, form: str | None = None, model: fastdiff.Model | None = None) -> Ready:
    """`form` as users choose it; the case's model unless another is given."""
    settings: dict[str, Any] = dict(batch_size=case.batch, dtype=case.precision, device=case.place, form=form)
    engine = Engine(case.model if model is None else model, case.table, **settings)
    facts: dict[str, Any] = {}

    def sample() -> Tensor:
        images = engine.sample(case.batch)
        facts["remark"] = "; ".join([*engine.notes, *engine.holds()["steps"].values()])  # smaller batches, captures
        if "operations" not in facts:
            facts.update(limits.of_plan(engine, case.steps))
        return images

    return Ready(sample, sample, facts=facts)


def _other(case: Case, make: Callable[[], others.Other]) -> Ready:
    other = make()
    sample = lambda: other.sample(case.sampler, case.steps, case.batch).cpu()  # noqa: E731
    return Ready(sample, facts=evaluations.size_of(case, other))
