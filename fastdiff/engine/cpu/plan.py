"""A lowered graph with its memory, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.capture.passes.match import Node
from fastdiff.engine.cpu.arena import Buffer, layout
from fastdiff.engine.cpu.lowering import Input, Loose, Lowering, Outside, replaced
from fastdiff.engine.cpu.views import tensor
from fastdiff.kernels.cpu.plan import Call, Code, Place, Program, Ring, Table, View, assembled, place

Given = Tensor | Table | Ring  # an input's memory


class Plan:
    """What a lowered graph does, with a place for each buffer in an arena.

    Attributes:
        steps: in order.
        results, shapes, image_inputs, by_picture, separable: see Lowering.
        outside: the calls of torch among the steps.
        constants: those that only torch reads, by name.
        read_last: for the node of each call of torch what no later one reads, by name.
    """

    def __init__(self, low: Lowering) -> None:
        self.steps, self.results = low.steps, low.results
        self.shapes, self.image_inputs = low.shapes, low.image_inputs
        self.by_picture, self.separable = low.by_picture, low.separable
        self.outside = [step for step in self.steps if isinstance(step, Outside)]
        loose = self._loose()
        self.constants = {name: one for name, one in low.graph.constants.items() if name in loose}
        uses = [[view.memory for view in _views(step) if isinstance(view.memory, Buffer)] for step in self.steps]
        kept = [view.memory for view in self.results if isinstance(view, View) and isinstance(view.memory, Buffer)]
        self.offsets, self.size = layout(uses, kept)

    def _loose(self) -> set[str]:
        """The names of all that only torch reads; notes where each is read last, unless it is a result."""
        seen = {one.name for one in self.results if isinstance(one, Loose)}
        self.read_last: dict[Node, list[str]] = {}
        for step in reversed(self.outside):
            names = {one.name for one in _given(step) if isinstance(one, Loose)}
            self.read_last[step.node] = sorted(names - seen)
            seen |= names
        return seen


class Bound:
    """A plan with an arena, and its inputs' memory.

    Args:
        plan: the plan.
        inputs: for each placeholder its memory, or one for each half; dense, images in NHWC.
        after: calls that follow, whose views may be of the plan's memory as well.
        arena: memory that others use as well, before and after; by default its own.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Sequence[Sequence[Given]],
        after: Sequence[Call] = (),
        arena: Tensor | None = None,
    ) -> None:
        self.plan, self.inputs = plan, inputs
        self.arena = torch.empty(plan.size, dtype=torch.float32, device="cpu") if arena is None else arena
        self.kept: dict[str, Any] = {}
        self.steps = [*plan.steps, *after]

    def code(self) -> Code:
        """All of it, if there are no calls of torch."""
        return assembled(self._calls(self.steps), self._placed)

    def stretches(self, threads: int) -> list[Callable[[int], None]]:
        """What runs it, stretch by stretch, each for a row of the table."""
        made: list[Callable[[int], None]] = []
        waiting: list[Call] = []

        def finish() -> None:
            if waiting:
                made.append(_row(Program([assembled(waiting, self._placed)], threads)))
                waiting.clear()

        for step in self.steps:
            if isinstance(step, Outside):
                finish()
                made.append(self._called(step))
            else:
                waiting.append(step)
        finish()
        return made

    def _calls(self, steps: Sequence[Call | Outside]) -> Iterator[Call]:
        for step in steps:
            if isinstance(step, Outside):
                raise TypeError(f"{step.node} is no kernel's call")
            yield step

    def _memory(self, memory: Any) -> Given:
        if isinstance(memory, Buffer):
            return self.arena[self.plan.offsets[memory] :]
        if isinstance(memory, Input):
            return self.inputs[memory.number][memory.half]
        given: Given = memory
        return given

    def _placed(self, memory: Any) -> Place:
        if isinstance(memory, Buffer):
            return Place(self.arena.data_ptr() + 4 * self.plan.offsets[memory])
        return place(self._memory(memory))

    def tensor(self, view: View, row: int = 0) -> Tensor:
        """A view's tensor, which shares its memory."""
        memory = self._memory(view.memory)
        return tensor(view, memory if isinstance(memory, Tensor) else memory.at(row))

    def loose(self, one: Loose, row: int = 0) -> Any:
        """What torch keeps."""
        if one.input is None:
            return self.kept[one.name] if one.name in self.kept else self.plan.constants[one.name]
        (given,) = self.inputs[one.input]
        return given if isinstance(given, Tensor) else given.at(row)[None]

    def _own(self, one: Any) -> Any:
        """A result to keep: what shares the arena's memory, such as the complex view of a result, is copied."""
        shared = isinstance(one, Tensor) and one.untyped_storage().data_ptr() == self.arena.untyped_storage().data_ptr()
        return one.clone() if shared else one

    def _called(self, step: Outside) -> Callable[[int], None]:
        out, done = step.out, self.plan.read_last[step.node]

        def value(one: Any, row: int) -> Any:
            if isinstance(one, View):
                return self.tensor(one, row)
            return self.loose(one, row) if isinstance(one, Loose) else one

        def run(row: int) -> None:
            args, kwargs = replaced((step.args, step.kwargs), lambda one: value(one, row))
            result = step.function(*args, **kwargs)
            if isinstance(out, Loose):
                self.kept[out.name] = replaced(result, self._own)
            else:
                self.tensor(out).copy_(result)
            for name in done:
                self.kept.pop(name, None)

        return run


def _row(program: Program) -> Callable[[int], None]:
    def run(row: int) -> None:
        program(row, row + 1)

    return run


def _views(step: Call | Outside) -> list[View]:
    given = (*step.reads, *step.writes) if isinstance(step, Call) else _given(step)
    return [one for one in given if isinstance(one, View)]


def _given(step: Outside) -> list[Any]:
    """All arguments of a call of torch, and where its result goes."""
    found: list[Any] = []
    replaced((step.args, step.kwargs, step.out), found.append)
    return found
