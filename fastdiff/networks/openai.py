"""The U-Net of OpenAI's improved-diffusion and guided-diffusion. Attribute names are those of its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.networks.blocks import check_images

GROUPS = 32  # of every GroupNorm


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[cos(t f), sin(t f)], f_k = exp(-k ln 10000 / half), half = dim / 2: (R,) → (R, dim), float32."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000) / half))
    angles = t.to(torch.float32)[:, None] * frequencies[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Downsample(nn.Module):
    """Half the height and width, by a convolution or by the mean of 2x2."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the height and width, each pixel repeated, and a convolution if there is one."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the embedding between them, and the residual.

    Args:
        cin, cout: widths.
        embed_dim: of the embedding.
        scale_shift: whether the embedding scales and shifts the second norm's result; else it is added before it.
        resample: what changes the size of the first norm's result and of the residual; None keeps it.
    """

    def __init__(
        self, cin: int, cout: int, *, embed_dim: int, scale_shift: bool, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * cout if scale_shift else cout))
        # The dropout that it was trained with, which no one samples with, keeps its place.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, cout), nn.SiLU(), nn.Identity(), nn.Conv2d(cout, cout, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h, embedding = conv(h), self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            norm, *rest = self.out_layers
            scale, shift = embedding.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
            for layer in rest:
                h = layer(h)
        else:
            h = self.out_layers(h + embedding)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Softmax attention over positions (Vaswani et al. 2017, 3.2), with norm and residual.

    Args:
        channels: width.
        heads: which divide it.
        new_order: whether qkv's channels are q, k, v and each of these the heads; else the heads, and each q, k, v.
    """

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).reshape(b, c, h * w))
        if self.new_order:
            parts = qkv.reshape(b, 3, self.heads, -1, h * w).unbind(1)
        else:
            parts = qkv.reshape(b, self.heads, 3, -1, h * w).unbind(2)
        q, k, v = (part.transpose(-1, -2) for part in parts)  # (B, heads, n, d)
        out = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h * w)
        return x + self.proj_out(out).reshape(b, c, h, w)


class Stage(nn.Sequential):
    """Layers one after another; ResBlocks are given the embedding too."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class OpenaiUnet(nn.Module):
    """UNetModel (Nichol and Dhariwal 2021; Dhariwal and Nichol 2021): x (B, in_channels, H, W), t (B,) or a scalar.

    It returns (B, out_channels, H, W). H and W must be multiples of 2^(levels - 1). With num_classes the context is
    (B,) int64 class numbers, without it there is none. `forward` raises InputError for anything else.

    Args:
        in_channels: of the images.
        model_channels: base width, even.
        out_channels: of the output, twice in_channels with a learned variance; None is in_channels.
        num_res_blocks: ResBlocks of a level on the way down; there is one more on the way up.
        channel_mult: each level's width over model_channels; every width is a multiple of 32.
        attention_levels: the levels with attention, from 0, which is the images' own size.
        num_classes: how many class numbers there are; None takes none.
        num_heads: of the attention.
        num_head_channels: width of a head; None is the attention's width over num_heads, else that is not used.
        use_scale_shift_norm: whether embeddings scale and shift norms; else they are added before them.
        resblock_updown: whether ResBlocks change the size between levels, by mean and repetition.
        use_new_attention_order: see AttentionBlock.
        conv_resample: whether convolutions change it, where ResBlocks do not; else mean and repetition alone.
        time_scale: what t is multiplied by: 1000 / T where improved-diffusion's rescale_timesteps was on.

    Raises:
        InputError: for values outside these ranges.
    """

    time = "index"  # what forward takes as t, as Model.time has it

    @staticmethod
    def options_for(image_shape: tuple[int, int, int], contexts: int) -> dict[str, Any]:
        """The options that follow from training data: (C, H, W) of a picture, and the number of context entries."""
        return {"in_channels": image_shape[0], "out_channels": image_shape[0]}

    def __init__(
        self,
        in_channels: int = 3,
        model_channels: int = 128,
        out_channels: int | None = None,
        num_res_blocks: int = 2,
        channel_mult: Sequence[float] = (1, 2, 2, 2),
        attention_levels: Sequence[int] = (1, 2),
        num_classes: int | None = None,
        num_heads: int = 4,
        num_head_channels: int | None = None,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        conv_resample: bool = True,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = dict(
            in_channels=in_channels,
            model_channels=model_channels,
            out_channels=out_channels,
            num_res_blocks=num_res_blocks,
            channel_mult=list(channel_mult),
            attention_levels=list(attention_levels),
            num_classes=num_classes,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            conv_resample=conv_resample,
            time_scale=time_scale,
        )
        widths = _widths(model_channels, channel_mult)
        levels = len(widths)
        if num_res_blocks < 1:
            raise InputError(f"num_res_blocks = {num_res_blocks}; accepted: at least 1")
        if any(not 0 <= level < levels for level in attention_levels):
            raise InputError(f"attention_levels = {list(attention_levels)}; accepted: numbers from 0 to {levels - 1}")
        if num_classes is not None and num_classes < 1:
            raise InputError(f"num_classes = {num_classes}; accepted: at least 1, or None")
        self.in_channels, self.levels, self.time_scale = in_channels, levels, time_scale
        self.n_cfeat = 0 if num_classes is None else None  # class numbers are no vector of K entries
        self.num_classes = num_classes
        embed_dim = 4 * model_channels
        block = partial(ResBlock, embed_dim=embed_dim, scale_shift=use_scale_shift_norm)

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, _heads(width, num_heads, num_head_channels), use_new_attention_order)

        def layers(cin: int, level: int) -> list[nn.Module]:
            width = widths[level]
            return [block(cin, width), *([attention(width)] if level in attention_levels else [])]

        def resampler(kind: Callable[[int, bool], nn.Module], width: int) -> nn.Module:
            return block(width, width, resample=kind(width, False)) if resblock_updown else kind(width, conv_resample)

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim)
        )
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, embed_dim)
        width = widths[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels, width, 3, padding=1))])
        skips = [width]
        for level in range(levels):
            if level:
                self.input_blocks.append(Stage(resampler(Downsample, width)))
                skips.append(width)
            for _ in range(num_res_blocks):
                self.input_blocks.append(Stage(*layers(width, level)))
                width = widths[level]
                skips.append(width)
        self.middle_block = Stage(block(width, width), attention(width), block(width, width))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            for k in range(num_res_blocks + 1):
                stage = layers(width + skips.pop(), level)
                width = widths[level]
                if level and k == num_res_blocks:
                    stage.append(resampler(Upsample, width))
                self.output_blocks.append(Stage(*stage))
        last = nn.Conv2d(width, in_channels if out_channels is None else out_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        check_images(x, self.in_channels, self.levels)
        if (context is None) != (self.label_emb is None):
            takes = "no classes" if self.label_emb is None else "the number of a class for each sample"
            raise InputError(f"{'no' if context is None else 'a'} context; this network takes {takes}")
        first = self.time_embed[0]
        sines = timestep_embedding(t.reshape(-1) * self.time_scale, first.in_features)
        embedding = self.time_embed(sines.to(first.weight.dtype))
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(context)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for stage in self.output_blocks:
            x = stage(torch.cat((x, skips.pop()), dim=1), embedding)
        return self.out(x)


def _widths(model_channels: int, channel_mult: Sequence[float]) -> list[int]:
    """Of each level; raises InputError for what makes no network."""
    if model_channels < 2 or model_channels % 2:
        raise InputError(f"model_channels = {model_channels}; accepted: a positive even number")
    # Rounded: a width over model_channels, as it is read off a file, times these may be a hair less than the width.
    widths = [round(model_channels * mult) for mult in channel_mult]
    if not widths or any(width < 1 or width % GROUPS for width in widths):
        raise InputError(
            f"channel_mult = {tuple(channel_mult)} of model_channels = {model_channels} makes levels of {widths}; "
            f"accepted: positive multiples of {GROUPS}, the norms' groups"
        )
    return widths


def _heads(width: int, num_heads: int, num_head_channels: int | None) -> int:
    """Heads of attention of a width; raises InputError where they do not divide it."""
    name, size = ("num_heads", num_heads) if num_head_channels is None else ("num_head_channels", num_head_channels)
    if size < 1 or width % size:
        raise InputError(f"{name} = {size} with attention of width {width}; accepted: a divisor of it")
    return size if num_head_channels is None else width // size
