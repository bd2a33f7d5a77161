"""Norms that are written out: (x - mean) / sqrt(var + eps), in the ways in which code does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, arguments, aten, only_user, places, replace


class Centred(NamedTuple):
    """x and eps of (x - mean) / sqrt(var + eps)."""

    x: Node
    eps: float


def fuse_group_norms(graph: Graph) -> None:
    """Such a norm over groups into which channels were reshaped becomes aten.group_norm, without weight and bias."""
    for node in list(graph.nodes.nodes):
        if node.target is aten.reshape.default and len(node.meta["shape"]) >= 3:
            inner = node.args[0]
            groups = inner.meta.get("shape", ())
            found = centred(inner, range(2, len(groups))) if len(groups) >= 3 and only_user(inner) is node else None
            if found is not None and found.x.target is aten.reshape.default:
                _as_group_norm(graph, node, found)
    graph.tidy()


def _as_group_norm(graph: Graph, node: Node, found: Centred) -> None:
    x, shape = found.x.args[0], node.meta["shape"]
    batch, groups = found.x.meta["shape"][:2]
    whole = x.meta["shape"] == shape and batch == shape[0] and isinstance(groups, int) and shape[1] % groups == 0
    if whole and x.meta["dtype"] == node.meta["dtype"]:
        replace(graph, node, aten.group_norm.default, (x, groups, None, None, found.eps, False))


def centred(node: Node, dims: Sequence[int]) -> Centred | None:
    """x and eps, if a node is that, mean and biased variance over these dimensions; by division or by rsqrt."""
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
    written = _is_distance(distance, x, dims) and _is_variance(total.args[0], x, dims)
    return Centred(x, float(total.args[1])) if written else None


def _is_distance(node: Node, x: Node, dims: Sequence[int]) -> bool:
    """Whether it is x less its mean."""
    if node is None or node.target is not aten.sub.Tensor or node.kwargs or node.args[0] is not x:
        return False
    return isinstance(node.args[1], fx.Node) and _is_mean(node.args[1], x, dims)


def _is_mean(node: Node, x: Node, dims: Sequence[int]) -> bool:
    if node.target is aten.mean.dim:
        of, over, *rest = arguments(node)
        return of is x and _same(over, dims, x) and rest == [True, None]
    return _is_part(node, 1, x, dims)


def _is_variance(node: Node, x: Node, dims: Sequence[int]) -> bool:
    if node.target is aten.var.correction:
        return _is_biased(node, x, dims)
    if node.target is aten.mean.dim:
        square = node.args[0]
        distance = square.args[0] if square.args else None
        power = square.target is aten.pow.Tensor_Scalar and square.args[1] == 2
        product = square.target is aten.mul.Tensor and square.args[1] is distance
        return _is_mean(node, square, dims) and (power or product) and _is_distance(distance, x, dims)
    return _is_part(node, 0, x, dims)


def _is_part(node: Node, part: int, x: Node, dims: Sequence[int]) -> bool:
    """Whether it is a part of var_mean."""
    pair: Any = node.args[0] if node.args else None
    if getattr(pair, "target", None) is not aten.var_mean.correction or node.args[1:] != (part,):
        return False
    return _is_biased(pair, x, dims)


def _is_biased(node: Node, x: Node, dims: Sequence[int]) -> bool:
    """Whether a variance is the mean of the squared distances, its dimensions kept."""
    of, over, correction, keepdim = arguments(node)
    return of is x and _same(over, dims, x) and correction == 0 and keepdim


def _same(over: Any, dims: Sequence[int], x: Node) -> bool:
    """Whether an operation over these of x's dimensions, one or several of which may be negative, is over `dims`."""
    return sorted(places(over, len(x.meta["shape"]))) == list(dims)
