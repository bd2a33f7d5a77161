"""Plain values out of files: JSON that is read within bounds, and values of the types that their reader expects."""

from __future__ import annotations

import functools
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Gt, Lt
from typing_extensions import TypedDict

from fastdiff.errors import InputError, first_line, shown
from fastdiff.files import open_regular

Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
MOST_NESTED = 2**18  # lists and objects in a JSON text, each of which takes a hundred bytes and more
ERRORS = 1000  # wrong entries that are looked at one by one
LARGEST_TEXT = 2**28  # bytes of a text that is read whole; a manifest with long contexts has millions


def check(kind: Any, value: Any, where: str) -> Any:
    """The value, if it has the type.

    Args:
        kind: a type as pydantic knows them, such as a TypedDict; it is strict: True is no number, and 4.0 no integer.
        value: plain values.
        where: the file, for messages.

    Raises:
        InputError: that names the first wrong entry, its value and what is accepted.
    """
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        if error.error_count() > ERRORS:
            raise InputError(f"{where} has {error.error_count():,} entries of other types than accepted") from None
        wrong = error.errors(include_url=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        if wrong["type"] == "missing":
            raise InputError(f"{where} lacks {place}") from error
        has = f"has {place} =" if place else "is"
        raise InputError(f"{where} {has} {shown(wrong['input'])}; {_accepted(wrong['msg'])}") from error
    return value


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keyword arguments, if a function or a class takes them by its annotations; raises InputError as `check`.

    Lists become tuples, for which JSON has no word of its own; either is a Sequence.
    """
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return dict(check(_keywords(function), given, where))


@functools.cache
def _keywords(function: Callable[..., Any]) -> Any:
    """The type of a function's keyword arguments."""
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    fields = {
        name: hints[name] if one.default is one.empty else NotRequired[hints[name]]
        for name, one in inspect.signature(function).parameters.items()
    }
    made = TypedDict("Keywords", fields)  # type: ignore[misc, operator]
    setattr(made, "__pydantic_config__", {"extra": "forbid"})  # noqa: B010, mypy does not know it of a TypedDict
    return made


class First:
    """In an annotation of a list: that only the first wrong item is told of, since there may be millions."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), "fail_fast": True}


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _accepted(message: str) -> str:
    """pydantic's "Input should be a valid integer", in the words of other messages."""
    return f"accepted: {message.removeprefix('Input should be ')}"


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text holds; raises InputError for one that is damaged, too deep, or has too large whole numbers."""
    opening: Any = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    nested = sum(text.count(one) for one in opening)
    if nested > MOST_NESTED:
        raise InputError(f"{where} holds {nested:,} lists and objects; accepted: up to {MOST_NESTED:,}")
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not whole JSON ({first_line(error)})") from error


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the number {shown(text)}, which has more than 64 bits")
    return int(text)


def read_text(path: Path) -> str:
    """A text in UTF-8 out of a regular file; raises InputError for one that cannot be read."""
    with open_regular(path) as file:
        data = file.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise InputError(f"{str(path)!r} has more than {LARGEST_TEXT:,} bytes, too many for a text")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not text in UTF-8") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises InputError as read_text and parse_json."""
    return parse_json(read_text(path), repr(str(path)))
