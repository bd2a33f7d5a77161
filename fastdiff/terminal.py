"""The one place where words reach a terminal, or whatever the standard streams are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import click
from tqdm import tqdm

from fastdiff.errors import printable


def say(text: str, *, err: bool = False) -> None:
    """A line, above any bar, whatever it quotes of a file or of the user; err: on the standard error."""
    with tqdm.external_write_mode(), heard() if err else nullcontext():
        click.echo(printable(text), err=err)


def note(text: str) -> None:
    """A line that goes with a result and is no part of it."""
    say(f"note: {text}", err=True)


def show(text: str, *, newline: bool = True) -> None:
    """Lines that fastdiff made and that are printable as they are: a report, JSON, a script."""
    click.echo(text, nl=newline)


@contextmanager
def heard() -> Iterator[None]:
    """What is said on the standard error within; where nobody can hear it, the work goes on all the same."""
    try:
        yield
    except OSError:
        silence(sys.stderr)


def silence(stream: Any) -> None:
    """Write nothing more to a stream that takes nothing: what its buffer holds would fail again in the end."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_streams() -> None:
    """Have a standard stream in the place of each that the caller closed: the next file that is opened would be it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(nowhere, "r" if number == 0 else "w", closefd=nowhere > 2))
