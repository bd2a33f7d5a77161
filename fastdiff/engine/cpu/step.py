"""Steps of a sampler on a CPU: the network's plan, the update and its noise, for one row of the table after another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastdiff.engine.cpu.lowering import Packed
from fastdiff.engine.cpu.plan import Bound, Given, Plan
from fastdiff.engine.step import State
from fastdiff.kernels.cpu.denoise_step import denoise_step
from fastdiff.kernels.cpu.philox import key_view
from fastdiff.kernels.cpu.plan import Call, Program, Ring, Table, View, chained
from fastdiff.kernels.cpu.pointwise import pointwise

ALONE = 8  # samples from which on a thread has samples of its own; with fewer it reads the weights too often
# Of results at a time: with more samples at once they leave the cache that the cores share, and with fewer the weights
# are read too often. Half or twice as much makes no difference; all 16 samples of UNet2DModel at once take 7% more.
PIECE_BYTES = 12e6
SECONDS = 0.05  # between two looks at Python's signals


class Inputs(Protocol):
    """What the network is given besides x, as Prediction has it."""

    tables: list[Tensor]
    context: tuple[Tensor, ...]


class Piece(NamedTuple):
    """The samples first .. first + samples - 1 of a batch, and the plan of their network's evaluation."""

    first: int
    samples: int
    plan: Plan


class PlannedStep:
    """A captured network's step in C: the prediction of a batch, or whole steps of a sampler.

    Args:
        lowered: (the number of pictures that the network is given, a cache of packed weights) → its plan.
        batch: of these.
        halves: 2 with guidance: each sample is given twice, in two halves.

    Attributes:
        pieces: for each thread the pieces that it runs one after another; with one list all threads share each piece.
    """

    def __init__(self, lowered: Callable[[int, Packed], Plan], batch: int, halves: int) -> None:
        self.samples, self.halves, self.threads = batch // halves, halves, torch.get_num_threads()
        packed: Packed = {}
        plan = cache(lambda count: lowered(count * halves, packed))
        alone = self.threads > 1 and self.samples >= ALONE * self.threads
        shares = _split(self.samples, self.threads) if alone else [self.samples]
        largest = plan(shares[-1])
        many = math.ceil(4 * largest.size / PIECE_BYTES)
        if (len(shares) > 1 or many > 1) and not self._apart(plan):
            shares, many = [self.samples], 1
        self.pieces: list[list[Piece]] = []
        first = 0
        for share in shares:
            self.pieces.append([])
            for count in _split(share, min(share, max(1, many))):
                self.pieces[-1].append(Piece(first, count, plan(count)))
                first += count

    def _apart(self, plan: Callable[[int], Plan]) -> bool:
        """Whether a sample's prediction depends on the sample alone, so that a batch may be computed in pieces.

        Then it has the same bits with one other sample after it, and between two others. Where torch computes something
        it has not.
        """
        if plan(2).outside or not plan(2).separable:
            return False
        seen = []
        for place, others in ((0, [0, 1]), (1, [2, 0, 3])):
            dice = torch.Generator().manual_seed(0)
            piece = Piece(0, len(others), plan(len(others)))
            inputs = []
            kinds = zip(piece.plan.shapes, piece.plan.image_inputs, piece.plan.by_picture, strict=True)
            for shape, images, by_picture in kinds:
                halves, shape = (self.halves, (4, *shape[1:])) if by_picture else (1, shape)
                drawn = [torch.randn(shape, generator=dice, device="cpu", dtype=torch.float32) for _ in range(halves)]
                inputs.append([_laid_out(one[others] if by_picture else one, images) for one in drawn])
            bound = Bound(piece.plan, inputs)
            for stretch in bound.stretches(threads=1):
                stretch(0)
            out = bound.tensor(self._result(piece)).unflatten(0, (self.halves, piece.samples))
            seen.append(out[:, place].contiguous().view(torch.int32))  # as integers, of which NaN equals NaN
        return torch.equal(*seen)

    @property
    def plan(self) -> Plan:
        """Of the first piece; those of the others differ in the batch alone."""
        return self.pieces[0][0].plan

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The prediction, (halves samples, C, H, W), for what Parts.step takes."""
        given = [_laid_out(*one) for one in zip(inputs, self.plan.image_inputs, strict=True)]
        out = torch.empty(len(given[0]), *self._result(self.pieces[0][0]).shape[1:], dtype=torch.float32, device="cpu")

        def bound(piece: Piece, arena: Tensor) -> Bound:
            result = self._result(piece)
            after = [
                pointwise(View.of(place), [result.part(0, half * piece.samples, piece.samples)])
                for half, place in enumerate(self._halves(piece, out))
            ]
            return Bound(piece.plan, self._parts(piece, given), after, arena)

        _Rows(self._each(bound), self.threads)(0, 1)
        return out

    def bytes(self) -> int:
        """Of the arenas in which results lie while steps run."""
        return sum(4 * max(piece.plan.size for piece in pieces) for pieces in self.pieces)

    def _each(self, bound: Callable[[Piece, Tensor], Bound]) -> list[list[Bound]]:
        """All pieces bound; those of a thread have one arena."""
        made = []
        for pieces in self.pieces:
            arena = torch.empty(max(piece.plan.size for piece in pieces), dtype=torch.float32, device="cpu")
            made.append([bound(piece, arena) for piece in pieces])
        return made

    @staticmethod
    def _result(piece: Piece) -> View:
        (result,) = piece.plan.results
        if not isinstance(result, View):
            raise TypeError("the prediction is not float32")
        return result

    def _halves(self, piece: Piece, given: Tensor) -> list[Tensor]:
        """A batch's tensor, (halves samples, ...), as a piece's halves."""
        starts = [half * self.samples + piece.first for half in range(self.halves)]
        return [given[start : start + piece.samples] for start in starts]

    def _parts(self, piece: Piece, inputs: Sequence[Given]) -> list[Sequence[Given]]:
        """For each of the last inputs the memory that a piece of the batch is given, or one for each half."""

        def parts(given: Given, by_picture: bool) -> Sequence[Given]:
            if not isinstance(given, Tensor) or not by_picture or given.dtype != torch.float32:
                return [given]
            return self._halves(piece, given)

        return list(map(parts, inputs, piece.plan.by_picture[-len(inputs) :])) if inputs else []

    def loop(self, state: State, inputs: Inputs) -> Callable[[int], int]:
        """What runs steps of that state: (the most that may be run) → how many were, at least one."""
        return _Loop(self, state, inputs)

    def stepping(self, state: State, inputs: Inputs) -> _Rows:
        """The rows of the inputs' tables, each a whole step."""

        def bound(piece: Piece, arena: Tensor) -> Bound:
            own = slice(piece.first, piece.first + piece.samples)
            after = [update(state, self._result(piece), own)]
            images: list[Given] = [state.x[own]]
            if state.self_condition and state.history is not None:
                images.append(Ring(state.history[:, own]))
            rest = self._parts(piece, [*map(Table, inputs.tables), *inputs.context])
            return Bound(piece.plan, [*([one] * self.halves for one in images), *rest], after, arena)

        return _Rows(self._each(bound), self.threads)


def update(state: State, prediction: View, own: slice) -> Call:
    """The update of those of the state's samples, for the row that is run."""
    x, channels = state.x[own], state.x.shape[1]
    variance = prediction.part(0, prediction.shape[0] - len(x)).part(1, channels) if state.learned_variance else None
    return denoise_step(
        View.of(x),
        prediction.part(1, 0, channels),
        View(Table(state.rows), tuple(state.rows.shape[1:]), (1,)),
        None if state.history is None else View.of(state.history[:, own]),
        noise=None if state.noise is None else View.of(state.noise[own]),
        key=None if state.key is None else key_view(state.key),
        clip=state.clip,
        guidance_scale=None if state.guidance_scale is None else View.of(state.guidance_scale),
        variance=variance,
        ahead=own.start,
    )


class _Rows:
    """Runs what was bound, for each thread its pieces, row after row."""

    def __init__(self, bound: Sequence[Sequence[Bound]], threads: int) -> None:
        self.program: Program | None = None
        self.stretches: list[Callable[[int], None]] = []
        self.bound = bound
        if bound[0][0].plan.outside:
            self.stretches = bound[0][0].stretches(threads)
        else:
            self.program = Program([chained([one.code() for one in pieces]) for pieces in bound], threads)

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
    """Steps of one kind; bound anew when the contexts lie in other memory."""

    def __init__(self, step: PlannedStep, state: State, inputs: Inputs) -> None:
        self.step, self.state, self.inputs = step, state, inputs
        self.rows: _Rows | None = None
        self.context: tuple[Tensor, ...] | None = None

    def __call__(self, most: int) -> int:
        row, length = int(self.state.index), len(self.state.rows)
        if not 0 <= row < length:
            raise IndexError(f"row {row} of a table; accepted: 0 to {length - 1}")
        if self.rows is None or self.context is not self.inputs.context:
            self.rows, self.context = self.step.stepping(self.state, self.inputs), self.inputs.context
        done = self.rows(row, row + most) - row
        self.state.index.add_(done)
        return done


def _laid_out(given: Tensor, images: bool) -> Tensor:
    """As inputs lie in memory: images in NHWC."""
    return given.contiguous(memory_format=torch.channels_last if images else torch.contiguous_format)


def _split(count: int, parts: int) -> list[int]:
    """That many in nearly equal parts, the largest last."""
    return [count * (at + 1) // parts - count * at // parts for at in range(parts)]
