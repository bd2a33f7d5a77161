"""The C kernels at the shapes of networks A and B, as the CPU form's plans call them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.bench.operators.operator import A, B, Call, Draw, Operator, attention, folded, in_its_dtype
from fastdiff.kernels.cpu import attention as attention_in_c
from fastdiff.kernels.cpu import counts, plan
from fastdiff.kernels.cpu.depthwise import depthwise, depthwise_weight
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.norm import norm_statistics, scale_shift
from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import Program, View, assembled
from fastdiff.kernels.cpu.window import Window
from fastdiff.kernels.cpu.winograd import WINDOW, winograd, winograd_weight

# In a network on a CPU these run as the C kernels, or within them.
REPLACED = {"depthwise_conv", "group_norm", "conv_norm", "conv_add", "fused_conv", "attention_block"}
FLOAT32 = ("float32",)

# (the inputs, the result) → the calls that compute it; what else they write is made by the function.
Planned = Callable[..., Sequence[plan.Call]]


def _planned(
    inputs: Callable[[int], tuple[Tensor, ...]], calls: Planned, channels: int, plain: Callable[..., Tensor]
) -> Call:
    """Of (B, channels, H, W), by a plan that is made when some inputs first come, and run each time."""
    made: dict[tuple[int, ...], tuple[Any, Program, Tensor]] = {}  # kept with the tensors whose memory it names

    def call(x: Tensor, *more: Tensor) -> Tensor:
        key = tuple(map(id, (x, *more)))
        if key not in made:
            out = _images(x, channels)
            code = assembled(calls(*map(View.of, (x, *more, out))))
            made[key] = (x, *more), Program([code], torch.get_num_threads()), out
        _, program, out = made[key]
        program()
        return out

    def work(x: Tensor, *more: Tensor) -> tuple[int, int]:
        return counts.work(calls(*map(View.of, (x, *more, _images(x, channels)))))

    return Call(inputs, call, plain, work)


def _images(x: Tensor, channels: int) -> Tensor:
    """Empty, NHWC, of x's size with so many channels."""
    return x.new_empty(len(x), channels, *x.shape[2:]).contiguous(memory_format=torch.channels_last)


def _empty(*shape: int) -> View:
    return View.of(torch.empty(shape))


def _winograd(network: str, label: str, c: int, o: int, size: int, norm: bool, gelu: bool, added: bool) -> Operator:
    def make(draw: Draw) -> Call:
        weight, bias = draw.weight(o, c, 3, 3), torch.randn(o)
        gain, offset = torch.randn(2, c)
        packed, last, scale, shift = map(View.of, (winograd_weight(weight), bias, gain, offset))

        def calls(x: View, *others: View) -> Sequence[plan.Call]:
            *residual, out = others
            numbers = _empty(x.shape[0], 2, c) if norm else None
            first = [] if numbers is None else [norm_statistics(x, numbers, 1, scale, shift)]
            ending = Ending(last, "gelu" if gelu else None, next(iter(residual), None))
            return [*first, winograd(Operands(x, out, WINDOW, ending, numbers), packed)]

        def plain(x: Tensor, *residual: Tensor) -> Tensor:
            y = F.group_norm(x, 1, gain.to(x.dtype), offset.to(x.dtype)) if norm else x
            y = F.conv2d(y, weight.to(x.dtype), bias.to(x.dtype), padding=1)
            return sum(residual, F.gelu(y) if gelu else y)

        def inputs(b: int) -> tuple[Tensor, ...]:
            return (draw.image(b, c, size), *([draw.image(b, o, size)] if added else []))

        return _planned(inputs, calls, o, plain)

    return Operator(network, "winograd", f"3x3, {c} to {o}, {size}x{size}, {label}", make, FLOAT32)


def _depthwise(c: int, size: int) -> Operator:
    def make(draw: Draw) -> Call:
        taps, bias = draw.weight(c, 1, 7, 7), torch.randn(c)
        packed, last = View.of(depthwise_weight(taps)), View.of(bias)
        return _planned(
            lambda b: (draw.image(b, c, size),),
            lambda x, out: [depthwise(Operands(x, out, Window((7, 7), padding=(3, 3)), Ending(last)), packed)],
            c,
            lambda x: F.conv2d(x, taps.to(x.dtype), bias.to(x.dtype), padding=3, groups=c),
        )

    return Operator(A, "depthwise", f"7x7, {c} channels, {size}x{size}", make, FLOAT32)


def _group_norm(network: str, c: int, size: int, groups: int) -> Operator:
    """With a ReLU; a norm without an activation is left to the convolution that reads it."""

    def make(draw: Draw) -> Call:
        weight, bias = torch.randn(2, c)

        def calls(x: View, out: View) -> Sequence[plan.Call]:
            numbers = _empty(x.shape[0], 2, c)
            statistics = norm_statistics(x, numbers, groups, View.of(weight), View.of(bias))
            return [statistics, scale_shift(x, numbers, out, "relu")]

        return _planned(
            lambda b: (draw.image(b, c, size),),
            calls,
            c,
            lambda x: F.relu(F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype))),
        )

    return Operator(network, "group_norm", f"{c} channels, {size}x{size}, groups: {groups}, after: relu", make, FLOAT32)


def _attention(c: int, size: int) -> Operator:
    def make(draw: Draw) -> Call:
        block = attention(draw, c)
        packed, plain = attention_in_c.pack(folded(block)), in_its_dtype(block, draw.dtype)

        def calls(x: View, out: View) -> Sequence[plan.Call]:
            b = x.shape[0]
            memory = _empty(*packed.numbers_shape(b)), _empty(*packed.context_shape(b))
            return attention_in_c.attention_block(x, packed, out, *memory)

        return _planned(lambda b: (draw.image(b, c, size),), calls, c, plain)

    return Operator(A, "attention_block", f"{c} channels, 4 heads of 32, {size}x{size}", make, FLOAT32)


def of_networks(levels: Sequence[tuple[int, int]], course: tuple[int, int]) -> Iterator[Operator]:
    """Args: levels: A's (channels, pixels); course: B's."""
    for c, size in levels:
        yield _winograd(A, "normed, GELU", c, 2 * c, size, norm=True, gelu=True, added=False)
        yield _winograd(A, "normed, added", 2 * c, c, size, norm=True, gelu=False, added=True)
        yield _depthwise(c, size)
        yield _attention(c, size)
    c, size = course
    yield _winograd(B, "GELU", c, c, size, norm=False, gelu=True, added=False)
    yield _group_norm(B, c, size, 8)
