"""Statistics of a sample's parts: (count, mean, M2), M2 the sum of squared distances from the mean.

What writes a picture knows its tiles' statistics, from which a norm follows without another pass. Parts are merged by
Chan's formula (Chan, Golub and LeVeque 1983): no difference of large sums.
"""

from __future__ import annotations

import torch
from torch import Tensor


def statistics_of(x: Tensor, emit: str) -> Tensor:
    """Those of images, as one part: (B, 1, 3) if emit is "whole", (B, 1, C, 3) if "channels"; at least float32."""
    v = x.flatten(1)[:, None] if emit == "whole" else x.flatten(2)[:, None]
    v = v.to(torch.promote_types(x.dtype, torch.float32))
    mean = v.mean(-1)
    m2 = (v - mean[..., None]).square().sum(-1)
    return torch.stack((torch.full_like(mean, v.shape[-1]), mean, m2), dim=-1)


def merged(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """(B, parts, ..., 3) → mean and biased variance over the parts, (B, ...)."""
    n, mean, m2 = statistics.unbind(-1)
    count = n.sum(1)
    whole = (n * mean).sum(1) / count
    return whole, (m2 + n * (mean - whole[:, None]).square()).sum(1) / count
