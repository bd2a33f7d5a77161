"""The U-Net of denoising-diffusion-pytorch, and that of the Annotated tutorial since December 2022, taken from it.

Attribute names are those of published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.networks.blocks import (
    EDITIONS,
    Attention,
    LinearAttention,
    PreNorm,
    Residual,
    SinusoidalPositionEmbeddings,
    check_images,
    embedded,
)

MakeBlock = Callable[..., nn.Module]
MakeAttention = Callable[[int, int], nn.Module]  # (width, level) → with the residual


class ResnetUnet(nn.Module):
    """What both have: x (B, channels, H, W) in [-1, 1], t (B,) or a scalar in 0 .. T-1 → (B, out_dim, H, W).

    Two ResNet blocks and attention a level, a skip from each block, and one from the first convolution to the end. H
    and W must be multiples of 2^(levels - 1); with another size `forward` raises InputError. With self-conditioning
    x_self_cond, as x, is the x0 that the step before predicted; None is zeros, as in the first step.

    Args:
        dim, init_dim, dim_mults, channels, out_dim, self_condition: as of both; options, to which each adds its own.
        kernel: of the first convolution, odd.
        time: from timesteps to the embedding, but for the two linear layers: (R,) → (R, time_in).
        time_in: its width.
        block: (width in, width out, time_dim=...) → a block.
        attention: (width, level) → attention of a level, which adds its input.
        middle: width → the attention between the levels.
        down: (width in, width out) → what halves a picture; pixels to channels and a convolution unless given.
        class_dim: numbers that the blocks are given after the time embedding's.
    """

    time = "index"  # what forward takes as t, as Model.time has it
    n_cfeat: int | None = 0  # it takes no context
    options: dict[str, Any]

    @staticmethod
    def options_for(image_shape: tuple[int, int, int], contexts: int) -> dict[str, Any]:
        """The options that follow from training data: (C, H, W) of a picture, and the number of context entries."""
        return {"channels": image_shape[0], "out_dim": None}

    def __init__(
        self,
        dim: int,
        init_dim: int | None,
        dim_mults: Sequence[int],
        channels: int,
        out_dim: int | None,
        self_condition: bool,
        *,
        kernel: int,
        time: nn.Module,
        time_in: int,
        block: MakeBlock,
        attention: MakeAttention,
        middle: Callable[[int], nn.Module],
        down: Callable[[int, int], nn.Module] | None = None,
        class_dim: int = 0,
    ) -> None:
        super().__init__()
        self.options = dict(dim=dim, init_dim=init_dim, dim_mults=list(dim_mults), channels=channels, out_dim=out_dim)
        self.self_condition = self_condition
        widths, time_dim = unet_widths(dim, init_dim, dim_mults), 4 * dim
        self.channels, self.levels = channels, len(dim_mults)
        make, down = partial(block, time_dim=time_dim + class_dim), _halved if down is None else down
        self.init_conv = nn.Conv2d(channels * (1 + self_condition), widths[0], kernel, padding=kernel // 2)
        self.time_mlp = nn.Sequential(time, nn.Linear(time_in, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (cin, cout) in enumerate(pairwise(widths)):
            last = level == self.levels - 1
            end = nn.Conv2d(cin, cout, 3, padding=1) if last else down(cin, cout)
            self.downs.append(nn.ModuleList([make(cin, cin), make(cin, cin), attention(cin, level), end]))
        deepest = widths[-1]
        self.mid_block1, self.mid_attn, self.mid_block2 = (
            make(deepest, deepest),
            middle(deepest),
            make(deepest, deepest),
        )
        for level, (cin, cout) in reversed(list(enumerate(pairwise(widths)))):
            up = _doubled(cout, cin) if level else nn.Conv2d(cout, cin, 3, padding=1)
            both = cin + cout
            self.ups.append(nn.ModuleList([make(both, cout), make(both, cout), attention(cout, level), up]))
        self.final_res_block = make(2 * widths[0], widths[0])
        self.final_conv = nn.Conv2d(widths[0], channels if out_dim is None else out_dim, 1)

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        check_images(x, self.channels, self.levels)
        if self.self_condition:
            x = torch.cat((torch.zeros_like(x) if x_self_cond is None else x_self_cond, x), dim=1)
        return self.denoised(x, embedded(self.time_mlp, t))

    def denoised(self, x: Tensor, time: Tensor) -> Tensor:
        """The prediction for what the blocks are given of the time, (B or 1, 4 dim + class_dim)."""
        x = self.init_conv(x)
        first, skips = x, []
        for block1, block2, attention, down in self.downs:
            x = block1(x, time)
            skips.append(x)
            x = attention(block2(x, time))
            skips.append(x)
            x = down(x)
        x = self.mid_block1(x, time)
        x = self.mid_attn(x)
        x = self.mid_block2(x, time)
        for block1, block2, attention, up in self.ups:
            x = block1(torch.cat((x, skips.pop()), dim=1), time)
            x = attention(block2(torch.cat((x, skips.pop()), dim=1), time))
            x = up(x)
        x = self.final_res_block(torch.cat((x, first), dim=1), time)
        return self.final_conv(x)


class _SpaceToDepth(nn.Module):
    """(B, C, H, W) → (B, 4 C, H / 2, W / 2), as F.pixel_unshuffle, whose operator has no kernel of ours."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def _halved(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(_SpaceToDepth(), nn.Conv2d(4 * cin, cout, 1))


def _doubled(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(cin, cout, 3, padding=1))


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 for each output (Qiao et al. 2019, eq. 5)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), unbiased=False, keepdim=True)
        eps = 1e-5 if self.weight.dtype == torch.float32 else 1e-3
        weight = (self.weight - mean) * (variance + eps).rsqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class RMSNorm(nn.Module):
    """x over its root mean square over channels, times a gain `g` (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * math.sqrt(x.shape[1])


class Block(nn.Module):
    """Convolution 3x3, norm, the time's factor and term, SiLU."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.proj, self.norm = conv, norm

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if scale is not None and shift is not None:
            x = x * (scale + 1) + shift
        return F.silu(x)


class ResnetBlock(nn.Module):
    """Two Blocks, the first with factor and term from the time embedding, and the residual.

    Args:
        cin, cout: widths.
        time_dim: of the time embedding.
        conv: of a 3x3 convolution.
        norm: width → a norm.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        time_dim: int,
        conv: Callable[..., nn.Conv2d],
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * cout))
        self.block1 = Block(conv(cin, cout, 3, padding=1), norm(cout))
        self.block2 = Block(conv(cout, cout, 3, padding=1), norm(cout))
        self.res_conv = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, scale, shift)) + self.res_conv(x)


def unet_widths(dim: int, init_dim: int | None, dim_mults: Sequence[int]) -> list[int]:
    """Of the first convolution and each level; raises InputError for what makes no network."""
    if dim < 4 or dim % 2:
        raise InputError(f"dim = {dim}; accepted: an even number of at least 4")
    if not dim_mults or min(dim_mults) < 1:
        raise InputError(f"dim_mults = {tuple(dim_mults)}; accepted: whole numbers of at least 1")
    if init_dim is not None and init_dim < 1:
        raise InputError(f"init_dim = {init_dim}; accepted: at least 1")
    return [dim if init_dim is None else init_dim, *(dim * mult for mult in dim_mults)]


def check_groups(groups: int, widths: Sequence[int]) -> None:
    """Raises InputError unless GroupNorms of that many groups fit all widths."""
    if groups < 1 or any(width % groups for width in widths):
        raise InputError(f"groups = {groups} with widths {list(widths)}; accepted: a divisor of each")


class AnnotatedResnetUnet(ResnetUnet):
    """The Annotated Diffusion Model's U-Net as its PyTorch text has had it since December 2022.

    Weight-standardised convolutions with GroupNorm, linear attention at every level and softmax attention between them.

    Args:
        dim: base width, even and at least 4.
        init_dim: width of the first convolution; None is dim.
        dim_mults: each level's width over dim.
        channels: of the images.
        out_dim: channels of the output; None is `channels`.
        self_condition: whether it takes x_self_cond.
        groups: of the blocks' GroupNorms; must divide every width.

    Raises:
        InputError: for values outside these ranges.
    """

    def __init__(
        self,
        dim: int = 28,
        init_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4),
        channels: int = 1,
        out_dim: int | None = None,
        self_condition: bool = False,
        groups: int = 4,
    ) -> None:
        check_groups(groups, unet_widths(dim, init_dim, dim_mults))
        edition = EDITIONS["hf-2022"]
        super().__init__(
            *(dim, init_dim, dim_mults, channels, out_dim, self_condition),
            kernel=1,
            time=SinusoidalPositionEmbeddings(dim),
            time_in=dim,
            block=partial(ResnetBlock, conv=StandardizedConv2d, norm=partial(nn.GroupNorm, groups)),
            attention=lambda width, level: Residual(PreNorm(width, LinearAttention(width, edition=edition))),
            middle=lambda width: Residual(PreNorm(width, Attention(width))),
        )
        self.options |= dict(groups=groups, self_condition=self_condition)
