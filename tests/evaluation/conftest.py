"""Small pictures, and data of them."""

import pytest
import torch

from fastdiff.data.images import ImageData
from fastdiff.images import to_uint8


def smooth(n: int, shape=(1, 8, 8), seed: int = 0, noise: float = 0.0) -> torch.Tensor:
    """Smooth uint8 pictures, with noise of that deviation."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, shape[0], 3, 3, generator=generator)
    x = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear") * 0.5
    return to_uint8(x + noise * torch.randn(x.shape, generator=generator))


@pytest.fixture
def pictures():
    return smooth


@pytest.fixture
def data():
    """(n, m, names, shape) → n pictures to train on, and m others, their classes in turn."""

    def make(n: int = 60, m: int = 40, names=("even", "odd"), shape=(1, 8, 8)) -> ImageData:
        labels = torch.eye(len(names))
        kinds = (
            labels[torch.arange(count) % max(1, len(names))] if names else torch.zeros(count, 0) for count in (n, m)
        )
        mine, others = kinds
        return ImageData("tiny", smooth(n, shape), mine, tuple(names), smooth(m, shape, 1), others)

    return make
