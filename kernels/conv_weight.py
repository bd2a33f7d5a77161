"""The weights of a convolution as fused_conv reads them, and how it is cut into tiles.

A transposed convolution of stride s and a kernel of K s taps is, for the outputs that leave one remainder when divided
by s along each axis, an ordinary one with every s-th tap (Dumoulin and Visin, "A guide to convolution arithmetic",
2016, chapter 4): s times s phases, with windows of K taps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.layout import power_of_2

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Which positions of a picture each output sees.

    Attributes:
        kernel: taps down and across.
        stride: along both axes.
        padding: of zeros, down and across; a transposed one's is what is left out of its result.
        transposed: whether it is a transposed convolution; its kernel is then a multiple of the stride, and the result
            `stride` times the picture.
        nearest: by how much the picture is upsampled before, each position repeated.

    Raises:
        ValueError: for a transposed convolution of another kind.
    """

    kernel: Pair
    stride: int = 1
    padding: Pair = (0, 0)
    transposed: bool = False
    nearest: int = 1

    def __post_init__(self) -> None:
        fits = self.fits_phases(self.kernel, self.stride, self.padding) and self.nearest == 1
        if self.transposed and not fits:
            raise ValueError(f"fused_conv: {self}; accepted: transposed by a kernel of stride + 2 padding")

    @staticmethod
    def fits_phases(kernel: Pair, stride: int, padding: Pair) -> bool:
        """Whether every phase of a transposed convolution has as many taps and outputs."""
        square = kernel[0] == kernel[1] and padding[0] == padding[1]
        return square and kernel[0] == stride + 2 * padding[0] and kernel[0] % stride == 0

    @property
    def phases(self) -> int:
        """Along each axis."""
        return self.stride if self.transposed else 1

    @property
    def step(self) -> int:
        """Positions of the picture from one window to the next of a phase."""
        return 1 if self.transposed else self.stride

    @property
    def lead(self) -> int:
        """Outputs of the first position that the padding of a transposed convolution leaves out."""
        return self.padding[0] if self.transposed else 0

    @property
    def before(self) -> Pair:
        """Positions before an output's own that its window begins with, in a phase without lead."""
        taps = self.kernel[0] // self.stride - 1
        return (taps, taps) if self.transposed else self.padding

    def result(self, height: int, width: int) -> Pair:
        """The size of the result for a picture of this size."""
        if self.transposed:
            return height * self.stride, width * self.stride
        down, across = (
            (size * self.nearest + 2 * padding - kernel) // self.stride + 1
            for size, padding, kernel in zip((height, width), self.padding, self.kernel, strict=True)
        )
        return down, across


def tile(positions: int, channels: int) -> Pair:
    """Positions and channels of a program's tile, from the sizes of a picture and not from the batch.

    By estimate: 128 rows fill a tensor core's instructions with two groups of warps, and 64 waste less of a small
    picture, such as 49 positions.
    """
    rows = 128 if positions > 64 else max(16, power_of_2(positions))
    if channels <= 128:
        return rows, max(16, power_of_2(channels))
    return rows, 128 if -channels % 128 < 64 else 64


def padded(channels: int) -> int:
    """Input channels as the weight has them, the last ones zeros."""
    return 16 if 0 < channels <= 16 else -(-channels // 32) * 32


def depth(channels: int) -> int:
    """How many padded input channels a product takes at a time."""
    return 64 if channels % 64 == 0 else 32 if channels % 32 == 0 else 16


def pack(weight: Tensor, window: Window, second: int = 0) -> Tensor:
    """A convolution's weight as fused_conv takes it: each tap's input channels after each other, padded with zeros.

    Args:
        weight: (O, C, KH, KW), or (C, O, KH, KW) of a transposed one.
        window: of the convolution.
        second: how many of the C channels, the last, are those of a second input.

    Returns:
        (phases², taps down, taps across, C padded, O padded).
    """
    if window.transposed:
        weight = _phases(weight, window)  # (P P, O, C, K, K)
    else:
        weight = weight[None]
    taps = weight.permute(0, 3, 4, 2, 1)
    channels, c = taps.shape[-1], taps.shape[-2]
    parts = taps.split([c - second, second], dim=-2) if second else [taps]
    columns = tile(128, channels)[1]
    wide = [F.pad(one, (0, -channels % columns, 0, padded(one.shape[-2]) - one.shape[-2])) for one in parts]
    return torch.cat(wide, dim=-2).contiguous()


def unpack(packed: Tensor, window: Window, channels: int, inputs: Pair) -> Tensor:
    """The weight that was packed, as a convolution takes it, for `inputs` channels of x and of the second input."""
    first, second = inputs
    start = padded(first)
    taps = torch.cat((packed[..., :first, :channels], packed[..., start : start + second, :channels]), dim=-2)
    if not window.transposed:
        return taps[0].permute(3, 2, 0, 1)
    weight = taps.new_empty(first + second, channels, *window.kernel)
    for phase, taps_of_it in enumerate(taps):
        down, across = (_taps(window, one) for one in divmod(phase, window.phases))
        for i, k in enumerate(down):
            for j, m in enumerate(across):
                weight[:, :, k, m] = taps_of_it[i, j]
    return weight


def _phases(weight: Tensor, window: Window) -> Tensor:
    parts = []
    for phase in range(window.phases**2):
        down, across = (_taps(window, one) for one in divmod(phase, window.phases))
        parts.append(weight[:, :, down][:, :, :, across].transpose(0, 1))
    return torch.stack(parts)


def _taps(window: Window, phase: int) -> list[int]:
    """The taps of a transposed convolution that a phase's outputs see, in the order of the positions they are of."""
    stride = window.stride
    return [k for k in reversed(range(window.kernel[0])) if (phase + window.padding[0] - k) % stride == 0]
