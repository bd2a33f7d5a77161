"""The CUDA form: what the Triton kernels compute together, written into a graph.

cuDNN's convolutions run without their biases, which the kernel that reads the result adds: torch would add them in a
kernel of its own.
"""

from __future__ import annotations

from torch import fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import activation, only_user, ours, replace
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.depthwise_conv import depthwise_conv, taps_first


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
    """The bias of a convolution that a norm, or another's addition, reads; and the depthwise kernel."""
    for node in list(graph.nodes.nodes):
        if node.target is ours.group_norm.default:
            x, *options = node.args
            if _bare(x) and only_user(x) is node and options[4] is None:
                bias, x.args = x.args[2], (*x.args[:2], None, *x.args[3:])
                node.args = (x, *options[:4], bias, *options[5:])
        elif node.target is convolution:
            _depthwise(graph, node)
    graph.tidy()


def _bare(node: fx.Node) -> bool:
    """Whether it is a convolution with a bias and nothing after it."""
    return node.target is convolution and node.args[2] is not None and node.args[7:] == (None, None, None)


def _depthwise(graph: Graph, node: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, groups, added, after, residual = node.args
    kernel = graph.constants.get(weight.target) if weight.op == "get_attr" else None
    if kernel is None or after is not None or residual is not None or any(one != 1 for one in (*stride, *dilation)):
        return
    out, _, height, width = kernel.shape
    same = height == width and height % 2 == 1 and all(one == height // 2 for one in padding)
    if same and groups == out == x.meta["shape"][1]:
        taps = graph.constant(taps_first(kernel), node)
        replace(graph, node, depthwise_conv, (x, taps, bias, added))
