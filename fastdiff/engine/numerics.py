"""How torch computes while engines run: float32 as float32, and cuDNN by the same algorithms in every process.

torch keeps these settings for the process, not for a thread. So they are counted: the first engine that runs makes
them, the last one that ends puts back what was there before. Until then they hold for the process's other threads too.
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

# In the order of writing. The older names come first, since writing them writes some of the newer ones too; they are
# among these at all because torch refuses to read them where the newer ones say otherwise, and a network may do that.
_SETTINGS = (
    _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _attribute(_cudnn, "allow_tf32", False),
    _attribute(_cuda.matmul, "fp32_precision", "ieee"),
    _attribute(_cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    _attribute(_cudnn.rnn, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    _attribute(_mkldnn.matmul, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    _attribute(_mkldnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    # Some of cuDNN's algorithms add in an order that changes from run to run, and a choice by timing (benchmark) may
    # differ between processes; the choice by its heuristics does not.
    _attribute(_cudnn, "deterministic", True),
    _attribute(_cudnn, "benchmark", False),
)

CUDNN_ALGORITHMS = "deterministic, chosen by heuristics"  # for manifests

_lock = threading.Lock()
_inside = 0
_before: list[tuple[_Setting, Any]] = []


@contextmanager
def fixed_numerics() -> Iterator[None]:
    """Within it, in every thread: no TF32 or bfloat16 in float32's place, and deterministic cuDNN without timing."""
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
    """The settings with their values; without those of the older names that torch refuses to read as things are."""
    found = []
    for setting in _SETTINGS:
        try:
            found.append((setting, setting.read()))
        except RuntimeError:
            continue
    return found
