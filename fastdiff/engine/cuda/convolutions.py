"""Convolutions as fused_conv's, and what is around them taken into them: passes over a graph of one batch.

Until `pack` the weights in the graph are as the network has them, (O, C, KH, KW), or (C, O, KH, KW) if transposed.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from fastdiff.capture.graph import Graph, described
from fastdiff.capture.passes.match import (
    Node,
    aten,
    constant,
    ending_of,
    insert,
    only_user,
    ours,
    replace,
    stored,
    supersede,
)
from fastdiff.capture.passes.moves import factor_of
from fastdiff.engine.cuda import choice
from fastdiff.engine.cuda.attention import in_one
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.conv_weight import Window, pack
from fastdiff.kernels.depthwise_conv import fused_depthwise
from fastdiff.kernels.fused_conv import fold_norm, fused_conv
from fastdiff.kernels.group_norm import MAX_CHANNELS, group_norm_of, group_norm_rows
from fastdiff.kernels.last_conv import LastConv
from fastdiff.kernels.small_attention import small_attention


def fuse(graph: Graph) -> None:
    """All passes, after capture.passes.convolutions; what is left to the library stays as it is."""
    for node in list(graph.nodes.nodes):
        if node.target is convolution:
            _ordinary(graph, node)
        elif node.target is aten.convolution.default:
            _transposed(graph, node)
    for take in (_upsampling, _concatenation, _shortcut, _factor, in_one, _norm, _known_norm):
        for node in list(graph.nodes.nodes):
            take(graph, node)
        graph.tidy()
    for node in list(graph.nodes.nodes):
        if node.target is fused_conv:
            _pack(graph, node)
    graph.tidy()


def leave_last(graph: Graph) -> None:
    """The convolution that makes the graph's only result is left to what uses it, as a LastConv."""
    result: Node = graph.results[0]
    if result.target is not fused_conv or result.kwargs:
        return
    window, channels = result.args[2:4]
    if LastConv.fits(window, channels, *result.meta["shape"][2:]):
        replace(graph, result, LastConv, result.args)
        graph.tidy()


def _ordinary(graph: Graph, node: Node) -> None:
    x, weight, bias, stride, padding, dilation, groups, *ending = node.args
    if groups == 1 and set(dilation) == {1} and len(set(stride)) == 1:
        window = Window(tuple(weight.meta["shape"][2:]), stride[0], tuple(padding))
        _make(graph, node, node, window, ending)


def _transposed(graph: Graph, node: Node) -> None:
    _, weight, _, stride, padding, dilation, transposed, output_padding, groups = node.args
    if not transposed or len(node.meta["shape"]) != 4 or groups != 1 or set(dilation) != {1} or any(output_padding):
        return
    kernel = tuple(weight.meta["shape"][2:])
    if len(set(stride)) == 1 and Window.fits_phases(kernel, stride[0], tuple(padding)):
        *ending, last = ending_of(node)
        if last.meta.get("dtype") != node.meta["dtype"]:  # with a time bias of a wider one
            ending, last = [None] * 3, node
        _make(graph, node, last, Window(kernel, stride[0], tuple(padding), True), ending)


def _make(graph: Graph, conv: Node, last: Node, window: Window, ending: list) -> None:
    """fused_conv in the place of the last of the nodes that it is to compute."""
    x, weight, bias = conv.args[:3]
    shape = weight.meta["shape"]
    inputs, outputs = shape[:2] if window.transposed else shape[1::-1]
    taps = math.prod(window.kernel) // window.phases**2
    dtype = conv.meta["dtype"]
    same = all(one.meta.get("dtype") == dtype for one in (x, weight, last))
    if stored(graph, weight) is None or not same or not choice.is_fused(taps, inputs, outputs, dtype):
        return
    named = dict(zip(("added", "after", "residual"), ending, strict=True))
    given = {name: one for name, one in named.items() if one is not None}
    replace(graph, last, fused_conv, (x, weight, window, outputs, bias), **given)


def _upsampling(graph: Graph, node: Node) -> None:
    """The convolution reads the picture before it was upsampled."""
    if node.target is not fused_conv:
        return
    x, weight, window, channels, bias = node.args
    if x.target is not aten.upsample_nearest2d.default or window.transposed or window.stride != 1:
        return
    before = x.args[0]
    times = {b // a if b % a == 0 else 0 for a, b in zip(before.meta["shape"][2:], x.meta["shape"][2:], strict=True)}
    if len(times) == 1 and 0 not in times and all(scale in (None, *times) for scale in x.args[2:]):
        window = Window(window.kernel, 1, window.padding, nearest=times.pop())
        node.args = (before, weight, window, channels, bias)


def _concatenation(graph: Graph, node: Node) -> None:
    """Of two, each read where it lies."""
    if node.target not in (fused_conv, fused_depthwise) or node.args[0].target is not aten.cat.default:
        return
    parts, *dim = node.args[0].args
    if len(parts) == 2 and dim == [1] and parts[0].meta["dtype"] == parts[1].meta["dtype"]:
        node.args = (parts[0], *node.args[1:])
        node.kwargs = {**node.kwargs, "second": parts[1]}


def _shortcut(graph: Graph, node: Node) -> None:
    """A residual that a 1x1 convolution makes becomes further products of the convolution that adds it."""
    residual = node.kwargs.get("residual")
    if node.target is not fused_conv or residual is None or residual.target is not fused_conv:
        return
    if node.kwargs.get("after") or residual.args[2] != Window((1, 1)) or only_user(residual) is not node:
        return
    x, weight, _, channels, theirs = residual.args
    *args, bias = node.args
    known = [constant(graph, one) for one in (bias, theirs) if one is not None]
    if set(residual.kwargs) - {"second"} or any(one is None for one in known):
        return
    total = None
    if known:
        total = graph.constant(sum(one.double() for one in known).float(), node)
    node.args = (*args, total)
    second = residual.kwargs.get("second")
    more = {} if second is None else {"residual_second": second}
    node.kwargs = {**node.kwargs, "residual": x, "shortcut": weight, **more}


def _factor(graph: Graph, node: Node) -> None:
    """A number that the result is multiplied by."""
    user = only_user(node)
    if node.target is not fused_conv or user is None or user.meta.get("dtype") != node.meta["dtype"]:
        return
    number = factor_of(user)
    if number is not None:
        node.kwargs = {**node.kwargs, "factor": number * node.kwargs.get("factor", 1.0)}
        supersede(graph, user, node)


def _norm(graph: Graph, node: Node) -> None:
    """A norm of one group between what writes statistics and convolutions; see kernels.fused_conv."""
    if node.target is not ours.group_norm.default:
        return
    x, groups, gain, shift, eps, *others = node.args
    known = gain is None or not (constant(graph, gain) is None or constant(graph, shift) is None)
    if groups != 1 or any(one is not None for one in others) or not known or not node.users:
        return
    writer = _writer(x)
    if writer is None or not all(_reads_norm(user, node) for user in node.users):
        return
    statistics = _statistics(graph, writer, "whole")
    x = node.args[0]
    for user in list(node.users):
        _, weight, window, channels, bias = user.args
        kernel, gains, shifts = (constant(graph, one) for one in (weight, gain, shift))
        folded, borders = fold_norm(kernel, gains, shifts, node.meta["shape"][2:], weight.meta["dtype"])
        user.args = (x, graph.constant(folded, user), window, channels, bias)
        made = {"statistics": statistics, "borders": graph.constant(borders, user), "eps": eps}
        user.kwargs = {**user.kwargs, **made}


def _reads_norm(user: Node, norm: Node) -> bool:
    if user.target is not fused_conv or user.args[0] is not norm or norm in user.kwargs.values():
        return False
    window, size = user.args[2], user.args[2].kernel[0]
    plain = window == Window((size, size), padding=(size // 2, size // 2)) and size in (1, 3)
    return plain and not {"second", "statistics"} & set(user.kwargs)


def _known_norm(graph: Graph, node: Node) -> None:
    """A norm of several groups, or with an activation after it, of what is written with its channels' statistics."""
    if node.target is not ours.group_norm.default:
        return
    x, groups, weight, bias, eps, input_bias, scale, shift, before, after = node.args
    if input_bias is not None or before is not None or node.meta["shape"][1] > MAX_CHANNELS:
        return
    joined = x.target is aten.cat.default and len(x.args[0]) == 2 and x.args[1:] == (1,)
    parts = list(x.args[0]) if joined else [x]
    writers = [_writer(part) for part in parts]
    if len({part.meta["dtype"] for part in parts}) > 1 or any(
        one is None or one.kwargs.get("emit", "channels") != "channels" for one in writers
    ):
        return
    statistics = [_statistics(graph, one, "channels") for one in writers]
    # What they write may have become a part of a result since.
    parts = list(node.args[0].args[0]) if joined else [node.args[0]]
    second = {"second": parts[1]} if joined else {}
    later = {"second_statistics": statistics[1]} if joined else {}
    options = groups, weight, bias, eps, scale, shift
    if not all(_reads_once(user, node) for user in node.users):
        replace(graph, node, group_norm_of, (parts[0], statistics[0], *options, after), **second, **later)
        return
    (b, c, h, w) = node.meta["shape"]
    rows = insert(graph, node, group_norm_rows, (statistics[0], h * w, *options), node, **later)
    del rows.meta["shape"], rows.meta["dtype"]  # it is a pair
    own_scale, own_shift = (
        described(insert(graph, node, operator.getitem, (rows, place), node), (b, c), torch.float32) for place in (0, 1)
    )
    for user in list(node.users):
        user.args = (parts[0], *user.args[1:])
        user.kwargs = {**user.kwargs, **second, "scale": own_scale, "shift": own_shift, "before": after}


def _reads_once(user: Node, norm: Node) -> bool:
    """Whether it is a convolution that is to normalise each element as it reads it."""
    if user.target is not fused_conv or user.args[0] is not norm or norm in user.kwargs.values():
        return False
    inside = choice.norm_inside(math.prod(user.args[2].kernel)) and user.args[2].stride == 1
    return inside and not {"second", "statistics", "scale"} & set(user.kwargs)


def _writer(x: Node) -> Node | None:
    """The node whose kernel writes x, if it can write statistics too."""
    if x.target is operator.getitem and x.args[1] == 0:
        x = x.args[0]
    positions = math.prod(x.meta.get("shape", ())[2:])
    few = positions <= choice.MOST_TILES * choice.POSITIONS[x.target is fused_depthwise]
    return x if few and x.target in (fused_conv, fused_depthwise, small_attention) else None


def _statistics(graph: Graph, writer: Node, emit: str) -> Node:
    """Those of what it writes; it then has two results."""
    if "emit" in writer.kwargs:  # of the same kind
        return next(user for user in writer.users if user.args == (writer, 1))
    writer.kwargs = {**writer.kwargs, "emit": emit}
    with graph.nodes.inserting_after(writer):
        result: Any = described(
            graph.nodes.call_function(operator.getitem, (writer, 0)), writer.meta["shape"], writer.meta["dtype"]
        )
        statistics: Any = graph.nodes.call_function(operator.getitem, (writer, 1))
    writer.replace_all_uses_with(result, delete_user_cb=lambda user: user not in (result, statistics))
    return statistics


def _pack(graph: Graph, node: Node) -> None:
    x, weight, window, channels, bias = node.args

    def second(name: str) -> int:
        return node.kwargs[name].meta["shape"][1] if name in node.kwargs else 0

    packed = pack(stored(graph, weight), window, second("second"))
    node.args = (x, graph.constant(packed, node), window, channels, bias)
    if "shortcut" in node.kwargs:
        matrix = pack(stored(graph, node.kwargs["shortcut"]), Window((1, 1)), second("residual_second"))[0, 0, 0]
        node.kwargs = {**node.kwargs, "shortcut": graph.constant(matrix, node)}
