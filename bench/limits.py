"""What the hardware would allow: operations and bytes over the rates measured in the run.

Of one evaluation, the limit is the larger of its operations over the rate of arithmetic and its bytes over that of a
large copy. Of float32 on a CPU the first is that of the cores' multiply-adds, by a loop in C that waits for no memory;
else that of a large matrix product. Operations are two for each multiply-add of convolutions and products.

Where fastdiff runs a plan of C kernels, operations and bytes are those of its calls (kernels.cpu.counts), Winograd's
convolutions with the fewer products that they do. Of all others they are counted from the shapes: the operations those
of the plain network, done directly, so that a share can exceed 100% where they are not; the bytes those of fastdiff's
fused operators (static.traffic); other libraries' networks have their own operations alone. A training step is three
evaluations; a sampler's update reads x and the prediction and writes x. Contenders may state their own work.
"""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch

from fastdiff.bench import networks, timing
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Role, end_of
from fastdiff.bench.networks import Network
from fastdiff.bench.static.traffic import network_flop, network_traffic
from fastdiff.engine.cpu.step import PlannedStep
from fastdiff.engine.engine import Engine
from fastdiff.engine.placement import out_of_memory
from fastdiff.kernels.cpu import compiled, counts
from fastdiff.kernels.cpu.plan import Call
from fastdiff.kernels.cpu.rate import multiply_adds

SIZES = {"cpu": (1024, 2**22), "cuda": (8192, 2**29)}  # of the product; floats that are copied
SECONDS = 0.05  # of the loop of multiply-adds
EVERY = 3  # rounds between two looks at the rates
WITHOUT = (Kind.EXPORT, Kind.COLD, Kind.THREADS)  # have no limit
LOOPS = (Kind.SAMPLING, Kind.LOOP, Kind.EAGER)


class Rates:
    """Operations per second, and bytes per second, read plus written, of a large copy.

    Attributes:
        core: whether the operations are the cores' multiply-adds, as many cores as the case has threads, at once; else
            they are those of a large matrix product.
    """

    def __init__(self, case: Case) -> None:
        self.arithmetic: list[float] = []
        self.copy: list[float] = []
        self.threads = case.threads
        self.core = (case.device, case.dtype) == ("cpu", "float32") and compiled.build_error() is None
        self.wanted = case.kind not in WITHOUT
        self.turn = 0
        self.end = end_of(case.place)
        try:
            self.given = _operands(case.device, case.dtype, *SIZES[case.device]) if self.wanted else ()
        except Exception as problem:
            if not out_of_memory(problem):
                raise
            self.wanted = False  # rows without a share are better than none

    def measure(self) -> None:
        self.turn += 1
        if not self.wanted or self.turn % EVERY != 1:
            return
        a, b, source, target = self.given
        if self.core:
            self.arithmetic.append(2 * _multiply_adds(self.threads))
        else:
            self.arithmetic.append(2 * len(a) ** 3 / self._timed(lambda: a @ b))
        self.copy.append(2 * source.nbytes / self._timed(lambda: target.copy_(source)))

    def _timed(self, call: Callable[[], Any]) -> float:
        call()  # once to be warm
        self.end()
        return timing.timed(call, end=self.end)


def _multiply_adds(threads: int) -> float:
    """A second, of so many threads at once."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(multiply_adds, [SECONDS] * threads))


@cache
def _operands(device: str, dtype: str, size: int, count: int) -> tuple[torch.Tensor, ...]:
    """Of the product and of the copy."""
    a, b = (torch.randn(size, size).to(device, getattr(torch, dtype)) for _ in range(2))
    source = torch.randn(count, device=device)
    return a, b, source, torch.empty_like(source)


@cache
def counted(name: str, batch: int, dtype: str, fused: bool = True) -> tuple[int, int]:
    """(operations, bytes) of one evaluation of the network, from its shapes."""
    model = networks.load(name)
    network = Network(lambda: copy.deepcopy(model.network).to("meta"), model.image_shape)
    return network_flop(network, batch), network_traffic(
        network, getattr(torch, dtype), "triton" if fused else "reference", batch
    ).total


class Work(NamedTuple):
    """Of one call of a case."""

    evaluations: int
    operations: float
    moved: float  # bytes


def work(case: Case) -> Work:
    """The work of a call, counted from the shapes."""
    if case.kind == Kind.STEP:
        numbers = case.batch * torch.Size(case.model.image_shape).numel()
        return Work(0, 0, 3 * 4 * numbers)
    flop, moved = counted(case.network, case.batch, case.dtype)
    times = _evaluations(case)
    return Work(times, times * flop, times * moved)


def _evaluations(case: Case) -> int:
    """In a call."""
    return case.steps if case.kind in LOOPS else 3 if case.kind == Kind.TRAINING else 1


def of_plan(engine: Engine, steps: int = 1) -> dict[str, Any]:
    """Columns of a row whose call is so many steps of the engine, if a plan of C kernels runs them; else none.

    "in_torch" are the operations that torch computes between the kernels, and that are not counted.
    """
    planned = [prediction.parts.step for prediction, _ in engine.steps.values()]
    if len(planned) != 1 or not isinstance(planned[0], PlannedStep):
        return {}
    plans = [piece.plan for pieces in planned[0].pieces for piece in pieces]
    operations, moved = counts.work(step for plan in plans for step in plan.steps if isinstance(step, Call))
    outside = Counter(map(str, plans[0].outside))
    return {
        "operations": steps * operations,
        "bytes_moved": steps * moved,
        "in_torch": [name if times == 1 else f"{name}, {times} times" for name, times in outside.items()],
    }


def derived(case: Case, row: dict[str, Any], rates: Rates) -> dict[str, Any]:
    """What follows from the row's median: images and evaluations a second, and the share of the limit."""
    made: dict[str, Any] = {}
    seconds = row["median_seconds"]
    if case.kind in (*LOOPS, Kind.TRAINING):
        made["images_per_second"] = case.batch / seconds
    if case.kind in WITHOUT:
        return made
    if case.kind in (*LOOPS, Kind.EVALUATION, Kind.PROFILE):
        made["evaluations_per_second"] = case.batch * _evaluations(case) / seconds
    if not rates.wanted:
        return made
    if "operations" in row:
        operations, moved = row["operations"], row["bytes_moved"]
    elif row["role"] == Role.OTHER_NETWORK:  # its own operations; its bytes are not counted
        if "gflop_of_an_image" not in row:
            return made
        operations, moved = row["gflop_of_an_image"] * 1e9 * case.batch * _evaluations(case), 0
    else:
        _, operations, moved = work(case)
    arithmetic, copy = statistics.median(rates.arithmetic), statistics.median(rates.copy)
    return {
        **made,
        "gflop": operations / 1e9,
        "megabytes": moved / 1e6,
        "core_gflops" if rates.core else "product_gflops": arithmetic / 1e9,
        "copy_gigabytes": copy / 1e9,
        "share_of_limit": max(operations / arithmetic, moved / copy) / seconds,
    }
