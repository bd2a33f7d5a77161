"""The only step body: every loop, eager or captured, calls `advance` once per table row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdiff.kernels.denoise_step import denoise_step, x0_bound
from fastdiff.prediction import Clip
from fastdiff.table import StepTable


@dataclass
class State:
    """What a batch carries from step to step.

    x: (n, C, H, W) float32. table: the sampler; its rows lie on x's device, and so does every row's index.
    noise: (2,) int64 on the device, seed and first sample, for Philox; or draw number → normals of x's shape.
    clip: see prediction.Clip. guidance_scale: None, or one float32 on the device.
    """

    x: Tensor
    table: StepTable
    noise: Tensor | Callable[[int], Tensor]
    clip: Clip = None
    guidance_scale: Tensor | None = None
    x0_prev: Tensor | None = None
    rows: Tensor = field(init=False)  # (R, 6) float32
    index: Tensor = field(init=False)  # (R,) int64, 0 .. R - 1
    multistep: bool = field(init=False)

    def __post_init__(self) -> None:
        rows = [self.table.row(i) for i in range(len(self.table))]
        self.rows = torch.tensor(rows, dtype=torch.float32, device=self.x.device)
        self.index = torch.arange(len(rows), device=self.x.device)
        self.multistep = bool(self.table.c.any())


def advance(state: State, network: Callable[[Tensor, int], Tensor], i: int) -> None:
    """Take the state through row i. network(x, i): the prediction at row i, or both of them where guided."""
    out = network(state.x, i)
    index = state.index[i]
    key = noise = None
    if state.table.s[i]:
        if isinstance(state.noise, Tensor):
            key = state.noise
        else:
            noise = state.noise(i + 1)
    clip: None | float | Tensor
    if isinstance(state.clip, tuple):
        clip = x0_bound(state.x, out, state.rows, index, state.clip[1], state.guidance_scale)
    else:
        clip = state.clip
    previous = state.x0_prev if state.table.c[i] else None
    state.x, state.x0_prev = denoise_step(
        state.x, out, state.rows, index, previous, noise=noise, key=key, clip=clip,
        guidance_scale=state.guidance_scale, keep_x0=state.multistep,
    )  # fmt: skip
