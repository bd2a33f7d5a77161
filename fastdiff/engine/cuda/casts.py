"""Norms in float32 of a 16-bit network: the kernels compute in float32 anyway, so that nothing need be cast."""

from __future__ import annotations

import torch

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, constant, replace, supersede


def norms_without_casts(graph: Graph) -> None:
    """group_norm(x.float()), cast back to x's dtype → group_norm(x); both round once, at the end.

    Args:
        graph: of one batch, before norms are fused; is changed.
    """
    for node in list(graph.nodes.nodes):
        if node.target is aten.group_norm.default:
            _without(graph, node)
    graph.tidy()


def _without(graph: Graph, norm: Node) -> None:
    x, groups, weight, bias, eps, *rest = norm.args
    dtype = _is_cast(x) and x.args[0].meta["dtype"]
    back = list(norm.users)
    if not dtype or dtype.itemsize != 2 or not all(_is_cast(user) and user.meta["dtype"] == dtype for user in back):
        return
    known = [None if one is None else constant(graph, one) for one in (weight, bias)]
    if (known[0] is None) != (weight is None) or (known[1] is None) != (bias is None):
        return
    affine = [None if one is None else graph.constant(one.to(dtype), norm) for one in known]
    for made, one in zip(affine, known, strict=True):
        if made is not None and one is not None:
            graph.exact[str(made.target)] = one
    new = replace(graph, norm, aten.group_norm.default, (x.args[0], groups, *affine, eps, *rest))
    new.meta["dtype"] = dtype
    for user in back:
        supersede(graph, user, new)


def _is_cast(node: Node) -> bool:
    """Whether it is a cast alone, of or to float32."""
    if node.target is not aten._to_copy.default or set(node.kwargs) != {"dtype"}:
        return False
    return torch.float32 in (node.meta["dtype"], node.args[0].meta["dtype"])
