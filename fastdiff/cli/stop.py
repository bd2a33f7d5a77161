"""Ctrl-C and a polite kill, for commands that save what they have."""

from __future__ import annotations

import signal
from typing import Any

INTERRUPTED = 130  # the exit code that shells report for a command that Ctrl-C ended


class StopSignal:
    """Within it, Ctrl-C or a polite kill only asks: a step is never cut in half, so what is saved is consistent.

    A second one of the same kind raises KeyboardInterrupt at once. (torchrun follows Ctrl-C by a polite kill.)

    Attributes:
        asked: whether a stop was asked for.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if number in self._seen:
            raise KeyboardInterrupt
        self._seen.add(number)

    @property
    def asked(self) -> bool:
        return bool(self._seen)

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
