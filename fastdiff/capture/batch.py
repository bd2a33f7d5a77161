"""From two recordings at different batches to one graph for every batch: integers that differ grow with the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Batch, Graph, mapped
from fastdiff.capture.record import NotRecordableError


def merged(one: Graph, two: Graph, batches: tuple[int, int]) -> Graph:
    """The graph of any batch.

    Args:
        one, two: recordings of the same network at these batches.

    Raises:
        NotRecordableError: if they differ by more than integers that are multiples of the batch.
    """
    nodes, other = list(one.nodes.nodes), list(two.nodes.nodes)
    if [(node.op, node.target if node.op == "call_function" else "") for node in nodes] != [
        (node.op, node.target if node.op == "call_function" else "") for node in other
    ]:
        raise NotRecordableError("which operations it takes depends on the batch")
    same = dict(zip(other, nodes, strict=True))

    def joined(first: Any, second: Any) -> Any:
        if isinstance(first, (list, tuple)):
            if len(first) != len(second):
                raise NotRecordableError("the number of its tensors depends on the batch")
            return type(first)(joined(a, b) for a, b in zip(first, second, strict=True))
        if isinstance(first, fx.Node):
            if same.get(second) is not first:
                raise NotRecordableError("which of its tensors are used depends on the batch")
            return first
        if type(first) is int and type(second) is int and first != second:
            times, rest = divmod(first, batches[0])
            if rest or second != times * batches[1]:
                raise NotRecordableError(f"an integer is {first} at batch {batches[0]} and {second} at {batches[1]}")
            return Batch(times)
        if first is second or first == second or first != first and second != second:  # a NaN
            return first
        raise NotRecordableError(f"a value is {first!r} at batch {batches[0]} and {second!r} at {batches[1]}")

    for node, twin in zip(nodes, other, strict=True):
        if node.op == "get_attr":
            _check_equal(one.constants[node.target], two.constants[twin.target])
        else:
            node.args = joined(tuple(node.args), tuple(twin.args))
            node.kwargs = {name: joined(value, twin.kwargs[name]) for name, value in node.kwargs.items()}
        if "shape" in node.meta:
            node.meta["shape"] = joined(node.meta["shape"], twin.meta["shape"])
    return one


def _check_equal(one: Tensor, two: Tensor) -> None:
    if one is not two and not (one.dtype == two.dtype and torch.equal(one, two)):
        raise NotRecordableError(f"a tensor that it makes by itself, {tuple(one.shape)}, depends on the batch")


def at_batch(graph: Graph, batch: int) -> Graph:
    """A copy with the batch's integers put in."""

    def number(value: Any) -> Any:
        return value.times * batch if isinstance(value, Batch) else value

    made = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes.nodes:
        env[node] = made.node_copy(node, env.__getitem__)
        env[node].args, env[node].kwargs = mapped(env[node].args, number), mapped(env[node].kwargs, number)
        if "shape" in node.meta:
            env[node].meta["shape"] = mapped(node.meta["shape"], number)
    return Graph(made, graph.constants, graph.exact)
