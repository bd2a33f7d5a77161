"""A U-Net in the style of EDM's code (Karras et al. 2022): its SongUNet, with its own layers over functional torch.

Written for the benchmarks from how that code works. Its last convolutions are not nearly zero at first, as there: a
network that was never trained would return nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape)))


class Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight, self.bias = weight(out_features, in_features), nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.to(x.dtype).t()).add_(self.bias.to(x.dtype))


class Conv2d(nn.Module):
    """A convolution, after resampling by a filter where `up` or `down`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.up, self.down = in_channels, out_channels, up, down
        self.weight = weight(out_channels, in_channels, kernel, kernel)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        f = torch.as_tensor(resample_filter, dtype=torch.float32)
        f = f.ger(f).unsqueeze(0).unsqueeze(1) / f.sum().square()
        self.register_buffer("resample_filter", f if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.resample_filter is not None:
            f, n = self.resample_filter.to(x.dtype), self.in_channels
            f_pad = (f.shape[-1] - 1) // 2
            if self.up:
                x = F.conv_transpose2d(x, f.mul(4).tile([n, 1, 1, 1]), groups=n, stride=2, padding=f_pad)
            if self.down:
                x = F.conv2d(x, f.tile([n, 1, 1, 1]), groups=n, stride=2, padding=f_pad)
        x = F.conv2d(x, w, padding=w.shape[-1] // 2)
        return x.add_(b.reshape(1, -1, 1, 1))


class GroupNorm(nn.Module):
    def __init__(self, num_channels: int, num_groups: int = 32, min_channels_per_group: int = 4) -> None:
        super().__init__()
        self.num_groups = min(num_groups, num_channels // min_channels_per_group)
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), eps=1e-6)


class AttentionOp(torch.autograd.Function):
    """The softmax of q k, in float32 forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        scaled = (k / k.shape[1] ** 0.5).to(torch.float32)
        w = torch.einsum("ncq,nck->nqk", q.to(torch.float32), scaled).softmax(dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        q, k, w = (one.to(torch.float32) for one in ctx.saved_tensors)
        dw = grads[0].to(torch.float32) * w
        db = (dw - w * dw.sum(dim=2, keepdim=True)) / k.shape[1] ** 0.5
        return torch.einsum("nck,nqk->ncq", k, db).to(grads[0]), torch.einsum("ncq,nqk->nck", q, db).to(grads[0])


class PositionalEmbedding(nn.Module):
    def __init__(self, num_channels: int, max_positions: int = 10000) -> None:
        super().__init__()
        self.num_channels, self.max_positions = num_channels, max_positions

    def forward(self, x: Tensor) -> Tensor:
        half = self.num_channels // 2
        freqs = torch.arange(0, half, dtype=torch.float32, device=x.device) / (half - 1)
        x = x.ger(((1 / self.max_positions) ** freqs).to(x.dtype))
        return torch.cat([x.cos(), x.sin()], dim=1)


class UNetBlock(nn.Module):
    """adaptive_scale: the embedding scales and shifts the second norm's result; else it is added before it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        adaptive_scale: bool,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        skip_scale: float = 0.5**0.5,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.adaptive_scale, self.skip_scale = adaptive_scale, skip_scale
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = Conv2d(in_channels, out_channels, 3, up=up, down=down)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1, self.conv1 = GroupNorm(out_channels), Conv2d(out_channels, out_channels, 3)
        changed = out_channels != in_channels or up or down
        self.skip = Conv2d(in_channels, out_channels, 1, up=up, down=down) if changed else None
        self.num_heads = 1 if attention else 0
        if attention:
            self.norm2 = GroupNorm(out_channels)
            self.qkv, self.proj = Conv2d(out_channels, out_channels * 3, 1), Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        orig = x
        x = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb).unsqueeze(2).unsqueeze(3).to(x.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(chunks=2, dim=1)
            x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = F.silu(self.norm1(x.add_(params)))
        x = self.conv1(x)
        x = x.add_(self.skip(orig) if self.skip is not None else orig) * self.skip_scale
        if self.num_heads:
            heads = (x.shape[0] * self.num_heads, x.shape[1] // self.num_heads, 3, -1)
            q, k, v = self.qkv(self.norm2(x)).reshape(*heads).unbind(2)
            a = torch.einsum("nqk,nck->ncq", AttentionOp.apply(q, k), v)
            x = self.proj(a.reshape(*x.shape)).add_(x) * self.skip_scale
        return x


class SongUNet(nn.Module):
    """x (B, in_channels, R, R), noise_labels (B,), whole or not → the prediction, x's shape.

    Args:
        channel_mult: Widths by level, in model_channels.
        attn_resolutions: Sizes of pictures at which there is attention.
    """

    def __init__(
        self,
        img_resolution: int = 32,
        in_channels: int = 3,
        model_channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 2),
        num_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        emb = model_channels * 4
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_layer0, self.map_layer1 = Linear(model_channels, emb), Linear(emb, emb)

        def block(before: int, after: int, **options: bool) -> UNetBlock:
            return UNetBlock(before, after, emb, adaptive_scale, **options)

        cout = model_channels
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc["conv"] = Conv2d(in_channels, cout, 3)
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level:
                self.enc[f"{res}x{res}_down"] = block(cout, cout, down=True)
            for idx in range(num_blocks):
                cin, cout = cout, model_channels * mult
                self.enc[f"{res}x{res}_block{idx}"] = block(cin, cout, attention=res in attn_resolutions)
        skips: list[Any] = [one.out_channels for one in self.enc.values()]
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = block(cout, cout, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(cout, cout)
            else:
                self.dec[f"{res}x{res}_up"] = block(cout, cout, up=True)
            for idx in range(num_blocks + 1):
                cin, cout = cout + skips.pop(), model_channels * mult
                attention = idx == num_blocks and res in attn_resolutions
                self.dec[f"{res}x{res}_block{idx}"] = block(cin, cout, attention=attention)
        self.aux_norm, self.aux_conv = GroupNorm(cout), Conv2d(cout, in_channels, 3)

    def forward(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        emb = self.map_noise(noise_labels.to(torch.float32))
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(*emb.shape)  # sine before cosine
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        skips = []
        for name, one in self.enc.items():
            x = one(x) if name == "conv" else one(x, emb)
            skips.append(x)
        for one in self.dec.values():
            if x.shape[1] != one.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = one(x, emb)
        return self.aux_conv(F.silu(self.aux_norm(x)))
