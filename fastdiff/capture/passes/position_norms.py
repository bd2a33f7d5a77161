"""Norms over channels that are written out, with their weight, bias, activation and residual, as one operator."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import (
    Node,
    activation,
    arguments,
    aten,
    is_row,
    only_user,
    other_operand,
    ours,
    replace,
    same_shape,
)
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
    weight = bias = after = residual = None
    user = only_user(last)
    other = other_operand(user, last, aten.mul.Tensor)
    if is_row(other, channels):
        weight, last, user = other, user, only_user(user)
    other = other_operand(user, last, aten.add.Tensor)
    if is_row(other, channels):
        bias, last, user = other, user, only_user(user)
    if activation(user):
        after, last, user = activation(user), user, only_user(user)
    other = other_operand(user, last, aten.add.Tensor)
    if other is not None and same_shape(other, last) and same_shape(other, user):
        residual, last = other, user
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
    """(x - mean) / sqrt(var + eps), by division or by rsqrt."""
    root = {aten.div.Tensor: aten.sqrt.default, aten.mul.Tensor: aten.rsqrt.default}.get(node.target)
    if root is None or not isinstance(node.args[1], fx.Node):
        return None
    distance, spread = node.args
    if node.target is aten.mul.Tensor and distance.target is root:
        distance, spread = spread, distance
    if spread.target is not root or distance.target is not aten.sub.Tensor:
        return None
    x, total = distance.args[0], spread.args[0]
    if total.target is not aten.add.Tensor or total.kwargs or not isinstance(total.args[1], (int, float)):
        return None
    return _Normed(x, float(total.args[1]), True) if _distance(distance, x) and _variance_of(total.args[0], x) else None


def _distance(node: Node, x: Node) -> bool:
    """Whether it is x less its mean."""
    if node is None or node.target is not aten.sub.Tensor or node.kwargs or node.args[0] is not x:
        return False
    return isinstance(node.args[1], fx.Node) and _mean_of(node.args[1], x)


def _mean_of(mean: Node, x: Node) -> bool:
    if mean.target is aten.mean.dim:
        return arguments(mean) == [x, [1], True, None]
    return _part(mean, 1, x)


def _variance_of(var: Node, x: Node) -> bool:
    if var.target is aten.var.correction:
        return arguments(var) == [x, [1], 0, True]
    if var.target is aten.mean.dim:
        square = var.args[0]
        distance = square.args[0] if square.args else None
        power = square.target is aten.pow.Tensor_Scalar and square.args[1] == 2
        product = square.target is aten.mul.Tensor and square.args[1] is distance
        return _mean_of(var, square) and (power or product) and _distance(distance, x)
    return _part(var, 0, x)


def _part(node: Node, part: int, x: Node) -> bool:
    """Whether it is a part of var_mean over channels."""
    pair = node.args[0] if node.args else None
    if getattr(pair, "target", None) is not aten.var_mean.correction or node.args[1:] != (part,):
        return False
    return arguments(pair) == [x, [1], 0, True]
