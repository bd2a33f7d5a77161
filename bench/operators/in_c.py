"""The C kernels at the shapes of networks A and B, as fastdiff's CPU form calls them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.bench.operators.operator import A, B, Call, Draw, Operator, attention, folded, in_its_dtype
from fastdiff.kernels.cpu import attention as attention_in_c
from fastdiff.kernels.cpu import operators

# In a network on a CPU these run as the C kernels, or within them.
REPLACED = {"depthwise_conv", "group_norm", "conv_norm", "conv_add", "attention_block"}
FLOAT32 = ("float32",)


def _winograd(network: str, label: str, c: int, o: int, size: int, norm: bool, gelu: bool, added: bool) -> Operator:
    def make(draw: Draw) -> Call:
        weight, bias = draw.weight(o, c, 3, 3), torch.randn(o)
        gain, offset = torch.randn(2, c)
        packed = {m: operators.winograd_weight(weight, m) for m in (2, 4)}
        given = (1, gain, offset, 1e-5) if norm else None

        def call(x: Tensor, *residual: Tensor) -> Tensor:
            weights = packed[operators.winograd_tile(x.shape[0], size, size)]
            r = residual[0] if residual else None
            return operators.winograd(x, weights, bias, o, "gelu" if gelu else None, r, norm=given)

        def plain(x: Tensor, *residual: Tensor) -> Tensor:
            y = F.group_norm(x, 1, gain.to(x.dtype), offset.to(x.dtype)) if norm else x
            y = F.conv2d(y, weight.to(x.dtype), bias.to(x.dtype), padding=1)
            return sum(residual, F.gelu(y) if gelu else y)

        return Call(lambda b: (draw.image(b, c, size), *([draw.image(b, o, size)] if added else [])), call, plain)

    return Operator(network, "winograd", f"3x3, {c} to {o}, {size}x{size}, {label}", make, FLOAT32)


def _depthwise(c: int, size: int) -> Operator:
    def make(draw: Draw) -> Call:
        taps, bias = draw.weight(c, 1, 7, 7), torch.randn(c)
        packed = operators.depthwise_weight(taps)
        return Call(
            lambda b: (draw.image(b, c, size),),
            lambda x: operators.depthwise(x, packed, bias),
            lambda x: F.conv2d(x, taps.to(x.dtype), bias.to(x.dtype), padding=3, groups=c),
        )

    return Operator(A, "depthwise", f"7x7, {c} channels, {size}x{size}", make, FLOAT32)


def _group_norm(network: str, c: int, size: int, groups: int, after: str | None) -> Operator:
    def make(draw: Draw) -> Call:
        w, o = torch.randn(2, c)
        finish = F.relu if after else torch.clone
        return Call(
            lambda b: (draw.image(b, c, size),),
            lambda x: operators.group_norm(x, groups, w, o, after=after),
            lambda x: finish(F.group_norm(x, groups, w.to(x.dtype), o.to(x.dtype))),
        )

    label = f"{c} channels, {size}x{size}, groups: {groups}, after: {after}"
    return Operator(network, "group_norm", label, make, FLOAT32)


def _attention(c: int, size: int) -> Operator:
    def make(draw: Draw) -> Call:
        block = attention(draw, c)
        packed, plain = attention_in_c.pack(folded(block)), in_its_dtype(block, draw.dtype)
        return Call(lambda b: (draw.image(b, c, size),), lambda x: attention_in_c.attention_block(x, packed), plain)

    return Operator(A, "attention_block", f"{c} channels, 4 heads of 32, {size}x{size}", make, FLOAT32)


def of_networks(levels: Sequence[tuple[int, int]], course: tuple[int, int]) -> Iterator[Operator]:
    """Args: levels: A's (channels, pixels); course: B's."""
    for c, size in levels:
        yield _winograd(A, "normed, GELU", c, 2 * c, size, norm=True, gelu=True, added=False)
        yield _winograd(A, "normed, added", 2 * c, c, size, norm=True, gelu=False, added=True)
        yield _depthwise(c, size)
        yield _group_norm(A, c, size, 1, None)
        yield _attention(c, size)
    c, size = course
    yield _winograd(B, "GELU", c, c, size, norm=False, gelu=True, added=False)
    yield _group_norm(B, c, size, 8, "relu")
