"""GroupNorm with the activation after it, as one operator."""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import activation, aten, only_user, ours, replace, supersede
from fastdiff.capture.passes.simplify import arguments


def fuse_norms(graph: Graph) -> None:
    """Where nothing else reads the norm's result."""
    for node in list(graph.nodes.nodes):
        if node.target is aten.group_norm.default and len(node.args[0].meta["shape"]) == 4:
            x, groups, weight, bias, eps, _ = node.args
            if (weight is None) == (bias is None):
                node = replace(graph, node, ours.group_norm.default, (x, groups, weight, bias, eps))
        if node.target is not ours.group_norm.default:
            continue
        node.args = tuple(arguments(node))
        user = only_user(node)
        after = activation(user)
        if after and user is not None and node.args[-1] is None:
            node.args = (*node.args[:-1], after)
            supersede(graph, user, node)
