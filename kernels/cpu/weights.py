"""Weights in the order in which the C kernels read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width


def panels(matrices: Tensor) -> Tensor:
    """(N, C, O) → (N, C times O rounded up to whole vectors) float32, as product_panels in product.h reads them."""
    width = vector_width()
    parts = matrices.detach().float().split(2 * width, dim=2)
    return torch.cat([F.pad(part, (0, -part.shape[2] % width)).flatten(1) for part in parts], dim=1)


def wide(channels: int) -> int:
    """Channels, rounded up to whole vectors."""
    return -(-channels // vector_width()) * vector_width()
