"""Calls as a CUDA graph, so that launching them is not measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def captured(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """On CUDA a replay of `run`, which allocates nothing anew; elsewhere `run` itself."""
    run()  # compiles, chooses algorithms
    if device.type != "cuda":
        return run
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay
