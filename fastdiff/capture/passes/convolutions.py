"""Convolutions with what follows: a row of the time added to each channel, an activation, a residual."""

from __future__ import annotations

import math

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, ending_of, replace
from fastdiff.kernels.conv import convolution


def fuse_convolutions(graph: Graph) -> None:
    """aten.convolution of images becomes kernels.conv.convolution, with what follows it where nothing else reads it.

    Of two convolutions that are added, the one with the larger kernel makes the addition.
    """
    found = [node for node in graph.nodes.nodes if node.target is aten.convolution.default]
    for node in sorted(found, key=lambda node: -math.prod(node.args[1].meta["shape"][2:])):
        if len(node.meta["shape"]) == 4:
            _fuse(graph, node)
    graph.tidy()


def _fuse(graph: Graph, conv: Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = conv.args
    if transposed or any(output_padding):
        return
    added, after, residual, last = ending_of(conv)
    replace(graph, last, convolution, (x, weight, bias, stride, padding, dilation, groups, added, after, residual))
