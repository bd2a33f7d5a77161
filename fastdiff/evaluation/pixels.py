"""Pictures a few at a time, as feature networks take them, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.data.images import ImageData
from fastdiff.images import to_unit

Pictures = Callable[[Tensor], Tensor]  # rows (n,) int64 → (n, C, H, W) float32 in [-1, 1]


def training(data: ImageData) -> Pictures:
    """Those that a model was trained on."""
    return lambda rows: data.unit(data.take(rows)[0])


def held_out(data: ImageData) -> Pictures:
    """Those that it was not trained on."""
    return lambda rows: data.unit(data.val_images[rows])


def samples(images: Tensor) -> Pictures:
    """A model's own, (n, C, H, W), uint8 or float32 in [-1, 1]."""
    return lambda rows: to_unit(images[rows], (0, 255)) if images.dtype == torch.uint8 else images[rows].float()


def everything(count: int) -> Tensor:
    """The rows of so many pictures."""
    return torch.arange(count)


def some(count: int, most: int) -> Tensor:
    """Up to `most` rows of so many at random, always the same: neighbours in a file are often alike."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
