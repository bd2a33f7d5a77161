"""Where and in which precision a network runs. Imports torch when something is chosen."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from fastdiff.errors import InputError

if TYPE_CHECKING:  # the command line reads names without torch
    import torch

DTYPES = ("float32", "bfloat16", "float16")  # by torch's names


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; None is the CUDA device if there is one, else the CPU.

    Returns:
        The device, CUDA's with its index: "cuda" alone would mean whichever is current when it is used.

    Raises:
        InputError: for a device that cannot be used here.
    """
    import torch

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
    import torch

    accepted = [getattr(torch, name) for name in DTYPES]
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in accepted:
        raise InputError(f"dtype = {dtype!r}; accepted: {', '.join(map(str, accepted))}")
    return dtype


@cache
def ready_for_forks() -> None:
    """A process that is forked lacks the threads of torch's own operations, which would wait for them: it has one."""
    import torch

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def out_of_memory(problem: Exception) -> bool:
    """Whether an allocation failed; torch has no error of its own for that on the CPU."""
    import torch

    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)
