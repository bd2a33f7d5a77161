"""What computes at each position of a picture in another shape, as tokens or a signal, as on pictures.

Attention moves a picture (B, C, H, W) to (B, H W, C) or (B, C, H W) for its norm and its projections. Those are the
same there and here, so that the moves go, and what reads or follows the projections meets convolutions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Graph, described
from fastdiff.capture.passes.match import Node, aten, constant, insert, only_user, replace, reshaped, stored, supersede
from fastdiff.capture.passes.moves import moved_by
from fastdiff.engine.cuda import choice
from fastdiff.kernels.conv import convolution

_PLAIN = [1, 1], [0, 0], [1, 1]  # stride, padding and dilation of a 1x1 convolution


def as_images(graph: Graph) -> None:
    """Linear layers, 1x1 convolutions of signals, norms and sums of moved pictures become those of the pictures.

    Args:
        graph: of one batch, before norms and convolutions are fused; is changed.
    """
    for node in list(graph.nodes.nodes):
        if node.target is aten.linear.default and len(node.meta["shape"]) == 3:
            _linear(graph, node)
        elif node.target is aten.convolution.default and len(node.meta["shape"]) == 3:
            _signal(graph, node)
        elif node.target is aten.group_norm.default:
            _norm(graph, node)
        elif node.target is aten.add.Tensor and not node.kwargs and len(node.meta["shape"]) == 3:
            _sum(graph, node)
        _stay(graph, node)
    graph.tidy()


def stay(graph: Graph) -> None:
    """What was moved and moved back is what it was."""
    for node in list(graph.nodes.nodes):
        _stay(graph, node)
    graph.tidy()


def join_projections(graph: Graph) -> None:
    """1x1 convolutions of one picture that make an attention's queries, keys and values become one.

    Args:
        graph: of one batch, after its convolutions were fused; is changed.
    """
    places = {node: place for place, node in enumerate(graph.nodes.nodes)}
    for attention in places:
        if attention.target is not aten.scaled_dot_product_attention.default:
            continue
        made = {_start(one, attention) for one in attention.args[:3]}
        projections = sorted((one for one in made if one is not None), key=places.__getitem__)
        if len(projections) < 2 or len({one.args[0] for one in projections}) > 1:
            continue
        x, outputs = projections[0].args[0], sum(one.meta["shape"][1] for one in projections)
        if all(_is_projection(graph, one, x) for one in projections):
            if choice.is_fused(1, x.meta["shape"][1], outputs, x.meta["dtype"]):
                _join(graph, projections)
    graph.tidy()


def _start(node: Node, user: Node) -> Node | None:
    """The convolution that makes what an attention reads, if nothing else reads that or what it is moved by."""
    while only_user(node) is user:
        if node.target is convolution:
            return node
        if not _is_move(node):
            return None
        node, user = node.args[0], node
    return None


class _Behind(NamedTuple):
    """A picture (B, C, H, W), and whether what is made of it has its channels last."""

    image: Node
    last: bool


def _in_order(moved: Tensor | None, shape: tuple[int, ...]) -> bool | None:
    """Whether a contiguous (B, C, H, W), moved, is (B, H W, C); False if it is (B, C, ...) in order, else None."""
    if moved is None or moved.ndim < 3:
        return None
    b, c, *size = shape
    n = math.prod(size)
    if moved.shape[0] == b and moved.shape[1] == c and moved.is_contiguous():
        return False
    if tuple(moved.shape) == (b, n, c) and moved.transpose(1, 2).is_contiguous():
        return True
    return None


def _behind(node: Node) -> _Behind | None:
    """The picture that a node is a view of."""
    found: _Behind | None = None
    steps: list[Node] = []
    source = node
    while True:
        if len(source.meta.get("shape", ())) == 4:
            last = _in_order(moved_by(source, steps[::-1]), source.meta["shape"])
            found = found if last is None else _Behind(source, last)
        if not _is_move(source):
            return found
        steps.append(source)
        source = source.args[0]


def _is_move(node: Node) -> bool:
    return node.target in (aten.reshape.default, aten.permute.default, aten.transpose.int)


def _ahead(node: Node, channels_last: bool) -> tuple[int, int] | None:
    """The size of the picture that a result becomes when it is moved back."""
    n, c = node.meta["shape"][1:] if channels_last else node.meta["shape"][:0:-1]
    user, before = only_user(node), node
    while user is not None:
        shapes = []
        if _is_move(user):
            shapes.append(user.meta["shape"])
        elif user.target is aten.add.Tensor:
            found = [_behind(one) for one in user.args if isinstance(one, fx.Node) and one is not before]
            shapes += [one.image.meta["shape"] for one in found if one is not None]
        for shape in shapes:
            if len(shape) == 4 and shape[1] == c and shape[2] * shape[3] == n:
                return shape[2:]
        if not _is_move(user):
            return None
        user, before = only_user(user), user
    return None


def _picture(graph: Graph, before: Node, x: Node, channels_last: bool) -> Node:
    """x, (B, n, C) or (B, C, n), as a picture: the one that it is a view of, else one of the size that `before` is to
    have."""
    found = _behind(x)
    if found is not None and found.last == channels_last and len(x.meta["shape"]) == 3:
        return found.image
    b, *sizes = x.meta["shape"]
    n, c = sizes if channels_last else sizes[::-1]
    if channels_last:
        x = described(insert(graph, before, aten.transpose.int, (x, 1, 2), x), (b, c, n), x.meta["dtype"])
    return reshaped(graph, before, x, (b, c, *(_ahead(before, channels_last) or (n, 1))))


def _moved_back(graph: Graph, old: Node, image: Node, channels_last: bool) -> None:
    """A picture in the place of a node (B, n, C) or (B, C, n)."""
    b, c, h, w = image.meta["shape"]
    flat = reshaped(graph, old, image, (b, c, h * w))
    if channels_last:
        flat = described(insert(graph, old, aten.transpose.int, (flat, 1, 2), flat), (b, h * w, c), image.meta["dtype"])
    supersede(graph, old, flat)


def _projected(graph: Graph, node: Node, x: Node, weight: Node, bias: Node | None, channels_last: bool) -> None:
    """A 1x1 convolution of a picture in the place of what computes it of (B, n, C) or (B, C, n)."""
    image = _picture(graph, node, x, channels_last)
    stride, padding, dilation = _PLAIN
    outputs, inputs = weight.meta["shape"][:2]
    made = graph.constant(stored(graph, weight).reshape(outputs, inputs, 1, 1), node)
    if (exact := graph.exact.get(str(weight.target))) is not None:
        graph.exact[str(made.target)] = exact.reshape(outputs, inputs, 1, 1)
    given = image, made, bias, stride, padding, dilation, False, [0, 0], 1
    new = insert(graph, node, aten.convolution.default, given, node)
    new.meta["shape"] = (image.meta["shape"][0], outputs, *image.meta["shape"][2:])
    _moved_back(graph, node, new, channels_last)


def _linear(graph: Graph, node: Node) -> None:
    """One that is to be fused_conv's: the library's linear layers are faster than its 1x1 convolutions."""
    x, weight, *bias = node.args
    outputs, inputs = weight.meta["shape"]
    same = x.meta["dtype"] == node.meta["dtype"] == weight.meta["dtype"]
    if stored(graph, weight) is not None and same and choice.is_fused(1, inputs, outputs, node.meta["dtype"]):
        _projected(graph, node, x, weight, bias[0] if bias else None, True)


def _signal(graph: Graph, node: Node) -> None:
    x, weight, bias, stride, padding, _, transposed, _, groups = node.args
    plain = stride == [1] and padding == [0] and not transposed and groups == 1 and weight.meta["shape"][2] == 1
    if plain and stored(graph, weight) is not None:
        _projected(graph, node, x, weight, bias, False)


def _norm(graph: Graph, node: Node) -> None:
    x, *rest = node.args
    found = _behind(x)
    if found is None or found.last or found.image is x:
        return
    normed = insert(graph, node, aten.group_norm.default, (found.image, *rest), node)
    normed.meta["shape"] = found.image.meta["shape"]
    supersede(graph, node, reshaped(graph, node, normed, node.meta["shape"]))


def _sum(graph: Graph, node: Node) -> None:
    """Of two that are views of pictures, as residuals are."""
    if not all(isinstance(one, fx.Node) and one.meta["shape"] == node.meta["shape"] for one in node.args):
        return
    a, b = map(_behind, node.args)
    if a is None or b is None or a.last != b.last or a.image.meta["shape"] != b.image.meta["shape"]:
        return
    total = insert(graph, node, aten.add.Tensor, (a.image, b.image), node)
    total.meta["shape"] = a.image.meta["shape"]
    _moved_back(graph, node, total, a.last)


def _stay(graph: Graph, node: Node) -> None:
    """A picture that was moved there and back is the picture."""
    if not _is_move(node) or len(node.meta["shape"]) != 4:
        return
    found = _behind(node)
    if found is not None and not found.last and found.image is not node:
        if found.image.meta["shape"] == node.meta["shape"]:
            supersede(graph, node, found.image)


def _is_projection(graph: Graph, user: Node, x: Node) -> bool:
    if user.target is not convolution or user.args[0] is not x or any(one is not None for one in user.args[7:]):
        return False
    weight, bias, *options = user.args[1:7]
    kernel = stored(graph, weight)
    known = bias is None or stored(graph, bias) is not None
    return kernel is not None and known and kernel.shape[2:] == (1, 1) and options == [*_PLAIN, 1]


def _join(graph: Graph, projections: list[Node]) -> None:
    x, first = projections[0].args[0], projections[0]
    kernels = [constant(graph, one.args[1]) for one in projections]
    dtype = first.meta["dtype"]
    biases = [
        kernel.new_zeros(len(kernel)) if one.args[2] is None else constant(graph, one.args[2])
        for one, kernel in zip(projections, kernels, strict=True)
    ]
    weight, bias = (graph.constant(torch.cat(parts).to(dtype), first) for parts in (kernels, biases))
    for node, parts in ((weight, kernels), (bias, biases)):
        graph.exact[str(node.target)] = torch.cat(parts)
    sizes = [len(kernel) for kernel in kernels]
    joined = insert(graph, first, convolution, (x, weight, bias, *_PLAIN, 1, None, None, None), first)
    joined.meta["shape"] = (first.meta["shape"][0], sum(sizes), *first.meta["shape"][2:])
    start = 0
    for one, size in zip(projections, sizes, strict=True):
        replace(graph, one, aten.slice.Tensor, (joined, 1, start, start + size))
        start += size
