"""Attention written as two products with a softmax between them, as torch's one operator.

Between the products a network moves axes about: einsum alone does it five times. What these moves amount to is seen by
doing them to a tensor without memory, whose strides tell where each axis went.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, insert, only_user, supersede

_MOVES = {aten.reshape.default, aten.permute.default, aten.transpose.int, aten.expand.default}


def fuse_softmax_attention(graph: Graph) -> None:
    """bmm(softmax(bmm(q, k^T) scale), v) → scaled_dot_product_attention, with either product transposed or not.

    Args:
        graph: of one batch; is changed.
    """
    for node in list(graph.nodes.nodes):
        if node.target is aten._softmax.default and node.args[1] in (-1, len(node.meta["shape"]) - 1):
            _fuse(graph, node)
    graph.tidy()


class _Scores(NamedTuple):
    """scale q k^T: the product's factors as q (N, P, D) and k (N, K, D), where `turned` says that it is k q^T."""

    product: Node
    scale: float
    turned: bool


def _fuse(graph: Graph, softmax: Node) -> None:
    scores = _scores(softmax)
    if scores is None:
        return
    moved = torch.empty(softmax.meta["shape"], device="meta")
    node, user = softmax, only_user(softmax)
    while user is not None and (user.target in _MOVES or _is_cast(user)):
        moved, node, user = _moved(moved, user), user, only_user(user)
    if user is None or user.target is not aten.bmm.default or user.args[0] is user.args[1]:
        return
    first = user.args[0] is node
    if not _ended(moved, softmax.meta["shape"][-2:], turned=not first):
        return
    left, right = scores.product.args
    q, k = (_transposed(graph, user, right), left) if scores.turned else (left, _transposed(graph, user, right))
    v = user.args[1] if first else _transposed(graph, user, user.args[0])
    if len({one.meta["dtype"] for one in (q, k, v)}) > 1:
        return
    q, k, v = (_reshaped(graph, user, one, (one.meta["shape"][0], 1, *one.meta["shape"][1:])) for one in (q, k, v))
    out = insert(graph, user, aten.scaled_dot_product_attention.default, (q, k, v), v, scale=scores.scale)
    out.meta["shape"] = (*q.meta["shape"][:3], v.meta["shape"][3])
    out = _reshaped(graph, user, out, (q.meta["shape"][0], *out.meta["shape"][2:]))
    supersede(graph, user, out if first else _transposed(graph, user, out))


def _scores(softmax: Node) -> _Scores | None:
    """What a softmax is of, if that is a product of two batches of matrices with a scale above 0."""
    node, scale, moves = softmax.args[0], 1.0, []
    while node.target is not aten.bmm.default:
        if only_user(node) is None or not isinstance(node.args[0] if node.args else None, fx.Node):
            return None
        if node.target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(node.args[1], (int, float)):
            scale = scale * node.args[1] if node.target is aten.mul.Tensor else scale / node.args[1]
        elif node.target in _MOVES:
            moves.append(node)
        elif not _is_cast(node):
            return None
        node = node.args[0]
    if only_user(node) is None or not scale > 0:
        return None
    moved: Tensor | None = torch.empty(node.meta["shape"], device="meta")
    for move in reversed(moves):
        moved = _moved(moved, move)
    fits = [turned for turned in (False, True) if _ended(moved, node.meta["shape"][-2:], turned)]
    return _Scores(node, scale, fits[0]) if fits else None


def _moved(x: Tensor | None, node: Node) -> Tensor | None:
    """A view of x by a node; None if it would be a copy, which hides where the axes went."""
    if x is None or _is_cast(node):
        return x
    out = node.target(x, *node.args[1:])
    return out if out.untyped_storage()._cdata == x.untyped_storage()._cdata else None


def _is_cast(node: Node) -> bool:
    return node.target is aten._to_copy.default and set(node.kwargs) == {"dtype"}


def _ended(moved: Tensor | None, matrix: tuple[int, int], turned: bool) -> bool:
    """Whether axes of N matrices (I, J) that were moved ended as (N, I, J), or, turned, as (N, J, I)."""
    rows, columns = matrix
    sizes, strides = ((columns, rows), (1, columns)) if turned else ((rows, columns), (columns, 1))
    return moved is not None and tuple(moved.shape[-2:]) == sizes and _in_order(moved, strides)


def _in_order(moved: Tensor, strides: tuple[int, int]) -> bool:
    """Whether the last two axes have these strides, and the others count the matrices in their order."""
    expected, wanted = moved.shape[-2] * moved.shape[-1], list(strides)
    for size in reversed(moved.shape[:-2]):
        wanted.insert(0, expected)
        expected *= size
    found = zip(moved.shape, moved.stride(), wanted, strict=True)
    return all(size == 1 or stride == right for size, stride, right in found)


def _transposed(graph: Graph, before: Node, x: Node) -> Node:
    made = insert(graph, before, aten.transpose.int, (x, 1, 2), x)
    n, rows, columns = x.meta["shape"]
    made.meta["shape"] = (n, columns, rows)
    return made


def _reshaped(graph: Graph, before: Node, x: Node, shape: tuple) -> Node:
    made = insert(graph, before, aten.reshape.default, (x, list(shape)), x)
    made.meta["shape"] = shape
    return made
