"""Ctrl-C and a polite kill, for commands that save what they have."""

from __future__ import annotations

import signal
from typing import Any

INTERRUPTED = 130  # the exit code that shells report for a command that Ctrl-C ended


class StopSignal:
    """Within it, Ctrl-C or a polite kill only asks: a step is never cut in half, so what is saved is consistent.

    A second one raises KeyboardInterrupt at once.

    Attributes:
        asked: Whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
