"""Multiplications and additions of numbers that each channel has, joined: ((y a) b + c) d → y (a b d) + c d.

Such are a norm's weight and bias, a convolution's bias, and how the time or a context modulates them. None depends on
x, so what the time alone decides of them leaves the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fastdiff.capture.graph import Batch, Graph
from fastdiff.capture.passes.match import Node, aten, insert, only_user, other_operand, reshaped, supersede

Number = fx.Node | int | float | None  # None is what changes nothing


def join_affine(graph: Graph) -> None:
    """Join them where that leaves fewer operations on images, or takes a norm's or a convolution's own numbers along.

    Args:
        graph: before it is split; is changed. Constants of the joined numbers are left to be folded.
    """
    images = _after_x(graph)
    for node in list(graph.nodes.nodes):
        if node in images and len(node.meta.get("shape", ())) == 4:
            _join(graph, node, images)
    graph.tidy()


def _after_x(graph: Graph) -> set[fx.Node]:
    """The nodes that depend on x."""
    found: set[fx.Node] = set()
    for node in graph.nodes.nodes:
        if (node.op == "placeholder" and node.target == "x") or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


@dataclass
class _Chain:
    """y scale + shift: what the operations up to `last` have computed of y; new nodes are put before `last`."""

    graph: Graph
    last: Node
    scale: Number = None
    shift: Number = None

    def multiply(self, factor: Number) -> None:
        self.scale = self._both(aten.mul.Tensor, self.scale, factor)
        if self.shift is not None:
            self.shift = self._both(aten.mul.Tensor, self.shift, factor)

    def add(self, term: Number) -> None:
        self.shift = self._both(aten.add.Tensor, self.shift, term)

    def _both(self, target: Node, a: Number, b: Number) -> Number:
        if a is None or b is None:
            return b if a is None else a
        if not isinstance(a, fx.Node):
            a, b = b, a
        if not isinstance(a, fx.Node):
            return a * b if target is aten.mul.Tensor else a + b  # type: ignore[operator]
        made = insert(self.graph, self.last, target, (a, b), a)
        if isinstance(b, fx.Node):
            made.meta["shape"] = _broadcast(a.meta["shape"], b.meta["shape"])
        return made


def _join(graph: Graph, root: Node, images: set[fx.Node]) -> None:
    weight, bias = _own(root)
    operations = list(_operations(root, images, additions=root.target is aten.convolution.default))
    is_norm = root.target is aten.group_norm.default
    if not operations or (is_norm and operations[0][1] is aten.add.Tensor):
        return  # nothing would be saved
    chain, row = _Chain(graph, operations[-1][0]), (1, root.meta["shape"][1], 1, 1)
    if weight is not None:
        chain.multiply(reshaped(graph, chain.last, weight, row))
    if bias is not None:
        chain.add(reshaped(graph, chain.last, bias, row))
    ends = {user for user, _, _ in operations}
    for _, target, other in operations:
        chain.multiply(other) if target is aten.mul.Tensor else chain.add(other)
    needed = (chain.scale is not None) + (chain.shift is not None)
    if not is_norm and bias is None and needed >= len(ends):  # a norm takes along whatever follows it
        return
    if weight is not None:
        root.args = (*root.args[:2], None, None, *root.args[4:])
    elif bias is not None:
        root.args = (*root.args[:2], None, *root.args[3:])
    made = root
    for target, number in ((aten.mul.Tensor, chain.scale), (aten.add.Tensor, chain.shift)):
        if number is not None:
            made = insert(graph, chain.last, target, (made, number), chain.last)
    supersede(graph, chain.last, made)


def _own(root: Node) -> tuple[Node | None, Node | None]:
    """The weight and the bias that a norm has for its channels, or the bias of a convolution."""
    if root.target is aten.group_norm.default:
        weight, bias = root.args[2:4]
        return (weight, bias) if weight is not None and bias is not None else (None, None)
    return None, root.args[2] if root.target is aten.convolution.default else None


def _operations(root: Node, images: set[fx.Node], additions: bool):
    """What is done to y, one after the other: the node, aten.mul.Tensor or aten.add.Tensor, and the other operand."""
    node, user = root, only_user(root)
    while user is not None and user.meta.get("shape") == root.meta["shape"]:
        found = list(_operation(node, user))
        allowed = (aten.add.Tensor,) if additions else (aten.add.Tensor, aten.mul.Tensor)
        if not found or any(target not in allowed or not _is_number(other, node, images) for target, other in found):
            return
        for target, other in found:
            yield user, target, other
        node, user = user, only_user(user)


def _operation(node: Node, user: Node):
    """(aten.mul.Tensor or aten.add.Tensor, the other operand) for what `user` does to a node."""
    if user.target is aten.addcmul.default and user.args[0] is not node and user.kwargs.get("value", 1) == 1:
        shift, a, b = user.args
        if (a is node) != (b is node):
            yield aten.mul.Tensor, b if a is node else a
            yield aten.add.Tensor, shift
    elif user.target is aten.div.Tensor and isinstance(user.args[1], (int, float)) and user.args[1]:
        yield aten.mul.Tensor, 1 / user.args[1]
    elif user.target in (aten.mul.Tensor, aten.add.Tensor):
        if user.args[0] is node and isinstance(user.args[1], (int, float)) and user.kwargs.get("alpha", 1) == 1:
            yield user.target, user.args[1]
        elif other_operand(user, node, user.target) is not None:
            yield user.target, other_operand(user, node, user.target)


def _is_number(other: Number, node: Node, images: set[fx.Node]) -> bool:
    """Whether it does not depend on x and is the same at all positions of a picture."""
    if not isinstance(other, fx.Node):
        return isinstance(other, (int, float))
    shape = other.meta.get("shape")
    if other in images or shape is None or other.meta["dtype"] != node.meta["dtype"] or len(shape) > 4:
        return False
    _, channels, height, width = (1,) * (4 - len(shape)) + tuple(shape)
    return channels in (1, node.meta["shape"][1]) and (height, width) == (1, 1)


def _broadcast(a: tuple, b: tuple) -> tuple:
    """The shape of two shapes' tensors together; of a size 1 and another it is the other."""
    size = max(len(a), len(b))
    padded = zip((1,) * (size - len(a)) + tuple(a), (1,) * (size - len(b)) + tuple(b), strict=True)
    return tuple(right if left == 1 and not isinstance(left, Batch) else left for left, right in padded)
