"""Norms. One over groups of channels is left to a convolution that can apply it as it reads."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.capture.passes.match import Node, arguments
from fastdiff.engine.cpu.lowering import Deferred, Lowering, Value
from fastdiff.engine.cpu.views import NHWC, permuted
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


def layer_norm(low: Lowering, node: Node) -> Value | None:
    """aten.layer_norm over the last dimension."""
    x, over, weight, bias, eps, _ = arguments(node)
    if len(over) != 1:
        return None
    out = low.rows_out(node)
    low.call(position_norm(low.rows(low.view(x)), out, low.vector(weight), low.vector(bias), eps, True))
    return out


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
