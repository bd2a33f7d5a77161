"""First passes: one word for each operation that only moves values, and constants computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastdiff.capture.graph import Batch, Graph, described, mapped

aten = torch.ops.aten

# Operations that change the shape alone, and those that change nothing in a graph without side effects.
_RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
_NOTHING = {aten.detach.default, aten.alias.default, aten.clone.default, aten.lift_fresh.default}


def normalise(graph: Graph) -> None:
    """Views become reshapes, which hold for any memory layout; what changes nothing goes."""
    for node in list(graph.nodes.nodes):
        if node.op != "call_function":
            continue
        before = node.args[0] if node.args else None
        if node.target in _NOTHING or node.target is aten._to_copy.default and _same_kind(node):
            node.replace_all_uses_with(before)
            graph.nodes.erase_node(node)
        elif node.target in _RESHAPES or node.target is aten.reshape.default:
            while before.target is aten.reshape.default:
                before = before.args[0]
            if before.meta["shape"] == node.meta["shape"]:
                node.replace_all_uses_with(before)
                graph.nodes.erase_node(node)
            else:
                node.target, node.args, node.kwargs = aten.reshape.default, (before, list(node.meta["shape"])), {}
    graph.tidy()


def _same_kind(node: fx.Node) -> bool:
    return node.args[0].meta["dtype"] == node.meta["dtype"]


def fold_constants(graph: Graph) -> None:
    """Compute what depends on neither the inputs nor the batch."""
    known: dict[fx.Node, Any] = {}
    for node in list(graph.nodes.nodes):
        if node.op == "get_attr":
            known[node] = graph.constants[node.target]
        elif node.op == "call_function" and all(one in known for one in node.all_input_nodes) and not _grows(node):
            args, kwargs = (mapped(given, lambda v: known.get(v, v) if isinstance(v, fx.Node) else v) for given in (node.args, node.kwargs))
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if node.op == "call_function" and any(user not in known for user in node.users) and isinstance(value, torch.Tensor):
            node.replace_all_uses_with(graph.constant(value, node), delete_user_cb=lambda user: user not in known)
    graph.tidy()


def _grows(node: fx.Node) -> bool:
    found = []
    mapped((node.args, node.kwargs), lambda value: found.append(isinstance(value, Batch)))
    return any(found)
