"""What passes ask of nodes. A node is known by what it computes, never by a module's class."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastdiff.capture.graph import Graph, described

aten = torch.ops.aten


def activation(node: fx.Node) -> str | None:
    """The activation that a node is, by its name in fastdiff.kernels, or None."""
    if node.target is aten.gelu.default:
        return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
    return {aten.silu.default: "silu", aten.relu.default: "relu"}.get(node.target)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses a result, if it is one and is not the output."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return None if user.op == "output" else user


def same_shape(a: fx.Node, b: fx.Node) -> bool:
    return a.meta.get("shape") is not None and a.meta["shape"] == b.meta.get("shape")


def constant(graph: Graph, value: Any) -> torch.Tensor | None:
    """The tensor of a constant's node, or None."""
    return graph.constants[value.target] if isinstance(value, fx.Node) and value.op == "get_attr" else None


def replace(graph: Graph, old: fx.Node, target: Any, args: tuple, kwargs: dict | None = None) -> fx.Node:
    """A call in the place of a node, with the same shape and dtype."""
    with graph.nodes.inserting_before(old):
        new = graph.nodes.call_function(target, args, kwargs or {})
    described(new, old.meta.get("shape"), old.meta.get("dtype"))
    old.replace_all_uses_with(new)
    graph.nodes.erase_node(old)
    return new
