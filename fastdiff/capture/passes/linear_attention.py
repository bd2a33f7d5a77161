"""Linear attention written as two products, as the one operator.

out = v softmax_n(k)^T softmax_d(q) d^-1/2 with q, k, v (d, n) of each head: see kernels.linear_attention.
"""

from __future__ import annotations

import math
import operator

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, only_user, ours, replace
from fastdiff.capture.passes.moves import Path, ended, path_from, path_to, sized
from fastdiff.kernels.linear_attention import output_scale


def fuse_linear_attention(graph: Graph) -> None:
    """Where q, k and v are the thirds of one picture's channels, and only the result is used."""
    for node in list(graph.nodes.nodes):
        if node.target is aten._softmax.default and len(node.meta["shape"]) == 4 and node.args[1] in (-2, 2):
            _fuse(graph, node)
    graph.tidy()


def _fuse(graph: Graph, softmax: Node) -> None:
    qkv, q = _third(softmax, 0), path_from(softmax)
    last = only_user(q.end)
    if qkv is None or last is None or last.target is not aten.bmm.default or last.args[0] is last.args[1]:
        return
    second = last.args[1] is q.end  # context^T q, else q^T context
    context = path_to(last.args[0] if second else last.args[1])
    first = context.start
    if first.target is not aten.bmm.default or only_user(first) is None:
        return
    a, b = (path_to(one) for one in first.args)
    keys_first = _third(a.start, 1) is qkv
    k, v = (a, b) if keys_first else (b, a)
    if _third(k.start, 1) is not qkv or _part(v, 2) is not qkv:
        return
    _, heads, d, n = softmax.meta["shape"]
    # The context is (d, e), or (e, d) where v comes first; the products need the n of k and v, and then d, inside.
    inside = (
        ended(k.moved, (d, n), turned=not keys_first)
        and ended(v.moved, (d, n), turned=keys_first)
        and ended(context.moved, (d, d), turned=keys_first is second)
        and ended(q.moved, (d, n), turned=not second)
    )
    out = path_from(last)
    factor = q.factor * context.factor * k.factor * v.factor
    divided = [one for one in (False, True) if math.isclose(factor, output_scale(d, n, one), rel_tol=1e-6)]
    if second and inside and divided and out.factor == 1 and _is_image(out, qkv, heads * d):
        replace(graph, out.end, ours.linear_attention.default, (qkv, heads, divided[0]))


def _third(softmax: Node, part: int) -> Node | None:
    """qkv, if it is a softmax of the queries' channels (part 0) or of the keys' positions (1)."""
    dims = {0: (-2, 2), 1: (-1, 3)}[part]
    if softmax.target is not aten._softmax.default or softmax.args[1] not in dims:
        return None
    path = path_to(softmax.args[0])
    straight = path.moved is not None and path.moved.is_contiguous() and path.factor == 1
    return _part(path, part) if straight else None


def _part(path: Path, part: int) -> Node | None:
    """qkv (B, 3 C, H, W), if a path begins at that third of its channels."""
    third = path.start
    if third.target is not operator.getitem or third.args[1] != part or only_user(third) is None:
        return None
    split = third.args[0]
    if split.target is not aten.split.Tensor or (*split.args, 0)[2] not in (1, -3):
        return None
    qkv, size = split.args[:2]
    return qkv if len(qkv.meta["shape"]) == 4 and qkv.meta["shape"][1] == 3 * size else None


def _is_image(out: Path, qkv: Node, channels: int) -> bool:
    """Whether the product's matrices end as a picture (B, C, H, W), the heads' channels one after the other."""
    batch, _, height, width = qkv.meta["shape"]
    whole = out.moved is not None and tuple(out.moved.shape) == sized((batch, channels, height, width))
    return whole and ended(out.moved, (height, width), turned=False) and out.end.meta["dtype"] == qkv.meta["dtype"]
