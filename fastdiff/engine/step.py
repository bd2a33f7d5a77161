"""The only step body: every loop, eager or captured, calls `advance` once per table row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastdiff.kernels.denoise_step import denoise_step, x0_bound
from fastdiff.samplers.prediction import Clip


@dataclass(frozen=True)
class State:
    """What a batch carries from step to step: buffers on one device, which `advance` overwrites.

    Attributes:
        x: (B, C, H, W) float32.
        rows: (R, 6) float32, a StepTable's columns p, q, a, b, c, s; R is at least the table's length.
        index: () int64, the current row.
        key: (2,) int64, seed and first sample, if the noise is Philox's.
        noise: x's shape, float32, filled before each step, if the noise is the caller's.
        x0_prev: x's shape, float32, if a row uses the previous x0; may be uninitialised.
        guidance_scale: () float32, with guidance.
        clip: see prediction.Clip.
    """

    x: Tensor
    rows: Tensor
    index: Tensor
    key: Tensor | None = None
    noise: Tensor | None = None
    x0_prev: Tensor | None = None
    guidance_scale: Tensor | None = None
    clip: Clip = None


def advance(state: State, network: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Apply row `index` to the state and advance the index. The host reads nothing back.

    Args:
        state: is overwritten.
        network: (x, index) → the prediction at that row, x's shape; with guidance both predictions, (2 B, C, H, W).
    """
    out = network(state.x, state.index)
    clip: None | float | Tensor
    if isinstance(state.clip, tuple):
        clip = x0_bound(state.x, out, state.rows, state.index, state.clip[1], state.guidance_scale)
    else:
        clip = state.clip
    denoise_step(
        state.x,
        out,
        state.rows,
        state.index,
        state.x0_prev,
        noise=state.noise,
        key=state.key,
        clip=clip,
        guidance_scale=state.guidance_scale,
    )
    state.index.add_(1)
