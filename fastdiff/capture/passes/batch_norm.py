"""BatchNorm into the convolution or the product before it: y = (w * x + b - mean) gain / sqrt(var + eps) + shift."""

from __future__ import annotations

import torch

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import aten, constant, only_user


def fold_batch_norm(graph: Graph) -> None:
    """In float64, rounded once."""
    for node in list(graph.nodes.nodes):
        if node.target is not aten.batch_norm.default:
            continue
        conv, gain, shift, mean, var, training, _, eps, _ = node.args
        statistics = [constant(graph, one) for one in (mean, var)]
        if training or None in statistics or conv.target is not aten.convolution.default or only_user(conv) is not node:
            continue
        x, weight, bias, *options = conv.args
        kernel, transposed, groups = constant(graph, weight), options[3], options[5]
        if kernel is None or transposed and groups > 1:
            continue
        given = [None if one is None else constant(graph, one) for one in (gain, shift, bias)]
        scale = (statistics[1].double() + eps).rsqrt()
        scale = scale if given[0] is None else scale * given[0].double()
        offset = -statistics[0].double() if given[2] is None else given[2].double() - statistics[0].double()
        offset = offset * scale if given[1] is None else offset * scale + given[1].double()
        along = [1] * kernel.ndim
        along[1 if transposed else 0] = -1
        new = (kernel.double() * scale.view(along)).to(kernel.dtype), offset.to(kernel.dtype)
        conv.args = (x, *(graph.constant(value, conv) for value in new), *options)
        node.replace_all_uses_with(conv)
        graph.nodes.erase_node(node)
    graph.tidy()
