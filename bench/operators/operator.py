"""What an operator is, to be measured: its calls, and the random tensors that they are given."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels.folded_attention import FoldedAttention, fold
from fastdiff.networks.blocks import EDITIONS, HEADS, LinearAttention, PreNorm, Residual

A, B, A32, WIDE, LENGTHS = "A28@28", "B@16", "A28@32", "unet2d@32", "lucidrains@32"
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
        plain: The same in plain torch and in the inputs' dtype.
        work: inputs → (operations, bytes) of `call`, where these are not those of `plain`.
    """

    inputs: Callable[[int], tuple[Tensor, ...]]
    call: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    work: Callable[..., tuple[int, int]] | None = None


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


def attention(draw: Draw, c: int) -> Residual:
    """A block of linear attention as network A has it, on c channels."""
    block: Any = Residual(PreNorm(c, LinearAttention(c, edition=EDITIONS["mindspore-torch"])))
    return block.to(draw.device, draw.dtype, memory_format=torch.channels_last).requires_grad_(False)


def folded(block: torch.nn.Module) -> FoldedAttention:
    """The weights of such a block for kernels.attention_block."""
    made: Any = block
    norm, inner = made.fn.norm, made.fn.fn
    project, last = inner.to_out
    out = project.weight, project.bias, last.g
    return fold(norm.weight, norm.bias, inner.to_qkv.weight, *out, HEADS, inner.divide_by_n, norm.eps)


def in_its_dtype(block: torch.nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x → the block in x's dtype, which is its own or float64."""
    wide = {dtype: block, torch.float64: copy.deepcopy(block).double()}
    return lambda x: wide[x.dtype](x)
