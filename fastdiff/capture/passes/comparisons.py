"""Comparisons of which only numbers are made, as numbers: a chain of elementwise operations has no booleans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, constant, replace, supersede

COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")


def compared(how: str, a: Tensor, b: Tensor | float) -> Tensor:
    """1 where a comparison holds, 0 where it does not.

    Args:
        how: one of COMPARISONS, torch's names.
        a, b: float32, of shapes that broadcast.
    """
    out: Tensor = getattr(torch, how)(a, b)
    return out.to(a.dtype)


def chosen(condition: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
    """y where the condition is 0, and else x.

    Args:
        condition, x, y: float32, of shapes that broadcast.
    """
    return torch.where(condition != 0, x, y)


def number_comparisons(graph: Graph) -> None:
    """Comparisons of float32 become `compared`, where all that reads one chooses by it or calculates with it.

    Args:
        graph: of one batch; is changed.
    """
    for node in list(graph.nodes.nodes):
        if node.target not in _COMPARISONS or not all(map(_is_float32, node.all_input_nodes)):
            continue
        choices = {user: _choice(graph, user, node) for user in node.users}
        if choices and None not in choices.values():
            number = replace(graph, node, compared, (_COMPARISONS[node.target], *node.args))
            number.meta["dtype"] = torch.float32
            for user, choice in choices.items():
                if user.target is aten._to_copy.default:
                    supersede(graph, user, number)
                elif choice:
                    replace(graph, user, chosen, (number, *choice))
    graph.tidy()


_COMPARISONS = {getattr(getattr(aten, how), kind): how for how in COMPARISONS for kind in ("Scalar", "Tensor")}
# Which calculate with a boolean as with 1 or 0.
_ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


def _choice(graph: Graph, user: Node, mask: Node) -> tuple | None:
    """What is chosen from, () for what calculates with a number in a mask's place, and None for all else."""
    if user.op != "call_function" or not _is_float32(user):
        return None
    others = [one for one in user.all_input_nodes if one is not mask]
    if user.target is aten._to_copy.default or (user.target in _ARITHMETIC and all(map(_is_float32, others))):
        return ()
    if user.target is aten.where.self and user.args[0] is mask:
        choice = user.args[1:]
    elif user.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor) and user.args[1] is mask:
        choice = user.args[2], user.args[0]
    else:
        return None
    choice = tuple(_number(graph, one) for one in choice)
    return None if None in choice else choice


def _number(graph: Graph, value: Any) -> Node | float | None:
    """A float32 tensor's node, or a number, as that of a constant without dimensions."""
    if not isinstance(value, fx.Node):
        return float(value)
    known = constant(graph, value)
    if known is not None and known.ndim == 0:
        return float(known)
    return value if _is_float32(value) else None


def _is_float32(node: Node) -> bool:
    return node.meta.get("dtype") == torch.float32
