"""What the hardware would allow: operations and bytes counted from the shapes, over the rates measured in the run.

Of one evaluation, the limit is the larger of its operations over the rate of a large matrix product and its bytes over
that of a large copy. Operations are two for each multiply-add of convolutions and products of the plain network, done
directly: Winograd's convolutions do fewer, so that a share can exceed 100%. Bytes are those of fastdiff's fused form
(bench.traffic); other libraries' networks have their own operations alone. A training step is three evaluations; a
sampler's update reads x and the prediction and writes x.
"""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

import torch

from fastdiff.bench import networks, timing
from fastdiff.bench.cases import COLD, EVALUATION, EXPORT, SAMPLING, STEP, TRAINING, Case
from fastdiff.bench.shapes import Network
from fastdiff.bench.traffic import network_flop, network_traffic
from fastdiff.engine.placement import out_of_memory

SIZES = {"cpu": (1024, 2**22), "cuda": (8192, 2**29)}  # of the product; floats that are copied
EVERY = 3  # rounds between two looks at the rates


class Rates:
    """Operations per second of a large matrix product and bytes per second, read plus written, of a large copy."""

    def __init__(self, case: Case) -> None:
        self.product: list[float] = []
        self.copy: list[float] = []
        self.wanted = case.kind not in (EXPORT, COLD)
        self.turn = 0
        if not self.wanted:
            return
        self.device = torch.device(case.device)
        self.size, count = SIZES[self.device.type]
        try:
            self.a, self.b = _matrices(case.device, case.dtype, self.size)
            self.source, self.target = _copied(case.device, count)
        except Exception as problem:
            if not out_of_memory(problem):
                raise
            self.wanted = False  # rows without a share are better than none

    def measure(self) -> None:
        self.turn += 1
        if not self.wanted or self.turn % EVERY != 1:
            return
        for taken, work, call in (
            (self.product, 2 * self.size**3, lambda: self.a @ self.b),
            (self.copy, 2 * self.source.numel() * 4, lambda: self.target.copy_(self.source)),
        ):
            self._end(call)
            taken.append(work / timing.timed(lambda call=call: self._end(call)))

    def _end(self, call: Any) -> None:
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@cache
def _matrices(device: str, dtype: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (torch.randn(size, size).to(device, getattr(torch, dtype)) for _ in range(2))
    return a, b


@cache
def _copied(device: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randn(count, device=device)
    return source, torch.empty_like(source)


@cache
def counted(name: str, batch: int, dtype: str) -> tuple[int, int]:
    """(operations, bytes) of one evaluation of the network, from its shapes."""
    model = networks.load(name)
    network = Network(lambda: type(model.network)(**model.network.options), model.image_shape)
    return network_flop(network, batch), network_traffic(network, getattr(torch, dtype), True, batch).total


def work(case: Case) -> tuple[int, int, int]:
    """(evaluations, operations, bytes) of one call of the case."""
    if case.kind == STEP:
        numbers = case.batch * torch.Size(networks.load(case.network).image_shape).numel()
        return 0, 0, 3 * 4 * numbers
    flop, moved = counted(case.network, case.batch, case.dtype)
    if case.kind == SAMPLING:
        steps = int(case.what.split()[1])
        return steps, steps * flop, steps * moved
    return (3 if case.kind == TRAINING else 1), *(n * (3 if case.kind == TRAINING else 1) for n in (flop, moved))


def derived(case: Case, row: dict[str, Any], rates: Rates) -> dict[str, Any]:
    """What follows from the row's median: images and evaluations a second, and the share of the limit."""
    made: dict[str, Any] = {}
    seconds = row["median_seconds"]
    if case.kind in (SAMPLING, TRAINING):
        made["images_per_second"] = case.batch / seconds
    if case.kind in (EXPORT, COLD):
        return made
    evaluations, operations, moved = work(case)
    if case.kind in (SAMPLING, EVALUATION):
        made["evaluations_per_second"] = case.batch * evaluations / seconds
    if not rates.wanted or row["other_network"] and "gflop_of_an_image" not in row:
        return made
    if row["other_network"]:  # its own operations; its bytes are not counted
        operations, moved = row["gflop_of_an_image"] * 1e9 * case.batch * evaluations, 0
    product, copy = statistics.median(rates.product), statistics.median(rates.copy)
    made.update(
        gflop=operations / 1e9, megabytes=moved / 1e6, product_gflops=product / 1e9, copy_gigabytes=copy / 1e9,
        share_of_limit=max(operations / product, moved / copy) / seconds,
    )  # fmt: skip
    return made
