"""Splitting an evaluation by what its operations depend on.

time     what depends on t alone: run for all rows of a table before the loop, the rows as its batch
context  what depends on the context alone: run once a batch
step     what depends on x or x_self_cond, or on both: run in every step, given the results of the other two
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fastdiff.capture.graph import IMAGES, Batch, Graph, described, grows

aten = torch.ops.aten


@dataclass
class Split:
    """The three graphs.

    Attributes:
        time: t → results of shape (B, ...), each row of which depends on its own t alone.
        context: context → results of any shape.
        step: x, x_self_cond if there is one, t0, t1, ... and c0, c1, ... → the prediction. The t's are rows of `time`,
            (1, ...), and the c's the results of `context`.
    """

    time: Graph
    context: Graph
    step: Graph


# What a node depends on; BATCH is the number of samples, and which of them one is.
BATCH = "batch"


def split(graph: Graph) -> Split:
    """The three parts of a graph that holds for every batch.

    Args:
        graph: normalised: reshapes and no views. It is left as it is.
    """
    sources = _sources(graph)
    inputs = {str(node.target): node for node in graph.nodes.nodes if node.op == "placeholder"}
    ends: dict[str, list[fx.Node]] = {"t": [], "context": []}
    for node, names in sources.items():
        part = _part(names)
        if part in ends and "shape" in node.meta and any(_part(sources[user]) != part for user in node.users):
            ends[part].append(node)
    rows = {node: f"t{place}" for place, node in enumerate(ends["t"])}
    images = {inputs[name]: name for name in IMAGES if name in inputs}
    given = images | rows | {node: f"c{place}" for place, node in enumerate(ends["context"])}
    step = graph.extract(given, graph.results)
    _expand_rows(step, set(rows.values()))
    time, context = (
        graph.extract({inputs[name]: name} if name in inputs else {}, found) for name, found in ends.items()
    )
    return Split(time, context, step)


def _sources(graph: Graph) -> dict[fx.Node, frozenset[str]]:
    """What each node depends on: the inputs, and BATCH. What depends on t and is not in rows is given BATCH too."""
    sources: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes.nodes:
        names = frozenset[str]().union(*(sources[one] for one in node.all_input_nodes))
        if node.op == "placeholder":
            names |= {str(node.target)}
        elif node.op == "output":
            names |= {"x"}
        elif names <= {"t"} and not _is_by_row(node, sources) and (names or grows((node.args, node.kwargs))):
            names |= {BATCH}
        sources[node] = names
    return sources


def _part(names: frozenset[str]) -> str:
    """The part that a node belongs to; constants, and what the batch alone decides, are in each that uses them."""
    if names == {"t"}:
        return "t"
    return "context" if "context" in names and names <= {"context", BATCH} else "x"


# Operations whose results are in rows if their arguments and the shape of the result are: a row for each sample, made
# from the rows of that sample.
_BY_ROW = {
    operator.getitem,
    aten._to_copy.default,
    aten.reshape.default,
    aten.expand.default,
    aten.repeat.default,
    aten.permute.default,
    aten.transpose.int,
    aten.linear.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.group_norm.default,
    aten.one_hot.default,
}
# As well, unless they go along the first dimension.
_ALONG = {
    aten.cat.default,
    aten.stack.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.unbind.int,
    aten._softmax.default,
    aten.sum.dim_IntList,
    aten.mean.dim,
    aten.var.correction,
    aten.var_mean.correction,
    aten.amax.default,
    aten.linalg_vector_norm.default,
    aten.flip.default,
}
# As well, if what they look up in is the same for all samples.
_LOOKED_UP = {aten.embedding.default: 0, aten.index.Tensor: 0, aten.index_select.default: 0}
# Rows of a tensor that is made from nothing.
_FILLED = {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("full", "default"),
        ("ones", "default"),
        ("zeros", "default"),
        ("scalar_tensor", "default"),
        ("full_like", "default"),
        ("ones_like", "default"),
        ("zeros_like", "default"),
        ("new_full", "default"),
        ("new_ones", "default"),
        ("new_zeros", "default"),
        ("fill", "Scalar"),
        ("zero", "default"),
    )
}


def _is_by_row(node: fx.Node, sources: dict[fx.Node, frozenset[str]]) -> bool:
    """Whether the result has a row for each sample that depends on the rows of that sample alone.

    False where that is not certain: what is computed in every step is right too, only slower.
    """
    shape, target = node.meta.get("shape"), node.target
    if shape is not None and not _has_rows(shape):
        return False
    if any(isinstance(one, Batch) for one in (*node.args, *node.kwargs.values())):
        return False  # it calculates with the batch, which is not the number of rows; sizes are in lists
    if _is_pointwise(target) or target in _BY_ROW or target in _FILLED:
        return True
    first = node.all_input_nodes[0] if node.all_input_nodes else None
    if target in _ALONG:
        return first is not None and "shape" in first.meta and not _along_first(node, len(first.meta["shape"]))
    if target in _LOOKED_UP:
        return first is not None and not sources[first] and node.args[0] is first
    if target in (aten.layer_norm.default, aten.rms_norm.default):
        over = node.args[1]
        return first is not None and isinstance(over, list) and len(over) < len(first.meta["shape"])
    return target is aten.batch_norm.default and node.args[5] is False  # else over the statistics of the batch


def _has_rows(shape: tuple) -> bool:
    return bool(shape) and shape[0] == Batch() and not any(isinstance(size, Batch) for size in shape[1:])


def _along_first(node: fx.Node, ndim: int) -> bool:
    """Whether an operation's dimension, or one of its dimensions, is the first; all of them if it names none."""
    assert isinstance(node.target, torch._ops.OpOverload)
    places = {one.name: (place, one.default_value) for place, one in enumerate(node.target._schema.arguments)}
    name = "dims" if "dims" in places else "dim"
    place, default = places[name]
    dims = node.args[place] if place < len(node.args) else node.kwargs.get(name, default)
    if dims is None or dims == []:
        return True
    return any(dim in (0, -ndim) for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))


def _is_pointwise(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def _expand_rows(step: Graph, names: set[str]) -> None:
    """Make the placeholders of these names rows (1, ...), which their users see as the whole batch."""
    rows = [node for node in step.nodes.nodes if node.op == "placeholder" and node.target in names]
    for row in rows:
        shape = row.meta["shape"]
        users = [one for one in row.users if not (_is_pointwise(one.target) and _has_batch_without(one, rows))]
        if users:
            with step.nodes.inserting_before(next(node for node in step.nodes.nodes if node.op != "placeholder")):
                whole = described(
                    step.nodes.call_function(aten.expand.default, (row, list(shape))), shape, row.meta["dtype"]
                )
            for user in users:
                user.replace_input_with(row, whole)
        row.meta["shape"] = (1, *shape[1:])


def _has_batch_without(user: fx.Node, rows: list[fx.Node]) -> bool:
    """Whether a node's result has the batch without these arguments."""
    shape = user.meta.get("shape", ())
    others = [node.meta.get("shape", ()) for node in user.all_input_nodes if node not in rows]
    return any(len(other) == len(shape) and other[:1] == (Batch(),) == shape[:1] for other in others)
