"""Attention written as two products with a softmax between them, as torch's one operator."""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, insert, only_user, reshaped, supersede
from fastdiff.capture.passes.moves import MOVES, ended, factor_of, path_from, path_to


def fuse_softmax_attention(graph: Graph) -> None:
    """bmm(softmax(bmm(q, k^T) scale), v) → scaled_dot_product_attention, with either product transposed or not.

    Args:
        graph: of one batch; is changed.
    """
    for node in list(graph.nodes.nodes):
        if node.target is aten._softmax.default and node.args[1] in (-1, len(node.meta["shape"]) - 1):
            _fuse(graph, node)
    graph.tidy()
    for node in list(graph.nodes.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            _with_factors(graph, node)
    graph.tidy()


def _fuse(graph: Graph, softmax: Node) -> None:
    scores, weights = path_to(softmax.args[0]), path_from(softmax)
    product, user = scores.start, only_user(weights.end)
    if user is None or not product.target is user.target is aten.bmm.default or user.args[0] is user.args[1]:
        return
    # The softmax's rows are queries: of a product q k^T as they are, of k q^T after a transposition.
    turned = [turned for turned in (False, True) if ended(scores.moved, product.meta["shape"][-2:], turned)]
    first = user.args[0] is weights.end
    as_factor = ended(weights.moved, softmax.meta["shape"][-2:], turned=not first)
    if not turned or not as_factor or only_user(product) is None or scores.factor <= 0 or weights.factor != 1:
        return
    left, right = product.args
    q, k = (_transposed(graph, user, right), left) if turned[0] else (left, _transposed(graph, user, right))
    v = user.args[1] if first else _transposed(graph, user, user.args[0])
    if len({one.meta["dtype"] for one in (q, k, v)}) > 1:
        return
    q, k, v = (reshaped(graph, user, one, (one.meta["shape"][0], 1, *one.meta["shape"][1:])) for one in (q, k, v))
    out = insert(graph, user, aten.scaled_dot_product_attention.default, (q, k, v), v, scale=scores.factor)
    out.meta["shape"] = (*q.meta["shape"][:3], v.meta["shape"][3])
    out = reshaped(graph, user, out, (q.meta["shape"][0], *out.meta["shape"][2:]))
    supersede(graph, user, out if first else _transposed(graph, user, out))


def _with_factors(graph: Graph, attention: Node) -> None:
    """Numbers that queries or keys are multiplied by become the scores' scale."""
    factor = 1.0
    for operand in attention.args[:2]:
        if attention.args[:3].count(operand) > 1:  # the others would lose the factor too
            continue
        node, user = operand, attention
        while node.target in MOVES or factor_of(node) is not None:
            if only_user(node) is not user:
                break
            number = factor_of(node)
            if number is None:
                node, user = node.args[0], node
                continue
            if number <= 0:  # kernels take the largest score for that of the largest product
                break
            factor *= number
            user.replace_input_with(node, node.args[0])
            node = node.args[0]
    if factor != 1:
        scale = attention.kwargs.get("scale")
        scale = attention.args[0].meta["shape"][-1] ** -0.5 if scale is None else scale
        attention.kwargs = {**attention.kwargs, "scale": scale * factor}


def _transposed(graph: Graph, before: Node, x: Node) -> Node:
    made = insert(graph, before, aten.transpose.int, (x, 1, 2), x)
    n, rows, columns = x.meta["shape"]
    made.meta["shape"] = (n, columns, rows)
    return made
