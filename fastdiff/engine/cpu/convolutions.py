"""Convolutions: each by the kernel that is the fastest for its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fastdiff.capture.passes.match import Node, aten, stored
from fastdiff.engine.cpu.lowering import Deferred, Lowering, Value
from fastdiff.engine.cpu.norms import Normed
from fastdiff.engine.cpu.views import NHWC, permuted, reshaped
from fastdiff.kernels.cpu import linear, winograd
from fastdiff.kernels.cpu.convolution import convolution, convolution_weight
from fastdiff.kernels.cpu.depthwise import depthwise, depthwise_weight
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.operands import Operands, calls, in_groups
from fastdiff.kernels.cpu.phases import in_phases, phase_taps
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.pointwise import broadcast, pointwise
from fastdiff.kernels.cpu.window import Window


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
    groups: int
    transposed: bool
    x: Node
    weight: Node
    bias: Node | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    added: Node | None = None
    after: str | None = None
    residual: Node | None = None


def fused(low: Lowering, node: Node) -> Value | None:
    """kernels.conv.convolution."""
    start, (groups, *ending) = node.args[:6], node.args[6:]
    return _lowered(low, _Convolution(node, groups, False, *start, *ending))


def plain(low: Lowering, node: Node) -> Value | None:
    """aten.convolution."""
    start, (transposed, _, groups) = node.args[:6], node.args[6:]
    return _lowered(low, _Convolution(node, groups, transposed, *start))


def _lowered(low: Lowering, conv: _Convolution) -> Value | None:
    kernel = stored(low.graph, conv.weight)
    shape = conv.node.meta["shape"]
    if kernel is None or len(shape) not in (3, 4) or not fits_channels(conv.bias, shape[1]):
        return None
    given: list[Any] = [tuple(one) for one in (kernel.shape[2:], conv.stride, conv.padding, conv.dilation)]
    if len(shape) == 4:
        out = low.images_out(conv.node)
    else:
        out, kernel = low.new(shape, (0, 2, 1)), kernel.unsqueeze(2)
        given = [(usual, *one) for usual, one in zip(Window((1, 1)).axes()[0], given, strict=True)]
    _call(low, conv, kernel, Window(*given), _image(out))
    return out


def _image(view: View) -> View:
    """Images as they are; a line is an image one position high."""
    found = view if len(view.shape) == 4 else reshaped(view, (*view.shape[:2], 1, view.shape[2]))
    assert found is not None
    return found


def _images(low: Lowering, node: Node) -> View:
    return low.nhwc(_image(low.view(node)))


def fits_channels(vector: Node | None, channels: int) -> bool:
    """Whether it is a number for each channel, or None; torch takes one number for all as well."""
    return vector is None or vector.meta["shape"] == (channels,)


def _call(low: Lowering, conv: _Convolution, kernel: Tensor, window: Window, out: View) -> None:
    """The convolution of images, into `out`."""
    single = conv.groups == 1 and not conv.transposed
    each = conv.groups == conv.x.meta["shape"][1] == out.shape[1] > 1 and kernel.shape[1] == 1
    product = single and window == Window((1, 1)) and not isinstance(low.values[conv.x], Padded)
    residual = None if conv.residual is None else _images(low, conv.residual)
    ending = Ending(_sum(low, conv.bias, conv.added), conv.after, residual)
    x, norm, window = _read(low, conv, window, takes_norm=not product and not each)
    whole = Operands(x, out, window, ending, norm)

    def packed(pack: Callable[[Tensor], Tensor]) -> View:
        return View.of(low.pack(pack, conv.weight, lambda _: pack(kernel)))

    if product:
        rows = None if residual is None else permuted(residual, NHWC)
        weight, ending = packed(linear.linear_weight), ending._replace(residual=rows)
        low.call(linear.linear(permuted(x, NHWC), weight, permuted(out, NHWC), ending))
    elif single and winograd.fits(whole):
        low.call(winograd.winograd(whole, packed(winograd.winograd_weight)))
    else:
        one, pack = (depthwise, depthwise_weight) if each else (convolution, convolution_weight)
        groups = 1 if each else conv.groups
        parts, taps = in_groups(whole, groups), list(kernel.chunk(groups))
        if conv.transposed:
            parts = [phase for part in parts for phase in in_phases(part)]
            taps = [phase for part in taps for phase in phase_taps(part, window)]
        kind = pack, groups, window if conv.transposed else None
        weights = low.pack(kind, conv.weight, lambda _: [pack(part) for part in taps])
        low.call(*calls(one, parts, [View.of(weight) for weight in weights]))


def _read(low: Lowering, conv: _Convolution, window: Window, takes_norm: bool) -> tuple[View, View | None, Window]:
    """What is read: x, a norm that is applied as it is read, and the window with the padding that is not written."""
    value = low.values[conv.x]
    if isinstance(value, Padded) and not conv.transposed:
        top, left = window.padding
        return low.images(value.x), None, replace(window, padding=(top + value.top, left + value.left))
    if isinstance(value, Normed) and takes_norm:
        return value.x, value.numbers, window
    return _images(low, conv.x), None, window


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
