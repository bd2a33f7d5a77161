"""A U-Net in the style of guided-diffusion (Dhariwal and Nichol 2021): its UNetModel's blocks, norms and attention.

Written for the benchmarks from how that code works. Its last convolutions are not zero at first, as there: a network
that was never trained would return nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm32(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


def conv_nd(dims: int, *given: Any, **options: Any) -> nn.Module:
    return {1: nn.Conv1d, 2: nn.Conv2d}[dims](*given, **options)


def normalization(channels: int) -> GroupNorm32:
    return GroupNorm32(min(32, channels), channels)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(start=0, end=half, dtype=torch.float32) / half)
    args = timesteps[:, None].float() * freqs.to(device=timesteps.device)[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class TimestepBlock(nn.Module):
    """A module that takes the time's embedding too."""


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv_nd(2, channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = conv_nd(2, channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(TimestepBlock):
    """use_scale_shift_norm: the embedding scales and shifts the second norm's result; else it is added before it."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, use_scale_shift_norm: bool) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(), conv_nd(2, channels, out_channels, 3, padding=1)
        )
        width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            nn.SiLU(),
            nn.Dropout(0.0),
            conv_nd(2, out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else conv_nd(2, channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        emb_out = self.emb_layers(emb).type(h.dtype)
        while len(emb_out.shape) < len(h.shape):
            emb_out = emb_out[..., None]
        if self.use_scale_shift_norm:
            out_norm, out_rest = self.out_layers[0], self.out_layers[1:]
            scale, shift = torch.chunk(emb_out, 2, dim=1)
            h = out_norm(h) * (1 + scale) + shift
            h = out_rest(h)
        else:
            h = self.out_layers(h + emb_out)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Heads first, then q, k and v: the legacy order."""

    def __init__(self, channels: int, num_head_channels: int) -> None:
        super().__init__()
        self.num_heads = channels // num_head_channels
        self.norm = normalization(channels)
        self.qkv = conv_nd(1, channels, channels * 3, 1)
        self.proj_out = conv_nd(1, channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        h = self.proj_out(self.attention(self.qkv(self.norm(x))))
        return (x + h).reshape(b, c, *spatial)

    def attention(self, qkv: Tensor) -> Tensor:
        bs, width, length = qkv.shape
        ch = width // (3 * self.num_heads)
        q, k, v = qkv.reshape(bs * self.num_heads, ch * 3, length).split(ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)  # more stable in float16 than dividing afterwards
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        return torch.einsum("bts,bcs->bct", weight, v).reshape(bs, -1, length)


class UNetModel(nn.Module):
    """x (B, in_channels, H, W), timesteps (B,), whole or not → the prediction, x's shape.

    Args:
        attention_resolutions: Factors of downsampling at which there is attention.
        channel_mult: Widths by level, in model_channels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        model_channels: int = 64,
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (2, 4),
        channel_mult: Sequence[int] = (1, 2, 2),
        num_head_channels: int = 32,
        use_scale_shift_norm: bool = True,
    ) -> None:
        super().__init__()
        self.model_channels = model_channels
        embed = model_channels * 4
        self.time_embed = nn.Sequential(nn.Linear(model_channels, embed), nn.SiLU(), nn.Linear(embed, embed))

        def block(before: int, after: int, ds: int) -> list[nn.Module]:
            made: list[nn.Module] = [ResBlock(before, embed, after, use_scale_shift_norm)]
            return made + [AttentionBlock(after, num_head_channels)] * (ds in attention_resolutions)

        ch, ds = model_channels * channel_mult[0], 1
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(conv_nd(2, in_channels, ch, 3, padding=1))])
        chans = [ch]
        for level, mult in enumerate(channel_mult):
            if level:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(ch)))
                chans.append(ch)
                ds *= 2
            for _ in range(num_res_blocks):
                self.input_blocks.append(TimestepEmbedSequential(*block(ch, mult * model_channels, ds)))
                ch = mult * model_channels
                chans.append(ch)
        attention = AttentionBlock(ch, num_head_channels)
        first, last = (ResBlock(ch, embed, ch, use_scale_shift_norm) for _ in range(2))
        self.middle_block = TimestepEmbedSequential(first, attention, last)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = block(ch + chans.pop(), mult * model_channels, ds)
                ch = mult * model_channels
                if level and i == num_res_blocks:
                    layers.append(Upsample(ch))
                    ds //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Sequential(normalization(ch), nn.SiLU(), conv_nd(2, ch, in_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        hs, h = [], x
        for module in self.input_blocks:
            h = module(h, emb)
            hs.append(h)
        h = self.middle_block(h, emb)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb)
        return self.out(h.type(x.dtype))
