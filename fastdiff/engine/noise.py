"""Noise as a pure function of (seed, sample, draw, element)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastdiff.engine.per_sample import Rows
from fastdiff.errors import InputError, check_int
from fastdiff.kernels import philox

LIMIT = 2**63


class NoiseSource(Protocol):
    """Standard normals, `shape`, for samples first .. first + shape[0] - 1; draw 0 is x_T, table row k's is k + 1."""

    def __call__(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor: ...


Noise = NoiseSource | Tensor | np.ndarray  # what a request takes: all that is drawn, or x_T alone


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
        first = check_int("first", first, 0, LIMIT - 1)
        return philox.normals(philox.key_of(self.seed, first, self.device), draw, tuple(shape))


@dataclass(frozen=True)
class Interpolation:
    """A source whose n samples go from one sample of a seed to another (Shoemake 1985; Song et al. 2021, eq. 67).

    Sample r, 0 to n - 1, has r / (n - 1) of the angle between the two. That holds for every draw, so that stochastic
    samplers interpolate too.

    Attributes:
        begin, end: two different samples, 0 <= begin, end < 2^63.
        n: how many, at least 2.
        seed: theirs, 0 <= seed < 2^63.

    Raises:
        InputError: for values outside these.
    """

    begin: int
    end: int
    n: int
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("begin", 0), ("end", 0), ("n", 2), ("seed", 0)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), low, LIMIT - 1))
        if self.begin == self.end:
            raise InputError(f"begin = {self.begin} and end = {self.end}; accepted: two different samples")

    def __call__(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        source = PhiloxNoise(self.seed)
        a, b = (source(draw, one, (1, *shape[1:])).double().flatten() for one in (self.begin, self.end))
        angle = torch.arccos(torch.dot(a, b) / (a.norm() * b.norm()))
        share = (torch.arange(first, first + shape[0], dtype=torch.float64, device="cpu") / (self.n - 1)).clamp(max=1)[
            :, None
        ]
        mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
        return mixed.view(shape).float()


@dataclass(frozen=True)
class Begun:
    """A source whose x_T is given; what a sampler draws besides is Philox's.

    Attributes:
        start: (first, count) → x_T of these samples.
        seed: of the rest.
    """

    start: Rows
    seed: int

    def __call__(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        return PhiloxNoise(self.seed)(draw, first, shape) if draw else self.start(first, shape[0])


def draw(source: NoiseSource, number: int, first: int, shape: tuple[int, ...]) -> Tensor:
    """What a source gives for draw `number`, as float32; raises InputError unless it has the shape."""
    made = source(number, first, shape)
    normals = made if isinstance(made, Tensor) else torch.as_tensor(made, device="cpu")
    if tuple(normals.shape) != shape:
        raise InputError(f"the noise source returned shape {tuple(normals.shape)}; it was asked for {shape}")
    return normals.to(dtype=torch.float32)
