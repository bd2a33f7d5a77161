"""Norms over channels that are written out, with their weight, bias, activation and residual, as one operator."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import (
    Node,
    aten,
    finish_of,
    is_row,
    only_user,
    other_operand,
    ours,
    replace,
    same_shape,
)
from fastdiff.capture.passes.written_norms import centred
from fastdiff.kernels.position_norm import position_norm


class _Normed(NamedTuple):
    """n(x) of kernels.position_norm."""

    x: Node
    eps: float
    centred: bool


def fuse_position_norms(graph: Graph, any_norm: bool) -> None:
    """What computes a norm over the channels of each position becomes channel_norm, or kernels.position_norm's.

    Args:
        graph: of one batch; is changed.
        any_norm: whether position_norm is to be used, for all that channel_norm does not compute.
    """
    for node in list(graph.nodes.nodes):
        if len(node.meta.get("shape", ())) == 4:
            normed = _unit(node) or _centred(node)
            if normed is not None and same_shape(normed.x, node):
                _fuse(graph, node, normed, any_norm)
    graph.tidy()


def _fuse(graph: Graph, node: Node, normed: _Normed, any_norm: bool) -> None:
    last, channels = node, node.meta["shape"][1]
    weight = bias = None
    user = only_user(last)
    other = other_operand(user, last, aten.mul.Tensor)
    if is_row(other, channels):
        weight, last, user = other, user, only_user(user)
    other = other_operand(user, last, aten.add.Tensor)
    if is_row(other, channels):
        bias, last = other, user
    after, residual, last = finish_of(last)
    if normed.centred and weight is not None and bias is None and after is None:
        replace(graph, last, ours.channel_norm.default, (normed.x, weight, residual, normed.eps))
    elif any_norm:
        replace(graph, last, position_norm, (normed.x, weight, bias, normed.eps, normed.centred, after, residual))


def _unit(node: Node) -> _Normed | None:
    """x / max(|x|, eps), as F.normalize computes it."""
    if node.target is not aten.div.Tensor or not isinstance(node.args[1], fx.Node):
        return None
    x, length = node.args
    if length.target is aten.expand.default:
        length = length.args[0]
    if length.target is not aten.clamp_min.default:
        return None
    norm, eps = length.args
    plain = norm.target is aten.linalg_vector_norm.default and norm.args == (x, 2.0, [1], True)
    return _Normed(x, float(eps), False) if plain and not norm.kwargs else None


def _centred(node: Node) -> _Normed | None:
    found = centred(node, [1])
    return None if found is None else _Normed(found.x, found.eps, True)
