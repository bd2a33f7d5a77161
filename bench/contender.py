"""What a contender is, to the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

FASTDIFF = "fastdiff"  # what users get; the names of its other forms begin with it


def nothing() -> None:
    pass


def end_of(device: torch.device) -> Callable[[], Any]:
    """Ready.end for calls that only launch work on that device."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else nothing


@dataclass
class Ready:
    """A contender that has been prepared.

    run: one call of what is timed; end: waits until the work of the calls before it is done, where they do not.
    outputs: what is compared with the reference's, from the case's shared inputs and noise; None where nothing can be
    compared. told: facts for its row.
    """

    run: Callable[[], Any]
    outputs: Callable[[], Tensor] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    end: Callable[[], Any] = nothing


@dataclass
class Contender:
    """make() does what a user does once, and may fail. other_network: one of another library, of similar size.

    precision: what it computes in where that is not the case's dtype.
    """

    name: str
    make: Callable[[], Ready]
    other_network: bool = False
    precision: str | None = None
