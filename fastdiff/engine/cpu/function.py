"""A graph that runs before the loop, such as what depends on the times alone, as a function of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.engine.cpu.plan import Bound, Plan
from fastdiff.kernels.cpu.plan import View


class PlannedFunction:
    """(the placeholders' values) → the results; its bits depend on the values alone, not on the number of threads."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        bound = Bound(self.plan, [[one.contiguous()] for one in inputs])
        for stretch in bound.stretches(threads=1):
            stretch(0)
        results = [bound.tensor(one) if isinstance(one, View) else bound.loose(one) for one in self.plan.results]
        return tuple(one.clone(memory_format=torch.contiguous_format) for one in results)
