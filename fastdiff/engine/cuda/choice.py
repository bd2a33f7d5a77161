"""Which convolutions are fused_conv's, and which the library's with the fused operators around them; which norms are
computed as a convolution reads its input.

Reasons, by arithmetic and not yet by a measurement on a GPU:

- float32: no tensor cores at full precision, so that the products take longer than all the passes around them, and the
  library's are the better ones.
- 16 bits: fused_conv leaves out a norm's pass (2 C of traffic at each position), that of the bias and the activation
  (2 O), and a launch for each. With c channels on either side that is some 8 c bytes, at 3.35 TB/s of an H100. Its
  products cost 18 c^2 operations; if they run at 40% of the chip's 989 TFLOP/s and the library's at 70%, that loses
  18 c^2 (1 / 0.4 - 1 / 0.7) / 989e12 seconds, which is as much at c = 122. At small batches a launch, some 2
  microseconds, weighs more than either. So the limit is put somewhat higher, where network A's widest convolutions,
  112 to 224 channels on 49 positions, are still within.
"""

from __future__ import annotations

import torch

from fastdiff.kernels import dispatch

LARGEST = 9 * 192**2  # taps, input and output channels multiplied
# Tiles of positions whose statistics a norm reads from what wrote them. Each program merges them all, and where one of
# a whole sample is wanted those of each block of channels; beyond that a norm's own passes cost little more than the
# bytes that they move.
MOST_TILES = 128
POSITIONS = 128, 32  # about as many as a tile has, of fused_conv and of depthwise convolutions


def is_fused(taps: int, inputs: int, outputs: int, dtype: torch.dtype) -> bool:
    """Whether a convolution is fused_conv's, unless FASTDIFF_KERNELS says otherwise.

    Args:
        taps: of its window, in a phase if it is transposed.
        inputs, outputs: channels.
        dtype: of the images and the weight.
    """
    small = taps * inputs * outputs <= LARGEST
    return small and dtype.itemsize == 2 and dispatch.backend() != "library"


def norm_inside(taps: int) -> bool:
    """Whether a convolution normalises and activates each element as it reads it, in place of a pass of its own.

    It does so once for each tap. A norm's pass moves 4 bytes an element in 16 bits, 0.28 clocks of a multiprocessor at
    an H100's bandwidth; an activation for nine taps takes some 0.84 clocks of instructions, and for one 0.09.
    """
    return taps == 1


def padded_channels(channels: int, dtype: torch.dtype) -> int:
    """How many channels a convolution of the library is to have.

    Tensor cores take 16-bit channels in eights. By 28 cuDNN falls back to slower kernels or pads in a pass of its own,
    while 32 cost (32 / 28)^2 = 1.3 times the products at several times the rate. Below 8, as in pictures, the products
    are few and the padding would be most of the bytes.
    """
    return channels if dtype.itemsize != 2 or channels % 8 == 0 or channels < 8 else -(-channels // 32) * 32
