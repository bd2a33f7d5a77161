"""How commands end that are cut short: by Ctrl-C, a polite kill (SIGTERM) or a terminal that closes (SIGHUP).

All end with 130, the code that shells report for Ctrl-C. Imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INTERRUPTED = 130
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SAME_WISH_SECONDS = 1.0

Handler = Callable[[int, FrameType | None], object]


def _listen(handler: Handler | signal.Handlers) -> dict[int, Any]:
    """Have the handler get the signals, but SIGHUP under nohup, and none in a thread; returns who got them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [one for one in SIGNALS if one == signal.SIGINT or signal.getsignal(one) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """A context in which the handler gets the signals."""
    before = _listen(handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Interrupter:
    """A handler that raises KeyboardInterrupt, but not again within a second of the last.

    Impatient users, terminals and torchrun send several; what the first one has cleaned up is not to be cut short.
    """

    def __init__(self) -> None:
        self._last = -SAME_WISH_SECONDS

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= SAME_WISH_SECONDS:
            self._last = now
            raise KeyboardInterrupt


def quit_at_once() -> None:
    """Have the signals end the process as it stands, where there is nothing to save or to clean up."""

    def quit(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, b"stopped\n")
        os._exit(INTERRUPTED)

    _listen(quit)


def ignore() -> None:
    """Have the signals do nothing more, while a process whose work is over takes its leave."""
    _listen(signal.SIG_IGN)


class StopSignal:
    """Within it, a signal only asks: a step is never cut in half, so what is saved is consistent.

    A second one of the same kind raises KeyboardInterrupt at once. (torchrun follows Ctrl-C by a polite kill.)

    Attributes:
        asked: whether a stop was asked for.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._interrupt = Interrupter()
        self._handled = handled_by(self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number in self._seen:
            self._interrupt(number, frame)
        self._seen.add(number)

    @property
    def asked(self) -> bool:
        return bool(self._seen)

    def __enter__(self) -> StopSignal:
        self._handled.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._handled.__exit__(None, None, None)
