"""(prototype) The CPU form: a graph's nodes by the C kernels where they take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import only_user
from fastdiff.kernels import operators as ops
from fastdiff.kernels.cpu import operators as c
from fastdiff.kernels.cpu.compiled import vector_width


def lower(graph: Graph) -> dict[fx.Node, tuple[Callable[..., Any], tuple]]:
    found: dict[fx.Node, tuple[Callable[..., Any], tuple]] = {}
    for node in graph.nodes.nodes:
        if node.target is ops.group_norm:
            made = _norm(graph, node)
        elif node.target is ops.convolution:
            made = _convolution(graph, node)
        else:
            continue
        if made is not None:
            found[node] = made
    return found


def _norm(graph: Graph, node: fx.Node):
    x, groups, weight, bias, eps, after = node.args
    if weight is None or bias is None or x.meta["shape"][1] < vector_width():
        return None
    return c.group_norm, (x, groups, weight, bias, eps, after)


def _convolution(graph: Graph, node: fx.Node):
    x, weight, bias, stride, padding, dilation, groups, added, after, residual = node.args
    kernel = graph.constants[weight.target]
    b, channels, h, w = x.meta["shape"]
    o, _, size, _ = kernel.shape
    plain = tuple(stride) == tuple(dilation) == (1, 1) and tuple(padding) == (size // 2, size // 2)
    if plain and groups == channels == o >= vector_width() and size % 2 and kernel.shape[3] == size and residual is after is None:
        packed = c.depthwise_weight(kernel)
        if added is None or added.meta["shape"][0] == 1:
            def run(x, bias, added):
                return c.depthwise(x, packed, bias if added is None else added.flatten() if bias is None else bias + added.flatten())
            return run, (x, bias, added)
        return None
    if plain and groups == 1 and kernel.shape[2:] == (3, 3) and min(channels, o) >= vector_width():
        packed = c.winograd_weight(kernel, c.winograd_tile(b, h, w))
        norm = None
        if x.target is ops.group_norm and only_user(x) is node and x.args[5] is None and x.args[2] is not None:
            x, groups, *affine, eps = x.args[:5]
            norm = (groups, *affine, eps)
        if added is not None and added.meta["shape"][0] != 1:
            def late(x, bias, added, residual, norm):
                raise NotImplementedError
            return None
        def run(x, bias, added, residual, norm):
            total = bias if added is None else added.flatten() if bias is None else bias + added.flatten()
            return c.winograd(x, packed, total, o, after, residual, norm)
        return run, (x, bias, added, residual, norm)
    return None
