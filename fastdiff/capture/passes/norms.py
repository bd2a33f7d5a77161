"""GroupNorm with the weight and the bias that follow it, such as the time's, and with the activation after it."""

from __future__ import annotations

import math

import torch

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import (
    Node,
    activation,
    arguments,
    aten,
    constant,
    insert,
    is_row,
    only_user,
    other_operand,
    ours,
    per_channel,
    replace,
    reshaped,
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
    """A norm takes the multiplication and the addition that follow it, by numbers of each channel.

    They become its weight and bias, if it has none and they are the same for all samples, else its scale and shift.
    """
    x, groups, *own, eps = norm.args[:5]
    scaled = only_user(norm)
    weight = other_operand(scaled, norm, aten.mul.Tensor)
    shifted: Node = None if weight is None else only_user(scaled)
    bias = other_operand(shifted, scaled, aten.add.Tensor)
    if any(norm.args[5:]) or not all(_is_number(one, norm) for one in (weight, bias)):
        return norm
    channels = norm.meta["shape"][1]
    if own == [None, None] and is_row(weight, channels) and is_row(bias, channels):
        rows = [reshaped(graph, shifted, row, (channels,)) for row in (weight, bias)]
        return replace(graph, shifted, ours.group_norm.default, (x, groups, *rows, eps, *[None] * 5))
    # group_norm's scale is what is added to 1: in 16 bits the difference would lose what is left of a small number.
    dtype, known = torch.promote_types(weight.meta["dtype"], torch.float32), constant(graph, weight)
    if known is not None:
        scale = graph.constant((known.double() - 1).to(dtype), shifted)
    else:
        wide = weight
        if weight.meta["dtype"] != dtype:
            wide = insert(graph, shifted, aten._to_copy.default, (weight,), weight, dtype=dtype)
            wide.meta["dtype"] = dtype
        scale = insert(graph, shifted, aten.sub.Tensor, (wide, 1), wide)
    scale, shift = (reshaped(graph, shifted, one, (one.meta["shape"][0], channels)) for one in (scale, bias))
    return replace(graph, shifted, ours.group_norm.default, (x, groups, *own, eps, None, scale, shift, None, None))


def _is_number(one: Node, norm: Node) -> bool:
    """Whether it is a number of each channel, of the batch or of each sample, in the norm's dtype."""
    return one is not None and per_channel(one, norm.meta["shape"]) and one.meta["dtype"] == norm.meta["dtype"]


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
    x = reshaped(graph, node, x, image)
    normed = insert(graph, node, ours.group_norm.default, (x, groups, weight, bias, eps), node)
    normed.meta["shape"] = image
    replace(graph, node, aten.reshape.default, (normed, list(shape)))
