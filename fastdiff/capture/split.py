"""Splitting an evaluation by what its operations depend on.

    time     what depends on t alone: run for all rows of a table before the loop, the rows as its batch
    context  what depends on the context alone: run once a batch
    step     what depends on x, or on both: run in every step, given the results of the other two
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fastdiff.capture.graph import Batch, Graph, described


aten = torch.ops.aten


@dataclass
class Split:
    """The three graphs.

    Attributes:
        time: t → results of shape (B, ...).
        context: context → results of any shape.
        step: x, t0, t1, ... and c0, c1, ... → the prediction. The t's are rows of `time`, (1, ...).
    """

    time: Graph
    context: Graph
    step: Graph


def split(graph: Graph) -> Split:
    """The three parts of a graph."""
    of: dict[fx.Node, set[str]] = {}
    for node in graph.nodes.nodes:
        of[node] = set().union(*(of[one] for one in node.all_input_nodes))
        if node.op == "placeholder":
            of[node] = {node.target}
        elif of[node] == {"t"} and not _in_rows(node):
            of[node] = {"t", "x"}  # rows that see one another, or are not in rows, are for the step's own batch
    inputs = {node.target: node for node in graph.nodes.nodes if node.op == "placeholder"}
    ends: dict[str, list[fx.Node]] = {"t": [], "context": []}
    for node, names in of.items():
        for name, found in ends.items():
            if names == {name} and "shape" in node.meta and any(of.get(user, {"x"}) != {name} for user in node.users):
                found.append(node)
    given = {inputs["x"]: "x"}
    for name, found in ends.items():
        given |= {node: f"{name[0]}{place}" for place, node in enumerate(found)}
    step = graph.extract(given, graph.results)
    for node in list(step.nodes.nodes):
        if node.op == "placeholder" and node.target[0] == "t":
            _expand(step, node)
    parts = {
        name: graph.extract({inputs[name]: name} if name in inputs else {}, found) for name, found in ends.items()
    }
    return Split(parts["t"], parts["context"], step)


def _in_rows(node: fx.Node) -> bool:
    """Whether the result has a row for each member of the batch."""
    shape = node.meta.get("shape")
    if shape is None:  # in several parts, which are looked at one by one
        return True
    return bool(shape) and shape[0] == Batch() and not any(isinstance(size, Batch) for size in shape[1:])


# What takes a row for its batch, where another argument has the batch.
_BROADCAST = {aten.mul.Tensor, *(getattr(aten, name).Tensor for name in ("add", "sub", "mul", "div"))}


def _expand(step: Graph, row: fx.Node) -> None:
    """Have the row's users see the whole batch."""
    shape = row.meta["shape"]
    users = [user for user in row.users if not (user.target in _BROADCAST and _has_batch_without(user, row))]
    if users:
        with step.nodes.inserting_after(row):
            whole = step.nodes.call_function(aten.expand.default, (row, list(shape)))
        described(whole, shape, row.meta["dtype"])
        for user in users:
            user.replace_input_with(row, whole)
    row.meta["shape"] = (1, *shape[1:])


def _has_batch_without(user: fx.Node, row: fx.Node) -> bool:
    others = [node for node in user.all_input_nodes if node is not row]
    return any(len(o.meta["shape"]) == len(user.meta["shape"]) and o.meta["shape"][0] == Batch() for o in others)
