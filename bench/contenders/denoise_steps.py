"""A sampler's update alone: x and the network's prediction → the next x, at the middle row of 25 DDIM or DDPM steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench import compiling
from fastdiff.bench.case import Case
from fastdiff.bench.contender import COMPILED, DIFFUSERS, FASTDIFF, PUBLISHED, Contender, Ready, Role, end_of
from fastdiff.bench.peers import schedulers
from fastdiff.bench.peers.reference import ancestral_step, ddim_step
from fastdiff.engine.cpu.step import update
from fastdiff.engine.engine import Engine
from fastdiff.engine.graphs import CapturedStep
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.engine.step import State, advance
from fastdiff.kernels import philox
from fastdiff.kernels.cpu.plan import Program, View, assembled

ROW, STEPS = 12, 25


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    yield Contender(PUBLISHED, partial(_published, case, False, cold), Role.REFERENCE)
    yield Contender(COMPILED, partial(_published, case, True, cold), Role.COMPILED)
    yield Contender(DIFFUSERS, partial(_scheduler, case), needs=("diffusers",))
    yield Contender(FASTDIFF, partial(_ours, case), Role.FASTDIFF)


def _inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """x, the prediction, and the noise that parity is asked with."""
    shape = (case.batch, *case.model.image_shape)
    generator = torch.Generator().manual_seed(1)
    x, out = (torch.randn(shape, generator=generator).to(case.place) for _ in range(2))
    return x, out, philox.normals(philox.key_of(0, 0, case.place), ROW + 1, shape)


def _published(case: Case, compile: bool, cold: bool) -> Ready:
    nodes = [int(t) for t in case.model.table(case.sampler, STEPS).timestep]
    x, out, shared = _inputs(case)
    abar = torch.from_numpy(case.model.schedule.alphas_cumprod.copy()).float().to(x.device)
    now, after = abar[nodes[ROW]], abar[nodes[ROW + 1]]
    step: Any = ddim_step if case.sampler == "ddim" else ancestral_step
    if compile:
        step = compiling.compiled(step, ("step", case.sampler, *x.shape, case.device, case.threads), None, cold)

    def run(noise: Tensor | None) -> Tensor:
        if case.sampler == "ddim":
            return step(x, out, now, after)
        return step(x, out, now, after, torch.randn_like(x) if noise is None else noise)

    return Ready(lambda: run(None), lambda: run(shared).clone(), end=end_of(x.device))


def _scheduler(case: Case) -> Ready:
    x, out, shared = _inputs(case)
    model = case.model
    scheduler = schedulers.scheduler(model, case.sampler)

    def run(noise: Tensor | None) -> Tensor:
        with schedulers.noise_of(None if noise is None else lambda draw: noise, x.device):
            return scheduler.step(out, scheduler.timesteps[ROW], x).prev_sample

    def ready(noise: Tensor | None) -> Tensor:
        scheduler.set_timesteps(STEPS)  # cases share it
        return run(noise)

    return Ready(lambda: run(None), lambda: ready(shared), end=end_of(x.device))


def _ours(case: Case) -> Ready:
    """The engine's own step around that prediction: captured where the engine captures its own; where it has a plan,
    the plan's last call, run as the engine runs plans.

    x is put back before each, which is part of the time.
    """
    x, out, _ = _inputs(case)
    table = case.model.table(case.sampler, STEPS)
    engine = Engine(case.model, table, batch_size=case.batch, device=x.device)  # for its buffers, and to know its form
    captured = engine.form.captured  # captured steps all draw noise and remember a row, to serve most samplers
    rows = torch.from_numpy(table.rows).to(x.device, torch.float32)
    state = State(
        engine.x,
        rows,
        engine.index,
        torch.full_like(engine.index, ROW),
        key=engine.key.zero_() if captured or table.s.any() else None,
        history=engine.history if captured or table.depth else None,
    )
    out = out.contiguous(memory_format=torch.channels_last)  # as a network leaves it
    steps = torch.zeros_like(engine.index)

    def body() -> None:
        state.x.copy_(x)
        advance(state, lambda state: out)

    def counted() -> None:
        body()
        steps.add_(1)

    step: Callable[[], object] = body
    if engine.form.name == "cpu":
        program = Program([assembled([update(state, View.of(out), slice(0, case.batch))])])

        def step() -> None:
            state.x.copy_(x)
            program(ROW, ROW + 1)

    elif captured:
        step = replayed = CapturedStep(counted, steps, engine.device)
        with fixed_numerics(), torch.no_grad():
            replayed.ready()

    def run() -> Tensor:
        with torch.no_grad():  # of the engine's settings, which hold for a batch, all that an update needs
            step()
            return state.x

    return Ready(run, lambda: run().clone(), end=end_of(x.device))
