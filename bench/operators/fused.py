"""The operators that have Triton kernels, in the engine's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.operators.operator import IN_16_BITS, A, B, Call, Draw, Operator, attention, in_its_dtype
from fastdiff.engine.prepared import FoldedLinearAttention
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.conv import conv_add, conv_norm
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention


def _norms(c: int, size: int) -> Iterator[Operator]:
    def depthwise(draw: Draw) -> Call:
        taps, bias = draw.weight(c, 1, 7, 7), draw.weight(c)
        return Call(
            lambda b: (draw.image(b, c, size), draw.weight(1, c)),
            lambda x, time: depthwise_conv(x, taps.to(x.dtype), bias.to(x.dtype), time),
        )

    def group(draw: Draw) -> Call:
        w, o = draw.weight(c), draw.weight(c)
        return Call(lambda b: (draw.image(b, c, size),), lambda x: group_norm(x, 1, w.to(x.dtype), o.to(x.dtype)))

    def channel(draw: Draw) -> Call:
        gain = draw.weight(1, c, 1, 1)
        return Call(
            lambda b: (draw.image(b, c, size), draw.image(b, c, size)),
            lambda x, r: channel_norm(x, gain.to(x.dtype), r),
        )

    yield Operator(A, "depthwise_conv", f"{c} channels, {size}x{size}, bias and time bias", depthwise)
    yield Operator(A, "group_norm", f"{c} channels, {size}x{size}, one group", group)
    yield Operator(A, "channel_norm", f"{c} channels, {size}x{size}, residual", channel)


def _convolutions(c: int, size: int) -> Iterator[Operator]:
    def normed(draw: Draw) -> Call:
        k, bias, w, o = draw.weight(2 * c, c, 3, 3), *(draw.weight(2 * c) for _ in range(3))
        return Call(
            lambda b: (draw.image(b, c, size),),
            lambda x: conv_norm(x, k.to(x.dtype), bias.to(x.dtype), 1, w.to(x.dtype), o.to(x.dtype), before="gelu"),
        )

    def added(draw: Draw) -> Call:
        k, bias = draw.weight(c, 2 * c, 3, 3), draw.weight(c)
        return Call(
            lambda b: (draw.image(b, 2 * c, size), draw.image(b, c, size)),
            lambda x, r: conv_add(x, k.to(x.dtype), bias.to(x.dtype), r),
        )

    def biased(draw: Draw) -> Call:
        bias = draw.weight(c)
        return Call(
            lambda b: (draw.image(b, c, size), draw.image(b, c, size)), lambda x, r: bias_add(x, r, bias.to(x.dtype))
        )

    yield Operator(A, "conv_norm", f"3x3, {c} to {2 * c}, {size}x{size}, GELU, one group", normed)
    yield Operator(A, "conv_add", f"3x3, {2 * c} to {c}, {size}x{size}", added)
    yield Operator(A, "bias_add", f"{c} channels, {size}x{size}", biased)


def _attentions(c: int, size: int) -> Iterator[Operator]:
    def linear(draw: Draw) -> Call:
        return Call(lambda b: (draw.image(b, 384, size),), lambda qkv: linear_attention(qkv, 4, True))

    def block(draw: Draw) -> Call:
        made = attention(draw, c)
        return Call(lambda b: (draw.image(b, c, size),), FoldedLinearAttention(made), in_its_dtype(made, draw.dtype))

    yield Operator(A, "linear_attention", f"4 heads of 32, {size}x{size}", linear)
    # four bytes an element are left in their parts
    yield Operator(A, "attention_block", f"{c} channels, 4 heads of 32, {size}x{size}", block, IN_16_BITS)


def _grouped(c: int, size: int) -> Operator:

    def make(draw: Draw) -> Call:
        return Call(lambda b: (draw.image(b, c, size),), lambda x: group_norm(x, 8, after="relu"))

    return Operator(B, "group_norm", f"{c} channels, {size}x{size}, 8 groups, ReLU", make)


def steps(network: str, c: int, size: int) -> Iterator[Operator]:
    """The sampler's step: x in float32, the prediction in the network's dtype and channels_last."""

    def made(times: int, history: bool, **options: Any) -> Callable[[Draw], Call]:
        def make(draw: Draw) -> Call:
            rows = torch.tensor([[1.2, -0.7, 0.5, 0.4, -0.1, 0.3]], device=draw.device)
            index = torch.zeros((), dtype=torch.int64, device=draw.device)
            given: dict[str, Any] = {k: torch.tensor(v, device=draw.device) for k, v in options.items()}
            scale = given.pop("guidance_scale", None)

            def inputs(b: int) -> tuple[Tensor, ...]:
                x, prev = (torch.randn(b, c, size, size, device=draw.device) for _ in range(2))
                return (x, draw.image(times * b, c, size), *([prev] if history else []))

            def call(x: Tensor, out: Tensor, prev: Tensor | None = None) -> Tensor:
                guided: dict[str, Any] = {} if scale is None else {"guidance_scale": scale.to(x.dtype), "clip": 1.0}
                return denoise_step(x, out, rows.to(x.dtype), index, prev, **given, **guided)[0]

            return Call(inputs, call)

        return make

    for label, make in (
        ("no noise", made(1, False)),
        ("Philox noise", made(1, False, key=[1, 0])),
        ("history", made(1, True)),
        ("guided, clipped, noise", made(2, False, key=[1, 0], guidance_scale=2.0)),
    ):
        yield Operator(network, "denoise_step", f"{c}x{size}x{size}, {label}", make, wide=True, is_step=True)


def of_networks(levels: Sequence[tuple[int, int]], course: tuple[int, int]) -> Iterator[Operator]:
    """Args: levels: A's (channels, pixels); course: B's."""
    yield _grouped(*course)
    for c, size in levels:
        yield from (*_norms(c, size), *_convolutions(c, size), *_attentions(c, size))
