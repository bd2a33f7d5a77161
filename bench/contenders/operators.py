"""An operator alone: plain torch, torch.compile, and the form that users get.

Calls go over several sets of inputs that together exceed a GPU's cache, and on CUDA are captured as a graph, so that
neither launches nor cached data are measured. Results are compared with plain torch in float64 on the same inputs. The
bytes are those of the inputs, read once, and of the result, written once; of the C kernels' plans their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.bench import compiling
from fastdiff.bench.case import Case
from fastdiff.bench.contender import COMPILED, FASTDIFF, PUBLISHED, Contender, Ready, Role, captured, end_of
from fastdiff.bench.operators.catalogue import find
from fastdiff.bench.operators.operator import Call, Draw, Operator
from fastdiff.bench.static.traffic import count_flop
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.kernels.dispatch import using

CACHES = 4 * 2**26  # bytes, four times the largest L2 of the kinds of GPU that are known


class Shared(NamedTuple):
    """What the contenders of a case have in common; the first set of inputs is compared."""

    call: Call
    sets: list[tuple[Tensor, ...]]
    facts: dict[str, int]


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    operator = find(case)
    shared = cache(lambda: _shared(case, operator))
    wide = "float32" if operator.wide else None

    def reference() -> Ready:
        plain, inputs = _plain(shared().call), shared().sets[0]
        ready = _ready(case, plain, shared())
        ready.exact = lambda: plain(*(t.double() for t in inputs))
        return ready

    def by_compiler() -> Ready:
        # The operator itself would be one node to it, and run as it is.
        return _ready(
            case, compiling.compiled(shared().call.plain, ("operator", *case.key), None, cold, fullgraph=True), shared()
        )

    def ours() -> Ready:
        call, ready = shared().call, _ready(case, shared().call.call, shared())
        if call.work is not None:
            ready.facts["operations"], ready.facts["bytes_moved"] = call.work(*shared().sets[0])
        return ready

    yield Contender(PUBLISHED, reference, Role.REFERENCE, wide)
    yield Contender(COMPILED, by_compiler, Role.COMPILED, wide)
    yield Contender(FASTDIFF, ours, Role.FASTDIFF, wide)


def _plain(call: Call) -> Callable[..., Tensor]:
    return using("reference")(call.plain)


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _shared(case: Case, operator: Operator) -> Shared:
    device = case.place
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        call = operator.make(Draw(device, case.precision))
        inputs = call.inputs(case.batch)
        moved = size_of(inputs) + size_of([_plain(call)(*inputs)])
        flop = count_flop(lambda: _plain(call)(*inputs))
        count = max(2, min(16, -(-CACHES // moved))) if device.type == "cuda" else 2
        sets = [inputs, *(call.inputs(case.batch) for _ in range(count - 1))]
    return Shared(call, sets, {"operations": flop, "bytes_moved": moved})


def _copies(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.clone() for t in tensors)


def _ready(case: Case, call: Callable[..., Tensor], shared: Shared) -> Ready:
    sets = [_copies(inputs) for inputs in shared.sets]  # a sampler's step writes to its own
    outputs = fixed_numerics()(lambda: call(*_copies(shared.sets[0])))
    with fixed_numerics(), torch.no_grad():
        run = captured(lambda: [call(*inputs) for inputs in sets], case.place)
    return Ready(run, outputs, end=end_of(case.place), calls=len(sets), facts={**shared.facts})
