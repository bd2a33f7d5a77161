"""Noise as a pure function of (seed, sample, draw, element)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdiff.errors import InputError, check_int
from fastdiff.kernels import philox

LIMIT = 2**63


class NoiseSource(Protocol):
    """Standard normals, `shape`, for samples first .. first + shape[0] - 1; draw 0 is x_T, table row k's is k + 1."""

    def __call__(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor: ...


@dataclass(frozen=True)
class PhiloxNoise:
    """The default source: Philox4x32-10 (Salmon et al. 2011), key = seed, counter = (element // 4, draw, sample).

    The same (seed, draw, sample, element) gives the same random integers everywhere, and normals within 2e-6 of each
    other between a CPU and a GPU; on either of them, the same bits in every batch and process.

    Attributes:
        seed: 0 <= seed < 2^63.
        device: where calls return their float32 normals; see kernels.philox.normals.

    Raises:
        InputError: for a seed outside its range.
    """

    seed: int
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_int("seed", self.seed, 0, LIMIT - 1))

    def __call__(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        return philox.normals(philox.key_of(self.seed, first, self.device), draw, tuple(shape))


def draw(source: NoiseSource, number: int, first: int, shape: tuple[int, ...]) -> Tensor:
    """What a source gives for draw `number`, as float32; raises InputError unless it has the shape."""
    normals = torch.as_tensor(source(number, first, shape))
    if tuple(normals.shape) != shape:
        raise InputError(f"the noise source returned shape {tuple(normals.shape)}; it was asked for {shape}")
    return normals.to(dtype=torch.float32)
