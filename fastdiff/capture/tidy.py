"""First passes: one word for each operation that only moves values, and constants computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastdiff.capture.graph import Graph, grows, mapped
from fastdiff.capture.views import RESHAPES

aten = torch.ops.aten

_RESHAPES = {aten.reshape.default, *RESHAPES}
# Operations that change nothing in a graph without side effects.
_NOTHING = {aten.detach.default, aten.alias.default, aten.clone.default, aten.lift_fresh.default}


def normalise(graph: Graph) -> None:
    """Views become reshapes, which hold for any memory layout; what changes nothing goes."""
    for node in list(graph.nodes.nodes):
        if node.op != "call_function":
            continue
        same = _same_value(node)
        if same is None and node.target in _RESHAPES:
            before = _node(node.args[0])
            while before.target is aten.reshape.default:
                before = _node(before.args[0])
            node.target, node.args, node.kwargs = aten.reshape.default, (before, list(node.meta["shape"])), {}
            same = before if before.meta["shape"] == node.meta["shape"] else None
        if same is not None:
            node.replace_all_uses_with(same)
            graph.nodes.erase_node(node)
    graph.tidy()


def fold_constants(graph: Graph) -> None:
    """Compute what depends on neither the inputs nor the batch."""
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes.nodes:
            if node.op == "get_attr":
                known[node] = graph.constants[str(node.target)]
            elif node.op == "call_function" and all(one in known for one in node.all_input_nodes):
                if not grows((node.args, node.kwargs)):
                    known[node] = _computed(node, known)
    for node, value in known.items():
        if node.op == "call_function" and isinstance(value, torch.Tensor) and any(u not in known for u in node.users):
            node.replace_all_uses_with(graph.constant(value, node), delete_user_cb=lambda user: user not in known)
    graph.tidy()


def _same_value(node: fx.Node) -> fx.Node | None:
    """The argument that is all that a node returns, if there is one."""
    target, meta = node.target, node.meta
    if target in _NOTHING:
        source = _node(node.args[0])
        # A copy of a constant is made once and so may stay; weight_norm's kernel, for one, needs it in that layout.
        laid_out = "memory_format" in node.kwargs and (source.op == "get_attr" or _needs_layout(node))
        return None if laid_out else source
    if target is aten._to_copy.default and "device" not in node.kwargs and "layout" not in node.kwargs:
        source = _node(node.args[0])
    elif target in (aten.slice.Tensor, aten.expand.default):
        source = _node(node.args[0])
    elif target is aten.copy.default:  # what is written over takes no part
        source = _node(node.args[1])
    else:
        return None
    return source if (source.meta["shape"], source.meta["dtype"]) == (meta["shape"], meta["dtype"]) else None


def _needs_layout(node: fx.Node) -> bool:
    """Whether a result goes to an operation that may read the memory as it lies: another library's, or oneDNN's own."""
    for user in node.users:
        if user.target in _RESHAPES or user.target in _NOTHING:
            if _needs_layout(user):
                return True
        elif isinstance(user.target, torch._ops.OpOverload):
            library, name = user.target._schema.name.split("::")
            if library not in ("aten", "fastdiff") or name.lstrip("_").startswith(("mkldnn", "cudnn", "miopen")):
                return True
    return False


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _computed(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    def value(one: Any) -> Any:
        return known[one] if isinstance(one, fx.Node) else one

    assert callable(node.target)
    return node.target(*mapped(node.args, value), **mapped(node.kwargs, value))
