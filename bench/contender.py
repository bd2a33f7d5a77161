"""What a contender is, to the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor

# What users get; the names of its other ways to run begin with it.
FASTDIFF = "fastdiff"
PUBLISHED, TUNED, COMPILED, AUTOTUNED = "reference", "eager, tuned", "torch.compile", "torch.compile, max-autotune"
ONNXRUNTIME, DIFFUSERS = "ONNX Runtime", "diffusers' scheduler"
TO_EXPORT = ("onnx", "onnxruntime")  # packages


class Role(StrEnum):
    """What a contender is in its case."""

    REFERENCE = "reference"
    PEER = "peer"
    COMPILED = "compiled"  # by torch.compile, the bar that fastdiff is held to
    OTHER_NETWORK = "other network"  # of another library: about as many parameters, and no claim of parity
    FASTDIFF = "fastdiff"


class Status(StrEnum):
    """What became of a row; all but MEASURED have a reason."""

    MEASURED = "measured"
    REFUSED = "refused"  # its result differs from the reference's
    NO_REFERENCE = "no reference"
    NOT_COMPILED = "not compiled"  # torch.compile would take minutes, and was not to
    MISSING = "missing"  # a package that is not installed
    FAILED = "failed"


def nothing() -> None:
    pass


def end_of(device: torch.device) -> Callable[[], Any]:
    """Ready.end for calls that only launch work on that device."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else nothing


def captured(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """So that launches are not measured: on CUDA a graph's replay of `run`, which allocates nothing anew; elsewhere
    `run` itself."""
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


@dataclass
class Ready:
    """A prepared contender.

    Attributes:
        run: What is timed: `calls` calls of the case.
        outputs: Its result on the case's shared inputs and noise; None where it has nothing to compare.
        exact: Of the reference alone, what all results are compared with, where that is not its own.
        end: Waits until the work of the calls before it is done, where they do not.
        facts: Columns of its row, complete once it has run.
    """

    run: Callable[[], Any]
    outputs: Callable[[], Tensor] | None = None
    exact: Callable[[], Tensor] | None = None
    end: Callable[[], Any] = nothing
    calls: int = 1
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Contender:
    """Who takes part in a case; of a case's contenders the reference comes first.

    Attributes:
        make: Does what a user does once, and may fail.
        precision: What it computes in, where that is not the case's dtype.
        needs: Packages without which it cannot run.
        against: Whose time its ratio has above its own, if not the reference's.
    """

    name: str
    make: Callable[[], Ready]
    role: Role = Role.PEER
    precision: str | None = None
    needs: tuple[str, ...] = ()
    against: str | None = None
