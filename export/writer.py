"""What writes a captured graph as ONNX operators: a translation for each of its operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx

from fastdiff.capture import graph as capture
from fastdiff.capture.graph import Batch, grows
from fastdiff.capture.passes.match import arguments
from fastdiff.capture.refusal import NotRecordableError
from fastdiff.errors import InputError
from fastdiff.export.graph import Graph

END = np.iinfo(np.int64).max  # of a slice that goes to the end

ELEMENTS: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}

# (writer, *the operation's arguments, defaults included) → the name of its result, or the names of its results.
Translation = Callable[..., Any]


class Writer:
    """Writes into an ONNX graph. A value is a node of the captured graph, or the name of a result of an operator.

    Args:
        g: the ONNX graph.
        part: the captured graph.
        inputs: the names of what its placeholders are given, in order.
        steady: whether norms add long sums in two stages, see layers.normed.
    """

    def __init__(self, g: Graph, part: capture.Graph, inputs: Sequence[str], steady: bool) -> None:
        self.g, self.part, self.steady = g, part, steady
        placeholders = [node for node in part.nodes.nodes if node.op == "placeholder"]
        self.names: dict[fx.Node, Any] = dict(zip(placeholders, inputs, strict=True))
        self._first, self._batch = inputs[0] if inputs else "", ""
        self.node: Any = None  # what is being written

    def write(self, table: Mapping[Any, Translation]) -> list[str]:
        """The names of the graph's results; raises InputError for an operation that is not in the table."""
        for node in self.part.nodes.nodes:
            self.node = node
            if node.op == "get_attr":
                self.names[node] = self._constant(str(node.target))
            elif node.op == "call_function":
                if node.target not in table:
                    raise self.refusal()
                given = arguments(node) if hasattr(node.target, "_schema") else node.args
                self.names[node] = table[node.target](self, *given)
        return [self.name(node) for node in self.part.results]

    def __call__(self, operator: str, *values: Any, **attributes: Any) -> str:
        """An operator of one result. An input may be None; ONNX Runtime wants none that is empty at the end."""
        names = [self.name(value) for value in values]
        while not names[-1]:
            names.pop()
        return self.g(operator, *names, **attributes)

    def name(self, value: Any) -> str:
        """A value's name; "" for None, an input that is left out."""
        if isinstance(value, str):
            return value
        return "" if value is None else self.names[value]

    @property
    def shape(self) -> tuple:
        """Of the result that is being written, with Batch sizes."""
        return self.node.meta["shape"]

    @property
    def dtype(self) -> torch.dtype:
        """Of the result that is being written."""
        return self.node.meta["dtype"]

    def of(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """A node or a number in a dtype, unless given that of the result that is being written, which names are in."""
        dtype = self.dtype if dtype is None else dtype
        if isinstance(value, str):
            return value
        if isinstance(value, fx.Node):
            return self.name(value) if value.meta["dtype"] == dtype else self.cast(value, dtype)
        if isinstance(value, Batch):
            return self.cast(self.integer(value), dtype)
        return self.g.constant(torch.tensor(value, dtype=dtype).numpy(), None)

    def cast(self, value: Any, dtype: torch.dtype) -> str:
        """A value in another dtype."""
        return self("Cast", value, to=self.element(dtype))

    def element(self, dtype: torch.dtype) -> int:
        """ONNX's number of a dtype."""
        if dtype not in ELEMENTS:
            raise self.refusal(f"in {dtype}; accepted: {', '.join(map(str, ELEMENTS))}")
        return ELEMENTS[dtype]

    def sizes(self, sizes: Sequence[Any]) -> str:
        """Integers, Batch ones among them, as a vector."""
        if not grows(list(sizes)):
            return self.g.constant(list(sizes))
        parts = [self._batches(one) if isinstance(one, Batch) else self.g.constant([one]) for one in sizes]
        return self("Concat", *parts, axis=0)

    def integer(self, value: Any) -> str:
        """An integer, or a Batch, as a scalar."""
        if isinstance(value, Batch):
            return self("Squeeze", self._batches(value), self.g.constant([0]))
        return self.g.constant(value)

    def reshape(self, value: Any, shape: Sequence[Any]) -> str:
        """A value in another shape."""
        growing = sum(isinstance(one, Batch) for one in shape)
        whole = [-1 if isinstance(one, Batch) else one for one in shape] if growing == 1 else shape
        return self("Reshape", value, self.sizes(whole))

    def transpose(self, value: Any, ndim: int) -> str:
        """A value's last two dimensions exchanged."""
        return self("Transpose", value, perm=[*range(ndim - 2), ndim - 1, ndim - 2])

    def refusal(self, what: str = "") -> InputError:
        """The error for an operation that cannot be written (with what it has that others have not), and its line."""
        said = f"there is no translation to ONNX for {self.node.target} {what}".rstrip()
        return InputError(f"the network cannot be exported: {NotRecordableError.at(said, self.node.meta.get('line'))}")

    def _batches(self, size: Batch) -> str:
        """(1,) int64"""
        if not self._batch:
            self._batch = self("Shape", self._first, start=0, end=1)
        return self._batch if size.times == 1 else self("Mul", self._batch, self.g.constant([size.times]))

    def _constant(self, target: str) -> str:
        tensor = self.part.constants[target].detach()
        self.element(tensor.dtype)
        return self.g.weight(tensor.cpu().contiguous().numpy(), target)


def rank(value: Any) -> int:
    """The number of dimensions of a node's result."""
    return len(value.meta["shape"])
