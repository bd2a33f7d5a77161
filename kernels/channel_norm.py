"""LayerNorm over the channels of an image, with a gain and no shift."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_norm(x: Tensor, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * gain over dim 1, biased variance. x: (B, C, H, W); gain: (1, C, 1, 1)."""
    var, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps) * gain
