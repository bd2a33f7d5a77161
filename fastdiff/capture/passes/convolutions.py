"""Convolutions with what follows: a bias that is a row of the time, an activation, a residual."""

from __future__ import annotations

from torch import fx

from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.match import activation, aten, only_user, replace, same_shape
from fastdiff.kernels import operators as ops


def fuse_convolutions(graph: Graph) -> None:
    for node in list(graph.nodes.nodes):
        if node.target is aten.convolution.default and len(node.args[0].meta["shape"]) == 4:
            _fuse(graph, node)
    graph.tidy()


def _fuse(graph: Graph, conv: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = conv.args
    if transposed or any(output_padding):
        return
    shape, last = conv.meta["shape"], conv
    added = after = residual = None
    user = only_user(last)
    other = _other(user, last, aten.add.Tensor)
    if other is not None and _per_channel(other, shape):
        added, last, user = other, user, only_user(user)
    if user is not None and activation(user):
        after, last, user = activation(user), user, only_user(user)
    other = _other(user, last, aten.add.Tensor)
    if other is not None and same_shape(other, last):
        residual, last = other, user
    new = (x, weight, bias, stride, padding, dilation, groups, added, after, residual)
    replace(graph, last, ops.convolution, new)


def _other(user: fx.Node | None, node: fx.Node, target: object) -> fx.Node | None:
    """The other argument of a binary operation, if the user is that and takes each as it is."""
    if user is None or user.target is not target or user.kwargs.get("alpha", 1) != 1:
        return None
    a, b = user.args
    other = b if a is node else a
    return other if isinstance(other, fx.Node) and other is not node else None


def _per_channel(other: fx.Node, shape: tuple) -> bool:
    """Whether it is (B, C, 1, 1) or (1, C, 1, 1)."""
    theirs = other.meta.get("shape")
    return theirs is not None and len(theirs) == 4 and theirs[0] in (1, shape[0]) and tuple(theirs[1:]) == (shape[1], 1, 1)
