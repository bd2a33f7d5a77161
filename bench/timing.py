"""The one timer: contenders take turns, and what a ratio over rounds is worth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastdiff.bench.contender import Ready

PAUSE = 0.02  # between turns: worker threads of the one before spin on for a while
TURN = 0.05  # seconds that a turn takes at least
RESAMPLES = 2000


def timed(run: Callable[[], Any], times: int = 1, end: Callable[[], Any] = lambda: None) -> float:
    """Seconds of one run, the mean of so many in a row; `end` waits for their results."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    for _ in range(times):
        run()
    end()
    return (time.perf_counter() - began) / times


def repeats(seconds: float) -> int:
    """Runs of that length in a turn."""
    return max(1, math.ceil(TURN / max(seconds, 1e-9)))


class Turns:
    """Contenders by name, and the seconds of one call of each, a number a round."""

    def __init__(self) -> None:
        self.ready: dict[str, Ready] = {}
        self.seconds: dict[str, list[float]] = {}
        self._times: dict[str, int] = {}

    def add(self, name: str, ready: Ready) -> None:
        """Run it once as it will be timed: long calls need no more to be warm, and none to be planned."""
        self._times[name] = repeats(timed(ready.run, end=ready.end))
        self.ready[name], self.seconds[name] = ready, []

    def round(self, turn: int) -> Iterator[tuple[str, Exception]]:
        """Let each run, in every other round backwards; yields those that failed, which are out from then on."""
        for name in list(self.ready)[:: 1 if turn % 2 == 0 else -1]:
            ready = self.ready[name]
            try:
                self.seconds[name].append(timed(ready.run, self._times[name], ready.end) / ready.calls)
            except Exception as problem:
                del self.ready[name], self.seconds[name]
                yield name, problem


def ratio(slow: list[float], fast: list[float]) -> list[float]:
    """[median, low, high] of the rounds' slow / fast: the median's 95% bootstrap interval over rounds.

    Both of a round ran within the same moment, so that what else the machine does cancels in their quotient.
    """
    ratios = np.array([a / b for a, b in zip(slow, fast, strict=True)])
    picked = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picked], axis=1), (0.025, 0.975))
    return [float(f"{r:.4g}") for r in (statistics.median(ratios.tolist()), low, high)]
