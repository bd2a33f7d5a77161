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
        rows: (R, 12) float32, a StepTable's; R is at least the table's length.
        index: () int64, the current row.
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
    key: Tensor | None = None
    noise: Tensor | None = None
    history: Tensor | None = None
    guidance_scale: Tensor | None = None
    learned_variance: bool = False
    self_condition: bool = False
    clip: Clip = None

    def x0_before(self) -> tuple[Tensor, ...]:
        """What the network is given besides x, as x."""
        if not self.self_condition or self.history is None:
            return ()
        if len(self.history) == 1:
            return (self.history[0],)
        return (self.history.index_select(0, (self.index - 1).remainder(len(self.history)).reshape(1))[0],)


def advance(state: State, network: Callable[..., Tensor]) -> None:
    """Apply row `index` to the state and advance the index. The host reads nothing back.

    Args:
        state: is overwritten.
        network: (x, index, *state.x0_before()) → the prediction at that row, x's shape; with guidance both predictions,
            (2 B, C, H, W). Of a network that learned a variance 2 C channels, the prediction's first.
    """
    whole = network(state.x, state.index, *state.x0_before())
    batch, channels = state.x.shape[:2]
    out = whole[:, :channels]
    variance = whole[-batch:, channels:] if state.learned_variance else None  # with guidance the conditional half's
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
        state.history,
        noise=state.noise,
        key=state.key,
        clip=clip,
        guidance_scale=state.guidance_scale,
        variance=variance,
    )
    state.index.add_(1)
