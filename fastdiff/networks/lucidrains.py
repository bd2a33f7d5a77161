"""The U-Net of denoising-diffusion-pytorch. Attribute names are those of its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.networks.blocks import (
    HEAD_DIM,
    HEADS,
    Attention,
    ChannelNorm,
    PreNorm,
    Residual,
    SinusoidalPositionEmbeddings,
    check_images,
    embedded,
)
from fastdiff.networks.resnet_unet import (
    ResnetBlock,
    ResnetUnet,
    RMSNorm,
    StandardizedConv2d,
    check_groups,
    unet_widths,
)


class LearnedSinusoids(nn.Module):
    """[t, sin(2 pi t w), cos(2 pi t w)] with learned frequencies w: (R,) → (R, 2 half + 1)."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(half))

    def forward(self, t: Tensor) -> Tensor:
        t = t.to(torch.float32)[:, None]
        angles = t * self.weights[None, :] * 2 * math.pi
        return torch.cat((t, angles.sin(), angles.cos()), dim=-1)


def times(dim: int, learned: int) -> dict[str, Any]:
    """ResnetUnet's time and time_in: as many learned frequencies, or for 0 the usual ones of dim numbers."""
    if learned:
        return {"time": LearnedSinusoids(learned), "time_in": 2 * learned + 1}
    return {"time": SinusoidalPositionEmbeddings(dim), "time_in": dim}


def with_memory(memory: Tensor | None, keys: Tensor, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values (B, heads, ...) after those of `memory`, (2, heads, ...) or none, along a dimension."""
    if memory is None:
        return keys, values
    learned = memory[:, None].expand(-1, len(keys), -1, -1, -1)
    return torch.cat((learned[0], keys), dim=dim), torch.cat((learned[1], values), dim=dim)


def linearly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention (Shen et al. 2021) of queries (B, heads, d, n) to keys and values (B, heads, d, m): as q."""
    q, k = q.softmax(dim=-2) * q.shape[-2] ** -0.5, k.softmax(dim=-1)
    context = k @ v.transpose(-1, -2)
    return context.transpose(-1, -2) @ q


class MemoryAttention(nn.Module):
    """Softmax attention over positions and some keys and values that are learned, with norm and residual."""

    def __init__(self, channels: int, heads: int, head_dim: int, memories: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, memories, head_dim)) if memories else None
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_dim, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, -1, h * w)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1))  # (B, heads, n, d)
        k, v = with_memory(self.mem_kv, k, v, dim=2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(-1, -2).reshape(b, -1, h, w)) + x


class MemoryLinearAttention(nn.Module):
    """Linear attention over positions and some keys and values that are learned, with norms and residual."""

    def __init__(self, channels: int, heads: int, head_dim: int, memories: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, head_dim, memories)) if memories else None
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * head_dim, channels, 1), RMSNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, -1, h * w).unbind(1)  # (B, heads, d, n)
        k, v = with_memory(self.mem_kv, k, v, dim=3)
        return self.to_out(linearly(q, k, v).reshape(b, -1, h, w)) + x


class LucidrainsUnet(ResnetUnet):
    """denoising-diffusion-pytorch's Unet of today, and since its version 1.8.

    Versions 1.8 to 1.11 have GroupNorm in their blocks, and 1.8 learns no keys and values.

    Args:
        dim: base width, even and at least 4.
        init_dim: width of the first convolution; None is dim.
        dim_mults: each level's width over dim.
        channels: of the images.
        out_dim: channels of the output; None is `channels`.
        self_condition: whether it takes x_self_cond.
        heads, head_dim: of the attention, of all levels or of each.
        full_attention: whether a level has softmax attention, not linear; None is the last level alone.
        memories: learned keys and values of an attention.
        learned_sinusoids: frequencies of the time embedding, if they are learned; 0 takes the usual ones.
        groups: of the blocks' GroupNorms, a divisor of every width; 0 has RMSNorm instead.

    Raises:
        InputError: for values outside these ranges.
    """

    def __init__(
        self,
        dim: int = 64,
        init_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        out_dim: int | None = None,
        self_condition: bool = False,
        heads: int | Sequence[int] = 4,
        head_dim: int | Sequence[int] = 32,
        full_attention: Sequence[bool] | None = None,
        memories: int = 4,
        learned_sinusoids: int = 0,
        groups: int = 0,
    ) -> None:
        if groups:
            check_groups(groups, unet_widths(dim, init_dim, dim_mults))
        levels = len(dim_mults)
        full = [level == levels - 1 for level in range(levels)] if full_attention is None else list(full_attention)
        each = [[one] * levels if isinstance(one, int) else list(one) for one in (heads, head_dim)]
        for name, values in (("heads", each[0]), ("head_dim", each[1]), ("full_attention", full)):
            if len(values) != levels:
                raise InputError(f"{name} = {values} of {levels} levels; accepted: one for all, or one for each")

        def attention(width: int, level: int, softmax: bool) -> nn.Module:
            kind = MemoryAttention if softmax else MemoryLinearAttention
            return kind(width, each[0][level], each[1][level], memories)

        super().__init__(
            *(dim, init_dim, dim_mults, channels, out_dim, self_condition),
            kernel=7,
            **times(dim, learned_sinusoids),
            block=partial(ResnetBlock, conv=nn.Conv2d, norm=partial(nn.GroupNorm, groups) if groups else RMSNorm),
            attention=lambda width, level: attention(width, level, full[level]),
            middle=lambda width: attention(width, levels - 1, True),
        )
        self.options |= dict(
            heads=each[0],
            head_dim=each[1],
            full_attention=full,
            memories=memories,
            learned_sinusoids=learned_sinusoids,
            groups=groups,
            self_condition=self_condition,
        )


class LucidrainsClassUnet(ResnetUnet):
    """denoising-diffusion-pytorch's Unet in its classifier-free edition: x, t and classes (B,) → the prediction.

    The last class number, num_classes - 1, stands for no class. Linear attention at every level and softmax attention
    between them, each of 4 heads of 32 after an RMSNorm.

    Args:
        dim: base width, even and at least 4.
        init_dim: width of the first convolution; None is dim.
        dim_mults: each level's width over dim.
        channels: of the images.
        out_dim: channels of the output; None is `channels`.
        num_classes: how many class numbers there are, with that of no class; at least 2.
        learned_sinusoids: frequencies of the time embedding, if they are learned; 0 takes the usual ones.

    Raises:
        InputError: for values outside these ranges, and without classes.
    """

    n_cfeat = None  # class numbers are no vector of K entries

    @staticmethod
    def options_for(image_shape: tuple[int, int, int], contexts: int) -> dict[str, Any]:
        """The options that follow from training data: (C, H, W) of a picture, and the number of classes."""
        return {"channels": image_shape[0], "out_dim": None, "num_classes": max(1, contexts) + 1}

    def __init__(
        self,
        dim: int = 64,
        init_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        out_dim: int | None = None,
        num_classes: int = 11,
        learned_sinusoids: int = 0,
    ) -> None:
        if num_classes < 2:
            raise InputError(f"num_classes = {num_classes}; accepted: at least 2, of which the last is no class")
        super().__init__(
            *(dim, init_dim, dim_mults, channels, out_dim, False),
            kernel=7,
            **times(dim, learned_sinusoids),
            block=partial(ResnetBlock, conv=nn.Conv2d, norm=RMSNorm),
            attention=lambda width, level: MemoryLinearAttention(width, HEADS, HEAD_DIM, 0),
            middle=lambda width: MemoryAttention(width, HEADS, HEAD_DIM, 0),
            down=lambda cin, cout: nn.Conv2d(cin, cout, 4, stride=2, padding=1),
            class_dim=4 * dim,
        )
        self.options |= dict(num_classes=num_classes, learned_sinusoids=learned_sinusoids)
        self.num_classes, self.null_class = num_classes, num_classes - 1
        self.classes_emb = nn.Embedding(num_classes - 1, dim)
        self.null_classes_emb = nn.Parameter(torch.randn(dim))
        self.classes_mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))

    def forward(self, x: Tensor, t: Tensor, classes: Tensor | None = None) -> Tensor:  # type: ignore[override]
        check_images(x, self.channels, self.levels)
        if classes is None:
            raise InputError("no context; this network takes the number of a class for each sample")
        known = F.embedding(classes, torch.cat((self.classes_emb.weight, self.null_classes_emb[None])))
        time = embedded(self.time_mlp, t).expand(len(x), -1)
        return self.denoised(x, torch.cat((time, self.classes_mlp(known)), dim=1))


class DividedLinearAttention(nn.Module):
    """Linear attention over positions, values divided by H W, with the norm of its result and the residual.

    As blocks.LinearAttention, whose operator has a C kernel after a GroupNorm alone.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(HEADS * HEAD_DIM, channels, 1), ChannelNorm(channels))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(x).reshape(b, 3, HEADS, HEAD_DIM, h * w).unbind(1)
        project, norm = self.to_out
        return norm(project(linearly(q, k, v / (h * w)).reshape(b, -1, h, w)), residual)


class LucidrainsLayerNormUnet(ResnetUnet):
    """denoising-diffusion-pytorch's Unet in its versions 0.32 to 1.6; the Annotated tutorial's of today is much as it.

    Weight-standardised convolutions with GroupNorm, linear attention at every level and softmax attention between
    them, each after a LayerNorm over channels, and linear attention's values divided by H W.

    Args:
        dim: base width, even and at least 4.
        init_dim: width of the first convolution; None is dim.
        dim_mults: each level's width over dim.
        channels: of the images.
        out_dim: channels of the output; None is `channels`.
        self_condition: whether it takes x_self_cond.
        groups: of the blocks' GroupNorms; must divide every width.
        learned_sinusoids: frequencies of the time embedding, if they are learned; 0 takes the usual ones.

    Raises:
        InputError: for values outside these ranges.
    """

    def __init__(
        self,
        dim: int = 64,
        init_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        out_dim: int | None = None,
        self_condition: bool = False,
        groups: int = 8,
        learned_sinusoids: int = 0,
    ) -> None:
        check_groups(groups, unet_widths(dim, init_dim, dim_mults))

        def attention(width: int, attend: nn.Module) -> nn.Module:
            return Residual(PreNorm(width, attend, ChannelNorm(width)))

        super().__init__(
            *(dim, init_dim, dim_mults, channels, out_dim, self_condition),
            kernel=7,
            **times(dim, learned_sinusoids),
            block=partial(ResnetBlock, conv=StandardizedConv2d, norm=partial(nn.GroupNorm, groups)),
            attention=lambda width, level: attention(width, DividedLinearAttention(width)),
            middle=lambda width: attention(width, Attention(width)),
        )
        self.options |= dict(groups=groups, learned_sinusoids=learned_sinusoids, self_condition=self_condition)
