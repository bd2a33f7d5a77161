"""The one error that bad input raises, the helpers that word it, and warnings that point at the caller."""

from __future__ import annotations

import difflib
import math
import operator
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any

FLOAT32_MAX = (2 - 2**-23) * 2.0**127


class InputError(ValueError):
    """Bad input: one sentence that names the offending value and what is accepted.

    The command line prints it without a traceback and exits with code 2.
    """


class NotFinite(UserWarning):  # noqa: N818, it is a warning
    """Images hold NaN or infinity. `warnings.simplefilter("error", fastdiff.NotFinite)` makes it an error."""


def install(extra: str) -> str:
    """The command that brings an extra's packages, for error messages; the package is not on PyPI yet."""
    return f"pip install '.[{extra}]' in the clone of fastdiff"


def unknown_name(kind: str, value: object, accepted: Iterable[str]) -> InputError:
    """An InputError for a name that is not among those accepted, with the nearest one suggested."""
    names = list(accepted)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {shown(value)}; accepted: {', '.join(names)}{hint}")


def wrong_type(name: str, value: object, accepted: str) -> InputError:
    """An InputError for a value of another type, shown as it is where that is short, else by its type."""
    text = repr(value)
    text = text if len(text) <= 60 and "\n" not in text else f"a value of type {type(value).__name__}"
    return InputError(f"{name} = {text}; accepted: {accepted}")


def shown(value: object) -> str:
    """A value in a message: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int with low <= value <= high, NumPy's integers too, else an InputError that names it."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        limit = high if high < 2**53 else f"2^63 - {2**63 - high}"
        raise InputError(f"{name} = {value!r}; accepted: a whole number from {low} to {limit}")
    return number


def whole_number(text: str) -> int | None:
    """The number that a text of digits says, below 10^18; else None."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def check_float(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite float with low <= value <= high, else an InputError that names it."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        limits = f"a number from {low:g} to {high:g}" if math.isfinite(low + high) else "a finite number"
        raise InputError(f"{name} = {value!r}; accepted: {limits}")
    return number


def printable(text: str) -> str:
    """The text on one line, with all that is obeyed rather than shown escaped: a file or a user may say anything.

    Those are control characters, line breaks, marks that turn the direction of writing (U+202E), spaces that are none.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(problem: BaseException) -> str:
    """An error's first line, up to 200 of its characters, printable, or its type's name where it says nothing."""
    line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return printable(line if len(line) <= 200 else f"{line[:200]} ...")


def with_type(problem: BaseException) -> str:
    """An error's type and its first line, for errors of other code than fastdiff's."""
    kind, line = type(problem).__name__, first_line(problem)
    return kind if line == kind else f"{kind}: {line}"


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the line outside fastdiff from which it was called, however deep it arises."""
    frame: FrameType | None = sys._getframe(1)
    level = 2  # warnings.warn counts its own caller, this function, as 1
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
