"""The one catalogue of operators: calls of each at the shapes of the networks that have it.

On CUDA, and where Triton was told to interpret, these are the Triton kernels' operators; on a CPU the C kernels of
bench.c_operators take the places of those that they replace.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.case import Case
from fastdiff.kernels import compiled, dispatch
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.conv import conv_add, conv_norm
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention
from fastdiff.networks.blocks import EDITIONS, LinearAttention, PreNorm, Residual
from fastdiff.prepared import FoldedLinearAttention

A, B, A32 = "A28@28", "B@16", "A28@32"
LEVELS = ((28, 28), (56, 14), (112, 7))  # A's channels and pixels
COURSE = (64, 16)  # B's
STEPS = ((A, 1, 28), (A32, 3, 32))  # pictures of a sampler's step
ALL, IN_16_BITS = ("float32", "bfloat16", "float16"), ("bfloat16", "float16")


@dataclass(frozen=True)
class Draw:
    """Random tensors as networks have them: images in channels_last, weights of unit gain."""

    device: torch.device
    dtype: torch.dtype

    def image(self, b: int, c: int, size: int) -> Tensor:
        """(b, c, size, size)"""
        made = torch.randn(b, c, size, size, device=self.device)
        return made.to(self.dtype, memory_format=torch.channels_last)

    def weight(self, *shape: int) -> Tensor:
        fan = math.prod(shape[1:]) or 1
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return (torch.randn(shape, device=self.device) / fan**0.5).to(self.dtype, memory_format=layout)


@dataclass(frozen=True)
class Call:
    """A call of an operator with its weights.

    Attributes:
        inputs: batch → tensors, the first of them with a dimension of samples.
        call: inputs → the result.
        plain: The same in plain torch and in the inputs' dtype, where it is not `call` through the references.
    """

    inputs: Callable[[int], tuple[Tensor, ...]]
    call: Callable[..., Tensor]
    plain: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Operator:
    """An operator at one shape.

    Attributes:
        network: The one that has it at this shape.
        make: Its call, with weights drawn anew.
        dtypes: Of the networks that have it.
        wide: Whether its result is float32 whatever the network's dtype.
        is_step: Whether it is a sampler's step, which is small and comes in large batches.
    """

    network: str
    name: str
    label: str
    make: Callable[[Draw], Call]
    dtypes: tuple[str, ...] = ALL
    wide: bool = False
    is_step: bool = False

    @property
    def what(self) -> str:
        """Case.what"""
        return f"{self.name}, {self.label}"


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


def attention(draw: Draw, c: int) -> Residual:
    """A block of linear attention as network A has it, on c channels."""
    block: Any = Residual(PreNorm(c, LinearAttention(c, edition=EDITIONS["mindspore-torch"])))
    return block.to(draw.device, draw.dtype, memory_format=torch.channels_last).requires_grad_(False)


def in_its_dtype(block: torch.nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x → the block in x's dtype, which is its own or float64."""
    wide = {dtype: block, torch.float64: copy.deepcopy(block).double()}
    return lambda x: wide[x.dtype](x)


def _attentions(c: int, size: int) -> Iterator[Operator]:
    def linear(draw: Draw) -> Call:
        return Call(lambda b: (draw.image(b, 384, size),), lambda qkv: linear_attention(qkv, 4, True))

    def block(draw: Draw) -> Call:
        made = attention(draw, c)
        return Call(lambda b: (draw.image(b, c, size),), FoldedLinearAttention(made), in_its_dtype(made, draw.dtype))

    yield Operator(A, "linear_attention", f"4 heads of 32, {size}x{size}", linear)
    # four bytes an element are left in their parts
    yield Operator(A, "attention_block", f"{c} channels, 4 heads of 32, {size}x{size}", block, IN_16_BITS)


def _grouped() -> Operator:
    c, size = COURSE

    def make(draw: Draw) -> Call:
        return Call(lambda b: (draw.image(b, c, size),), lambda x: group_norm(x, 8, after="relu"))

    return Operator(B, "group_norm", f"{c} channels, {size}x{size}, 8 groups, ReLU", make)


def _steps(network: str, c: int, size: int) -> Iterator[Operator]:
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


def catalogue(device: str) -> list[Operator]:
    """The operators that users' networks run on such a device."""
    found = [_grouped()]
    for c, size in LEVELS:
        found += [*_norms(c, size), *_convolutions(c, size), *_attentions(c, size)]
    if device == "cpu" and dispatch.form() != "triton" and compiled.missing() is None:
        from fastdiff.bench import c_operators

        kept = [operator for operator in found if operator.name not in c_operators.REPLACED]
        found = [*c_operators.catalogue(LEVELS, COURSE), *kept]
    return [*found, *(operator for shape in STEPS for operator in _steps(*shape))]


def find(case: Case) -> Operator:
    """The operator of a case."""
    return next(one for one in catalogue(case.device) if (one.network, one.what) == (case.network, case.what))
