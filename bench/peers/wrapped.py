"""Other libraries' networks as networks of (x, t)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Told(nn.Module):
    """(x, t) by a network that takes more: a context, the same for every picture, or else x as the x0 before."""

    context: Tensor | None

    def __init__(self, network: nn.Module, context: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("context", context)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        if self.context is None:
            return self.network(x, t, x)
        return self.network(x, t, self.context.expand(len(x), *self.context.shape[1:]))


class Signals(nn.Module):
    """x (B, C, 1, L) by a network of (B, C, L)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.network(x[:, :, 0], t)
        return out[:, :, None]


class Backbone(nn.Module):
    """azula's UNet, given sines of the noise level, as its tutorials have it."""

    def __init__(self, unet: nn.Module, features: int) -> None:
        super().__init__()
        self.unet, self.features = unet, features

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t.reshape(-1, 1) * torch.arange(1, self.features // 2 + 1, device=t.device)
        out: Tensor = self.unet(x, torch.cat((angles.sin(), angles.cos()), dim=-1))
        return out
