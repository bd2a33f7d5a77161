"""One sampler step: from the network's output to the next x.

x0 = clip(p x + q out)
x  <- a x + b x0 + c x0_prev + s noise
"""

from __future__ import annotations

import torch
from torch import Tensor


def clip_x0(x0: Tensor, clip: None | float | tuple[str, float]) -> Tensor:
    """Clip the predicted clean image, (n, ...) float32.

    A float clamps to [-clip, clip]. ("dynamic", quantile) is dynamic thresholding (Saharia et al. 2022, Imagen,
    section 2.3): for each sample s = max(1, quantile of |x0|), clamp to [-s, s], divide by s.
    """
    if clip is None:
        return x0
    if isinstance(clip, tuple):
        s = torch.quantile(x0.abs().flatten(1), clip[1], dim=1).clamp(min=1.0)
        s = s.view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-s, s) / s
    return x0.clamp(-clip, clip)


def denoise_step(
    x: Tensor,
    out: Tensor,
    row: tuple[float, float, float, float, float, float],
    x0_prev: Tensor | None = None,
    noise: Tensor | None = None,
    clip: None | float | tuple[str, float] = None,
) -> tuple[Tensor, Tensor]:
    """The update of one table row, in float32.

    x: (n, C, H, W) float32; out: the network's output, same shape, any float dtype; row: (p, q, a, b, c, s).
    x0_prev is needed only where c != 0 and noise only where s != 0. Returns (next x, x0).
    """
    p, q, a, b, c, s = row
    x0 = clip_x0(x * p + out.to(x.dtype) * q, clip)
    nxt = x * a + x0 * b
    if c:
        if x0_prev is None:
            raise ValueError("the row has c != 0 and needs x0_prev")
        nxt = nxt + x0_prev * c
    if s:
        if noise is None:
            raise ValueError("the row has s != 0 and needs noise")
        nxt = nxt + noise * s
    return nxt, x0
