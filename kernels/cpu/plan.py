"""Plans: lists of calls of the C kernels, run from one call of C.

A kernel's Python function checks the sizes and returns a `Call`; nothing runs yet. `assembled` puts addresses in the
place of the memory that its views name, and a `Program` runs the result, with several threads if asked.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.kernels.cpu.compiled import library

ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4}


class View(NamedTuple):
    """Where float32 numbers lie, as a tensor's size and strides say it.

    Attributes:
        memory: a Tensor, a Table, a Ring, or whatever the caller of `assembled` can place.
        shape: the size.
        strides: in elements.
        offset: of the first element from the memory's first.
    """

    memory: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, x: Tensor) -> View:
        """A tensor's; raises ValueError unless it is float32 on the CPU."""
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(f"a view of {x.dtype} on {x.device}; accepted: float32 on the CPU")
        return cls(x, tuple(x.shape), x.stride())

    def rows(self, *dims: int) -> int | None:
        """How far apart rows of the last of these dimensions lie, if they are evenly spaced over the others in order.

        None where they are not, or where a row's elements do not lie side by side.
        """
        *outer, last = dims
        if self.shape[last] > 1 and self.strides[last] != 1:
            return None
        step, count = None, 1
        for dim in reversed(outer):
            if self.shape[dim] == 1:
                continue
            if step is None:
                step = self.strides[dim]
            elif self.strides[dim] != step * count:
                return None
            count *= self.shape[dim]
        return self.shape[last] if step is None else step

    def pictures(self) -> int | None:
        """For (B, C, H, W): how far apart the channels of two neighbouring positions lie, if the memory is NHWC."""
        return self.rows(0, 2, 3, 1)

    def part(self, dim: int, start: int, count: int | None = None, step: int = 1) -> View:
        """Every step-th of a dimension from start, as many as `count`, or all that there are."""
        count = -(-(self.shape[dim] - start) // step) if count is None else count
        shape, strides = list(self.shape), list(self.strides)
        shape[dim], strides[dim] = count, strides[dim] * step
        return View(self.memory, tuple(shape), tuple(strides), self.offset + start * self.strides[dim])


@dataclass(frozen=True, eq=False)
class Table:
    """Memory of which each row of a sampler's table has its own, one after the other: (R, ...) float32."""

    values: Tensor

    def at(self, row: int) -> Tensor:
        """The row's own."""
        return self.values[row]


@dataclass(frozen=True, eq=False)
class Ring:
    """Memory to which rows of a sampler's table write in turn, (k, ...) float32; a row reads what the one before wrote.

    Row 0 reads the last place.
    """

    values: Tensor

    def at(self, row: int) -> Tensor:
        """What the row reads."""
        return self.values[(row - 1) % len(self.values)]


class Call(NamedTuple):
    """A kernel's call: its name, what it reads (None for nothing), what it writes, and its numbers, in C's order."""

    kernel: str
    reads: tuple[View | None, ...]
    writes: tuple[View, ...]
    numbers: tuple[int | float, ...]


class Code(NamedTuple):
    """Calls as C reads them; `kept` is what must live as long."""

    instructions: Tensor  # (calls, kernel, numbers and operands) int64
    space: int
    kept: Any


@functools.cache
def _kernel(name: str) -> int:
    number: int = library().find_kernel(name.encode())
    if number < 0:
        raise KeyError(name)
    return number


class Place(NamedTuple):
    """The address of a memory's first element; of tables and rings the bytes between two rows; the places of a ring."""

    address: int
    step: int = 0
    places: int = 0


NOWHERE = Place(0)


def place(memory: Any) -> Place:
    """Of a tensor, a table or a ring."""
    if isinstance(memory, (Table, Ring)):
        places = len(memory.values) if isinstance(memory, Ring) else 0
        return Place(memory.values.data_ptr(), memory.values.stride(0) * 4, places)
    return Place(memory.data_ptr())


def assembled(calls: Iterable[Call], placed: Callable[[Any], Place] = place) -> Code:
    """The calls' code.

    Args:
        calls: in their order.
        placed: a view's memory → where it is.
    """
    calls = list(calls)
    operands = library().operands()
    numbers = _integers([_bits(number) for call in calls for number in call.numbers])
    address, space = numbers.data_ptr(), 0
    instructions: list[int] = []
    for call in calls:
        kernel = _kernel(call.kernel)
        space = max(space, library().kernel_space(kernel, address))
        instructions += kernel, address
        views = (*call.reads, *call.writes)
        for view in views:
            base, *rest = NOWHERE if view is None else placed(view.memory)
            instructions += base + (0 if view is None else 4 * view.offset), *rest
        instructions += NOWHERE * (operands - len(views))
        address += 8 * len(call.numbers)
    kept = numbers, [(call.reads, call.writes) for call in calls]
    return Code(_integers(instructions).view(len(calls), 2 + len(NOWHERE) * operands), space, kept)


def _integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _bits(number: int | float) -> int:
    """A number as C reads it: a real one as its bits."""
    bits: int = struct.unpack("q", struct.pack("d", number))[0] if isinstance(number, float) else number
    return bits


def chained(codes: Sequence[Code]) -> Code:
    """Codes one after another as one."""
    return Code(torch.cat([code.instructions for code in codes]), max(code.space for code in codes), codes)


class Program:
    """Code with the threads that run it.

    Args:
        codes: one for all threads to share, each computing a part of every call; or one for each thread.
        threads: their number, where they share one.
    """

    def __init__(self, codes: Sequence[Code], threads: int = 1) -> None:
        self.codes, self.shared = codes, len(codes) == 1
        self.threads = threads if self.shared else len(codes)
        self.space = [torch.empty(code.space, device="cpu", dtype=torch.float32) for code in self._each()]
        self.workers = _integers(
            [
                number
                for code, space in zip(self._each(), self.space, strict=True)
                for number in (code.instructions.data_ptr(), len(code.instructions), space.data_ptr())
            ]
        )

    def _each(self) -> list[Code]:
        return list(self.codes) * (self.threads if self.shared else 1)

    def __call__(self, first: int = 0, rows: int = 1, seconds: float = math.inf) -> int:
        """Run for rows first .. rows - 1 of a sampler's table, at least one; without Python's lock.

        Args:
            seconds: after these no further row is begun.

        Returns:
            The first row that was not run.
        """
        stop: int = library().run_plan(self.workers.data_ptr(), self.threads, self.shared, first, rows, seconds)
        return stop


def run(calls: Iterable[Call], threads: int | None = None) -> None:
    """Run calls on tensors at once; with torch's number of threads unless one is given."""
    Program([assembled(calls)], torch.get_num_threads() if threads is None else threads)()


class Prepared:
    """A call that is made again and again on other memory, on the calling thread; a fraction of the time of `run`.

    Args:
        call: the memory of its views is the place of an address among those that are given later; none has an offset.
    """

    def __init__(self, call: Call) -> None:
        self.code = assembled([call], placed=lambda place: NOWHERE)
        self.kernel, self.numbers = map(int, self.code.instructions[0, :2])
        self.places = [None if view is None else view.memory for view in (*call.reads, *call.writes)]
        self.operands = ctypes.c_void_p * library().operands()
        self.space = ctypes.c_float * self.code.space

    def __call__(self, addresses: Sequence[int], row: int = 0) -> None:
        """Run for one row of a sampler's table; calls may overlap in time.

        Args:
            addresses: of the first element of each memory, which must live until the end.
        """
        at = self.operands(*[None if place is None else addresses[place] for place in self.places])
        library().run_call(self.kernel, self.numbers, at, self.space(), row)


def activation_code(op: str, name: str, activation: str | None) -> int:
    """The number of an activation in the C code; raises ValueError for an unknown one."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: {name} = {activation!r}; accepted: {', '.join(map(str, ACTIVATIONS))}")
    return ACTIVATIONS[activation]


def check_shape(op: str, name: str, view: View | None, *shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless it is None or of one of these shapes."""
    if view is not None and view.shape not in shapes:
        raise ValueError(f"{op}: {name} has shape {view.shape}; accepted: {' or '.join(map(str, shapes))}")


def dense(op: str, name: str, view: View, *shape: int) -> None:
    """Raise ValueError unless it is of that shape and contiguous."""
    check_shape(op, name, view, shape)
    if view.rows(*range(len(shape))) != shape[-1]:
        raise ValueError(f"{op}: {name} has strides {view.strides}; accepted: contiguous")


def evenly(op: str, name: str, view: View | None, *dims: int) -> int:
    """`View.rows`, 0 without a view; raises ValueError where it has none."""
    if view is None:
        return 0
    step = view.rows(*dims)
    if step is None:
        raise ValueError(
            f"{op}: {name} has shape {view.shape} and strides {view.strides}; accepted: rows of channels, evenly spaced"
        )
    return step


def images(op: str, name: str, view: View | None, *shape: int) -> int:
    """`View.pictures` of a view of that shape, (B, C, H, W); 0 without a view; raises ValueError for another."""
    check_shape(op, name, view, shape)
    return evenly(op, name, view, 0, 2, 3, 1)


def per_channel(op: str, name: str, view: View | None, n: int, c: int) -> int:
    """How far apart two pictures' numbers lie, 0 where all have the same: (C,), (1, C, ...) or (B, C, ...).

    Raises:
        ValueError: for another shape, or numbers that do not lie side by side.
    """
    if view is None:
        return 0
    shape, strides = view.shape, view.strides
    if len(shape) == 4 and shape[2:] == (1, 1):
        shape, strides = shape[:2], strides[:2]
    if shape not in ((c,), (1, c), (n, c)) or (c > 1 and strides[-1] != 1):
        raise ValueError(
            f"{op}: {name} has shape {view.shape} and strides {view.strides}; accepted: ({c},), (1, {c}) or ({n}, {c}) "
            "with a picture's numbers side by side"
        )
    return strides[0] if len(shape) == 2 and shape[0] > 1 else 0
