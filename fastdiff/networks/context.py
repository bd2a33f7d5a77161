"""ContextUnet, the network of the course "How Diffusion Models Work", and that of the MNIST script it was made from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError, check_int, unknown_name
from fastdiff.networks.blocks import convolved_and_normed, normed
from fastdiff.networks.registry import WIDEST

EDITIONS = ("course", "mnist")


def _conv_norm_gelu(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.GELU())


class ResidualConvBlock(nn.Module):
    """Twice Conv 3x3, BatchNorm, GELU; with is_res (shortcut(x) + result) / 1.414.

    If cin is cout, the shortcut is the identity. If not, the course draws a new random 1x1 convolution in every forward
    pass; here it is a trained one (shortcut=True) or zero, the mean of the random ones. With inner=True, as in the
    MNIST script, the result of the first convolution takes the place of shortcut(x).
    """

    def __init__(self, cin: int, cout: int, is_res: bool = False, shortcut: bool = False, inner: bool = False) -> None:
        super().__init__()
        self.is_res, self.same, self.inner = is_res, cin == cout, inner
        self.conv1 = _conv_norm_gelu(cin, cout)
        self.conv2 = _conv_norm_gelu(cout, cout)
        self.shortcut = nn.Conv2d(cin, cout, 1) if is_res and shortcut and not self.same else None

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        h = self.conv2(first)
        if not self.is_res:
            return h
        if self.same:
            h = x + h
        elif self.inner:
            h = first + h
        elif self.shortcut is not None:
            h = self.shortcut(x) + h
        return h / 1.414


class UnetDown(nn.Module):
    """One or two ResidualConvBlocks and max pooling: (B, cin, H, W) → (B, cout, H / 2, W / 2)."""

    def __init__(self, cin: int, cout: int, blocks: int) -> None:
        super().__init__()
        more = [ResidualConvBlock(cout, cout) for _ in range(blocks - 1)]
        self.model = nn.Sequential(ResidualConvBlock(cin, cout), *more, nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class UnetUp(nn.Module):
    """Transposed convolution of x and skip together, and two ResidualConvBlocks: doubles height and width."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(cin, cout, 2, 2), ResidualConvBlock(cout, cout), ResidualConvBlock(cout, cout)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.model(torch.cat((x, skip), dim=1))


class EmbedFC(nn.Module):
    """Linear, GELU, Linear: (R, cin) → (R, cout, 1, 1)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(cin, cout), nn.GELU(), nn.Linear(cout, cout))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, :, None, None]


class ContextUnet(nn.Module):
    """The course's U-Net: x (B, in_channels, height, height) in [-1, 1], t = timestep / T in (0, 1] → as x.

    The context is (B, n_cfeat), or None for zeros. With other shapes `forward` raises InputError. The published network
    works at heights 16, 20, 24 and 28, where it pools windows of 4x4 of the height / 4 map; at other heights this one
    pools the whole map.

    The MNIST script's (T. Pearce, Conditional Diffusion MNIST), whose x is in [0, 1], has one block where the course's
    has two on the way down, another first shortcut, and pools the whole map. It takes minus the one-hot class, for its
    code multiplies by -1 where it means to turn a mask around; here the context is the one-hot class, as everywhere,
    and the minus is the network's.

    Args:
        in_channels: of the images.
        n_feat: base width, a multiple of 8.
        n_cfeat: context features, at least 1.
        height: of the pictures, which are square; a multiple of 4.
        shortcut: whether init_conv has a trained 1x1 shortcut, two more state-dict entries; see ResidualConvBlock. The
            MNIST edition has none.
        edition: "course" or "mnist".

    Raises:
        InputError: for values outside these ranges.
    """

    time = "fraction"  # what forward takes as t, as Model.time has it

    @staticmethod
    def options_for(image_shape: tuple[int, int, int], contexts: int) -> dict[str, Any]:
        """The options that follow from training data: (C, H, W) of a picture, and the number of context entries.

        Data without labels gets one context entry, which is always zero. Raises InputError unless H = W.
        """
        channels, height, width = image_shape
        if height != width:
            raise InputError(
                f"pictures of {width}x{height}; ContextUnet takes square ones: a folder of pictures can be cut, by a "
                "size (--size)"
            )
        return {"in_channels": channels, "height": height, "n_cfeat": max(1, contexts)}

    def __init__(
        self,
        in_channels: int = 3,
        n_feat: int = 256,
        n_cfeat: int = 10,
        height: int = 28,
        shortcut: bool = False,
        edition: str = "course",
    ) -> None:
        super().__init__()
        if edition not in EDITIONS:
            raise unknown_name("edition", edition, EDITIONS)
        if shortcut and edition != "course":
            raise InputError(f"shortcut = {shortcut} with edition {edition!r}; accepted: False, for it has its own")
        for name, number in dict(in_channels=in_channels, n_feat=n_feat, n_cfeat=n_cfeat, height=height).items():
            check_int(name, number, 1, WIDEST)
        if n_feat < 8 or n_feat % 8:
            raise InputError(f"n_feat = {n_feat}; accepted: a positive multiple of 8")
        if height < 4 or height % 4:
            raise InputError(f"height = {height}; accepted: a positive multiple of 4")
        self.options: dict[str, Any] = dict(
            in_channels=in_channels,
            n_feat=n_feat,
            n_cfeat=n_cfeat,
            height=height,
            shortcut=shortcut,
            edition=edition,
        )
        self.in_channels, self.n_cfeat, self.height = in_channels, n_cfeat, height
        self.mnist = edition == "mnist"
        n, quarter, blocks = n_feat, height // 4, 1 if self.mnist else 2
        self.init_conv = ResidualConvBlock(in_channels, n, is_res=True, shortcut=shortcut, inner=self.mnist)
        self.down1 = UnetDown(n, n, blocks)
        self.down2 = UnetDown(n, 2 * n, blocks)
        self.to_vec = nn.Sequential(nn.AvgPool2d(4 if 4 <= quarter <= 7 and not self.mnist else quarter), nn.GELU())
        self.timeembed1, self.timeembed2 = EmbedFC(1, 2 * n), EmbedFC(1, n)
        self.contextembed1, self.contextembed2 = EmbedFC(n_cfeat, 2 * n), EmbedFC(n_cfeat, n)
        self.up0 = nn.Sequential(nn.ConvTranspose2d(2 * n, 2 * n, quarter, quarter), nn.GroupNorm(8, 2 * n), nn.ReLU())
        self.up1 = UnetUp(4 * n, n)
        self.up2 = UnetUp(2 * n, n)
        self.out = nn.Sequential(
            nn.Conv2d(2 * n, n, 3, padding=1), nn.GroupNorm(8, n), nn.ReLU(), nn.Conv2d(n, in_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (self.in_channels, self.height, self.height):
            raise InputError(
                f"images of shape {tuple(x.shape)}; this network takes "
                f"(B, {self.in_channels}, {self.height}, {self.height})"
            )
        weight = self.contextembed1.model[0].weight
        if context is None:
            context = weight.new_zeros(1, self.n_cfeat)
        if context.ndim != 2 or context.shape[1] != self.n_cfeat:
            raise InputError(f"a context of shape {tuple(context.shape)}; this network takes (B, {self.n_cfeat})")
        t, context = t.reshape(-1, 1).to(weight.dtype), context.to(weight.dtype)
        if self.mnist:
            context = -context
        x = self.init_conv(x)
        down1 = self.down1(x)
        down2 = self.down2(down1)
        widen, norm, _ = self.up0
        up1 = normed(norm, widen(self.to_vec(down2)), after="relu")
        up2 = self.up1(self.contextembed1(context) * up1 + self.timeembed1(t), down2)
        up3 = self.up2(self.contextembed2(context) * up2 + self.timeembed2(t), down1)
        narrow, norm, _, last = self.out
        return last(convolved_and_normed(narrow, norm, torch.cat((up3, x), dim=1), after="relu"))
