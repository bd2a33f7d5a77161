"""Triton kernels compiled before they are launched, several at a time; a first launch compiles one while all wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from typing import Any

import torch

from fastdiff.kernels.dispatch import withholding


def compile_ahead(
    run: Callable[[], None],
    device: torch.device,
    workers: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Compile what run() launches through dispatch.launch, in threads; returns how many kernels that were.

    Nothing is launched: what operators give back within run is whatever lies in memory, and run must not look at it.
    workers: threads, one a processor unless given. progress(done, total) is called after each kernel. Those that this
    process has compiled are passed over, and those in Triton's cache on disk are read from it.
    """
    import triton

    def compile(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kernel.warmup(*args, grid=grid, **options)

    here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, triton.AsyncCompileMode(pool) as mode, here:
        with withholding(compile):
            run()
        total = len(mode.raw_futures)
        for done, _ in enumerate(as_completed(mode.raw_futures), start=1):
            progress(done, total)
    return total
