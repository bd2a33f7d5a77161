"""From two recordings at different batches to one graph for every batch: integers that differ grow with the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Batch, Graph, mapped
from fastdiff.capture.refusal import NotRecordableError


def merged(one: Graph, two: Graph, batches: tuple[int, int]) -> Graph:
    """The graph of any batch, which is `one` changed.

    Args:
        one, two: recordings of the same network at these batches, which are no multiples of each other, so 2 and 3:
            at batch 1 a size of 1 could be the batch as well as none.

    Raises:
        NotRecordableError: if they differ by more than integers that are multiples of the batch.
    """
    nodes, twins = list(one.nodes.nodes), list(two.nodes.nodes)
    for node, twin in zip(nodes, twins, strict=False):
        if _operation(node) != _operation(twin):
            raise _refusal("which operations are called depends on the batch", node)
    if len(nodes) != len(twins):
        raise NotRecordableError("which operations are called depends on the batch")
    same = dict(zip(twins, nodes, strict=True))
    for node, twin in zip(nodes, twins, strict=True):
        if node.op == "get_attr":
            if not _equal(one.constants[str(node.target)], two.constants[str(twin.target)]):
                raise _refusal("a tensor that is made otherwise than by torch's operations depends on the batch", node)
            continue
        try:
            args = _joined(tuple(node.args), tuple(twin.args), batches, same)
            kwargs = _joined(dict(node.kwargs), dict(twin.kwargs), batches, same)
            if "shape" in node.meta:
                node.meta["shape"] = _joined(node.meta["shape"], twin.meta["shape"], batches, same)
        except _DifferentError as error:
            raise _refusal(f"{error} (in an argument or the shape of {node.target})", node) from None
        node.args, node.kwargs = args, kwargs
    return one


def at_batch(graph: Graph, batch: int) -> Graph:
    """A copy for one batch, without Batch integers, in the shapes either; the constants are shared.

    node.meta["grows"] says for each dimension of a result how many times the batch it is, 0 for not at all.
    """

    def number(value: Any) -> Any:
        return value.times * batch if isinstance(value, Batch) else value

    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes.nodes:
        copy = copies[node] = made.node_copy(node, copies.__getitem__)
        copy.args, copy.kwargs = mapped(copy.args, number), mapped(copy.kwargs, number)
        if "shape" in node.meta:
            copy.meta["shape"] = mapped(node.meta["shape"], number)
            copy.meta["grows"] = tuple(size.times if isinstance(size, Batch) else 0 for size in node.meta["shape"])
    return Graph(made, dict(graph.constants), dict(graph.exact))


class _DifferentError(Exception):
    """What differs between the two recordings."""


def _operation(node: fx.Node) -> tuple[str, Any]:
    return node.op, None if node.op == "get_attr" else node.target


def _joined(one: Any, two: Any, batches: tuple[int, int], same: dict[fx.Node, fx.Node]) -> Any:
    """One argument for every batch; `same` has the first graph's node for each of the second's."""
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if len(one) != len(two):
            raise _DifferentError(f"a list has {len(one)} parts at batch {batches[0]} and {len(two)} at {batches[1]}")
        return type(one)(_joined(a, b, batches, same) for a, b in zip(one, two, strict=True))
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return {name: _joined(value, two[name], batches, same) for name, value in one.items()}
    if isinstance(one, fx.Node):
        if same.get(two) is not one:
            raise _DifferentError("which tensor is used depends on the batch")
        return one
    if type(one) is int and type(two) is int and one != two:
        times, rest = divmod(one, batches[0])
        if not rest and two == times * batches[1]:
            return Batch(times)
    elif one is two or one == two or (one != one and two != two):  # the last is NaN
        return one
    raise _DifferentError(f"a value is {one!r} at batch {batches[0]} and {two!r} at {batches[1]}")


def _equal(one: Tensor, two: Tensor) -> bool:
    return one is two or (
        one.dtype == two.dtype and one.shape == two.shape and torch.allclose(one, two, rtol=0, atol=0, equal_nan=True)
    )


def _refusal(what: str, node: fx.Node) -> NotRecordableError:
    return NotRecordableError.at(what, node.meta.get("line"))
