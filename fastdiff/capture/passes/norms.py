"""GroupNorm with the activations beside it."""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import activation, aten, only_user, replace
from fastdiff.kernels import operators as ops


def fuse_norms(graph: Graph) -> None:
    """group_norm and an activation after it, where nothing else reads the norm's result."""
    for node in list(graph.nodes.nodes):
        if node.target is not aten.group_norm.default or len(node.args[0].meta["shape"]) != 4:
            continue
        x, groups, weight, bias, eps, _ = node.args
        norm = replace(graph, node, ops.group_norm, (x, groups, weight, bias, eps, None))
        user = only_user(norm)
        after = None if user is None else activation(user)
        if after:
            norm.args = (*norm.args[:5], after)
            user.replace_all_uses_with(norm)
            graph.nodes.erase_node(user)
