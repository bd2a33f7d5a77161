"""A small writer of ONNX graphs: operators by name, constants by value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

OPSET = 20  # the first with Gelu; ONNX Runtime 1.20 knows up to 21
IR_VERSION = 10  # what ONNX Runtime 1.20 reads

FLOAT, INT64, UINT8, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL

Shape = Sequence[int | str]


class Graph:
    """Nodes and initializers under way. Values are their names, all beginning with `prefix`.

    >>> g = Graph("noise/")
    >>> doubled = g("Mul", x, g.constant(2, np.float32))
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def _name(self, kind: str) -> str:
        return f"{self.prefix}{kind}_{len(self.nodes) + len(self.initializers)}"

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with that many outputs."""
        name = self._name(operator)
        made = [f"{name}:{i}" for i in range(outputs)] if outputs > 1 else [name]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name=name, **attributes))
        return made

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """An initializer, once for each value."""
        array = np.asarray(value, dtype=dtype)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = name = self._name("constant")
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def inline(self, part: GraphProto, inputs: Sequence[str]) -> list[str]:
        """Put a whole graph here, its inputs being values of this one; returns its outputs."""
        prefix = f"{self._name(part.name)}/"
        names = dict(zip((given.name for given in part.input), inputs, strict=True))

        def renamed(name: str) -> str:
            return names.get(name, prefix + name) if name else name

        for tensor in part.initializer:
            copied = TensorProto()
            copied.CopyFrom(tensor)
            copied.name = renamed(tensor.name)
            self.initializers.append(copied)
        self.nodes.extend(_with_names(node, prefix, renamed) for node in part.node)
        return [renamed(out.name) for out in part.output]

    def named(self, value: str, name: str) -> str:
        """The same value under a name of its own, for an output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{self.prefix}name_{name}"))
        return name

    def finish(self, name: str, inputs: Iterable[ValueInfoProto], outputs: Iterable[ValueInfoProto]) -> GraphProto:
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.initializers)


def _with_names(node: NodeProto, prefix: str, renamed: Callable[[str], str]) -> NodeProto:
    """A copy with other names, also in the graphs that are its attributes."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = prefix + node.name
    copy.input[:] = map(renamed, node.input)
    copy.output[:] = map(renamed, node.output)
    for graph in (graph for a in copy.attribute for graph in ([a.g] if a.HasField("g") else a.graphs)):
        inner = [_with_names(one, prefix, renamed) for one in graph.node]
        del graph.node[:]
        graph.node.extend(inner)
        for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            named.name = renamed(named.name)
    return copy


def value(name: str, dtype: int, shape: Shape) -> ValueInfoProto:
    """An input or an output; dimensions are numbers or names."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


def finish_model(graph: GraphProto, metadata: dict[str, str]) -> ModelProto:
    """The model, checked in full; shapes are inferred in the check and not stored."""
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fastdiff"
    )
    helper.set_model_props(model, metadata)
    checker.check_model(model, full_check=True)
    return model
