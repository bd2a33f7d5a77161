"""Attention within a picture, from moved parts of one convolution's result, as attention of that result's channels."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import (
    Node,
    arguments,
    aten,
    constant,
    insert,
    only_user,
    ours,
    replace,
    reshaped,
    stored,
    supersede,
)
from fastdiff.capture.passes.moves import MOVES, sized
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.conv_weight import Window, pack
from fastdiff.kernels.fused_conv import fused_conv
from fastdiff.kernels.picture_attention import Heads, picture_attention
from fastdiff.kernels.small_attention import fits, small_attention

_PARTS = {aten.slice.Tensor, aten.select.int}
_SEVERAL = {aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.chunk.default}


def picture_attentions(graph: Graph) -> None:
    """scaled_dot_product_attention of what a convolution made → kernels.picture_attention.

    Args:
        graph: of one batch, after projections were joined; is changed.
    """
    for node in list(graph.nodes.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            _rewrite(graph, node)
    graph.tidy()


def in_one(graph: Graph, node: Node) -> None:
    """The norm, the projections and the residual around attention within a small picture become one with it."""
    if node.target is not picture_attention:
        return
    qkv, heads, scale = node.args
    out = only_user(node)
    if out is None or not _is_projection(qkv, set()) or not _is_projection(out, {"residual", "factor"}):
        return
    if only_user(qkv) is not node or out.args[0] is not node:
        return
    x, w_qkv, _, _, bias = qkv.args
    _, w_out, _, outputs, b_out = out.args
    size = out.meta["shape"][2:]
    exact, b_qkv = constant(graph, w_qkv), constant(graph, bias)
    if exact is None or stored(graph, w_out) is None or (b_qkv is None) != (bias is None):
        return
    groups, eps, shift = 0, 1e-5, None
    weight = exact.double().flatten(1)
    if _is_plain_norm(graph, x, qkv):
        x, groups, gain, offset, eps = x.args[:5]
        if gain is not None:
            shift = weight @ constant(graph, offset).double()
            weight = weight * constant(graph, gain).double()
    channels = x.meta["shape"][1]
    if not fits(out.meta["dtype"], math.prod(size), channels, outputs, heads.count, heads.width):
        return
    terms = [one.double() for one in (b_qkv, shift) if one is not None]
    given = (
        x,
        graph.constant(_matrix(weight.to(stored(graph, w_qkv).dtype)), node),
        graph.constant(sum(terms).float(), node) if terms else None,
        heads,
        scale,
        graph.constant(_matrix(stored(graph, w_out).flatten(1)), node),
        b_out,
        outputs,
        groups,
        eps,
    )
    replace(graph, out, small_attention, given, **out.kwargs)


def _is_projection(node: Node, taken: set[str]) -> bool:
    """Whether it is a fused 1x1 convolution with no more after it than this."""
    plain = node.target is fused_conv and node.args[2] == Window((1, 1))
    return plain and not set(node.kwargs) - taken


def _is_plain_norm(graph: Graph, norm: Node, reader: Node) -> bool:
    if norm.target is not ours.group_norm.default or only_user(norm) is not reader:
        return False
    known = all(one is None or constant(graph, one) is not None for one in norm.args[2:4])
    return known and not any(one is not None for one in norm.args[5:])


def _matrix(weight: Tensor) -> Tensor:
    """(O, C), packed."""
    return pack(weight[:, :, None, None], Window((1, 1)))[0, 0, 0]


class _Place(NamedTuple):
    """Heads of a picture's channels: (count, width, apart), and the first channel."""

    image: Node
    heads: tuple[int, int, int]
    first: int


def _rewrite(graph: Graph, node: Node) -> None:
    q, k, v, mask, dropout, causal, scale, *_ = arguments(node)
    places = [_place(one) for one in (q, k, v)]
    found = [one for one in places if one is not None]
    if mask is not None or dropout or causal or len(found) < 3 or len({one[:2] for one in found}) > 1:
        return
    image, heads, _ = found[0]
    width = heads[1]
    named = Heads(*heads, *(one.first for one in found))
    made = insert(graph, node, picture_attention, (image, named, width**-0.5 if scale is None else scale), image)
    b, _, height, across = image.meta["shape"]
    made.meta["shape"] = b, heads[0] * width, height, across
    parts = reshaped(graph, node, made, (b, heads[0], width, height * across))
    turned = insert(graph, node, aten.transpose.int, (parts, 2, 3), parts)
    turned.meta["shape"] = b, heads[0], height * across, width
    supersede(graph, node, reshaped(graph, node, turned, node.meta["shape"]))


def _place(node: Node) -> _Place | None:
    """Where queries, keys or values (..., n, d) come from, if a convolution made them."""
    steps, source = [], node
    while source.target is not convolution:
        if source.target is operator.getitem:
            steps.append((source.args[0], source.args[1]))
            source = source.args[0].args[0] if source.args[0].target in _SEVERAL else None
        elif source.target in MOVES or source.target in _PARTS:
            steps.append((source, None))
            source = source.args[0]
        else:
            return None
        if not isinstance(source, fx.Node):
            return None
    b, c, height, width = source.meta["shape"]
    n = height * width
    moved = torch.empty(b, c, height, width, device="meta")
    for step, part in reversed(steps):
        out = step.target(moved, *sized(step.args[1:]), **step.kwargs)
        out = out if part is None else out[part]
        if out.untyped_storage()._cdata != moved.untyped_storage()._cdata:
            return None
        moved = out
    if moved.ndim != 4 or moved.shape[2] != n or (moved.shape[0] * moved.shape[1]) % b:
        return None
    count = moved.shape[0] * moved.shape[1] // b
    if moved.shape[0] == b:
        of_sample, apart = moved.stride(0), moved.stride(1) if count > 1 else 0
    elif moved.shape[1] == 1:
        of_sample, apart = moved.stride(0) * count, moved.stride(0)
    else:
        return None
    first, odd = divmod(moved.storage_offset(), n)
    in_place = n == 1 or moved.stride(2) == 1
    in_place = in_place and (moved.shape[3] == 1 or moved.stride(3) == n) and (b == 1 or of_sample == c * n)
    if odd or apart % n or not in_place:
        return None
    return _Place(source, (count, moved.shape[3], apart // n), first)
