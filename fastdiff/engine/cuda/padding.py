"""Channels of the library's convolutions padded with zeros to what tensor cores take, where that costs no pass.

The weights are padded once. A result is then wider than the network's, which is a view of it; an input is written wider
by the kernel that makes it. A norm reads the view, and never what was padded.
"""

from __future__ import annotations

import torch.nn.functional as F

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import Node, aten, insert, ours, replace, stored, supersede
from fastdiff.engine.cuda import choice
from fastdiff.kernels.bias_add import conv_ending
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.group_norm import can_widen, group_norm_wide

# They read each tensor by its strides, so that a view of a wider one is not copied.
_STRIDED = {ours.group_norm.default, group_norm_wide, conv_ending, convolution}


def pad_channels(graph: Graph) -> None:
    """Pad the input and output channels of what is left to the library, by choice.padded_channels.

    Args:
        graph: of one batch, with all that follows its convolutions taken from them; is changed.
    """
    wider: dict[Node, Node] = {}  # views of what was padded
    for node in list(graph.nodes.nodes):
        if node.target is convolution:
            _pad(graph, node, wider)
    graph.tidy()


def _pad(graph: Graph, conv: Node, wider: dict[Node, Node]) -> None:
    x, weight, bias, stride, padding, dilation, groups, *ending = conv.args
    kernel, added = stored(graph, weight), None if bias is None else stored(graph, bias)
    if groups != 1 or any(ending) or kernel is None or (added is None) != (bias is None):
        return
    outputs, inputs = kernel.shape[:2]
    dtype = conv.meta["dtype"]
    wide_x = _widened(graph, x, choice.padded_channels(inputs, dtype), wider)
    more_inputs = 0 if wide_x is None else wide_x.meta["shape"][1] - inputs
    more_outputs = choice.padded_channels(outputs, dtype) - outputs
    if any(user.target not in _STRIDED for user in conv.users):
        more_outputs = 0
    if not more_inputs and not more_outputs:
        return
    whole = graph.constant(F.pad(kernel, (0, 0, 0, 0, 0, more_inputs, 0, more_outputs)), conv)
    longer = None if added is None else graph.constant(F.pad(added, (0, more_outputs)), conv)
    new = insert(
        graph, conv, convolution, (wide_x or x, whole, longer, stride, padding, dilation, groups, *ending), conv
    )
    new.meta["shape"] = (new.meta["shape"][0], outputs + more_outputs, *new.meta["shape"][2:])
    if more_outputs:
        wider[replace(graph, conv, aten.slice.Tensor, (new, 1, 0, outputs))] = new
    else:
        supersede(graph, conv, new)


def _widened(graph: Graph, x: Node, wide: int, wider: dict[Node, Node]) -> Node | None:
    """x with zeros after its channels, written so by what makes it; None where that cannot."""
    if x in wider:
        return wider[x] if wider[x].meta["shape"][1] == wide else None
    b, channels, *size = x.meta["shape"]
    if wide == channels:
        return None
    if x.target is ours.group_norm.default and can_widen(channels, x.args[1], wide):
        made = insert(graph, x, group_norm_wide, (wide, *x.args), x)
    elif x.target is conv_ending:
        made = insert(graph, x, conv_ending, (*x.args, *[None] * (6 - len(x.args)), wide), x)
    else:
        return None
    made.meta["shape"] = (b, wide, *size)
    view = replace(graph, x, aten.slice.Tensor, (made, 1, 0, channels))
    wider[view] = made
    return made
