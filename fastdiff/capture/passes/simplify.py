"""One way to say each thing, so that the other passes look for one: our own operators as the operations that they are
made of, and operations that change nothing gone."""

from __future__ import annotations

from torch import fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import (
    ACTIVATIONS,
    Node,
    arguments,
    aten,
    insert,
    only_user,
    ours,
    places,
    replace,
    reshaped,
    supersede,
)


def simplify(graph: Graph) -> None:
    """x sigmoid(x) becomes SiLU, and pooling to a size pooling by windows; a factor of one, and a softmax's maximum,
    go; fused operators are taken apart."""
    for node in list(graph.nodes.nodes):
        if node.target in (aten.mul.Tensor, aten.div.Tensor) and node.args[1] == 1 and _keeps_dtype(node):
            supersede(graph, node, node.args[0])
        elif node.target is aten.mul.Tensor and _sigmoid_of(node) is not None:
            replace(graph, node, aten.silu.default, (_sigmoid_of(node),))
        elif node.target is aten._softmax.default and _less_its_maximum(node.args[0], node.args[1]):
            node.args = (node.args[0].args[0], *node.args[1:])  # which softmax subtracts itself
        elif node.target in _POOLS:
            _as_windows(node)
        elif node.target is ours.group_norm.default:
            _open_norm(graph, node)
        elif node.target is ours.depthwise_conv.default:
            _open_depthwise(graph, node)
        elif node.target is ours.bias_add.default:
            _open_bias_add(graph, node)
    graph.tidy()


# Pooling to a size, and by windows.
_POOLS = {
    aten._adaptive_avg_pool2d.default: aten.avg_pool2d.default,
    aten.adaptive_max_pool2d.default: aten.max_pool2d_with_indices.default,
}


def _as_windows(node: Node) -> None:
    """Pooling to a size that divides the picture's sees windows of one size, side by side."""
    x, wanted = node.args
    size = x.meta["shape"][-2:]
    if all(b and a % b == 0 for a, b in zip(size, wanted, strict=True)):
        node.target, node.args = _POOLS[node.target], (x, [a // b for a, b in zip(size, wanted, strict=True)])


def _keeps_dtype(node: Node) -> bool:
    return node.args[0].meta.get("dtype") == node.meta["dtype"]


def _sigmoid_of(node: Node) -> Node | None:
    """x, if the product is x sigmoid(x)."""
    for x, factor in (node.args[:2], node.args[1::-1]):
        if isinstance(factor, fx.Node) and factor.target is aten.sigmoid.default and factor.args[0] is x:
            return x
    return None


def _less_its_maximum(node: Node, dim: int) -> bool:
    """Whether it is x - max(x) over a dimension."""
    if node.target is not aten.sub.Tensor or node.kwargs:
        return False
    x, top = node.args
    if not isinstance(top, fx.Node) or top.target is not aten.amax.default:
        return False
    ndim = len(node.meta["shape"])
    of, dims, keepdim = arguments(top)
    return of is x and places(dims, ndim) == [dim % ndim] and keepdim


def _open_norm(graph: Graph, node: Node) -> None:
    """The activations and the input's bias as nodes of their own; what else is fused stays."""
    x, groups, weight, bias, eps, input_bias, scale, shift, before, after = arguments(node)
    x = _biased(graph, node, x, input_bias)
    if before is not None:
        function, options = ACTIVATIONS[before]
        x = insert(graph, node, function, (x,), x, **options)
    node.args = (x, groups, weight, bias, eps, None, scale, shift, None, None)
    if after is not None:
        function, options = ACTIVATIONS[after]
        with graph.nodes.inserting_after(node):
            made = graph.nodes.call_function(function, (node,), options)
        made.meta.update(node.meta)
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def _open_depthwise(graph: Graph, node: Node) -> None:
    x, weight, bias, added = arguments(node)
    channels, size = x.meta["shape"][1], weight.meta["shape"][-1]
    padding = [size // 2, size // 2]
    conv = (x, weight, bias, [1, 1], padding, [1, 1], False, [0, 0], channels)
    if added is None:
        replace(graph, node, aten.convolution.default, conv)
        return
    made = insert(graph, node, aten.convolution.default, conv, node)
    shape = (added.meta["shape"][0], channels, 1, 1)
    if added.meta["shape"] != shape:
        added = reshaped(graph, node, added, shape)
    replace(graph, node, aten.add.Tensor, (made, added))


def _open_bias_add(graph: Graph, node: Node) -> None:
    x, residual, bias, residual_bias = arguments(node)
    replace(
        graph, node, aten.add.Tensor, (_biased(graph, node, x, bias), _biased(graph, node, residual, residual_bias))
    )


def _biased(graph: Graph, before: Node, x: Node, bias: Node | None) -> Node:
    """x + bias, which a convolution that is read here alone takes as its own."""
    if bias is None:
        return x
    free = x.target is aten.convolution.default and x.args[2] is None and only_user(x) is before
    once = [*before.args, *before.kwargs.values()].count(x) == 1
    if free and once and bias.op == "get_attr":
        before.prepend(x)  # after the bias, which other nodes may read before
        x.args = (*x.args[:2], bias, *x.args[3:])
        return x
    row = reshaped(graph, before, bias, (1, x.meta["shape"][1], 1, 1))
    return insert(graph, before, aten.add.Tensor, (x, row), x)
