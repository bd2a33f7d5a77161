"""Whole loops, from noise to images on the host, DDIM: the published one, the engine's, and torch.compile's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.contenders import published
from fastdiff.bench.reporting import DTYPES
from fastdiff.engine import Engine
from fastdiff.noise import PhiloxNoise

STEPS, UNROLLS = 25, (1, 5, 25)
PUBLISHED, COMPILED = "published, eager", "torch.compile"

Loop = Callable[[], Tensor]  # the images, on the CPU


def by_publication(model: fastdiff.Model, n: int, device: torch.device) -> Loop:
    """DDIM as the tutorials write it: coefficients indexed, and time embeddings computed, in every step."""
    network = published(model).to(device)
    nodes = [int(t) for t in ddim(model).timestep]
    abar = torch.cumprod(1 - torch.from_numpy(model.schedule.betas.copy()), dim=0).float().to(device)
    one = torch.ones((), device=device)

    @torch.no_grad()
    def loop() -> Tensor:
        x = PhiloxNoise(0, device)(0, 0, (n, *model.image_shape))
        for t, following in zip(nodes, [*nodes[1:], None], strict=True):
            out = network(x, torch.full((n,), t, dtype=torch.long, device=device))
            now, after = abar[t], one if following is None else abar[following]
            x0 = (x - (1 - now).sqrt() * out) / now.sqrt()
            x = after.sqrt() * x0 + (1 - after).sqrt() * out
        return x.cpu()

    return loop


def by_compiler(model: fastdiff.Model, n: int, device: torch.device, dtype: torch.dtype) -> Loop:
    network: Any = copy.deepcopy(model.network).eval().requires_grad_(False)
    network = network.to(device, dtype, memory_format=torch.channels_last)
    table = ddim(model)
    rows = torch.tensor([table.row(i) for i in range(STEPS)], dtype=torch.float32, device=device)
    with torch.no_grad():
        times = network.embed_time(torch.tensor(table.time, dtype=torch.int64, device=device))
        context = network.embed_context(None)

    @torch.compile(mode="max-autotune", dynamic=False)
    def step(x: Tensor, row: Tensor, *given: Tensor) -> Tensor:
        p, q, a, b, _, _ = row.unbind()
        out = network.denoise(x.to(dtype, memory_format=torch.channels_last), given, context)
        return a * x + b * (p * x + q * out.float())

    @torch.no_grad()
    def loop() -> Tensor:
        x = PhiloxNoise(0, device)(0, 0, (n, *model.image_shape))
        for i in range(STEPS):
            torch.compiler.cudagraph_mark_step_begin()
            x = step(x, rows[i], *(t[i : i + 1] for t in times)).clone()
        return x.cpu()

    return loop


class ByEngine:
    """The engine's own loop; `engine` tells of its graphs."""

    def __init__(self, model: fastdiff.Model, n: int, device: torch.device, dtype: torch.dtype, form: str | None,
                 unroll: int = 1) -> None:  # fmt: skip
        self.n, self.engine = n, Engine(model, ddim(model), n, dtype, device, form=form, unroll=unroll)

    def __call__(self) -> Tensor:
        return self.engine.sample(self.n)

    def told(self) -> str:
        graphs_of = (getattr(run, "told", "") for _, run in self.engine.steps.values())
        return "; ".join(filter(None, [*self.engine.notes, *graphs_of]))


def ddim(model: fastdiff.Model) -> fastdiff.StepTable:
    return fastdiff.make_table("ddim", model.schedule, STEPS, prediction_type=model.prediction_type, time=model.time)


def contenders(
    model: fastdiff.Model, n: int, device: torch.device, compile: bool
) -> dict[tuple[str, str], Callable[[], Loop]]:
    """(name, dtype) → what makes the loop, which may fail."""
    made: dict[tuple[str, str], Callable[[], Loop]] = {
        (PUBLISHED, "float32"): partial(by_publication, model, n, device)
    }
    fast = "graph" if device.type == "cuda" else None
    for name, dtype in DTYPES.items():
        made["engine, eager", name] = partial(ByEngine, model, n, device, dtype, "eager")
        for unroll in UNROLLS:
            label = f"engine, {fast or 'default form'}, {unroll} step{'s' * (unroll > 1)} at a time"
            made[label, name] = partial(ByEngine, model, n, device, dtype, fast, unroll)
    if compile:
        made[COMPILED, "bfloat16"] = partial(by_compiler, model, n, device, torch.bfloat16)
    return made
