"""Where the time of one evaluation goes: through plain torch, torch.compile, and fastdiff's operators.

All have the weights in the sampler's layout and precision, on CUDA as captured graphs. Rows of the two that run
operator by operator list their kernels by time, and the bytes of their own operators (static.traffic). Of a plan of C
kernels torch's profiler sees one call, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from fastdiff.bench import compiling
from fastdiff.bench.case import Case
from fastdiff.bench.contender import COMPILED, FASTDIFF, Contender, Ready, Role, captured, end_of
from fastdiff.bench.contenders import evaluations
from fastdiff.bench.limits import counted
from fastdiff.bench.peers import predictors
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.kernels.dispatch import using

PLAIN = "plain operators"
LISTED = 25  # kernels


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    yield Contender(PLAIN, partial(_plain, case), Role.REFERENCE)
    yield Contender(COMPILED, partial(_compiled, case, cold), Role.COMPILED)
    yield Contender(FASTDIFF, lambda: _listed(case, evaluations.by_engine(case), fused=True), Role.FASTDIFF)


def _plain(case: Case) -> Ready:
    plainly = using("reference")
    ready = plainly(evaluations.by_engine)(case, "eager" if case.device == "cpu" else None)
    assert ready.outputs is not None
    ready.run, ready.outputs = plainly(ready.run), plainly(ready.outputs)
    return _listed(case, ready, fused=False)


def _compiled(case: Case, cold: bool) -> Ready:
    call = predictors.in_layout(case.network, case.place, case.precision)
    ready = evaluations.ready(case, compiling.compiled(call, ("profile", *case.key), None, cold))
    with fixed_numerics():
        ready.run = captured(ready.run, case.place)
    return ready


def _listed(case: Case, ready: Ready, fused: bool) -> Ready:
    if "operations" not in ready.facts:
        operations, moved = counted(case.network, case.batch, case.dtype, fused)
        ready.facts.update(operations=operations, bytes_moved=moved)
    ready.facts["kernels"] = kernel_times(ready.run, case.place)[:LISTED]
    return ready


def kernel_times(call: Callable[[], Any], device: torch.device, repeats: int = 5) -> list[dict[str, Any]]:
    """Microseconds for each kernel (or CPU operation) of one call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            call()
        end_of(device)()
    rows = []
    for event in profiler.key_averages():
        total = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if total:
            rows.append({"kernel": event.key, "calls": event.count / repeats, "microseconds": total / repeats})
    return sorted(rows, key=lambda row: -row["microseconds"])
