"""The only step body: every loop, eager or captured, calls `advance` once per table row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.prediction import Clip
from fastdiff.table import StepTable


@dataclass
class State:
    """What a batch carries from step to step.

    x: (n, C, H, W) float32; x0_prev: the previous row's x0, or None before the first; noise: draw number → normals
    of x's shape; clip: see prediction.Clip.
    """

    x: Tensor
    noise: Callable[[int], Tensor]
    clip: Clip = None
    x0_prev: Tensor | None = None


def advance(state: State, network: Callable[[Tensor, int], Tensor], table: StepTable, i: int) -> None:
    """Take the state through row i. network(x, i) is the prediction at row i, guidance included."""
    out = network(state.x, i)
    noise = state.noise(i + 1) if table.s[i] else None
    state.x, state.x0_prev = denoise_step(state.x, out, table.row(i), state.x0_prev, noise, state.clip)
