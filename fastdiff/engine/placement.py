"""Where, in which precision and by how many threads a network runs. Imports torch when something is chosen."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from fastdiff.errors import InputError, check_int

if TYPE_CHECKING:  # the command line reads names without torch
    import torch

DTYPES = ("float32", "bfloat16", "float16")  # by torch's names
MANY_THREADS = 256  # so that a run of a larger machine goes on here with the same bits; four a core where that is more
NO_MEMORY = (  # what torch, oneDNN and MKL say
    *("can't allocate memory", "Storage size calculation overflowed", "could not create a primitive"),
    *("could not create a memory object", "std::bad_alloc"),
)


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; None is the CUDA device if there is one, else the CPU.

    Returns:
        The device, CUDA's with its index: "cuda" alone would mean whichever is current when it is used.

    Raises:
        InputError: for a device that cannot be used here, or kernels (FASTDIFF_KERNELS) that it cannot run.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        found = torch.empty(0, device=chosen).device if chosen.type in ("cpu", "cuda") else None
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError):
        found = None
    if found is None:
        available = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise InputError(f"device = {str(device)!r} cannot be used here; available: {available}")
    _check_kernels(found)
    return found


def _check_kernels(device: torch.device) -> None:
    """Raises InputError unless the operators' implementation that was chosen runs there."""
    import torch

    from fastdiff.kernels.dispatch import triton_for

    try:
        triton_for(device, torch.float32)
    except ValueError as error:
        raise InputError(f"FASTDIFF_KERNELS: {error}") from error


def check_threads(threads: int, name: str = "threads") -> int:
    """The number of CPU threads, if it is one that a machine like this can start; raises InputError."""
    return check_int(name, threads, 1, max(MANY_THREADS, 4 * (os.cpu_count() or 1)))


def set_threads(threads: int | None) -> None:
    """Set how many threads torch's operations and the C kernels take; None leaves what OMP_NUM_THREADS says."""
    import torch

    if threads is None:
        check_threads(torch.get_num_threads(), "OMP_NUM_THREADS")
    else:
        torch.set_num_threads(check_threads(threads))


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
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in NO_MEMORY)
