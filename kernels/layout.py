"""Memory layout for the Triton kernels: images with one stride over positions, tile sizes, splits."""

from __future__ import annotations

import torch
from torch import Tensor


def positions(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, C, H W): a view if positions have one stride, as in both memory formats, else a copy."""
    return x.flatten(2)


def empty_images(x: Tensor, channels: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised images of x's size and, unless given, x's channels and dtype; always channels_last.

    cuDNN's convolutions are fastest in that layout. x's own cannot be followed: one-channel images are in both.
    """
    b, c, h, w = x.shape
    c = c if channels is None else channels
    return torch.empty((b, c, h, w), dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)


def positions_last(x: Tensor | None) -> Tensor | None:
    """Images as channels_last, (B, H, W, C) in memory; a copy where they are not."""
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """A parameter as the kernels read it, without strides."""
    return None if tensor is None else tensor.contiguous()


def per_sample(tensor: Tensor | None, channels: int) -> tuple[Tensor | None, int]:
    """(B or 1, C[, 1, 1]) as contiguous rows, and the stride between samples: 0 where all share one row."""
    if tensor is None:
        return None, 0
    rows = tensor.reshape(-1, channels).contiguous()
    return rows, 0 if len(rows) == 1 else channels


def promoted(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of these tensors' sum in torch."""
    dtypes = [t.dtype for t in tensors if t is not None]
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def tile(columns: int, rows: int, elements: int = 4096) -> tuple[int, int, int]:
    """(rows, columns, warps), powers of two, of a tile of at most `elements`, or one row if a row has more."""
    width = power_of_2(columns)
    height = max(1, min(power_of_2(rows), elements // width))
    return height, width, max(1, min(8, width * height // 512))


FILL = 256  # programs that fill a large device (an H100 has 132 multiprocessors)


def split(programs: int, n: int, step: int, least: int) -> tuple[int, int]:
    """Split n positions into parts, so that `programs` times the parts fill the device.

    Args:
        programs: launched without a split.
        n: positions.
        step: a part's positions are a multiple of it; the last part may have fewer.
        least: positions below which a part is not worth a program.

    Returns:
        The number of parts and the positions of each.
    """
    parts = max(1, min(FILL // programs, -(-n // least)))
    span = -(-n // (parts * step)) * step
    return -(-n // span), span


def registers(x: Tensor, four_bytes: int) -> dict[str, int]:
    """Launch options: a bound on registers for float32 data.

    The bound is rarely reached. Without it the assembler aims at an occupancy of its own and spills to reach it.
    """
    return dict(maxnreg=four_bytes) if x.element_size() == 4 else {}


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
