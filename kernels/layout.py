"""Memory layout of images for the Triton kernels: three strides, over batch, channels and positions."""

from __future__ import annotations

import torch
from torch import Tensor


def positions(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, C, H W): a view in both usual memory formats, a copy where no single stride serves."""
    return x.flatten(2)


def empty_images(x: Tensor, channels: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised images of x's size and, unless others are given, its channels and dtype; channels_last.

    The kernels' results are in that layout whatever they were given: libraries' convolutions are at their fastest in
    it, and a picture of one channel, which is in both layouts at once, would else leave a network in the other one.
    """
    b, c, h, w = x.shape
    c = c if channels is None else channels
    return torch.empty((b, c, h, w), dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """For parameters, which the kernels read as rows without strides."""
    return None if tensor is None else tensor.contiguous()


def per_sample(tensor: Tensor | None, channels: int) -> tuple[Tensor | None, int]:
    """(B or 1, C[, 1, 1]) as contiguous rows and the stride from one sample to the next, 0 where all share one row."""
    if tensor is None:
        return None, 0
    rows = tensor.reshape(-1, channels).contiguous()
    return rows, 0 if len(rows) == 1 else channels


def promoted(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that plain torch's sum of these tensors has."""
    dtypes = [t.dtype for t in tensors if t is not None]
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def tile(columns: int, rows: int, elements: int = 4096) -> tuple[int, int, int]:
    """(rows, columns, warps) of a tile of about `elements`, powers of two, for data of that many columns and rows."""
    width = power_of_2(columns)
    height = max(1, min(power_of_2(rows), elements // width))
    return height, width, max(1, min(8, width * height // 512))


FILL = 256  # programs that fill a large device (an H100 has 132 multiprocessors)


def split(programs: int, n: int, step: int, least: int) -> tuple[int, int]:
    """n positions in parts, so that `programs` times the parts fill the device: (parts, positions of each).

    A part has at least `least` positions, a multiple of `step`; the last one may have fewer.
    """
    parts = max(1, min(FILL // programs, -(-n // least)))
    span = -(-n // (parts * step)) * step
    return -(-n // span), span


def registers(x: Tensor, four_bytes: int) -> dict[str, int]:
    """A bound on registers for data of four bytes an element, which is hardly reached.

    Without one the assembler aims at an occupancy and keeps to it at the price of a spill.
    """
    return dict(maxnreg=four_bytes) if x.element_size() == 4 else {}


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
