"""Where and in which precision a network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastdiff.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or the CUDA device where there is one, else the CPU.

    Raises InputError for one that cannot be used here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type in ("cpu", "cuda"):
            torch.empty(0, device=chosen)
            return chosen
    except (RuntimeError, AssertionError, TypeError):
        pass
    available = "cpu, cuda" if torch.cuda.is_available() else "cpu"
    raise InputError(f"device = {str(device)!r} cannot be used here; available: {available}")


def choose_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """float32 unless one is given; raises InputError for one that networks do not run in."""
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r}; accepted: {', '.join(map(str, DTYPES))}")
    return dtype


def out_of_memory(problem: Exception) -> bool:
    """Whether an allocation failed; torch has no error of its own for that on the CPU."""
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Within it float32 means float32: cuDNN's convolutions would use TF32 (10 bits of mantissa) by default."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
