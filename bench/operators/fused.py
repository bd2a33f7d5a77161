"""The operators that have Triton kernels, in the engine's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.operators.operator import (
    IN_16_BITS,
    A,
    B,
    Call,
    Draw,
    Operator,
    attention,
    folded,
    in_its_dtype,
)
from fastdiff.kernels.attention_block import attention_block
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.conv import conv_add, conv_norm
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention

Shape = tuple[int, ...]


def _of_images(
    network: str, size: int, name: str, label: str, images: Shape, weights: tuple[Shape, ...], call: Any
) -> Operator:
    """Of images with so many channels and weights of these shapes; call: (*images, *weights), of one dtype."""

    def make(draw: Draw) -> Call:
        drawn = [draw.weight(*shape) for shape in weights]
        return Call(
            lambda b: tuple(draw.image(b, c, size) for c in images),
            lambda *given: call(*given, *(weight.to(given[0].dtype) for weight in drawn)),
        )

    return Operator(network, name, label, make)


def _block(c: int, size: int) -> Operator:
    def make(draw: Draw) -> Call:
        made = attention(draw, c)
        weights = folded(made)
        plain = in_its_dtype(made, draw.dtype)
        return Call(lambda b: (draw.image(b, c, size),), lambda x: attention_block(x, weights), plain)

    # four bytes an element are left in their parts
    return Operator(A, "attention_block", f"{c} channels, 4 heads of 32, {size}x{size}", make, IN_16_BITS)


def _of_a(c: int, size: int) -> Iterator[Operator]:
    made, where, one = partial(_of_images, A, size), f"{c} channels, {size}x{size}", (c,)
    taps, narrow, wide = (c, 1, 7, 7), (c, 2 * c, 3, 3), (2 * c, c, 3, 3)
    yield made("depthwise_conv", f"{where}, bias and time bias", one, (taps, one, (1, c)), depthwise_conv)
    yield made("group_norm", f"{where}, one group", one, (one, one), lambda x, w, o: group_norm(x, 1, w, o))
    yield made("channel_norm", f"{where}, residual", (c, c), ((1, c, 1, 1),), lambda x, r, w: channel_norm(x, w, r))
    yield made(
        "conv_norm",
        f"3x3, {c} to {2 * c}, {size}x{size}, GELU, one group",
        one,
        (wide, (2 * c,), (2 * c,), (2 * c,)),
        lambda x, k, bias, w, o: conv_norm(x, k, bias, 1, w, o, before="gelu"),
    )
    label = f"3x3, {2 * c} to {c}, {size}x{size}"
    yield made("conv_add", label, (2 * c, c), (narrow, one), lambda x, r, k, bias: conv_add(x, k, bias, r))
    yield made("bias_add", where, (c, c), (one,), bias_add)
    label = f"4 heads of 32, {size}x{size}"
    yield made("linear_attention", label, (384,), (), lambda qkv: linear_attention(qkv, 4, True))
    yield _block(c, size)


def steps(network: str, c: int, size: int) -> Iterator[Operator]:
    """The sampler's step: x in float32, the prediction in the network's dtype and channels_last."""

    def made(label: str, noise: bool = False, history: bool = False, guided: bool = False) -> Operator:
        def make(draw: Draw) -> Call:
            rows = torch.tensor([[1.2, -0.7, 0.5, 0.4, -0.1, 0.3]], device=draw.device)
            index = torch.zeros((), dtype=torch.int64, device=draw.device)
            key = torch.tensor([1, 0], device=draw.device) if noise else None
            scale = torch.tensor(2.0, device=draw.device)

            def inputs(b: int) -> tuple[Tensor, ...]:
                x, prev = (torch.randn(b, c, size, size, device=draw.device) for _ in range(2))
                return (x, draw.image((2 if guided else 1) * b, c, size), *([prev] if history else []))

            def call(x: Tensor, out: Tensor, prev: Tensor | None = None) -> Tensor:
                more: dict[str, Any] = {"guidance_scale": scale.to(x.dtype), "clip": 1.0} if guided else {}
                return denoise_step(x, out, rows.to(x.dtype), index, prev, key=key, **more)[0]

            return Call(inputs, call)

        return Operator(network, "denoise_step", f"{c}x{size}x{size}, {label}", make, wide=True, is_step=True)

    yield made("no noise")
    yield made("Philox noise", noise=True)
    yield made("history", history=True)
    yield made("guided, clipped, noise", noise=True, guided=True)


def of_networks(levels: Sequence[tuple[int, int]], course: tuple[int, int]) -> Iterator[Operator]:
    """Args: levels: A's (channels, pixels); course: B's."""
    c, size = course
    label = f"{c} channels, {size}x{size}, 8 groups, ReLU"
    yield _of_images(B, size, "group_norm", label, (c,), (), lambda x: group_norm(x, 8, after="relu"))
    for level in levels:
        yield from _of_a(*level)
