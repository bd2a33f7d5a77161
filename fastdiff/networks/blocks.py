"""The parts of the Annotated Diffusion U-Net. Attribute names are those of published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.conv import conv_add, conv_norm
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention

HEADS, HEAD_DIM = 4, 32


@dataclass(frozen=True)
class Edition:
    """Where the published editions of the network differ.

    Attributes:
        gelu: nn.GELU's approximation, "none" (erf) or "tanh".
        conv_bias: whether every convolution has a bias, or only init_conv and to_out.
        channel_norm: whether to_out ends in a LayerNorm over channels with a gain `g`, or in GroupNorm(1).
        divide_by_n: whether LinearAttention divides v by H W.
    """

    gelu: str
    conv_bias: bool
    channel_norm: bool
    divide_by_n: bool

    @property
    def gelu_name(self) -> str:
        """The activation's name in fastdiff.kernels."""
        return "gelu" if self.gelu == "none" else "gelu_tanh"


EDITIONS = {
    "mindspore": Edition(gelu="tanh", conv_bias=False, channel_norm=True, divide_by_n=True),
    "mindspore-torch": Edition(gelu="none", conv_bias=True, channel_norm=True, divide_by_n=True),
    "hf-2022": Edition(gelu="none", conv_bias=True, channel_norm=False, divide_by_n=False),
}


def normed(norm: nn.GroupNorm, x: Tensor, after: str | None = None) -> Tensor:
    """after(norm(x)) in one operator."""
    return group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, after=after)


def convolved_and_normed(
    conv: nn.Conv2d, norm: nn.GroupNorm, x: Tensor, before: str | None = None, after: str | None = None
) -> Tensor:
    """after(norm(before(conv(x)))), fused."""
    return conv_norm(
        x, conv.weight, conv.bias, norm.num_groups, norm.weight, norm.bias, norm.eps, before=before, after=after
    )


def convolved_and_added(conv: nn.Conv2d, x: Tensor, residual: Tensor, shortcut: nn.Module | None = None) -> Tensor:
    """conv(x) + shortcut(residual), fused; the shortcut is a 1x1 convolution, or None or nn.Identity for none."""
    if isinstance(shortcut, nn.Conv2d):
        return conv_add(x, conv.weight, conv.bias, residual, shortcut.weight, shortcut.bias)
    return conv_add(x, conv.weight, conv.bias, residual)


class SinusoidalPositionEmbeddings(nn.Module):
    """[sin(t f), cos(t f)], f_k = exp(-k ln 10000 / (half - 1)), half = dim / 2 (Vaswani et al. 2017, 3.5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        scale = -math.log(10000) / (half - 1)
        frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * scale)
        angles = t.to(torch.float32)[:, None] * frequencies[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)  # (R, dim), float32


def embedded(time_mlp: nn.Sequential, t: Tensor) -> Tensor:
    """A network's time embedding, (R, width): its first layer computes in float32, the others in the weights' dtype."""
    sines, *mlp = time_mlp
    time = sines(t.reshape(-1)).to(mlp[0].weight.dtype)
    for layer in mlp:
        time = layer(time)
    return time


def check_images(x: Tensor, channels: int, levels: int) -> None:
    """Raises InputError unless x is (B, channels, H, W), H and W multiples of what the levels divide by."""
    multiple = 2 ** (levels - 1)
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        raise InputError(
            f"images of shape {tuple(x.shape)}; this network takes (B, {channels}, H, W) "
            f"with H and W multiples of {multiple}"
        )


class TimeProjection(nn.Sequential):
    """A block's projection of the time embedding, activation and Linear: (R, 4 dim) → (R, width, 1, 1)."""

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding)[:, :, None, None]


class ConvNextBlock(nn.Module):
    """The tutorial's variant of ConvNeXt's block (Liu et al. 2022); the time bias follows the depthwise convolution."""

    def __init__(self, cin: int, cout: int, *, time_dim: int | None, mult: int, edition: Edition) -> None:
        super().__init__()
        bias, gelu = edition.conv_bias, lambda: nn.GELU(approximate=edition.gelu)
        self.gelu = edition.gelu_name
        self.mlp = TimeProjection(gelu(), nn.Linear(time_dim, cin)) if time_dim else None
        self.ds_conv = nn.Conv2d(cin, cin, 7, padding=3, groups=cin, bias=bias)
        self.net = nn.Sequential(
            nn.GroupNorm(1, cin),
            nn.Conv2d(cin, cout * mult, 3, padding=1, bias=bias),
            gelu(),
            nn.GroupNorm(1, cout * mult),
            nn.Conv2d(cout * mult, cout, 3, padding=1, bias=bias),
        )
        self.res_conv = nn.Conv2d(cin, cout, 1, bias=bias) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        norm1, expand, _, norm2, contract = self.net
        bias = None if self.mlp is None else self.mlp(time)
        h = depthwise_conv(x, self.ds_conv.weight, self.ds_conv.bias, bias)
        h = convolved_and_normed(expand, norm2, normed(norm1, h), before=self.gelu)
        return convolved_and_added(contract, h, x, self.res_conv)


class Block(nn.Module):
    """Conv 3x3, GroupNorm, SiLU."""

    def __init__(self, cin: int, cout: int, *, groups: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(cin, cout, 3, padding=1, bias=bias)
        self.norm = nn.GroupNorm(groups, cout)

    def forward(self, x: Tensor) -> Tensor:
        return convolved_and_normed(self.proj, self.norm, x, after="silu")


class ResnetBlock(nn.Module):
    """Two Blocks with the time bias added between them: the tutorial's other block."""

    def __init__(self, cin: int, cout: int, *, time_dim: int | None, groups: int, edition: Edition) -> None:
        super().__init__()
        bias = edition.conv_bias
        self.mlp = TimeProjection(nn.SiLU(), nn.Linear(time_dim, cout)) if time_dim else None
        self.block1 = Block(cin, cout, groups=groups, bias=bias)
        self.block2 = Block(cout, cout, groups=groups, bias=bias)
        self.res_conv = nn.Conv2d(cin, cout, 1, bias=bias) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.block1(x)
        if self.mlp is not None:
            h = h + self.mlp(time)
        return self.block2(h) + self.res_conv(x)  # not fused: SiLU comes before the addition


class ChannelNorm(nn.Module):
    """LayerNorm over channels with a gain `g` and no shift, and the residual; see kernels.channel_norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return channel_norm(x, self.g, residual)


class Attention(nn.Module):
    """Softmax attention over positions (Vaswani et al. 2017, 3.2), 4 heads of 32, with the residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, HEADS * HEAD_DIM * 3, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.to_qkv(x).reshape(b, 3, HEADS, HEAD_DIM, h * w)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1))  # (B, heads, n, d)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(-1, -2).reshape(b, HEADS * HEAD_DIM, h, w)
        return convolved_and_added(self.to_out, out, residual)


class LinearAttention(nn.Module):
    """Linear attention (see kernels.linear_attention), 4 heads of 32: output projection, norm, residual."""

    def __init__(self, channels: int, *, edition: Edition) -> None:
        super().__init__()
        self.divide_by_n = edition.divide_by_n
        self.to_qkv = nn.Conv2d(channels, HEADS * HEAD_DIM * 3, 1, bias=False)
        norm = ChannelNorm(channels) if edition.channel_norm else nn.GroupNorm(1, channels)
        self.to_out = nn.Sequential(nn.Conv2d(HEADS * HEAD_DIM, channels, 1), norm)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        project, norm = self.to_out
        out = project(linear_attention(self.to_qkv(x), HEADS, self.divide_by_n))
        return norm(out, residual) if isinstance(norm, ChannelNorm) else normed(norm, out) + residual


class PreNorm(nn.Module):
    """fn(norm(x), residual); fn adds the residual to its result, and the norm is GroupNorm(1) unless one is given."""

    def __init__(self, channels: int, fn: nn.Module, norm: ChannelNorm | None = None) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.GroupNorm(1, channels) if norm is None else norm

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        h = self.norm(x) if isinstance(self.norm, ChannelNorm) else normed(self.norm, x)
        return self.fn(h, residual)


class Residual(nn.Module):
    """fn(x) + x; fn makes the addition, which it can fuse with its last operation."""

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, x)
