"""Checks of operators' arguments before any launch; a failed one raises a ValueError of one sentence."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = (None, "gelu", "gelu_tanh", "silu", "relu")


def tensors(operator: str, **given: Tensor | None) -> None:
    """All tensors are floating point and on one device; None is skipped."""
    device: torch.device | None = None
    for name, tensor in given.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{operator}: {name} is {found}; accepted: a floating-point tensor")
        device = tensor.device if device is None else device
        if tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device} and the others on {device}")


def images(operator: str, x: Tensor, name: str = "x") -> None:
    """x is (B, C, H, W) and not empty."""
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"{operator}: {name} has shape {tuple(x.shape)}; accepted: (B, C, H, W), none of them 0")


def shape(operator: str, name: str, tensor: Tensor | None, *accepted: tuple[int, ...]) -> None:
    """The tensor has one of the accepted shapes; None is skipped."""
    if tensor is not None and tuple(tensor.shape) not in accepted:
        wanted = " or ".join(map(str, dict.fromkeys(accepted)))
        raise ValueError(f"{operator}: {name} has shape {tuple(tensor.shape)}; accepted: {wanted}")


def integers(
    operator: str, name: str, tensor: Tensor | None, dtypes: tuple[torch.dtype, ...], *accepted: tuple[int, ...]
) -> None:
    """The tensor has one of these integer types and one of the accepted shapes; None is skipped."""
    if tensor is None:
        return
    if tensor.dtype not in dtypes:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{operator}: {name} is {tensor.dtype}; accepted: {wanted}")
    shape(operator, name, tensor, *accepted)


def per_sample(operator: str, name: str, tensor: Tensor | None, batch: int, channels: int) -> None:
    """The tensor is (B, C), (1, C), (B, C, 1, 1) or (1, C, 1, 1); None is skipped."""
    sizes = [(n, channels) for n in (batch, 1)]
    shape(operator, name, tensor, *sizes, *((*s, 1, 1) for s in sizes))


def activation(operator: str, name: str, value: str | None) -> None:
    """The value is one of ACTIVATIONS."""
    if value not in ACTIVATIONS:
        raise ValueError(f"{operator}: {name} = {value!r}; accepted: {', '.join(map(str, ACTIVATIONS))}")
