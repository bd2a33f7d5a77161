"""Noise as a pure function of (seed, sample, draw, element)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdiff.errors import check_int
from fastdiff.kernels import philox

LIMIT = 2**63


class NoiseSource(Protocol):
    """Standard normals for samples first .. first + shape[0] - 1; draw 0 is x_T, table row k draws k + 1."""

    def __call__(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor: ...


@dataclass(frozen=True)
class PhiloxNoise:
    """The default source: Philox4x32-10, key = seed, counter = (element // 4, draw, sample).

    seed: 0 <= seed < 2^63. The same (seed, draw, sample, element) gives the same normal in every batch, process
    and on every machine. Calls return float32 on `device`; see kernels.philox.normals.
    """

    seed: int
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_int("seed", self.seed, 0, LIMIT - 1))

    def __call__(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        return philox.normals(self.seed, draw, first, tuple(shape), self.device)
