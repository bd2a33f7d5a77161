"""What passes ask of a graph's nodes. A node is known by what it computes, never by a module's class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Graph, described
from fastdiff.kernels import bias_add, channel_norm, depthwise_conv, group_norm, linear_attention  # noqa: F401

aten = torch.ops.aten
ours = torch.ops.fastdiff  # what the modules above register
Node = Any  # an fx.Node: torch types its arguments as a union of twenty kinds


# By their names in fastdiff.kernels: the operation and its keyword arguments.
ACTIVATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gelu": (aten.gelu.default, {}),
    "gelu_tanh": (aten.gelu.default, {"approximate": "tanh"}),
    "silu": (aten.silu.default, {}),
    "relu": (aten.relu.default, {}),
}


def activation(node: Node | None) -> str | None:
    """The activation that a node is, by its name in fastdiff.kernels, or None."""
    if node is None:
        return None
    tanh = node.kwargs.get("approximate") == "tanh"
    found = (name for name, (target, given) in ACTIVATIONS.items() if node.target is target and tanh == bool(given))
    return next(found, None)


def arguments(node: Node) -> list:
    """All arguments of an operator's call in order, defaults included."""
    given = dict(zip((one.name for one in node.target._schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return [given.get(one.name, one.default_value) for one in node.target._schema.arguments]


def places(dims: Any, ndim: int) -> list[int]:
    """Dimensions, one or several of which some may be negative, or None or [] for all, as a list from 0."""
    if dims is None or dims == []:
        return list(range(ndim))
    return [dim % ndim for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


def keeps_size(conv: Node, kernel: Tensor) -> bool:
    """Whether a call of kernels.conv.convolution has an odd square kernel, no stride, and the picture's size kept."""
    stride, padding, dilation = conv.args[3:6]
    height, width = kernel.shape[2:]
    odd = height == width and height % 2 == 1
    return odd and all(one == 1 for one in (*stride, *dilation)) and all(one == height // 2 for one in padding)


def only_user(node: Node) -> Node:
    """The one node that uses a result, if it is one and is not the output; else None."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return None if user.op == "output" else user


def other_operand(user: Node, node: Node, target: Any) -> Node:
    """The other tensor of a binary operation, if `user` is that and takes both as they are."""
    if user is None or user.target is not target or user.kwargs.get("alpha", 1) != 1:
        return None
    a, b = user.args
    other = b if a is node else a
    return other if isinstance(other, fx.Node) and other is not node else None


def is_row(node: Node, channels: int) -> bool:
    """Whether it is a tensor (1, C, 1, 1): a number for each channel, the same for the whole batch."""
    return node is not None and node.meta.get("shape") == (1, channels, 1, 1)


def per_channel(node: Node, shape: tuple) -> bool:
    """Whether it is (B, C, 1, 1) or (1, C, 1, 1): a number for each channel of a result of that shape (B, C, H, W)."""
    theirs = node.meta.get("shape")
    return (
        theirs is not None and len(theirs) == 4 and theirs[0] in (1, shape[0]) and tuple(theirs[1:]) == (shape[1], 1, 1)
    )


def same_shape(a: Node, b: Node) -> bool:
    """Whether both are tensors of one shape."""
    return a.meta.get("shape") is not None and a.meta["shape"] == b.meta.get("shape")


def finish_of(node: Node) -> tuple[str | None, Node | None, Node]:
    """What follows a result that nothing else reads: an activation, a residual of its shape, and their last node."""
    after = residual = None
    last, user = node, only_user(node)
    if activation(user):
        after, last, user = activation(user), user, only_user(user)
    other = other_operand(user, last, aten.add.Tensor)
    if other is not None and same_shape(other, last) and same_shape(other, user):
        residual, last = other, user
    return after, residual, last


def ending_of(conv: Node) -> tuple[Node | None, str | None, Node | None, Node]:
    """What follows a convolution that nothing else reads: numbers of each channel that are added, and as finish_of."""
    added, last, user = None, conv, only_user(conv)
    other = other_operand(user, conv, aten.add.Tensor)
    if other is not None and per_channel(other, conv.meta["shape"]):
        added, last = other, user
    return added, *finish_of(last)


def constant(graph: Graph, value: Any) -> Any:
    """The tensor of a constant's node, as precise as it is known; None for anything else."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    name = str(value.target)
    return graph.exact.get(name, graph.constants[name])


def insert(graph: Graph, before: Node, target: Any, args: tuple, like: Node, **kwargs: Any) -> Node:
    """A call before a node, with the shape and the dtype of another."""
    with graph.nodes.inserting_before(before):
        return described(
            graph.nodes.call_function(target, args, kwargs), like.meta.get("shape"), like.meta.get("dtype")
        )


def reshaped(graph: Graph, before: Node, x: Node, shape: tuple) -> Node:
    """A result in another shape."""
    made = insert(graph, before, aten.reshape.default, (x, list(shape)), x)
    return described(made, shape, x.meta["dtype"])


def stored(graph: Graph, value: Node) -> Any:
    """The tensor of a constant's node in the network's dtype; None for any other node."""
    return graph.constants[str(value.target)] if value.op == "get_attr" else None


def replace(graph: Graph, old: Node, target: Any, args: tuple, **kwargs: Any) -> Node:
    """A call in the place of a node, with the same shape and dtype."""
    new = insert(graph, old, target, args, old, **kwargs)
    supersede(graph, old, new)
    return new


def supersede(graph: Graph, old: Node, new: Node) -> None:
    """Have a node's users use another; the node goes."""
    old.replace_all_uses_with(new)
    graph.nodes.erase_node(old)
