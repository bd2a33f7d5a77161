"""A U-Net in the style of EDM's code (Karras et al. 2022): its SongUNet, with its own layers over functional torch.

Written for the benchmarks from how that code works. There the last convolutions start near zero, here they do not: a
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
    """A convolution, after resampling by the filter [1, 1] where `up` or `down`."""

    resample_filter: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, kernel: int, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.in_channels, self.up, self.down = in_channels, up, down
        self.weight = weight(out_channels, in_channels, kernel, kernel)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        f = torch.tensor([1.0, 1.0])
        self.register_buffer("resample_filter", (f.ger(f) / f.sum().square())[None, None] if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample_filter is not None:
            n = self.in_channels
            f = self.resample_filter.to(x.dtype).tile([n, 1, 1, 1])
            x = F.conv_transpose2d(x, f.mul(4), groups=n, stride=2) if self.up else F.conv2d(x, f, groups=n, stride=2)
        x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight.shape[-1] // 2)
        return x.add_(self.bias.to(x.dtype).reshape(1, -1, 1, 1))


class GroupNorm(nn.Module):
    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_groups = min(32, num_channels // 4)
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
    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        freqs = torch.arange(start=0, end=self.num_channels // 2, dtype=torch.float32, device=x.device)
        x = x.ger(((1 / 10000) ** (freqs / (self.num_channels // 2))).to(x.dtype))
        return torch.cat([x.cos(), x.sin()], dim=1)


class UNetBlock(nn.Module):
    """adaptive_scale: the embedding scales and shifts the second norm's result; else it is added before it."""

    def __init__(
        self, cin: int, cout: int, emb: int, adaptive_scale: bool, attention: bool = False, **resampling: bool
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = cin, cout
        self.adaptive_scale, self.attention, self.skip_scale = adaptive_scale, attention, 0.5**0.5
        self.norm0, self.conv0 = GroupNorm(cin), Conv2d(cin, cout, 3, **resampling)
        self.affine = Linear(emb, cout * (2 if adaptive_scale else 1))
        self.norm1, self.conv1 = GroupNorm(cout), Conv2d(cout, cout, 3)
        self.skip = Conv2d(cin, cout, 1, **resampling) if cout != cin or resampling else None
        if attention:
            self.norm2, self.qkv, self.proj = GroupNorm(cout), Conv2d(cout, cout * 3, 1), Conv2d(cout, cout, 1)

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
        if self.attention:
            q, k, v = self.qkv(self.norm2(x)).reshape(x.shape[0], x.shape[1], 3, -1).unbind(2)
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

        def block(cin: int, cout: int, **options: bool) -> UNetBlock:
            return UNetBlock(cin, cout, emb, adaptive_scale, **options)

        cout, levels = model_channels, len(channel_mult)
        sizes = [img_resolution >> level for level in range(levels)]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc["conv"], skips = Conv2d(in_channels, cout, 3), [cout]
        for level, res in enumerate(sizes):
            if level:
                self.enc[f"{res}x{res}_down"] = block(cout, cout, down=True)
                skips.append(cout)
            for idx in range(num_blocks):
                cin, cout = cout, model_channels * channel_mult[level]
                self.enc[f"{res}x{res}_block{idx}"] = block(cin, cout, attention=res in attn_resolutions)
                skips.append(cout)
        for level, res in reversed(list(enumerate(sizes))):
            if level == levels - 1:
                self.dec[f"{res}x{res}_in0"] = block(cout, cout, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(cout, cout)
            else:
                self.dec[f"{res}x{res}_up"] = block(cout, cout, up=True)
            for idx in range(num_blocks + 1):
                cin, cout = cout + skips.pop(), model_channels * channel_mult[level]
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


class Precond(nn.Module):
    """(x0 + sigma noise, sigma[, class_labels (B, label_dim)]) → the denoised image, in the manner of EDMPrecond.

    Its preconditioning is that of Karras et al. 2022, eq. 7. Classes are added to the picture that the network gets.
    """

    sigma_min, sigma_max, sigma_data = 0.0, float("inf"), 0.5

    def __init__(self, model: nn.Module, img_resolution: int, img_channels: int = 3, label_dim: int = 0) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.model = model
        self.labels = nn.Linear(label_dim, img_channels) if label_dim else None

    def round_sigma(self, sigma: Any) -> Tensor:
        return torch.as_tensor(sigma)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        total = sigma**2 + self.sigma_data**2
        scaled = x / total.sqrt()
        if self.labels is not None:
            assert class_labels is not None
            scaled = scaled + self.labels(class_labels.to(torch.float32))[:, :, None, None]
        out = self.model(scaled, sigma.log().flatten() / 4)
        return self.sigma_data**2 / total * x + sigma * self.sigma_data / total.sqrt() * out
