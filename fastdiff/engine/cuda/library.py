"""What the Triton kernels compute around the library's convolutions, written into a graph; and depthwise ones.

A convolution whose result a norm or an addition reads runs without its bias, which the reader's kernel adds: torch
would add it in a kernel of its own. Elsewhere the bias stays with the convolution.
"""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, activation, insert, keeps_size, only_user, ours, replace, stored
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.depthwise_conv import fused_depthwise, taps_first


def activations_before_norms(graph: Graph) -> None:
    """group_norm(activation(x)) → group_norm with that activation before it."""
    for node in list(graph.nodes.nodes):
        user = only_user(node)
        if activation(node) and user is not None and user.target is ours.group_norm.default:
            x, groups, weight, bias, eps, input_bias, scale, shift, before, after = user.args
            if x is node and before is None and input_bias is None:
                new = (node.args[0], groups, weight, bias, eps, None, scale, shift, activation(node), after)
                replace(graph, user, ours.group_norm.default, new)
    graph.tidy()


def biases_into_readers(graph: Graph) -> None:
    """The bias of a convolution that a norm or an addition reads, on either side."""
    for node in list(graph.nodes.nodes):
        if node.target is ours.group_norm.default:
            x, *options = node.args
            if options[4] is None and _bare(x, node):
                node.args = (x, *options[:4], _taken(x), *options[5:])
        elif node.target is convolution and node.args[7:9] == (None, None) and node.args[9] is not None:
            _addition(graph, node)
    graph.tidy()


def depthwise_convolutions(graph: Graph) -> None:
    """Those that keep the picture's size, with a kernel of their own."""
    for node in list(graph.nodes.nodes):
        if node.target is convolution:
            _depthwise(graph, node)
    graph.tidy()


def _addition(graph: Graph, node: Node) -> None:
    """convolution(...) + residual → bias_add, which adds the biases of both."""
    *conv, residual = node.args
    bias, conv[2] = conv[2], None
    x = insert(graph, node, convolution, (*conv, None), node)
    theirs = _taken(residual) if _bare(residual, node) else None
    replace(graph, node, ours.bias_add.default, (x, residual, bias, theirs))


def _bare(node: Node, reader: Node) -> bool:
    """Whether it is a convolution with a bias and nothing after it, which nothing else reads."""
    if node.target is not convolution or node.args[2] is None:
        return False
    return node.args[7:] == (None, None, None) and only_user(node) is reader


def _taken(node: Node) -> Node:
    """A convolution's bias, which it no longer has."""
    bias, node.args = node.args[2], (*node.args[:2], None, *node.args[3:])
    return bias


def _depthwise(graph: Graph, node: Node) -> None:
    x, weight, bias, *_, groups, added, after, residual = node.args
    kernel = stored(graph, weight)
    if kernel is None or after is not None or residual is not None:
        return
    if keeps_size(node, kernel) and groups == len(kernel) == x.meta["shape"][1]:
        taps = graph.constant(taps_first(kernel), node)
        replace(graph, node, fused_depthwise, (x, taps, bias, added))
