"""What the Triton kernels compute around the library's convolutions, written into a graph; and depthwise ones.

A convolution whose result a norm reads, or that is followed by more than its bias, runs without its bias, which the
next kernel adds: torch would add it in a kernel of its own. Elsewhere the bias stays with the convolution.
"""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import (
    ACTIVATIONS,
    Node,
    activation,
    insert,
    keeps_size,
    only_user,
    ours,
    replace,
    stored,
    supersede,
)
from fastdiff.kernels.bias_add import conv_ending
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


def endings(graph: Graph) -> None:
    """What follows a convolution, its bias first: into the norm that reads its result, or one kernel for all of it."""
    for node in list(graph.nodes.nodes):
        if node.target is ours.group_norm.default:
            _before_norm(node)
    for node in list(graph.nodes.nodes):
        if node.target is convolution and any(one is not None for one in node.args[7:]):
            _ending(graph, node)
    graph.tidy()


def depthwise_convolutions(graph: Graph) -> None:
    """Those that keep the picture's size, with a kernel of their own."""
    for node in list(graph.nodes.nodes):
        if node.target is convolution:
            _depthwise(graph, node)
    graph.tidy()


def _before_norm(norm: Node) -> None:
    """The bias of the convolution that a norm alone reads, and the activation between them."""
    x, groups, weight, bias, eps, input_bias, scale, shift, before, after = norm.args
    if x.target is not convolution or only_user(x) is not norm or input_bias is not None or before is not None:
        return
    added, activated, residual = x.args[7:]
    if added is None and residual is None:
        norm.args = (x, groups, weight, bias, eps, x.args[2], scale, shift, activated, after)
        x.args = (*x.args[:2], None, *x.args[3:7], None, None, None)


def _ending(graph: Graph, node: Node) -> None:
    """convolution(...) → the library's without a bias, and conv_ending of the rest."""
    x, weight, bias, *options, added, after, residual = node.args
    bare = insert(graph, node, convolution, (x, weight, None, *options, None, None, None), node)
    theirs = None
    if residual is not None and _bare(residual, node):
        theirs, residual.args = residual.args[2], (*residual.args[:2], None, *residual.args[3:])
    replace(graph, node, conv_ending, (bare, bias, added, after, residual, theirs))


def _bare(node: Node, reader: Node) -> bool:
    """Whether it is a convolution with a bias and nothing after it, which nothing else reads."""
    if node.target is not convolution or node.args[2] is None:
        return False
    return node.args[7:] == (None, None, None) and only_user(node) is reader


def _depthwise(graph: Graph, node: Node) -> None:
    x, weight, bias, *_, groups, added, after, residual = node.args
    kernel = stored(graph, weight)
    if kernel is None:
        return
    same = node.meta["dtype"] == x.meta["dtype"]  # not so with a time bias of a wider one
    if same and keeps_size(node, kernel) and groups == len(kernel) == x.meta["shape"][1]:
        taps = graph.constant(taps_first(kernel), node)
        bare = insert(graph, node, fused_depthwise, (x, taps, bias, added), node)
        if residual is not None:
            replace(graph, node, conv_ending, (bare, None, None, after, residual))
        elif after is not None:  # which a norm that follows may take
            target, named = ACTIVATIONS[after]
            replace(graph, node, target, (bare,), **named)
        else:
            supersede(graph, node, bare)
