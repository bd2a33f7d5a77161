"""Which convolutions are fused_conv's, and which the library's with the fused operators around them.

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

LARGEST = 9 * 192**2  # taps, input and output channels multiplied


def is_fused(taps: int, inputs: int, outputs: int, dtype: torch.dtype) -> bool:
    """Whether a convolution is fused_conv's.

    Args:
        taps: of its window, in a phase if it is transposed.
        inputs, outputs: channels.
        dtype: of the images and the weight.
    """
    return dtype.itemsize == 2 and taps * inputs * outputs <= LARGEST
