"""For each operation of a graph how it is lowered."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.comparisons import number_comparisons
from fastdiff.capture.passes.match import Node, arguments, aten, constant, ours, places, stored
from fastdiff.capture.tidy import fold_constants
from fastdiff.engine.cpu import convolutions, norms
from fastdiff.engine.cpu.elementwise import ELEMENTWISE
from fastdiff.engine.cpu.lowering import Lowering, Packed, Value, Way, concatenate
from fastdiff.engine.cpu.plan import Plan
from fastdiff.engine.cpu.views import order_of
from fastdiff.kernels.attention_block import attention_of
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.cpu import attention, linear, pooling
from fastdiff.kernels.cpu import reduce as reduction
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.matmul import matmul
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.softmax import MOST_DIMENSIONS, softmax
from fastdiff.kernels.cpu.softmax_attention import softmax_attention
from fastdiff.kernels.cpu.window import Window
from fastdiff.kernels.folded_attention import FoldedAttention
from fastdiff.kernels.position_norm import position_norm


def planned(graph: Graph, batch: int, halves: int = 1, packed: Packed | None = None) -> Plan:
    """The plan of a graph of one batch after the passes; see Lowering."""
    fold_constants(graph)  # what depends on the batch alone
    number_comparisons(graph)
    return Plan(Lowering(graph, WAYS, batch, halves, packed))


def _linear(low: Lowering, node: Node) -> Value | None:
    x, weight, bias = (*node.args, None)[:3]
    matrix = stored(low.graph, weight)
    if matrix is None or matrix.ndim != 2 or not convolutions.fits_channels(bias, len(matrix)):
        return None
    out = low.rows_out(node)
    packed = View.of(low.pack("linear", weight, linear.linear_weight))
    low.call(linear.linear(low.rows(low.view(x)), packed, out, Ending(low.vector(bias))))
    return out


def _softmax_attention(low: Lowering, node: Node) -> Value | None:
    q, k, v, mask, dropout, causal, scale, grouped = arguments(node)
    plain = mask is None and not (dropout or causal or grouped) and (scale is None or scale > 0)
    shapes = [one.meta["shape"] for one in (q, k, v)]
    if not plain or any(len(shape) != 4 or shape[:2] != shapes[0][:2] for shape in shapes):
        return None  # torch has one head's keys serve several
    out = low.place(node)
    if out is None or out.rows(3) is None:
        out = low.new(node.meta["shape"], (0, 2, 1, 3))
    low.call(softmax_attention(low.view(q), low.view(k), low.view(v), out, scale))
    return out


def _linear_attention(low: Lowering, node: Node) -> Value | None:
    x, w_q, w_k, q_bias, values, bias, shift, gain, *rest = node.args
    tensors: list[Any] = [constant(low.graph, one) for one in (w_q, w_k, q_bias, *values, bias, shift, gain)]
    w_q, w_k, q_bias, *parts = tensors[:-3]
    folded = FoldedAttention(w_q, w_k, q_bias, tuple(parts), *tensors[-3:], *rest)
    kind = "attention", str(node.args[2:])  # the other constants' names, and the numbers
    packed = low.pack(kind, node.args[1], lambda _: attention.pack(folded))
    images, out = low.images(x), low.images_out(node)
    memory = [low.new(shape(images.shape[0])) for shape in (packed.numbers_shape, packed.context_shape)]
    low.call(*attention.attention_block(images, packed, out, *memory))
    return out


def _product(low: Lowering, node: Node) -> Value | None:
    a, b = node.args
    out = low.result(node, range(len(node.meta["shape"])))
    low.call(matmul(low.view(a), low.view(b), out))
    return out


def _softmax(low: Lowering, node: Node) -> Value | None:
    x, dim, _ = node.args
    view = low.view(x)
    if not 1 <= len(view.shape) <= MOST_DIMENSIONS:
        return None
    out = low.result(node, order_of(view))
    low.call(softmax(view, out, dim % len(view.shape)))
    return out


def _reduced(low: Lowering, node: Node, how: str) -> Value | None:
    given = arguments(node)
    x, dims, dtype = given[0], given[1] if len(given) > 2 else None, given[-1]
    if dtype not in (None, torch.float32) or not 1 <= len(x.meta["shape"]) <= reduction.MOST_DIMENSIONS:
        return None
    view, out = low.view(x), low.result(node)
    low.call(reduction.reduce(view, out, places(dims, len(view.shape)), how))
    return out


def _stack(low: Lowering, node: Node) -> Value | None:
    parts, dim = (*node.args, 0)[:2]
    whole = low.result(node)
    dim %= len(whole.shape)
    for at, part in enumerate(parts):
        place = whole.part(dim, at, 1)
        shape, strides = (
            tuple(size for k, size in enumerate(sizes) if k != dim) for sizes in (place.shape, place.strides)
        )
        low.copy(low.view(part), place._replace(shape=shape, strides=strides))
    return whole


def _max_pool(low: Lowering, node: Node) -> Value | None:
    if any(user.target is not getitem or user.args[1] for user in node.users):
        return None  # the places of the maxima
    x, kernel, stride, padding, dilation, ceil = arguments(node)
    if ceil or len(x.meta["shape"]) != 4:
        return None
    first = next(iter(node.users))
    out = low.images_out(first)
    window = Window(*map(_pair, (kernel, stride or kernel, padding, dilation)))
    low.call(pooling.max_pool(low.images(x), out, window))
    return [out]


def _average_pool(low: Lowering, node: Node) -> Value | None:
    x, kernel, stride, padding, ceil, counted, divisor = arguments(node)
    if ceil or divisor is not None or len(x.meta["shape"]) != 4:
        return None
    out = low.images_out(node)
    window = Window(*map(_pair, (kernel, stride or kernel, padding)))
    low.call(pooling.average_pool(low.images(x), out, window, counted))
    return out


def _pair(sizes: list[int]) -> tuple[int, int]:
    return sizes[0], sizes[-1]


WAYS: dict[Any, Way] = {
    **ELEMENTWISE,
    **dict.fromkeys(convolutions.UPSAMPLINGS, convolutions.upsample),
    ours.group_norm.default: norms.group_norm,
    ours.channel_norm.default: norms.channel_norm,
    position_norm: norms.norm_of_positions,
    convolution: convolutions.fused,
    aten.convolution.default: convolutions.plain,
    aten.constant_pad_nd.default: convolutions.pad,
    aten.linear.default: _linear,
    aten.scaled_dot_product_attention.default: _softmax_attention,
    attention_of: _linear_attention,
    aten.cat.default: concatenate,
    aten.bmm.default: _product,
    aten.mm.default: _product,
    aten._softmax.default: _softmax,
    aten.mean.dim: lambda low, node: _reduced(low, node, "mean"),
    aten.sum.dim_IntList: lambda low, node: _reduced(low, node, "sum"),
    aten.mean.default: lambda low, node: _reduced(low, node, "mean"),
    aten.sum.default: lambda low, node: _reduced(low, node, "sum"),
    aten.stack.default: _stack,
    aten.layer_norm.default: norms.layer_norm,
    aten.batch_norm.default: norms.batch_norm,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
}
