"""Compilation of the Triton kernels of a network or a step before it runs, with a bar where it takes long."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tqdm.auto import tqdm

from fastdiff.engine.placement import out_of_memory
from fastdiff.kernels.ahead import compile_ahead


def compile_kernels(run: Callable[[], object], device: torch.device) -> None:
    """Compile what run() would launch; see kernels.ahead.compile_ahead."""

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update()

    with tqdm(desc="compiling Triton kernels", unit="kernel", delay=1, leave=False) as bar:
        try:
            compile_ahead(run, device, progress=show)
        except Exception as problem:
            if not out_of_memory(problem):  # in which case the batch is halved when it runs
                raise
