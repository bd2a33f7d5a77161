"""BatchNorm into the convolution before it: y = (w * x + b - mean) gain / sqrt(var + eps) + shift."""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, constant, only_user, supersede


def fold_batch_norm(graph: Graph) -> None:
    """In float64, rounded once."""
    for node in list(graph.nodes.nodes):
        if node.target is aten.batch_norm.default:
            _fold(graph, node)
    graph.tidy()


def _fold(graph: Graph, node: Node) -> None:
    conv, gain, shift, mean, var, training, _, eps, _ = node.args
    if training or conv.target is not aten.convolution.default or only_user(conv) is not node:
        return
    x, weight, bias, *options = conv.args
    transposed, groups = options[3], options[5]
    center, spread, kernel = (constant(graph, one) for one in (mean, var, weight))
    if center is None or spread is None or kernel is None or (transposed and groups > 1):
        return
    if any(one is not None and constant(graph, one) is None for one in (gain, shift, bias)):
        return
    scale = (spread.double() + eps).rsqrt()
    if gain is not None:
        scale = scale * constant(graph, gain).double()
    offset = -center.double() if bias is None else constant(graph, bias).double() - center.double()
    offset = offset * scale
    if shift is not None:
        offset = offset + constant(graph, shift).double()
    along = [1] * kernel.ndim
    along[1 if transposed else 0] = -1
    dtype = weight.meta["dtype"]
    folded = (kernel.double() * scale.view(along)).to(dtype), offset.to(dtype)
    conv.args = (x, *(graph.constant(value, conv) for value in folded), *options)
    supersede(graph, node, conv)
