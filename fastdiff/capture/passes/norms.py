"""GroupNorm with the weight and the bias that follow it, such as the time's, and with the activation after it."""

from __future__ import annotations

import math

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import (
    Node,
    activation,
    arguments,
    aten,
    insert,
    is_row,
    only_user,
    other_operand,
    ours,
    replace,
    supersede,
)


def fuse_norms(graph: Graph) -> None:
    """Where nothing else reads the norm's result."""
    for node in list(graph.nodes.nodes):
        if node.target is aten.group_norm.default:
            _as_ours(graph, node)
    for node in list(graph.nodes.nodes):
        if node.target is not ours.group_norm.default:
            continue
        node.args = tuple(arguments(node))
        node = _with_affine(graph, node)
        user = only_user(node)
        after = activation(user)
        if after and user is not None and node.args[-1] is None:
            node.args = (*node.args[:-1], after)
            supersede(graph, user, node)
    graph.tidy()


def _with_affine(graph: Graph, norm: Node) -> Node:
    """A norm without a weight and a bias takes those of the multiplication and the addition that follow it."""
    x, groups, *own, eps = norm.args[:5]
    scaled = only_user(norm)
    weight = other_operand(scaled, norm, aten.mul.Tensor)
    shifted = None if weight is None else only_user(scaled)
    bias = other_operand(shifted, scaled, aten.add.Tensor)
    channels = norm.meta["shape"][1]
    if own != [None, None] or any(norm.args[5:]) or not (is_row(weight, channels) and is_row(bias, channels)):
        return norm
    rows = []
    for row in (weight, bias):
        rows.append(insert(graph, shifted, aten.reshape.default, (row, [channels]), row))
        rows[-1].meta["shape"] = (channels,)
    return replace(graph, shifted, ours.group_norm.default, (x, groups, *rows, eps, *[None] * 5))


def _as_ours(graph: Graph, node: Node) -> None:
    """aten.group_norm of (B, C, ...) becomes ours, of images."""
    x, groups, weight, bias, eps, _ = node.args
    shape = node.meta["shape"]
    if (weight is None) != (bias is None) or len(shape) < 3:
        return
    if len(shape) == 4:
        replace(graph, node, ours.group_norm.default, (x, groups, weight, bias, eps))
        return
    image = (*shape[:2], math.prod(shape[2:]), 1)
    x = insert(graph, node, aten.reshape.default, (x, list(image)), node)
    normed = insert(graph, node, ours.group_norm.default, (x, groups, weight, bias, eps), node)
    x.meta["shape"] = normed.meta["shape"] = image
    replace(graph, node, aten.reshape.default, (normed, list(shape)))
