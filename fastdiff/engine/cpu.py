"""The CPU form: a graph's operations by the C kernels of kernels.cpu, where those take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, arguments, aten, constant, keeps_size, only_user, ours, stored
from fastdiff.kernels.attention_block import attention_of
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.cpu import attention, compiled, linear, operators
from fastdiff.kernels.cpu import position_norm as of_positions
from fastdiff.kernels.cpu.softmax_attention import softmax_attention
from fastdiff.kernels.folded_attention import FoldedAttention
from fastdiff.kernels.group_norm import FUNCTIONS
from fastdiff.kernels.position_norm import position_norm

Call = tuple[Callable[..., Any], tuple]


def lowered(graph: Graph) -> dict[Node, Call]:
    """For each node that a C kernel computes, what is called in its place and on which arguments.

    Args:
        graph: of one batch, after the passes.
    """
    ways = {
        ours.group_norm.default: _norm,
        ours.channel_norm.default: _channel_norm,
        position_norm: lambda graph, node: (of_positions.position_norm, node.args),
        convolution: _convolution,
        aten.convolution.default: _along_a_line,
        aten.linear.default: _linear,
        aten._softmax.default: lambda graph, node: (_softmax, node.args[:2]),
        aten.scaled_dot_product_attention.default: _softmax_attention,
        attention_of: _linear_attention,
    }
    for name, value in graph.constants.items():
        if value.ndim == 1:  # of which the kernels read the memory
            graph.constants[name] = value.contiguous()
    found: dict[Node, Call] = {}
    for node in graph.nodes.nodes:
        way = ways.get(node.target)
        call = None if way is None or node.meta["dtype"] != torch.float32 else way(graph, node)
        if call is not None:
            found[node] = call
    return found


def _norm(graph: Graph, node: Node) -> Call | None:
    x, groups, weight, bias, eps, input_bias, scale, shift, before, after = node.args
    bare = weight is None and scale is None
    if bare or input_bias is not None or before is not None or x.meta["shape"][1] < compiled.vector_width():
        return None
    if scale is None:
        return operators.group_norm, (x, groups, weight, bias, eps, after)

    def run(x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
        scale, shift = scale.flatten(1) + 1, shift.flatten(1)
        if weight is not None and bias is not None:
            scale, shift = weight * scale, torch.addcmul(shift, bias, scale)
        scale, shift = (one.contiguous() for one in torch.broadcast_tensors(scale, shift))
        return operators.group_norm(x, groups, scale, shift, eps, after)

    return run, (x, weight, bias, scale, shift)


def _channel_norm(graph: Graph, node: Node) -> Call:
    x, gain, residual, eps = arguments(node)
    return of_positions.position_norm, (x, gain, None, eps, True, None, residual)


def _convolution(graph: Graph, node: Node) -> Call | None:
    x, weight, bias, *_, groups, added, after, residual = node.args
    kernel = stored(graph, weight)
    if kernel is None or not keeps_size(node, kernel):
        return None
    out, channels = len(kernel), x.meta["shape"][1]
    if groups == 1 and kernel.shape[2:] == (1, 1):
        packed = linear.linear_weight(kernel)

        def run(x: Tensor, bias: Tensor | None, added: Tensor | None, residual: Tensor | None) -> Tensor:
            if added is None or len(added) == 1:
                row = _sum(bias, added)
                return linear.pointwise(x, packed, None if row is None else row.flatten(), out, after, residual)
            y = FUNCTIONS[after](linear.pointwise(x, packed, bias, out) + added)
            return y if residual is None else y + residual

        return run, (x, bias, added, residual)
    if min(channels, out) < compiled.vector_width():
        return None
    if groups == 1 and kernel.shape[2:] == (3, 3):
        return _winograd(graph, node, kernel)
    if groups == channels == out and after is None and residual is None:
        packed = operators.depthwise_weight(kernel)
        return lambda x, bias, added: operators.depthwise(x, packed, _sum(bias, added)), (x, bias, added)
    return None


def _winograd(graph: Graph, node: Node, kernel: Tensor) -> Call:
    """A 3x3 convolution; a norm before it that nothing else reads is applied as the convolution reads."""
    x, _, bias, *_, added, after, residual = node.args
    batch, _, height, width = x.meta["shape"]
    channels = len(kernel)
    packed = operators.winograd_weight(kernel, operators.winograd_tile(batch, height, width))
    norm = None
    if x.target is ours.group_norm.default and only_user(x) is node and _norm(graph, x) is not None:
        given, *numbers = x.args
        if not any(one is not None for one in numbers[4:]):  # neither modulated nor with an activation
            x, norm = given, tuple(numbers[:4])

    def run(x: Tensor, bias: Tensor | None, added: Tensor | None, residual: Tensor | None, norm: Any) -> Tensor:
        return operators.winograd(x, packed, _sum(bias, added), channels, after, residual, norm)

    return run, (x, bias, added, residual, norm)


def _along_a_line(graph: Graph, node: Node) -> Call | None:
    """A convolution of (B, C, N) whose kernel has one element."""
    x, weight, bias, stride, padding, _, transposed, _, groups = node.args
    kernel = stored(graph, weight)
    if kernel is None or kernel.shape[2:] != (1,) or transposed or groups != 1 or (*stride, *padding) != (1, 0):
        return None
    packed, out = linear.linear_weight(kernel), len(kernel)
    return lambda x, bias: linear.pointwise(x, packed, bias, out), (x, bias)


def _fits(vector: Node | None, channels: int) -> bool:
    """Whether it is a number for each channel, or None; torch takes one number for all as well."""
    return vector is None or vector.meta["shape"] == (channels,)


def _linear(graph: Graph, node: Node) -> Call | None:
    x, weight, bias = (*node.args, None)[:3]
    matrix = stored(graph, weight)
    if matrix is None or matrix.ndim != 2 or not _fits(bias, len(matrix)):
        return None
    packed, out = linear.linear_weight(matrix), len(matrix)
    return lambda x, bias: linear.linear(x, packed, bias, out), (x, bias)


def _softmax(x: Tensor, dim: int) -> Tensor:
    """torch is fast over the last dimension alone, so one that lies last in memory is made the last."""
    if x.stride(dim) != 1:
        return x.softmax(dim)
    return x.movedim(dim, -1).softmax(-1).movedim(-1, dim)


def _softmax_attention(graph: Graph, node: Node) -> Call | None:
    q, k, v, mask, dropout, causal, scale, grouped = arguments(node)
    plain = mask is None and not (dropout or causal or grouped) and (scale is None or scale > 0)
    shapes = [one.meta["shape"] for one in (q, k, v)]
    if not plain or any(len(shape) != 4 or shape[:2] != shapes[0][:2] for shape in shapes):
        return None  # torch has one head's keys serve several
    return softmax_attention, (q, k, v, scale)


def _sum(bias: Tensor | None, added: Tensor | None) -> Tensor | None:
    """A convolution's bias (C,) with what is added, (1, C, 1, 1) or (B, C, 1, 1): (1, C) or (B, C)."""
    if added is None:
        return bias
    row = added.flatten(1)
    return row.contiguous() if bias is None else bias + row


def _linear_attention(graph: Graph, node: Node) -> Call:
    x, w_q, w_k, q_bias, values, bias, shift, gain, *rest = node.args
    tensors: list[Any] = [constant(graph, one) for one in (w_q, w_k, q_bias, *values, bias, shift, gain)]
    w_q, w_k, q_bias, *parts = tensors[:-3]
    packed = attention.pack(FoldedAttention(w_q, w_k, q_bias, tuple(parts), *tensors[-3:], *rest))
    return lambda x: attention.attention_block(x, packed), (x,)
