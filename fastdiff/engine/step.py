"""The only step body: every loop, eager or captured, calls `advance` once per table row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.kernels.denoise_step import denoise_step, x0_bound
from fastdiff.kernels.last_conv import LastConv, denoise_step_of
from fastdiff.samplers.prediction import Clip


@dataclass(frozen=True)
class State:
    """What a batch carries from step to step: buffers on one device, which `advance` overwrites.

    Attributes:
        x: (B, C, H, W) float32.
        rows: (R, 12) float32, a StepTable's; R is at least the table's length.
        index: () int64, the current row.
        current: () int64, the row that a running step is at; the step itself moves `index` on.
        key: (2,) int64, seed and first sample, if the noise is Philox's.
        noise: x's shape, float32, filled before each step, if the noise is the caller's.
        history: (k, B, C, H, W) float32, if a row uses what up to k before it remembered; see denoise_step. May be
            uninitialised.
        guidance_scale: () float32, with guidance.
        learned_variance: whether the network's second C channels choose the noise's variance.
        self_condition: whether the network is given what the row before remembered, an x0. The history then begins as
            zeros, which is what row 0 is given.
        clip: see prediction.Clip.
    """

    x: Tensor
    rows: Tensor
    index: Tensor
    current: Tensor
    key: Tensor | None = None
    noise: Tensor | None = None
    history: Tensor | None = None
    guidance_scale: Tensor | None = None
    learned_variance: bool = False
    self_condition: bool = False
    clip: Clip = None


def advance(state: State, network: Callable[[State], Tensor | LastConv]) -> None:
    """Apply row `index` to the state and advance the index. The host reads nothing back.

    Args:
        state: is overwritten.
        network: state → the prediction at row `index`, which it copies to `current`: x's shape; with guidance both
            predictions, (2 B, C, H, W). Of a network that learned a variance 2 C channels, the prediction's first. Or
            the convolution that makes these.
    """
    whole = network(state)
    batch, channels = state.x.shape[:2]
    given = state.rows, state.current, state.history
    named: dict[str, Any] = dict(noise=state.noise, key=state.key, guidance_scale=state.guidance_scale)
    named["next_index"] = state.index
    if isinstance(whole, LastConv):
        if not isinstance(state.clip, tuple) and not state.learned_variance:  # which need the whole prediction
            denoise_step_of(state.x, whole, *given, clip=state.clip, **named)
            return
        whole = whole.prediction()
    out = whole[:, :channels]
    variance = whole[-batch:, channels:] if state.learned_variance else None  # with guidance the conditional half's
    clip: None | float | Tensor
    if isinstance(state.clip, tuple):
        clip = x0_bound(state.x, out, state.rows, state.current, state.clip[1], state.guidance_scale)
    else:
        clip = state.clip
    denoise_step(state.x, out, *given, clip=clip, variance=variance, **named)
