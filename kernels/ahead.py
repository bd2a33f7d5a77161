"""Compilation of Triton kernels ahead of their launches, several at once; first launches compile one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from typing import Any

import torch

from fastdiff.kernels.dispatch import withholding


def compile_ahead(
    run: Callable[[], object],
    device: torch.device,
    workers: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Compile, in threads, every kernel that run() would launch through dispatch.launch.

    Kernels that this process has already compiled are skipped; those in Triton's cache on disk are read from it.

    Args:
        run: calls the operators. Nothing is launched, so their results are uninitialised memory, which run must not
            read.
        device: where the kernels are to run.
        workers: threads; None is one for each processor.
        progress: progress(done, total) is called after each kernel.

    Returns:
        How many kernels were compiled.
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
