"""Where and in which precision a network runs."""

from __future__ import annotations

import torch

from fastdiff.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; None is the CUDA device if there is one, else the CPU.

    Returns:
        The device, CUDA's with its index: "cuda" alone would mean whichever is current when it is used.

    Raises:
        InputError: for a device that cannot be used here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type in ("cpu", "cuda"):
            return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError, TypeError):
        pass
    available = "cpu, cuda" if torch.cuda.is_available() else "cpu"
    raise InputError(f"device = {str(device)!r} cannot be used here; available: {available}")


def choose_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype asked for, float32 for None; raises InputError unless it is one of DTYPES."""
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r}; accepted: {', '.join(map(str, DTYPES))}")
    return dtype


def out_of_memory(problem: Exception) -> bool:
    """Whether an allocation failed; torch has no error of its own for that on the CPU."""
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)
