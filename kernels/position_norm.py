"""Norms over the channels of each position, as networks write them out: LayerNorm, and RMSNorm by F.normalize.

Ba, Kiros and Hinton, "Layer normalization" (2016): (x - mean) / sqrt(var + eps). Zhang and Sennrich, "Root mean square
layer normalization" (2019), as denoising-diffusion-pytorch has it: x / max(|x|, eps), the factor sqrt(C) in the weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.dispatch import use_triton
from fastdiff.kernels.group_norm import FUNCTIONS, MAX_CHANNELS


def position_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    after: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """after(n(x) weight + bias) + residual: what a captured network's norms over channels become.

    Args:
        x: (B, C, H, W).
        weight: (1, C, 1, 1), or None.
        bias: likewise.
        eps: above 0.
        centred: n(x) is (x - mean) / sqrt(var + eps), biased variance; else x / max(|x|, eps).
        after: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as x, or None.

    Returns:
        (B, C, H, W); from Triton in channels_last.
    """
    if use_triton(x) and x.shape[1] <= MAX_CHANNELS:
        from fastdiff.kernels import channel_norm_triton

        return channel_norm_triton.forward(x, weight, bias, eps, centred, after, residual)
    if centred:
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        y = (x - mean) * (var + eps).rsqrt()
    else:
        y = F.normalize(x, dim=1, eps=eps)
    y = y if weight is None else y * weight
    y = FUNCTIONS[after](y if bias is None else y + bias)
    return y if residual is None else y + residual
