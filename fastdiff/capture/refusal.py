"""What cannot be recorded, by the user's line that does it."""

from __future__ import annotations

import linecache
import os
import sys
from pathlib import Path
from types import FrameType

import torch


class NotRecordableError(Exception):
    """Why an evaluation cannot be recorded, with the user's line that does it."""

    @classmethod
    def at(cls, what: str, line: tuple[str, int] | None) -> NotRecordableError:
        """The error for what is done in a line of a file, as in node.meta["line"]."""
        return cls(what if line is None else f"{what}, in {_quoted(*line)}")


_NOT_THE_USERS = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).parent) + os.sep)


def users_line() -> tuple[str, int] | None:
    """File and line of the innermost frame that is neither torch's nor of this folder."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def _quoted(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    return f"{Path(file).name}, line {line}" + (f": {text}" if text else "")
