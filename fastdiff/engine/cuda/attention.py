"""Attention within a picture, from moved parts of one convolution's result, as attention of that result's channels."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, arguments, aten, insert, reshaped, supersede
from fastdiff.capture.passes.moves import MOVES, sized
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.picture_attention import Heads, picture_attention

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


class _Place(NamedTuple):
    """Heads of a picture's channels: (count, width, apart), and the first channel."""

    image: Node
    heads: tuple[int, int, int]
    first: int


def _rewrite(graph: Graph, node: Node) -> None:
    q, k, v, mask, dropout, causal, scale, *_ = arguments(node)
    places = [_place(one) for one in (q, k, v)]
    if mask is not None or dropout or causal or None in places or len({one[:2] for one in places if one}) > 1:
        return
    image, heads, _ = places[0]
    width = heads[1]
    named = Heads(*heads, *(one.first for one in places if one))
    made = insert(
        graph, node, picture_attention, (image, named, width**-0.5 if scale is None else scale), image
    )
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
        of_sample, apart = moved.stride(0), moved.stride(1)
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
