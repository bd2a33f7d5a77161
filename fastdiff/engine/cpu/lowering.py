"""From a graph to calls of the C kernels, and to calls of torch for what they have no kernel for."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from fastdiff.capture.graph import IMAGES, Graph
from fastdiff.capture.passes.match import Node, aten
from fastdiff.engine.cpu.arena import Buffer
from fastdiff.engine.cpu.views import MOVES, NHWC, SAME, dense, moved, reshaped, same, undone
from fastdiff.kernels.cpu.plan import Call, View
from fastdiff.kernels.cpu.pointwise import DIMS, pointwise


@dataclass(frozen=True)
class Input:
    """Memory that is given when a plan is bound: a placeholder by its number, or one half of it."""

    number: int
    half: int = 0


@dataclass(frozen=True)
class Loose:
    """A result that only torch reads: not float32, or in several parts. An input of that kind has its number."""

    name: str
    input: int | None = None


class Outside(NamedTuple):
    """A call of torch between two stretches of the plan.

    Attributes:
        function: an operation.
        args, kwargs: with a View or a Loose for each tensor.
        out: where its result goes, or the name under which it is kept.
        node: the graph's.
    """

    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    out: View | Loose
    node: Node

    def __str__(self) -> str:
        """The operation's name."""
        return str(self.function) if isinstance(self.function, OpOverload) else self.function.__name__


def replaced(value: Any, function: Callable[[Any], Any]) -> Any:
    """An argument of torch's with the function applied to everything in its lists, tuples and dicts."""
    if isinstance(value, (list, tuple)) and not isinstance(value, View):
        return type(value)([replaced(one, function) for one in value])
    if isinstance(value, dict):
        return {name: replaced(one, function) for name, one in value.items()}
    return function(value)


# Operations that read memory as it lies.
_CONTIGUOUS = {aten.view_as_complex.default, aten.view.dtype}


class Deferred:
    """A result that is computed when it is asked for, if something does not take it as it is."""

    def view(self, low: Lowering) -> View:
        """Compute it."""
        raise NotImplementedError


Value = View | Deferred | Loose | list[View]  # the last is a result in several parts
Way = Callable[["Lowering", Node], Value | None]
Packed = dict[Hashable, tuple[Tensor, Any]]  # by kind and constant, the constant and what was made of it


class Lowering:
    """One graph, lowered.

    Args:
        graph: of one batch, after the passes.
        ways: for an operation how it is lowered; None for a node means that torch computes it.
        batch: of the graph.
        halves: 2 where the inputs of the batch come in two halves, as with guidance.
        packed: weights that were packed for the same graph at another batch.

    Attributes:
        steps: what is called, in order.
        results: of the graph; images in NHWC.
        shapes: of the inputs.
        image_inputs: for each input whether it is images, in NHWC; all else is contiguous.
        by_picture: for each input whether it has each picture's values one after another.
        separable: whether each input has, or is the same for all pictures.
    """

    def __init__(
        self, graph: Graph, ways: dict[Any, Way], batch: int, halves: int = 1, packed: Packed | None = None
    ) -> None:
        self.graph, self.ways, self.batch, self.halves = graph, ways, batch, halves
        self.packed: Packed = {} if packed is None else packed
        self.steps: list[Call | Outside] = []
        self.values: dict[Node, Value] = {}
        self._homes = _homes(graph)
        nodes = list(graph.nodes.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        grows = [node.meta["grows"] for node in inputs]
        self.shapes = [tuple(node.meta["shape"]) for node in inputs]
        self.image_inputs = [node.target in IMAGES for node in inputs]
        self.by_picture = [one[:1] == (1,) and not any(one[1:]) for one in grows]
        self.separable = all(by or not any(one) for by, one in zip(self.by_picture, grows, strict=True))
        for number, node in enumerate(inputs):
            self.values[node] = self._input(number, node)
        for node in nodes:
            if node.op == "get_attr":
                constant = graph.constants[str(node.target)]
                self.values[node] = View.of(constant) if constant.dtype == torch.float32 else Loose(str(node.target))
            elif node.op == "call_function":
                self.values[node] = self._lowered(node)
        self.results = [self._result(node) for node in graph.results]

    def _input(self, number: int, node: Node) -> Value:
        shape = tuple(node.meta["shape"])
        if node.meta["dtype"] != torch.float32:
            return Loose(node.name, number)
        order = NHWC if self.image_inputs[number] and len(shape) == 4 else None
        if self.halves == 1 or not self.by_picture[number]:
            return dense(Input(number), shape, order)
        whole, size = dense(self.buffer(shape), shape, order), self.batch // self.halves
        for half in range(self.halves):
            given = dense(Input(number, half), (size, *shape[1:]), order)
            self.copy(given, whole.part(0, half * size, size))
        return whole

    def _result(self, node: Node) -> View | Loose:
        value = self.value(node)
        return self.nhwc(value) if isinstance(value, View) and len(value.shape) == 4 else value

    def _lowered(self, node: Node) -> Value:
        if max(len(one.meta.get("shape") or ()) for one in (node, *node.all_input_nodes)) > DIMS:
            return self._outside(node)
        if node.target in SAME | MOVES and self._is_view(node.args[0]):
            return self._moved(node)
        if node.target is getitem:
            whole = self.values[node.args[0]]
            if isinstance(whole, list):
                return whole[node.args[1]]
        floats = node.meta.get("dtype", torch.float32) == torch.float32
        if floats and node.target in self.ways and all(map(self._is_view, node.all_input_nodes)):
            try:
                value = self.ways[node.target](self, node)
            except ValueError:  # of a kernel, which does not take these sizes; calls added so far do no harm
                value = None
            if value is not None:
                return value
        return self._outside(node)

    def _is_view(self, node: Node) -> bool:
        value = self.values[node]
        return isinstance(value, (View, Deferred))

    def _moved(self, node: Node) -> Value:
        x = self.view(node.args[0])
        if node.target in SAME:
            return x
        found: Value | None = moved(x, node.target, node.args[1:], node.kwargs)
        if found is None:  # only a reshape copies: in the order of the dimensions
            whole = dense(self.buffer(x.shape), x.shape)
            self.copy(x, whole)
            found = moved(whole, node.target, node.args[1:], node.kwargs)
        assert found is not None
        return found

    def _outside(self, node: Node) -> Value:
        dense_first = self._contiguous if node.target in _CONTIGUOUS else self._given
        args, kwargs = replaced((tuple(node.args), dict(node.kwargs)), dense_first)
        out: View | Loose = Loose(node.name)
        if node.meta.get("dtype") == torch.float32:
            out = self.result(node, range(len(node.meta["shape"])))
        self.steps.append(Outside(node.target, args, kwargs, out, node))
        return out

    def _given(self, value: Any) -> Any:
        return self.value(value) if isinstance(value, torch.fx.Node) else value

    def _contiguous(self, value: Any) -> Any:
        given = self._given(value)
        return self.copied(given, range(len(given.shape))) if isinstance(given, View) else given

    def value(self, node: Node) -> View | Loose:
        """A result as torch is given it."""
        value = self.values[node]
        if isinstance(value, list):
            raise TypeError(f"{node} is in several parts")
        return value if isinstance(value, Loose) else self.view(node)

    def view(self, node: Node) -> View:
        """Where a result lies; computes it if it was deferred."""
        value = self.values[node]
        if isinstance(value, Deferred):
            value = self.values[node] = value.view(self)
        assert isinstance(value, View)
        return value

    def buffer(self, shape: Sequence[int]) -> Buffer:
        """New memory for a result of that shape."""
        return Buffer(int(torch.Size(shape).numel()))

    def new(self, shape: Sequence[int], order: Sequence[int] | None = None) -> View:
        """New memory; by default images are NHWC, and all else is contiguous."""
        return dense(self.buffer(shape), shape, NHWC if order is None and len(shape) == 4 else order)

    def result(self, node: Node, order: Sequence[int] | None = None) -> View:
        """Where a node's result is to lie: in its place of a concatenation, or in new memory."""
        return self.place(node) or self.new(node.meta["shape"], order)

    def place(self, node: Node) -> View | None:
        """The place in a concatenation that a node's result is to have, if any."""
        home = self._homes.get(node)
        if home is None:
            return None
        whole = self.whole(home.concatenation)
        place: View | None = whole.part(home.dim, home.start, home.size)
        for move in home.moves:  # from the concatenation back to the result
            if place is not None:
                place = undone(move.target, move.args[1:], move.args[0].meta["shape"], place)
        return place

    def whole(self, concatenation: Node) -> View:
        """Where a concatenation's result lies."""
        if concatenation not in self.values:
            self.values[concatenation] = self.result(concatenation)
        return self.view(concatenation)

    def call(self, *calls: Call) -> None:
        """Add calls."""
        self.steps += calls

    def copy(self, x: View, out: View) -> None:
        """Add a copy."""
        self.call(pointwise(out, [x]))

    def copied(self, x: View, order: Sequence[int] | None = None) -> View:
        """A copy in new memory, its dimensions in that order."""
        out = self.new(x.shape, order)
        self.copy(x, out)
        return out

    def images(self, node: Node) -> View:
        """A result (B, C, H, W) in NHWC, copied if need be."""
        return self.nhwc(self.view(node))

    def nhwc(self, x: View) -> View:
        """Images in NHWC, copied if need be."""
        return x if x.pictures() is not None else self.copied(x)

    def images_out(self, node: Node) -> View:
        """`result` in NHWC."""
        place = self.place(node)
        return self.new(node.meta["shape"]) if place is None or place.pictures() is None else place

    def rows_out(self, node: Node) -> View:
        """`result` as rows of the last dimension, evenly spaced."""
        place, dims = self.place(node), range(len(node.meta["shape"]))
        return self.new(node.meta["shape"], dims) if place is None or place.rows(*dims) is None else place

    def rows(self, x: View) -> View:
        """Rows of the last dimension, evenly spaced, copied if need be."""
        return x if x.rows(*range(len(x.shape))) is not None else self.copied(x, range(len(x.shape)))

    def channels(self, node: Node | None) -> View | None:
        """Numbers of channels, (C,), (1, C, 1, 1) or (B, C, 1, 1), as (C,) or (B, C), side by side."""
        if node is None:
            return None
        x = self.view(node)
        x = x._replace(shape=x.shape[:2], strides=x.strides[:2])
        if x.shape[-1] > 1 and x.strides[-1] != 1:
            x = self.copied(x, range(len(x.shape)))
        return x

    def vector(self, node: Node | None) -> View | None:
        """A result with as many elements as channels, as (C,), side by side."""
        if node is None:
            return None
        x = self.view(node)
        flat = reshaped(x, (-1,))
        if flat is None or (flat.shape[0] > 1 and flat.strides[0] != 1):
            copy = self.new((math.prod(x.shape),))
            self.copy(x, dense(copy.memory, x.shape))
            return copy
        return flat

    def constant(self, value: float) -> View:
        """A number."""
        return View.of(torch.tensor(value, dtype=torch.float32, device="cpu"))

    def pack(self, kind: Hashable, weight: Node, make: Callable[[Tensor], Any]) -> Any:
        """A constant's form of that kind, made once."""
        value = self.graph.constants[str(weight.target)]
        known = self.packed.get((kind, weight.target))
        if known is None or not torch.equal(known[0], value):
            known = self.packed[kind, weight.target] = value, make(value)
        return known[1]


class _Home(NamedTuple):
    """A result's place in a concatenation; `moves` lead from the concatenation back to the result."""

    concatenation: Node
    dim: int
    start: int
    size: int
    moves: tuple[Node, ...]


def _homes(graph: Graph) -> dict[Node, _Home]:
    """Results that can be written into a concatenation at once: each has one place, and each place one result."""
    homes: dict[Node, _Home] = {}
    for node in graph.nodes.nodes:
        if node.target is not aten.cat.default or node.meta["dtype"] != torch.float32:
            continue
        for part, dim, start, size in _parts(node):
            source, moves = part, []
            while source.target in MOVES and source.op == "call_function":
                moves.append(source)
                source = source.args[0]
            if source.op == "call_function" and source.meta.get("dtype") == torch.float32 and source not in homes:
                homes[source] = _Home(node, dim, start, size, tuple(moves))
    return homes


def _parts(node: Node) -> Iterator[tuple[Node, int, int, int]]:
    """Of a concatenation: each part, the dimension, and where in it the part begins and how long it is."""
    dims = len(node.meta["shape"])
    dim, start = (node.args[1] if len(node.args) > 1 else 0) % dims, 0
    for part in node.args[0]:
        if len(part.meta["shape"]) == dims:  # torch leaves out one of shape (0,)
            size = part.meta["shape"][dim]
            yield part, dim, start, size
            start += size


def concatenate(low: Lowering, node: Node) -> Value | None:
    """Of which most parts lie in their places already."""
    whole = low.whole(node)
    for part, dim, start, size in _parts(node):
        x, place = low.view(part), whole.part(dim, start, size)
        if not same(x, place):
            low.copy(x, place)
    return whole
