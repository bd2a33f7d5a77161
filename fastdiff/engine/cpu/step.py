"""Steps of a sampler on a CPU: the network's plan, the update and its noise, for one row of the table after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastdiff.engine.cpu.plan import Bound, Given, Plan
from fastdiff.kernels.cpu.denoise_step import denoise_step
from fastdiff.kernels.cpu.philox import key_view
from fastdiff.kernels.cpu.plan import Call, Program, Table, View
from fastdiff.kernels.cpu.pointwise import pointwise

if TYPE_CHECKING:
    from fastdiff.engine.prediction import Prediction
    from fastdiff.engine.step import State

ALONE = 8  # samples from which on a thread has samples of its own; with fewer it reads the weights too often
SECONDS = 0.05  # between two looks at Python's signals


class Share(NamedTuple):
    """The samples first .. first + count - 1 of a batch, and the plan of their network's evaluation."""

    first: int
    count: int
    plan: Plan


class PlannedStep:
    """A captured network's step in C: the prediction of a batch, or whole steps of a sampler.

    Args:
        lowered: the number of pictures that the network is given → its plan.
        batch: of these.
        halves: 2 with guidance: each sample is given twice, in two halves.
    """

    def __init__(self, lowered: Callable[[int], Plan], batch: int, halves: int) -> None:
        samples, threads = batch // halves, torch.get_num_threads()
        self.samples, self.halves, self.threads = samples, halves, threads
        sizes = _sizes(samples, threads)
        plans = {size: lowered(size * halves) for size in set(sizes)}
        if len(sizes) > 1 and any(plan.outside for plan in plans.values()):  # torch shares out what it computes itself
            sizes = [samples]
            plans = {samples: lowered(samples * halves)}
        self.shares = [Share(sum(sizes[:at]), size, plans[size]) for at, size in enumerate(sizes)]

    def __call__(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """The prediction, (halves samples, C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        (view,) = self.shares[0].plan.results[:1]
        assert isinstance(view, View)
        out = torch.empty(len(x), *view.shape[1:], dtype=torch.float32, device="cpu")

        def after(share: Share) -> list[Call]:
            result, parts = share.plan.results[0], self._halves(share, out)
            assert isinstance(result, View)
            places = [result.part(0, half * share.count, share.count) for half in range(len(parts))]
            return [pointwise(View.of(part), [place]) for part, place in zip(parts, places, strict=True)]

        given = [one.contiguous() for one in inputs]
        bound = [self._bound(share, self._halves(share, x), given, after(share)) for share in self.shares]
        _Rows(bound, self.threads)(0, 1)
        return out

    def _halves(self, share: Share, given: Tensor) -> list[Tensor]:
        """A batch's tensor, (halves samples, ...), as a share's halves."""
        starts = [half * self.samples + share.first for half in range(self.halves)]
        return [given[start : start + share.count] for start in starts]

    def _bound(self, share: Share, x: Sequence[Given], inputs: Sequence[Given], after: Sequence[Call]) -> Bound:
        def parts(given: Given) -> Sequence[Given]:
            whole = isinstance(given, Table) or not given.ndim or len(given) != self.samples * self.halves
            return [given] if whole or given.dtype != torch.float32 else self._halves(share, given)

        return Bound(share.plan, [x, *map(parts, inputs)], after)

    def loop(self, state: State, prediction: Prediction) -> Callable[[int], int]:
        """What runs steps of that state: (the most that may be run) → how many were, at least one."""
        return _Loop(self, state, prediction)

    def stepping(self, state: State, prediction: Prediction) -> _Rows:
        """The rows of the prediction's table, each a whole step."""
        rows = View(Table(state.rows), (6,), (1,))

        def bound(share: Share) -> Bound:
            own = slice(share.first, share.first + share.count)
            x0_prev, noise = (None if one is None else View.of(one[own]) for one in (state.x0_prev, state.noise))
            result = share.plan.results[0]
            assert isinstance(result, View)
            update = denoise_step(
                View.of(state.x[own]),
                result,
                rows,
                x0_prev,
                noise=noise,
                key=None if state.key is None else key_view(state.key),
                clip=state.clip,
                guidance_scale=None if state.guidance_scale is None else View.of(state.guidance_scale),
                ahead=share.first,
            )
            return self._bound(share, [state.x[own]] * self.halves, [*map(Table, prediction.tables), *prediction.context], [update])

        return _Rows([bound(share) for share in self.shares], self.threads)


class _Rows:
    """Runs what was bound, for each share, row after row."""

    def __init__(self, bound: Sequence[Bound], threads: int) -> None:
        self.program: Program | None = None
        self.stretches: list[Callable[[int], None]] = []
        self.bound = bound
        if bound[0].plan.outside:
            self.stretches = bound[0].stretches(threads)
        else:
            self.program = Program([one.code() for one in bound], threads)

    def __call__(self, first: int, rows: int) -> int:
        """Rows first .. rows - 1, fewer if they take longer than SECONDS; returns the first that was not run."""
        if self.program is not None:
            return self.program(first, rows, SECONDS)
        end = time.monotonic() + SECONDS
        for row in range(first, rows):
            for stretch in self.stretches:
                stretch(row)
            if time.monotonic() > end:
                return row + 1
        return rows


class _Loop:
    """Steps of one kind; bound anew when the prediction has its contexts in other memory."""

    def __init__(self, step: PlannedStep, state: State, prediction: Prediction) -> None:
        self.step, self.state, self.prediction = step, state, prediction
        self.rows: _Rows | None = None
        self.context: tuple[Tensor, ...] | None = None

    def __call__(self, most: int) -> int:
        if self.rows is None or self.context is not self.prediction.context:
            self.rows, self.context = self.step.stepping(self.state, self.prediction), self.prediction.context
        row = int(self.state.index)
        done = self.rows(row, row + most) - row
        self.state.index.add_(done)
        return done


def _sizes(samples: int, threads: int) -> list[int]:
    """How many samples each thread has, if each has enough of them; else they share all."""
    if threads == 1 or samples < ALONE * threads:
        return [samples]
    return [samples * (at + 1) // threads - samples * at // threads for at in range(threads)]
