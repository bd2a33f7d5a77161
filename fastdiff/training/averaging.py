"""The exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network whose weights and buffers are averages.

    Update 0 copies. In update n = 1, 2, ... a weight becomes k times itself plus 1 - k times the network's, with
    k = min(decay, (1 + n) / (10 + n)), so that the random start is forgotten.

    Args:
        network: in training.
        decay: in [0, 1).

    Returns:
        The average; its update_parameters(network) is an update.
    """

    def average(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        n = float(made.n_averaged)  # count itself, on the CPU: to read it there would wait for the device
        keep = min(decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:  # BatchNorm's count of batches
            torch._foreach_copy_(averages, values)

    made = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    return made
