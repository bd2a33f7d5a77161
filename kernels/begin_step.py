"""What a sampler's step begins with: x as the network takes it, and the row of all that depends on the time alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels.dispatch import use_triton


def begin_step(
    x: Tensor,
    index: Tensor,
    current: Tensor,
    dtype: torch.dtype,
    history: Tensor | None = None,
    twice: bool = False,
    table: Tensor | None = None,
    row: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Copy what step `index` reads, so that the index may move on before the step has ended. Not differentiable.

    Args:
        x: (n, C, H, W) float32, any memory format.
        index: () int64 on x's device, the row at hand.
        current: as index, overwritten with it.
        dtype: of the network.
        history: (k, n, C, H, W) float32, a ring, of which the network is given place (index - 1) % k as well, what the
            row before remembered; or None.
        twice: whether each picture is wanted twice, in two halves, as with guidance.
        table: (R, bytes) uint8, contiguous, bytes a multiple of 16; comes with row.
        row: (1, bytes) uint8, likewise, overwritten with the table's row `index`.

    Returns:
        x, and with a history what the row before remembered: (n, C, H, W) or (2 n, C, H, W), dtype, channels_last; in
        plain torch perhaps x itself.
    """
    if use_triton(x):
        from fastdiff.kernels import begin_step_triton

        return begin_step_triton.forward(x, index, current, dtype, history, twice, table, row)
    images = [x]
    if history is not None:
        images.append(history.index_select(0, (index - 1).remainder(len(history)).reshape(1))[0])
    if table is not None and row is not None:
        torch.index_select(table, 0, index.reshape(1), out=row)
    current.copy_(index)
    cast = [one.to(dtype=dtype, memory_format=torch.channels_last) for one in images]
    return tuple(torch.cat((one, one)) if twice else one for one in cast)
