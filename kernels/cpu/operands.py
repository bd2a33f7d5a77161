"""What a convolution reads and writes, also in groups of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastdiff.kernels.cpu.ending import PLAIN, Ending
from fastdiff.kernels.cpu.plan import Call, View, check_shape, per_channel
from fastdiff.kernels.cpu.window import Window


@dataclass(frozen=True)
class Operands:
    """All but the weight of activation(conv(norm(x), w, bias)) + residual.

    Attributes:
        x: (B, C, H, W), NHWC.
        out: (B, O, any height, any width), a position's channels side by side.
        window: of the convolution, be it an ordinary or a transposed one.
        ending: the bias, the activation and the residual.
        norm: (B, 2, C) from norm_statistics, applied to x, or None; the padding around the result is 0.

    Raises:
        ValueError: for other shapes.
    """

    x: View
    out: View
    window: Window
    ending: Ending = PLAIN
    norm: View | None = None

    def __post_init__(self) -> None:
        op, x, out = "convolution", self.x.shape, self.out.shape
        if len(x) != 4 or len(out) != 4 or x[0] != out[0]:
            raise ValueError(f"{op}: x has shape {x} and out has shape {out}; accepted: (B, C, H, W) and (B, O, ...)")
        per_channel(op, "bias", self.ending.bias, x[0], out[1])
        check_shape(op, "residual", self.ending.residual, out)
        check_shape(op, "norm", self.norm, (x[0], 2, x[1]))


def in_groups(whole: Operands, groups: int) -> list[Operands]:
    """The convolutions that a grouped one consists of, each of its own channels with its part of w's first dimension.

    Raises:
        ValueError: unless the groups divide the channels of x and of out.
    """
    x, out, (bias, activation, residual) = whole.x, whole.out, whole.ending
    if groups < 1 or x.shape[1] % groups or out.shape[1] % groups:
        raise ValueError(f"{groups} groups, x {x.shape}, out {out.shape}; accepted: a divisor of their channels")
    c, o = x.shape[1] // groups, out.shape[1] // groups

    def part(view: View | None, dim: int, group: int, count: int) -> View | None:
        return None if view is None else view.part(dim, group * count, count)

    along = 0 if bias is not None and len(bias.shape) == 1 else 1
    return [
        Operands(
            x.part(1, group * c, c),
            out.part(1, group * o, o),
            whole.window,
            Ending(part(bias, along, group, o), activation, part(residual, 1, group, o)),
            part(whole.norm, 2, group, c),
        )
        for group in range(groups)
    ]


def calls(one: Callable[[Operands, View], Call], parts: Sequence[Operands], weights: Sequence[View]) -> list[Call]:
    """A call of `one`, a convolution, for each part that has outputs; raises ValueError unless each has its weight."""
    if len(weights) != len(parts):
        raise ValueError(f"{len(weights)} weights; accepted: {len(parts)}, one for each part of a convolution")
    return [one(part, weight) for part, weight in zip(parts, weights, strict=True) if min(part.out.shape) > 0]
