"""The U-Net of The Annotated Diffusion Model, in its MindSpore and PyTorch editions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError, check_int, unknown_name
from fastdiff.networks.blocks import (
    EDITIONS,
    Attention,
    ConvNextBlock,
    LinearAttention,
    PreNorm,
    Residual,
    ResnetBlock,
    SinusoidalPositionEmbeddings,
    check_images,
    embedded,
)
from fastdiff.networks.registry import BLOCKS, WIDEST


class AnnotatedUnet(nn.Module):
    """The Annotated Diffusion U-Net: x (B, channels, H, W) in [-1, 1], t (B,) or a scalar in 0 .. T-1 → as x.

    H and W must be multiples of 2^(levels - 1); with another size `forward` raises InputError.

    Args:
        dim: base width, even and at least 4.
        init_dim: width of the first convolution; None is dim // 3 * 2.
        dim_mults: each level's width over dim, the first being 1.
        channels: of the images.
        out_dim: channels of the output; None is `channels`.
        edition: "mindspore", "mindspore-torch" or "hf-2022" (see blocks.Edition).
        block: "convnext" or "resnet".
        convnext_mult: a ConvNeXt block's inner width over its outer one.
        resnet_groups: groups of a ResNet block's GroupNorms; must divide every level's width.

    Raises:
        InputError: for values outside these ranges.
    """

    time = "index"  # what forward takes as t, as Model.time has it
    n_cfeat = 0  # it takes no context

    @staticmethod
    def options_for(image_shape: tuple[int, int, int], contexts: int) -> dict[str, Any]:
        """The options that follow from training data: (C, H, W) of a picture, and the number of context entries."""
        return {"channels": image_shape[0]}

    def __init__(
        self,
        dim: int = 28,
        init_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4),
        channels: int = 1,
        out_dim: int | None = None,
        edition: str = "mindspore-torch",
        block: str = "convnext",
        convnext_mult: int = 2,
        resnet_groups: int = 8,
    ) -> None:
        super().__init__()
        check_int("dim", dim, 1, WIDEST)
        init_dim = dim // 3 * 2 if init_dim is None else init_dim
        self.options: dict[str, Any] = dict(
            dim=dim,
            init_dim=init_dim,
            dim_mults=list(dim_mults),
            channels=channels,
            out_dim=out_dim,
            edition=edition,
            block=block,
            convnext_mult=convnext_mult,
            resnet_groups=resnet_groups,
        )
        _check_options(**self.options)
        self.channels, self.levels = channels, len(dim_mults)
        published = EDITIONS[edition]
        make: Callable[..., nn.Module] = (
            partial(ConvNextBlock, mult=convnext_mult, edition=published)
            if block == "convnext"
            else partial(ResnetBlock, groups=resnet_groups, edition=published)
        )
        bias, time_dim = published.conv_bias, dim * 4
        dims = [init_dim, *(dim * m for m in dim_mults)]
        pairs = list(zip(dims[:-1], dims[1:], strict=True))
        middle = dims[-1]

        def linear(width: int) -> nn.Module:
            return Residual(PreNorm(width, LinearAttention(width, edition=published)))

        self.init_conv = nn.Conv2d(channels, init_dim, 7, padding=3)
        self.time_mlp = nn.Sequential(
            SinusoidalPositionEmbeddings(dim),
            nn.Linear(dim, time_dim),
            nn.GELU(approximate=published.gelu),
            nn.Linear(time_dim, time_dim),
        )
        self.downs = nn.ModuleList()
        for level, (cin, cout) in enumerate(pairs):
            last = level == len(pairs) - 1
            down = nn.Identity() if last else nn.Conv2d(cout, cout, 4, stride=2, padding=1, bias=bias)
            blocks = [make(cin, cout, time_dim=time_dim), make(cout, cout, time_dim=time_dim)]
            self.downs.append(nn.ModuleList([*blocks, linear(cout), down]))
        self.mid_block1 = make(middle, middle, time_dim=time_dim)
        self.mid_attn = Residual(PreNorm(middle, Attention(middle)))
        self.mid_block2 = make(middle, middle, time_dim=time_dim)
        self.ups = nn.ModuleList()
        for cin, cout in reversed(pairs[1:]):
            up = nn.ConvTranspose2d(cin, cin, 4, stride=2, padding=1, bias=bias)
            blocks = [make(cout * 2, cin, time_dim=time_dim), make(cin, cin, time_dim=time_dim)]
            self.ups.append(nn.ModuleList([*blocks, linear(cin), up]))
        self.final_conv = nn.Sequential(
            make(dim, dim, time_dim=None), nn.Conv2d(dim, out_dim or channels, 1, bias=bias)
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if context is not None:
            raise InputError("AnnotatedUnet takes no context; leave context out, or use a ContextUnet")
        check_images(x, self.channels, self.levels)
        time = embedded(self.time_mlp, t)
        x = self.init_conv(x)
        skips = []
        for block1, block2, attention, downsample in self.downs:
            x = block1(x, time)
            x = block2(x, time)
            x = attention(x)
            skips.append(x)
            x = downsample(x)
        x = self.mid_block1(x, time)
        x = self.mid_attn(x)
        x = self.mid_block2(x, time)
        for block1, block2, attention, upsample in self.ups:
            x = torch.cat((x, skips.pop()), dim=1)
            x = block1(x, time)
            x = block2(x, time)
            x = attention(x)
            x = upsample(x)
        return self.final_conv(x)


def _check_options(
    dim: int,
    init_dim: int,
    dim_mults: Sequence[int],
    channels: int,
    out_dim: int | None,
    edition: str,
    block: str,
    convnext_mult: int,
    resnet_groups: int,
) -> None:
    """Raises InputError for options that AnnotatedUnet does not accept."""
    for width in dim_mults:
        check_int("dim_mults", width, 1, WIDEST)
    given = dict(init_dim=init_dim, channels=channels, convnext_mult=convnext_mult, resnet_groups=resnet_groups)
    for name, number in given.items():
        check_int(name, number, 1, WIDEST)
    if out_dim is not None:
        check_int("out_dim", out_dim, 1, WIDEST)
    if edition not in EDITIONS:
        raise unknown_name("edition", edition, EDITIONS)
    if block not in BLOCKS:
        raise unknown_name("block", block, BLOCKS)
    if dim < 4 or dim % 2:
        raise InputError(f"dim = {dim}; accepted: an even number of at least 4")
    if not dim_mults or dim_mults[0] != 1:
        raise InputError(f"dim_mults = {tuple(dim_mults)}; accepted: whole numbers, the first being 1")
    if block == "resnet" and any(dim * m % resnet_groups for m in dim_mults):
        raise InputError(f"dim = {dim} with resnet_groups = {resnet_groups}; the groups must divide every width")
