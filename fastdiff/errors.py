"""The one error that bad input raises, and the helpers that word it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: one sentence that names the offending value and what is accepted.

    The command line prints it without a traceback and exits with code 2.
    """


def unknown(kind: str, value: object, accepted: Iterable[str]) -> InputError:
    """An InputError for a name that is not among those accepted, with the nearest one suggested."""
    names = list(accepted)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {value!r}; accepted: {', '.join(names)}{hint}")
