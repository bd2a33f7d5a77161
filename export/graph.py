"""A small writer of ONNX graphs: operators by name, constants by value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

OPSET = 20  # the first with Gelu; ONNX Runtime 1.20 knows up to 21
IR_VERSION = 10  # what ONNX Runtime 1.20 reads

WORTH_HALVING = 64  # elements; with fewer the widening operator takes more room than it saves

FLOAT, INT64, UINT8, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL

Shape = Sequence[int | str]


class Graph:
    """A graph under construction. A value is its name; all names begin with `prefix`.

    >>> g = Graph("noise/")
    >>> doubled = g("Mul", x, g.constant(2, np.float32))
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def _name(self, what: str) -> str:
        return f"{self.prefix}{what}_{len(self.nodes) + len(self.initializers)}"

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with that many outputs; returns their names."""
        name = self._name(operator)
        made = [f"{name}:{i}" for i in range(outputs)] if outputs > 1 else [name]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name=name, **attributes))
        return made

    def weight(self, value: np.ndarray, name: str) -> str:
        """An initializer of its own."""
        self.initializers.append(numpy_helper.from_array(value, name := self._name(name)))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """An initializer, of the value's own dtype if that is None; the same one for the same value and dtype."""
        array = np.asarray(value, dtype=dtype)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.weight(array, "constant")
        return self._constants[key]

    def named(self, value: str, name: str) -> str:
        """The value under another name, for an output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{self.prefix}name_{name}"))
        return name

    def finish(self, name: str, inputs: Iterable[ValueInfoProto], outputs: Iterable[ValueInfoProto]) -> GraphProto:
        """The graph."""
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.initializers)


def value(name: str, dtype: int, shape: Shape) -> ValueInfoProto:
    """An input or an output; dimensions are numbers or names."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


def either(g: Graph, condition: str, then: tuple[Graph, str], other: tuple[Graph, str], shape: Any) -> str:
    """`then` if the condition holds, else `other`; each is a graph of its own and the value that it computes."""
    branches = {
        name: branch.finish(name, [], [value(out, FLOAT, shape)])
        for name, (branch, out) in (("then_branch", then), ("else_branch", other))
    }
    return g("If", condition, **branches)


def store_weights(g: Graph, weights: str) -> None:
    """For weights = "float16", store every initializer whose values are halves as halves.

    A runtime widens them once, when it loads the file.
    """
    if weights == "float32":
        return
    widened = []
    for tensor in g.initializers:
        if tensor.data_type != FLOAT or math.prod(tensor.dims) < WORTH_HALVING:
            continue
        array = numpy_helper.to_array(tensor)
        half = array.astype(np.float16)
        if np.array_equal(half.astype(np.float32), array):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}/half"))
            widened.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/widen", to=FLOAT))
    g.nodes[:0] = widened


def finish_model(graph: GraphProto, metadata: dict[str, str]) -> ModelProto:
    """The model, fully checked; the shapes that the check infers are not stored."""
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fastdiff"
    )
    helper.set_model_props(model, metadata)
    checker.check_model(model, full_check=True)
    return model
