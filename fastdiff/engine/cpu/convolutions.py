"""Convolutions: each by the kernel that is the fastest for its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.capture.passes.match import Node, aten, stored
from fastdiff.engine.cpu.lowering import Deferred, Lowering, Value
from fastdiff.engine.cpu.norms import Normed
from fastdiff.engine.cpu.views import NHWC, permuted, reshaped
from fastdiff.kernels.cpu import convolution as general
from fastdiff.kernels.cpu import depthwise, linear, winograd
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.pointwise import broadcast, pointwise


@dataclass
class Padded(Deferred):
    """An image with zeros around it, which a convolution sees without having them written."""

    node: Node
    x: Node
    top: int
    left: int

    def view(self, low: Lowering) -> View:
        x, out = low.view(self.x), low.images_out(self.node)
        zero = low.constant(0.0)
        low.copy(broadcast(zero, out.shape), out)
        low.copy(x, out.part(2, self.top, x.shape[2]).part(3, self.left, x.shape[3]))
        return out


def pad(low: Lowering, node: Node) -> Value | None:
    """constant_pad_nd of images by zeros, at their four sides."""
    x, sides, value = (*node.args, 0)[:3]
    if not sides or value != 0 or len(node.meta["shape"]) != 4 or len(sides) > 4 or min(sides) < 0:
        return None
    left, _, top, _ = (*sides, 0, 0)[:4]
    return Padded(node, x, top, left)


@dataclass
class _Convolution:
    """activation(conv(x) + bias + added) + residual."""

    node: Node
    x: Node
    weight: Node
    bias: Node | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    groups: int
    added: Node | None = None
    after: str | None = None
    residual: Node | None = None


def fused(low: Lowering, node: Node) -> Value | None:
    """kernels.conv.convolution."""
    *start, groups, added, after, residual = node.args
    return _lowered(low, _Convolution(node, *start, False, groups, added, after, residual))


def plain(low: Lowering, node: Node) -> Value | None:
    """aten.convolution."""
    *start, transposed, _, groups = node.args
    return _lowered(low, _Convolution(node, *start, transposed, groups))


def _lowered(low: Lowering, conv: _Convolution) -> Value | None:
    kernel = stored(low.graph, conv.weight)
    shape = conv.node.meta["shape"]
    if kernel is None or len(shape) not in (3, 4) or not fits_channels(conv.bias, shape[1]):
        return None
    if len(shape) == 4:
        return _in_two(low, conv, kernel, low.images_out(conv.node), lambda one: one)
    out = low.new(shape, (0, 2, 1))  # along a line, which is an image one position high

    def image(view: View) -> View:
        found = reshaped(view, (*view.shape[:2], 1, view.shape[2]))
        assert found is not None
        return found

    for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
        setattr(conv, name, (usual, *getattr(conv, name)))
    return out if _in_two(low, conv, kernel.unsqueeze(2), image(out), image) is not None else None


def fits_channels(vector: Node | None, channels: int) -> bool:
    """Whether it is a number for each channel, or None; torch takes one number for all as well."""
    return vector is None or vector.meta["shape"] == (channels,)


def _in_two(
    low: Lowering, conv: _Convolution, kernel: Tensor, out: View, image: Callable[[View], View]
) -> Value | None:
    """The convolution of images, into `out`; None where no kernel takes it."""
    groups, channels, size = conv.groups, conv.x.meta["shape"][1], tuple(kernel.shape[2:])
    simple = tuple(conv.stride) == tuple(conv.dilation) == (1, 1) and not conv.transposed
    each = groups == channels == out.shape[1] > 1 and kernel.shape[1] == 1
    if conv.transposed and groups > 1 and not each:
        return None
    ending = dict(
        bias=_sum(low, conv.bias, conv.added),
        activation=conv.after,
        residual=None if conv.residual is None else image(low.images(conv.residual)),
    )
    padded = isinstance(low.values[conv.x], Padded) or tuple(conv.padding) != (0, 0)
    pointwise_product = size == (1, 1) and simple and groups == 1 and not padded
    x, norm, padding = _read(low, conv, image, not pointwise_product and not each)
    options: dict[str, Any] = dict(stride=tuple(conv.stride), padding=padding, dilation=tuple(conv.dilation))

    def packed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = low.pack((function, args), conv.weight, lambda _: function(kernel, *args, **kwargs))
        return [View.of(one) for one in made] if isinstance(made, list) else View.of(made)

    if pointwise_product:
        if ending["residual"] is not None:
            ending["residual"] = permuted(ending["residual"], NHWC)
        low.call(linear.linear(permuted(x, NHWC), packed(linear.linear_weight), permuted(out, NHWC), **ending))
    elif each and conv.transposed:
        weights = packed(depthwise.transposed_depthwise_weights, *options.values())
        low.call(*depthwise.transposed_depthwise(x, weights, out, size, **options, **ending))
    elif each:
        low.call(depthwise.depthwise(x, packed(depthwise.depthwise_weight), out, size, **options, **ending))
    elif conv.transposed:
        weights = packed(general.transposed_weights, *options.values())
        low.call(*general.transposed_convolution(x, weights, out, size, **options, **ending, norm=norm))
    elif groups > 1:
        weights = packed(general.grouped_weights, groups)
        low.call(*general.grouped_convolution(x, weights, out, size, **options, **ending, norm=norm))
    elif (
        size == (3, 3)
        and simple
        and padding == (1, 1)
        and x.shape[2:] == out.shape[2:]
        and winograd.fits(channels, out.shape[1])
    ):
        low.call(winograd.winograd(x, packed(winograd.winograd_weight), out, **ending, norm=norm))
    else:
        weight = packed(general.convolution_weight)
        low.call(general.convolution(x, weight, out, size, **options, **ending, norm=norm))
    return out


def _read(
    low: Lowering, conv: _Convolution, image: Callable[[View], View], takes_norm: bool
) -> tuple[View, View | None, tuple[int, int]]:
    """What is read: x, a norm that is applied as it is read, and the padding above and on the left."""
    top, left = conv.padding
    value = low.values[conv.x]
    if isinstance(value, Padded) and not conv.transposed:
        x = low.images(value.x)
        return x, None, (top + value.top, left + value.left)
    if isinstance(value, Normed) and takes_norm:
        return value.x, value.numbers, (top, left)
    x = low.view(conv.x)
    if len(x.shape) == 3:
        x = image(x)
    return low.nhwc(x), None, (top, left)


def _sum(low: Lowering, bias: Node | None, added: Node | None) -> View | None:
    """A bias (C,) with what is added to each channel, (1, C, 1, 1) or (B, C, 1, 1)."""
    one, other = low.channels(bias), low.channels(added)
    if one is None or other is None:
        return other if one is None else one
    out = low.new(other.shape)
    low.call(pointwise(out, [other, broadcast(one, other.shape)], [("add", 0, 1)]))
    return out


def upsample(low: Lowering, node: Node) -> Value | None:
    """Nearest neighbours at a whole multiple of the size: each position is written several times."""
    x = low.images(node.args[0])
    b, c, height, width = x.shape
    tall, wide = node.meta["shape"][2:]
    down, across = tall // height, wide // width
    given = [one for one in node.args[2:] if one is not None]
    scales = given[0] if given and isinstance(given[0], (list, tuple)) else given
    if (down * height, across * width) != (tall, wide) or any(scale not in (down, across) for scale in scales):
        return None
    out = low.images_out(node)
    target = reshaped(out, (b, c, height, down, width, across))
    source = reshaped(x, (b, c, height, 1, width, 1))
    assert target is not None and source is not None
    low.copy(broadcast(source, target.shape), target)
    return out


UPSAMPLINGS = (aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec)
