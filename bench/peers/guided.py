"""A U-Net in the style of guided-diffusion (Dhariwal and Nichol 2021): its UNetModel's blocks, norms and attention.

Written for the benchmarks from how that code works. There the last convolutions start at zero, here they do not: a
network that was never trained would return nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GroupNorm32(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(min(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


def conv(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(start=0, end=half, dtype=torch.float32) / half)
    args = timesteps[:, None].float() * freqs.to(device=timesteps.device)[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


def upsample(channels: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv(channels, channels))


class ResBlock(nn.Module):
    """use_scale_shift_norm: the embedding scales and shifts the second norm's result; else it is added before it."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, use_scale_shift_norm: bool) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), conv(channels, out_channels))
        width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        last = conv(out_channels, out_channels)
        self.out_layers = nn.Sequential(GroupNorm32(out_channels), nn.SiLU(), nn.Dropout(0.1), last)
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        emb_out = self.emb_layers(emb).type(h.dtype)[..., None, None]
        if self.use_scale_shift_norm:
            out_norm, out_rest = self.out_layers[0], self.out_layers[1:]
            scale, shift = torch.chunk(emb_out, 2, dim=1)
            h = out_rest(out_norm(h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb_out)
        return self.skip_connection(x) + h


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class AttentionBlock(nn.Module):
    """Heads first, then q, k and v: the legacy order."""

    def __init__(self, channels: int, num_head_channels: int) -> None:
        super().__init__()
        self.num_heads = channels // num_head_channels
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        return (x + self.proj_out(self.attention(self.qkv(self.norm(x))))).reshape(b, c, *spatial)

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

        def block(channels: int, out_channels: int, ds: int) -> list[nn.Module]:
            layers: list[nn.Module] = [ResBlock(channels, embed, out_channels, use_scale_shift_norm)]
            if ds in attention_resolutions:
                layers.append(AttentionBlock(out_channels, num_head_channels))
            return layers

        ch, ds = model_channels * channel_mult[0], 1
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(conv(in_channels, ch))])
        chans = [ch]
        for level, mult in enumerate(channel_mult):
            if level:
                self.input_blocks.append(TimestepEmbedSequential(conv(ch, ch, stride=2)))
                chans, ds = [*chans, ch], 2 * ds
            for _ in range(num_res_blocks):
                self.input_blocks.append(TimestepEmbedSequential(*block(ch, mult * model_channels, ds)))
                ch = mult * model_channels
                chans.append(ch)
        first, last = (ResBlock(ch, embed, ch, use_scale_shift_norm) for _ in range(2))
        self.middle_block = TimestepEmbedSequential(first, AttentionBlock(ch, num_head_channels), last)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = block(ch + chans.pop(), mult * model_channels, ds)
                ch = mult * model_channels
                if level and i == num_res_blocks:
                    layers, ds = [*layers, upsample(ch)], ds // 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Sequential(GroupNorm32(ch), nn.SiLU(), conv(ch, in_channels))

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
