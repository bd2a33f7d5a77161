"""Linear attention between a GroupNorm of one group and its output projection, with folded weights.

See kernels.attention_block for the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, arguments, aten, constant, only_user, ours, replace
from fastdiff.kernels.attention_block import attention_of
from fastdiff.kernels.folded_attention import fold

NORM_EPS = 1e-5  # attention_block's own, of the norm of its result


def fold_linear_attention(graph: Graph, fits: Callable[[int, int, int], bool]) -> None:
    """group_norm, 1x1 convolution, linear_attention, 1x1 convolution[, channel_norm and residual] → attention_of.

    Args:
        graph: is changed.
        fits: (channels, width of a head, positions) → whether the folded operator is to be used.
    """
    for node in list(graph.nodes.nodes):
        if node.target is ours.linear_attention.default:
            _fold(graph, node, fits)
    graph.tidy()


def _fold(graph: Graph, node: Node, fits: Callable[[int, int, int], bool]) -> None:
    qkv, heads, divide_by_n = arguments(node)
    project: Node = only_user(node)
    if project is None or not (_is_1x1(qkv) and _is_1x1(project)) or only_user(qkv) is not node:
        return
    norm = qkv.args[0]
    if norm.target not in (aten.group_norm.default, ours.group_norm.default) or only_user(norm) is not qkv:
        return
    x, groups, *affine, eps = norm.args[:5]
    channels, *size = x.meta["shape"][1:]
    if groups != 1 or not fits(channels, node.meta["shape"][1] // heads, math.prod(size)):
        return
    if norm.target is ours.group_norm.default and any(one is not None for one in arguments(norm)[5:]):
        return
    gain: Any = None
    last: Node = project
    after: Node = only_user(project)
    if after is not None and after.target is ours.channel_norm.default:
        _, given, residual, norm_eps = arguments(after)
        if residual is x and norm_eps == NORM_EPS:
            gain, last = given, after
    weights: list[Any] = [constant(graph, one) for one in (*affine, qkv.args[1], project.args[1], project.args[2])]
    if qkv.args[2] is not None or any(one is None for one in weights):
        return
    if gain is not None and constant(graph, gain) is None:
        return
    weights.append(None if gain is None else constant(graph, gain))
    options: dict[str, Any] = dict(heads=heads, divide_by_n=divide_by_n, eps=eps, dtype=qkv.args[1].meta["dtype"])
    folded = fold(*weights, **options)
    tensors = [graph.constant(one, last) for one in (folded.w_q, folded.w_k, folded.q_bias)]
    values = [graph.constant(one, last) for one in folded.values]
    tail = [None if one is None else graph.constant(one, last) for one in (folded.bias, folded.shift, folded.gain)]
    replace(graph, last, attention_of, (x, *tensors, values, *tail, heads, divide_by_n, eps))


def _is_1x1(node: Node) -> bool:
    """Whether it is a plain 1x1 convolution."""
    if node.target is not aten.convolution.default:
        return False
    _, weight, _, stride, padding, _, transposed, _, groups = node.args
    size = tuple(weight.meta["shape"][2:])
    return size == (1, 1) and not transposed and groups == 1 and set(stride) == {1} and set(padding) == {0}
