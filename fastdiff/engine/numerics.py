"""How torch computes while engines run: float32 as float32, and cuDNN by the same algorithms in every process.

torch keeps these settings for the whole process, not per thread. So users are counted: the first engine that runs sets
them, and the last one to end restores what was there. Meanwhile they hold for the process's other threads too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch


class _Setting(NamedTuple):
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    value: Any  # while engines run


def _attribute(place: Any, name: str, value: Any) -> _Setting:
    return _Setting(partial(getattr, place, name), partial(setattr, place, name), value)


_cuda, _cudnn, _mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn

# Written in this order: the older names first, since they overwrite some of the newer ones. The older ones are set at
# all because torch refuses to read them while they contradict the newer ones, and a network may read them.
_SETTINGS = (
    _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _attribute(_cudnn, "allow_tf32", False),
    _attribute(_cuda.matmul, "fp32_precision", "ieee"),
    _attribute(_cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    _attribute(_cudnn.rnn, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    _attribute(_mkldnn.matmul, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    _attribute(_mkldnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    # Some of cuDNN's algorithms add in an order that changes from run to run. A choice by timing (benchmark) may differ
    # between processes; a choice by heuristics does not.
    _attribute(_cudnn, "deterministic", True),
    _attribute(_cudnn, "benchmark", False),
)

CUDNN_ALGORITHMS = "deterministic, chosen by heuristics"  # for manifests

_lock = threading.Lock()
_inside = 0
_before: list[tuple[_Setting, Any]] = []


@contextmanager
def fixed_numerics() -> Iterator[None]:
    """Inside the `with` block: no TF32 or bfloat16 in place of float32, and deterministic cuDNN, in every thread."""
    global _inside
    with _lock:
        if not _inside:
            _before[:] = _read()
            for setting, _ in _before:
                setting.write(setting.value)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for setting, value in _before:
                    setting.write(value)


def _read() -> list[tuple[_Setting, Any]]:
    """The settings with their values, except older names that torch refuses to read at the moment."""
    found = []
    for setting in _SETTINGS:
        try:
            found.append((setting, setting.read()))
        except RuntimeError:
            continue
    return found
