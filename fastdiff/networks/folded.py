"""The residual linear-attention block of the Annotated U-Net with folded weights; see kernels.attention_block."""

from __future__ import annotations

import torch
from torch import nn

from fastdiff.kernels.folded_attention import FoldedAttention, fold
from fastdiff.networks.blocks import HEADS, ChannelNorm, LinearAttention, PreNorm, Residual


def can_fold(module: nn.Module) -> bool:
    """Whether it is exactly Residual(PreNorm(LinearAttention)); a subclass may have a forward of its own."""
    return type(module) is Residual and type(module.fn) is PreNorm and type(module.fn.fn) is LinearAttention


def fold_block(
    block: nn.Module, precision: torch.dtype = torch.float64, dtype: torch.dtype | None = None
) -> FoldedAttention:
    """The folded weights of a block that can_fold; precision and dtype: as in `fold`."""
    norm, attention = block.fn.norm, block.fn.fn
    project, last = attention.to_out
    return fold(
        norm.weight,
        norm.bias,
        attention.to_qkv.weight,
        project.weight,
        project.bias,
        last.g if isinstance(last, ChannelNorm) else None,
        HEADS,
        attention.divide_by_n,
        norm.eps,
        precision,
        dtype,
    )
