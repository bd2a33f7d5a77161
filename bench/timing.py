"""Contenders take turns: the timer, and what a ratio over rounds is worth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

PAUSE = 0.02  # between turns: worker threads of the one before spin on for a while
TURN = 0.05  # seconds that a turn takes at least
RESAMPLES = 2000

Call = Callable[[], Any]  # ends when its result is there: on the host, or after a synchronisation


def timed(call: Call, calls: int = 1, end: Call = lambda: None) -> float:
    """Seconds of one call, the mean of so many in a row; `end` waits for their results."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    for _ in range(calls):
        call()
    end()
    return (time.perf_counter() - began) / calls


def repeats(seconds: float) -> int:
    """Calls of that length in a turn."""
    return max(1, math.ceil(TURN / max(seconds, 1e-9)))


def in_turns(
    calls: Mapping[str, Call], rounds: int, on_turn: Callable[[str, float], object] = lambda name, seconds: None
) -> dict[str, list[float]]:
    """Seconds of a call by name, one number a round; each was called before. Every other round goes backwards."""
    counts = {name: repeats(timed(call)) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            taken[name].append(timed(calls[name], counts[name]))
            on_turn(name, taken[name][-1])
    return taken


def ratio(slow: list[float], fast: list[float]) -> list[float]:
    """[median, low, high] of the rounds' slow / fast: the median's 95% bootstrap interval over rounds.

    Both of a round ran within the same moment, so that what else the machine does cancels in their quotient.
    """
    ratios = np.array([a / b for a, b in zip(slow, fast, strict=True)])
    picked = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picked], axis=1), (0.025, 0.975))
    return [float(f"{r:.4g}") for r in (statistics.median(ratios.tolist()), low, high)]
