"""What the hardware would allow: operations and bytes counted from the shapes, over the rates measured in the run.

Of one evaluation, the limit is the larger of its operations over the rate of a large matrix product and its bytes over
that of a large copy. Operations are two for each multiply-add of convolutions and products of the plain network, done
directly: Winograd's convolutions do fewer, so that a share can exceed 100%. Bytes are those of fastdiff's fused
operators (static.traffic); other libraries' networks have their own operations alone. A training step is three
evaluations; a sampler's update reads x and the prediction and writes x. Contenders may state their own work.
"""

from __future__ import annotations

import copy
import statistics
from functools import cache
from typing import Any, NamedTuple

import torch

from fastdiff.bench import networks, timing
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Role, end_of
from fastdiff.bench.networks import Network
from fastdiff.bench.static.traffic import network_flop, network_traffic
from fastdiff.engine.placement import out_of_memory

SIZES = {"cpu": (1024, 2**22), "cuda": (8192, 2**29)}  # of the product; floats that are copied
EVERY = 3  # rounds between two looks at the rates
WITHOUT = (Kind.EXPORT, Kind.COLD)  # have no limit
LOOPS = (Kind.SAMPLING, Kind.LOOP, Kind.EAGER)


class Rates:
    """Operations per second of a large matrix product and bytes per second, read plus written, of a large copy."""

    def __init__(self, case: Case) -> None:
        self.product: list[float] = []
        self.copy: list[float] = []
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
        for taken, work, call in (
            (self.product, 2 * len(a) ** 3, lambda: a @ b),
            (self.copy, 2 * source.nbytes, lambda: target.copy_(source)),
        ):
            call()  # once to be warm
            self.end()
            taken.append(work / timing.timed(call, end=self.end))


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
    return network_flop(network, batch), network_traffic(network, getattr(torch, dtype), fused, batch).total


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
    times = case.steps if case.kind in LOOPS else 3 if case.kind == Kind.TRAINING else 1
    return Work(times, times * flop, times * moved)


def derived(case: Case, row: dict[str, Any], rates: Rates) -> dict[str, Any]:
    """What follows from the row's median: images and evaluations a second, and the share of the limit."""
    made: dict[str, Any] = {}
    seconds = row["median_seconds"]
    if case.kind in (*LOOPS, Kind.TRAINING):
        made["images_per_second"] = case.batch / seconds
    if case.kind in WITHOUT:
        return made
    done = Work(0, row["operations"], row["bytes_moved"]) if case.kind == Kind.OPERATOR else work(case)
    if case.kind in (*LOOPS, Kind.EVALUATION, Kind.PROFILE):
        made["evaluations_per_second"] = case.batch * done.evaluations / seconds
    if not rates.wanted:
        return made
    if row["role"] == Role.OTHER_NETWORK:  # its own operations; its bytes are not counted
        if "gflop_of_an_image" not in row:
            return made
        done = done._replace(operations=row["gflop_of_an_image"] * 1e9 * case.batch * done.evaluations, moved=0)
    elif "bytes_moved" in row:
        done = done._replace(moved=row["bytes_moved"])
    product, copy = statistics.median(rates.product), statistics.median(rates.copy)
    return {
        **made,
        "gflop": done.operations / 1e9,
        "megabytes": done.moved / 1e6,
        "product_gflops": product / 1e9,
        "copy_gigabytes": copy / 1e9,
        "share_of_limit": max(done.operations / product, done.moved / copy) / seconds,
    }
