"""The operators that have Triton kernels, in the engine's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.bench.operators.operator import (
    IN_16_BITS,
    LENGTHS,
    WIDE,
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
from fastdiff.kernels.bias_add import bias_add, bias_add_reference
from fastdiff.kernels.channel_norm import channel_norm, channel_norm_reference
from fastdiff.kernels.conv import conv_add, conv_norm
from fastdiff.kernels.conv_weight import Window, pack
from fastdiff.kernels.denoise_step import denoise_step, denoise_step_reference
from fastdiff.kernels.depthwise_conv import depthwise_conv, depthwise_conv_reference
from fastdiff.kernels.fused_conv import fold_norm, fused_conv
from fastdiff.kernels.group_norm import group_norm, group_norm_reference
from fastdiff.kernels.last_conv import LastConv, denoise_step_of
from fastdiff.kernels.linear_attention import linear_attention, linear_attention_reference
from fastdiff.kernels.picture_attention import Heads
from fastdiff.kernels.position_norm import position_norm
from fastdiff.kernels.small_attention import small_attention
from fastdiff.kernels.statistics import statistics_of

Shape = tuple[int, ...]


def _of_images(
    network: str, size: int, name: str, label: str, images: Shape, weights: tuple[Shape, ...], call: Any, plain: Any
) -> Operator:
    """Of images with so many channels and weights of these shapes; call, plain: (*images, *weights), of one dtype."""

    def make(draw: Draw) -> Call:
        drawn = [draw.weight(*shape) for shape in weights]

        def weighted(function: Any) -> Any:
            return lambda *given: function(*given, *(weight.to(given[0].dtype) for weight in drawn))

        return Call(lambda b: tuple(draw.image(b, c, size) for c in images), weighted(call), weighted(plain))

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
    label = f"{where}, bias and time bias"
    yield made("depthwise_conv", label, one, (taps, one, (1, c)), depthwise_conv, depthwise_conv_reference)
    yield made(
        "group_norm",
        f"{where}, one group",
        one,
        (one, one),
        lambda x, w, o: group_norm(x, 1, w, o),
        lambda x, w, o: group_norm_reference(x, 1, w, o),
    )
    yield made(
        "channel_norm",
        f"{where}, residual",
        (c, c),
        ((1, c, 1, 1),),
        lambda x, r, w: channel_norm(x, w, r),
        lambda x, r, w: channel_norm_reference(x, w, r),
    )
    yield made(
        "conv_norm",
        f"3x3, {c} to {2 * c}, {size}x{size}, GELU, one group",
        one,
        (wide, (2 * c,), (2 * c,), (2 * c,)),
        lambda x, k, bias, w, o: conv_norm(x, k, bias, 1, w, o, before="gelu"),
        lambda x, k, bias, w, o: group_norm_reference(F.conv2d(x, k, bias, padding=1), 1, w, o, before="gelu"),
    )
    yield made(
        "conv_add",
        f"3x3, {2 * c} to {c}, {size}x{size}",
        (2 * c, c),
        (narrow, one),
        lambda x, r, k, bias: conv_add(x, k, bias, r),
        lambda x, r, k, bias: F.conv2d(x, k, bias, padding=1) + r,
    )
    yield made("bias_add", where, (c, c), (one,), bias_add, bias_add_reference)
    yield made(
        "linear_attention",
        f"4 heads of 32, {size}x{size}",
        (384,),
        (),
        lambda qkv: linear_attention(qkv, 4, True),
        lambda qkv: linear_attention_reference(qkv, 4, True),
    )
    yield _block(c, size)


def _fused(network: str, c: int, size: int) -> Operator:
    """A ConvNeXt block's expansion, the norm before it and GELU after it."""

    def make(draw: Draw) -> Call:
        weight, bias, gain, shift = (draw.weight(*shape) for shape in ((2 * c, c, 3, 3), (2 * c,), (c,), (c,)))
        window = Window((3, 3), padding=(1, 1))
        folded, borders = fold_norm(weight, gain, shift, (size, size), draw.dtype)
        packed = pack(folded, window)

        def inputs(b: int) -> tuple[Tensor, ...]:
            x = draw.image(b, c, size)
            return x, statistics_of(x, "whole")  # which the kernel before has written

        def call(x: Tensor, statistics: Tensor) -> Tensor:
            given = {"statistics": statistics, "borders": borders, "after": "gelu", "emit": "whole"}
            return fused_conv(x, packed, window, 2 * c, bias, **given)[0]  # type: ignore[arg-type]

        def plain(x: Tensor, statistics: Tensor) -> Tensor:
            kernel, term, w, o = (one.to(x.dtype) for one in (weight, bias, gain, shift))
            return F.gelu(F.conv2d(group_norm_reference(x, 1, w, o), kernel, term, padding=1))

        return Call(inputs, call, plain)

    label = f"3x3, {c} to {2 * c}, {size}x{size}, a norm of one group before, GELU"
    return Operator(network, "fused_conv", label, make, IN_16_BITS)


def _attention(network: str, c: int, heads: int, width: int, groups: int, size: int) -> Operator:
    """A middle block's attention: norm, projections, residual."""

    def make(draw: Draw) -> Call:
        inner = heads * width
        w_qkv, w_out = draw.weight(3 * inner, c, 1, 1), draw.weight(c, inner, 1, 1)
        b_qkv, b_out = draw.weight(3 * inner), draw.weight(c)
        qkv, out = (pack(one, Window((1, 1)))[0, 0, 0] for one in (w_qkv, w_out))
        places = Heads(heads, width, width, 0, inner, 2 * inner)

        def call(x: Tensor) -> Tensor:
            given = qkv, b_qkv, places, width**-0.5, out, b_out, c, groups
            return small_attention(x, *given, residual=x)  # type: ignore[return-value]

        def plain(x: Tensor) -> Tensor:
            w, b, w_o, b_o = (one.to(x.dtype) for one in (w_qkv, b_qkv, w_out, b_out))
            q, k, v = (
                F.conv2d(group_norm_reference(x, groups), w, b).flatten(2).unflatten(1, (3, heads, width)).unbind(1)
            )
            mixed = F.scaled_dot_product_attention(*(one.transpose(2, 3) for one in (q, k, v)))
            return F.conv2d(mixed.transpose(2, 3).reshape(len(x), inner, size, size), w_o, b_o) + x

        return Call(lambda b: (draw.image(b, c, size),), call, plain)

    return Operator(
        network, "small_attention", f"{c} channels, {heads} heads of {width}, {size}x{size}", make, IN_16_BITS
    )


def _lengths(network: str, c: int, size: int) -> Operator:
    """lucidrains' norm by the length over channels, with the time's scale and shift, and SiLU."""
    row = (1, c, 1, 1)
    return _of_images(
        network,
        size,
        "position_norm",
        f"{c} channels, {size}x{size}, by length, SiLU",
        (c,),
        (row, row),
        lambda x, w, b: position_norm(x, w, b, 1e-12, False, "silu"),
        lambda x, w, b: F.silu(F.normalize(x, dim=1) * w + b),
    )


def steps(network: str, c: int, size: int) -> Iterator[Operator]:
    """The sampler's step: x in float32, the prediction in the network's dtype, all in channels_last."""

    def made(label: str, noise: bool = False, history: bool = False, guided: bool = False) -> Operator:
        def make(draw: Draw) -> Call:
            row = [1.2, -0.7, 0.5, 0.4, -0.1, 0.3, 0.0, 0.0, 0.0, 0.0, 1.0, 0.3]  # as a second-order sampler's
            rows = torch.tensor([row], device=draw.device)
            index = torch.zeros((), dtype=torch.int64, device=draw.device)
            key = torch.tensor([1, 0], device=draw.device) if noise else None
            scale = torch.tensor(2.0, device=draw.device)

            def inputs(b: int) -> tuple[Tensor, ...]:
                x, prev = (Draw(draw.device, torch.float32).image(b, c, size) for _ in range(2))
                return (x, draw.image((2 if guided else 1) * b, c, size), *([prev[None]] if history else []))

            def more(x: Tensor) -> dict[str, Any]:
                guidance = {"guidance_scale": scale.to(x.dtype), "clip": 1.0} if guided else {}
                return {"rows": rows.to(x.dtype), "index": index, "key": key, **guidance}

            def call(x: Tensor, out: Tensor, ring: Tensor | None = None) -> Tensor:
                denoise_step(x, out, history=ring, **more(x))
                return x

            def plain(x: Tensor, out: Tensor, ring: Tensor | None = None) -> Tensor:
                return denoise_step_reference(x, out, history=ring, **more(x))[0]

            return Call(inputs, call, plain)

        return Operator(network, "denoise_step", f"{c}x{size}x{size}, {label}", make, wide=True, is_step=True)

    def joined(channels: int) -> Operator:
        """With the last convolution, 1x1."""

        def make(draw: Draw) -> Call:
            row = [1.2, -0.7, 0.5, 0.4, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 1.0, 0.3]
            rows, index = (
                torch.tensor([row], device=draw.device),
                torch.zeros((), dtype=torch.int64, device=draw.device),
            )
            weight, bias, window = draw.weight(c, channels, 1, 1), draw.weight(c), Window((1, 1))
            packed, key = pack(weight, window), torch.tensor([1, 0], device=draw.device)

            def inputs(b: int) -> tuple[Tensor, ...]:
                return Draw(draw.device, torch.float32).image(b, c, size), draw.image(b, channels, size)

            def call(x: Tensor, h: Tensor) -> Tensor:
                denoise_step_of(x, LastConv(h, packed, window, c, bias), rows, index, key=key, clip=1.0)
                return x

            def plain(x: Tensor, h: Tensor) -> Tensor:
                out = F.conv2d(h, weight.to(h.dtype), bias.to(h.dtype))
                return denoise_step_reference(x, out, rows.to(x.dtype), index, key=key, clip=1.0)[0]

            return Call(inputs, call, plain)

        label = f"{c}x{size}x{size}, 1x1 from {channels}, clipped, noise"
        # Plain torch rounds the prediction to 16 bits.
        return Operator(network, "denoise_step_of", label, make, IN_16_BITS, is_step=True)

    yield joined(28)
    yield made("no noise")
    yield made("Philox noise", noise=True)
    yield made("history", history=True)
    yield made("guided, clipped, noise", noise=True, guided=True)


def of_networks(
    levels: Sequence[tuple[int, int]], course: tuple[int, int], wide: Sequence[tuple[int, int]]
) -> Iterator[Operator]:
    """Args: levels: A's (channels, pixels); course: B's; wide: those that may be the library's."""
    c, size = course
    label = f"{c} channels, {size}x{size}, 8 groups, ReLU"
    calls = [partial(function, groups=8, after="relu") for function in (group_norm, group_norm_reference)]
    yield _of_images(B, size, "group_norm", label, (c,), (), *calls)
    for level in levels:
        yield from _of_a(*level)
        yield _fused(A, *level)
    c, size = levels[-1]
    yield _attention(A, c, 4, 32, 1, size)
    for c, size in wide:
        yield _fused(WIDE, c, size)
        yield _lengths(LENGTHS, c, size)
