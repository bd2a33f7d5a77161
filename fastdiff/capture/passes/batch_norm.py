"""BatchNorm in eval() as a factor and a term of each channel, and into the convolution before it.

y = (w * x + b - mean) gain / sqrt(var + eps) + shift.
"""

from __future__ import annotations

from torch import Tensor

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, constant, only_user, supersede


def fold_batch_norm(graph: Graph) -> None:
    """In float64, rounded once."""
    for node in list(graph.nodes.nodes):
        if node.target is aten.batch_norm.default:
            _fold(graph, node)
    graph.tidy()


def scale_and_offset(graph: Graph, node: Node, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor] | None:
    """scale and offset, (C,) in float64, of x scale + offset, which an aten.batch_norm of x + bias is.

    None if one of its numbers is no constant, as over the statistics of the batch.
    """
    _, gain, shift, mean, var, training, _, eps, _ = node.args
    center, spread = constant(graph, mean), constant(graph, var)
    if training or center is None or spread is None:
        return None
    if any(one is not None and constant(graph, one) is None for one in (gain, shift)):
        return None
    scale = (spread.double() + eps).rsqrt()
    if gain is not None:
        scale = scale * constant(graph, gain).double()
    offset = (bias - center.double()) * scale
    return scale, offset if shift is None else offset + constant(graph, shift).double()


def _fold(graph: Graph, node: Node) -> None:
    conv = node.args[0]
    if conv.target is not aten.convolution.default or only_user(conv) is not node:
        return
    x, weight, bias, *options = conv.args
    transposed, groups = options[3], options[5]
    kernel, own = constant(graph, weight), constant(graph, bias)
    if kernel is None or (bias is not None and own is None) or (transposed and groups > 1):
        return
    found = scale_and_offset(graph, node, 0.0 if own is None else own.double())
    if found is None:
        return
    scale, offset = found
    along = [1] * kernel.ndim
    along[1 if transposed else 0] = -1
    dtype = weight.meta["dtype"]
    folded = (kernel.double() * scale.view(along)).to(dtype), offset.to(dtype)
    conv.args = (x, *(graph.constant(value, conv) for value in folded), *options)
    supersede(graph, node, conv)
