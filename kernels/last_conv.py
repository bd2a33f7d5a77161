"""A network's last convolution and the step of the sampler that follows it, as one pass: no prediction is stored."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdiff.kernels.conv_weight import Window
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.fused_conv import fused_conv

MAX_CHANNELS = 4  # of the pictures: the kernel updates one after another


class LastConv(NamedTuple):
    """A prediction that a convolution is yet to make.

    Attributes:
        x, weight, window, channels, bias: as fused_conv has them.
    """

    x: Tensor
    weight: Tensor
    window: Window
    channels: int
    bias: Tensor | None

    @staticmethod
    def fits(window: Window, channels: int, height: int, width: int) -> bool:
        """Whether denoise_step_of takes a convolution of this window that makes pictures of this size."""
        # Four normals come from one counter, and are to be at four positions of a channel.
        return not window.transposed and channels <= MAX_CHANNELS and height * width % 4 == 0

    def prediction(self) -> Tensor:
        """What it makes, as fused_conv."""
        return fused_conv(self.x, self.weight, self.window, self.channels, self.bias)  # type: ignore[return-value]


def denoise_step_of(
    x: Tensor,
    last: LastConv,
    rows: Tensor,
    index: Tensor,
    history: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    clip: float | None = None,
    guidance_scale: Tensor | None = None,
    next_index: Tensor | None = None,
) -> None:
    """`denoise_step` of the prediction that `last` makes, which the Triton kernel keeps in float32.

    Args:
        x, rows, index, history, noise, key, clip, guidance_scale, next_index: as denoise_step has them; no bound for
            each sample, which the predictions would have to be known for.
        last: its window, channels and picture's size as LastConv.fits has it.
    """
    given = rows, index, history
    named = dict(noise=noise, key=key, clip=clip, guidance_scale=guidance_scale, next_index=next_index)
    if not use_triton(x):
        denoise_step(x, last.prediction(), *given, **named)  # type: ignore[arg-type]
        return
    from fastdiff.kernels import last_conv_triton

    of_last = last.x, last.weight, last.window, last.bias
    last_conv_triton.forward(x, *of_last, *given, noise, key, clip, guidance_scale, next_index)
