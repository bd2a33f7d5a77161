"""Norms. One over groups of channels is left to a convolution that can apply it as it reads."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.capture.passes.batch_norm import scale_and_offset
from fastdiff.capture.passes.match import Node, arguments
from fastdiff.engine.cpu.elementwise import affine
from fastdiff.engine.cpu.lowering import Deferred, Lowering, Value
from fastdiff.engine.cpu.views import NHWC, permuted, reshaped
from fastdiff.kernels.cpu.norm import norm_statistics, scale_shift
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.position_norm import position_norm


@dataclass
class Normed(Deferred):
    """x scale + shift, of which the numbers are computed (B, 2, C)."""

    node: Node
    x: View
    numbers: View

    def view(self, low: Lowering) -> View:
        out = low.images_out(self.node)
        low.call(scale_shift(self.x, self.numbers, out))
        return out


def group_norm(low: Lowering, node: Node) -> Value | None:
    """kernels.group_norm."""
    x, groups, weight, bias, eps, input_bias, scale, shift, before, after = node.args
    if input_bias is not None or before is not None:
        return None
    images = low.images(x)
    numbers = low.new((images.shape[0], 2, images.shape[1]))
    weights = [low.channels(one) for one in (weight, bias, scale, shift)]
    low.call(norm_statistics(images, numbers, groups, weights[0], weights[1], eps, weights[2], weights[3]))
    if after is None:
        return Normed(node, images, numbers)
    out = low.images_out(node)
    low.call(scale_shift(images, numbers, out, after))
    return out


def norm_of_positions(low: Lowering, node: Node) -> Value | None:
    """kernels.position_norm."""
    return _of_positions(low, node, *node.args)


def batch_norm(low: Lowering, node: Node) -> Value | None:
    """aten.batch_norm in eval(), where no convolution has taken it in."""
    found, ndim = scale_and_offset(low.graph, node), len(node.meta["shape"])
    if found is None:
        return None
    numbers = (View.of(one.float().view(-1, *[1] * (ndim - 2))) for one in found)
    return affine(low, node, node.args[0], *numbers)


def layer_norm(low: Lowering, node: Node) -> Value | None:
    """aten.layer_norm over the last dimension, or over all of an image."""
    x, over, weight, bias, eps, _ = arguments(node)
    if len(over) == 3 and len(x.meta["shape"]) == 4:
        return _of_whole_images(low, node, x, weight, bias, eps)
    if len(over) != 1:
        return None
    out = low.rows_out(node)
    low.call(position_norm(low.rows(low.view(x)), out, low.vector(weight), low.vector(bias), eps, True))
    return out


def _of_whole_images(
    low: Lowering, node: Node, x: Node, weight: Node | None, bias: Node | None, eps: float
) -> Value | None:
    """A group norm of one group; its weight and bias (C, H, W) differ by position."""
    if weight is None and bias is not None:
        return None
    images = low.images(x)
    b, c, *_ = images.shape
    numbers = low.new((b, 2, c))
    low.call(norm_statistics(images, numbers, 1, eps=eps))
    if weight is None:
        return Normed(node, images, numbers)
    scale, shift = (reshaped(numbers.part(1, at, 1), (b, c, 1, 1)) for at in range(2))
    assert scale is not None and shift is not None  # they lie side by side
    return affine(low, node, images, scale, shift, weight, *([] if bias is None else [bias]))


def channel_norm(low: Lowering, node: Node) -> Value | None:
    """kernels.channel_norm."""
    x, gain, residual, eps = arguments(node)
    return _of_positions(low, node, x, gain, None, eps, True, None, residual)


def _of_positions(
    low: Lowering,
    node: Node,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    eps: float,
    centred: bool,
    after: str | None = None,
    residual: Node | None = None,
) -> Value | None:
    out = low.images_out(node)
    rows = [None if one is None else permuted(low.images(one), NHWC) for one in (x, residual)]
    assert rows[0] is not None
    numbers = low.vector(weight), low.vector(bias)
    low.call(position_norm(rows[0], permuted(out, NHWC), *numbers, eps, centred, after, rows[1]))
    return out
